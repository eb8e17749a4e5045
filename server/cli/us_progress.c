/* The progress bar; see us_progress.h. */
#include "us_progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_S   0.1
#define BAR_MAX    40
#define TEXT_WIDTH 60 /* what the numbers beside the bar may take */

static double now_s(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

void us_progress_start(struct us_progress *p, const char *unit, bool quiet)
{
    *p = (struct us_progress){.on = !quiet && isatty(STDERR_FILENO) == 1, .unit = unit};
    p->start_s = p->drawn_s = now_s();
}

static int terminal_width(void)
{
    struct winsize ws;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) != 0 || ws.ws_col == 0)
        return 80;
    return ws.ws_col;
}

/* "1:02:03" or "2:03". */
static void format_seconds(double s, char *buf, size_t n)
{
    unsigned t = s >= 0 && s < 359999 ? (unsigned)(s + 0.5) : 359999;
    if (t >= 3600)
        (void)snprintf(buf, n, "%u:%02u:%02u", t / 3600, t / 60 % 60, t % 60);
    else
        (void)snprintf(buf, n, "%u:%02u", t / 60, t % 60);
}

void us_progress_update(void *arg, int64_t done, int64_t total)
{
    struct us_progress *p = arg;
    if (!p->on || total <= 0)
        return;
    double now = now_s();
    if (now - p->drawn_s < REDRAW_S)
        return;
    p->drawn_s = now;
    double rate = (double)done / (now - p->start_s);
    char left[32] = "-:--";
    if (done > 0)
        format_seconds((double)(total - done) / rate, left, sizeof(left));
    int room = terminal_width() - TEXT_WIDTH;
    int width = room > BAR_MAX ? BAR_MAX : room < 0 ? 0 : room;
    char bar[BAR_MAX + 1];
    memset(bar, '.', sizeof(bar));
    memset(bar, '#', (size_t)((double)done / (double)total * width));
    (void)fprintf(stderr, "\r\033[K%.*s %3d%% %" PRId64 "/%" PRId64 " %s %.1f/s %s left", width,
                  bar, (int)(100 * (double)done / (double)total), done, total, p->unit, rate, left);
    (void)fflush(stderr);
}

void us_progress_end(struct us_progress *p)
{
    if (!p->on)
        return;
    (void)fputs("\r\033[K", stderr);
    (void)fflush(stderr);
    p->on = false;
}
