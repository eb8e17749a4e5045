/*
 * The watch thread of the HTTP layer: cuts connections that miss their deadline, notices clients
 * that hang up while their request is suspended, and drains connections that were answered before
 * their upload ended. See us_http.h; the facts about libmicrohttpd are in servers.md section 7.
 *
 * Rates come from the kernel (TCP_INFO), which counts what really crossed the network, for
 * uploads and downloads alike, whatever path the bytes take in this process.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "us_http_int.h"
#include "us_log.h"

#define TICK_MS          250
#define LINGER_NS        2000000000LL
#define LINGER_ROUND_MAX (4 << 20) /* bytes drained per descriptor and tick */

struct us_http_conn *usi_conn_open(struct us_http *h, int fd)
{
    struct us_http_conn *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return NULL;
    c->fd = fd;
    c->phase = USI_HEAD;
    c->since_ns = usi_now_ns();
    (void)pthread_mutex_lock(&h->conn_lock);
    c->next = h->conns;
    c->at = &h->conns;
    if (c->next != NULL)
        c->next->at = &c->next;
    h->conns = c;
    (void)pthread_mutex_unlock(&h->conn_lock);
    return c;
}

/* libmicrohttpd closes its descriptor right after this. Unread input would turn that into a reset
 * which may overtake our reply: a duplicate keeps the socket until the client has read it. */
static void keep_for_linger(struct us_http *h, const struct us_http_conn *c)
{
    if (h->n_linger == USI_MAX_LINGER)
        return;
    int fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return;
    (void)shutdown(fd, SHUT_WR);
    h->linger[h->n_linger++] = (struct usi_linger){fd, usi_now_ns() + LINGER_NS};
}

void usi_conn_close(struct us_http *h, struct us_http_conn *c)
{
    (void)pthread_mutex_lock(&h->conn_lock);
    *c->at = c->next;
    if (c->next != NULL)
        c->next->at = c->at;
    if (c->linger && !c->cut)
        keep_for_linger(h, c);
    (void)pthread_mutex_unlock(&h->conn_lock);
    free(c->uri);
    free(c);
}

static uint64_t moved_bytes(const struct us_http_conn *c)
{
    struct tcp_info info;
    socklen_t n = sizeof(info);
    memset(&info, 0, sizeof(info));
    if (getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &n) != 0)
        return 0;
    return c->phase == USI_REPLY ? info.tcpi_bytes_acked : info.tcpi_bytes_received;
}

void usi_conn_phase(struct us_http *h, struct us_http_conn *c, enum usi_phase phase)
{
    (void)pthread_mutex_lock(&h->conn_lock);
    c->phase = phase;
    c->since_ns = usi_now_ns();
    c->credit_s = (double)h->opt.body_grace_s;
    if (phase == USI_BODY || phase == USI_REPLY)
        c->seen_bytes = moved_bytes(c);
    (void)pthread_mutex_unlock(&h->conn_lock);
}

/* Spends the time since the last tick and earns what the moved bytes are worth. */
static bool too_slow(const struct us_http *h, struct us_http_conn *c, double dt)
{
    if (h->opt.min_rate == 0)
        return false;
    uint64_t moved = moved_bytes(c);
    double earned = (double)(moved - c->seen_bytes) / (double)h->opt.min_rate;
    c->seen_bytes = moved;
    c->credit_s += earned - dt;
    if (c->credit_s > (double)h->opt.body_grace_s)
        c->credit_s = (double)h->opt.body_grace_s;
    return c->credit_s < 0;
}

static bool overdue(const struct us_http *h, struct us_http_conn *c, int64_t now, double dt)
{
    int64_t age = now - c->since_ns;
    switch (c->phase) {
    case USI_HEAD:
        return age > h->opt.header_timeout_s * 1000000000LL;
    case USI_IDLE:
        return age > h->opt.idle_timeout_s * 1000000000LL;
    case USI_BODY:
    case USI_REPLY:
        return too_slow(h, c, dt);
    case USI_WORK:
        break;
    }
    return false;
}

/* A shut-down socket wakes libmicrohttpd, which then ends request and connection. */
static void reap(struct us_http *h, int64_t now, double dt)
{
    int n_cut[USI_IDLE + 1] = {0};
    (void)pthread_mutex_lock(&h->conn_lock);
    for (struct us_http_conn *c = h->conns; c != NULL; c = c->next) {
        if (c->cut || !overdue(h, c, now, dt))
            continue;
        c->cut = true;
        n_cut[c->phase]++;
        (void)shutdown(c->fd, SHUT_RDWR);
    }
    (void)pthread_mutex_unlock(&h->conn_lock);
    int slow = n_cut[USI_HEAD] + n_cut[USI_BODY] + n_cut[USI_REPLY];
    if (slow > 0)
        us_log(US_LOG_INFO,
               "slow connections cut: %d in the request head, %d uploading, %d "
               "downloading",
               n_cut[USI_HEAD], n_cut[USI_BODY], n_cut[USI_REPLY]);
}

/* Reads and drops; true once the peer has closed or its time is over. */
static bool drained(const struct usi_linger *l, int64_t now)
{
    char junk[16384];
    if (now > l->until_ns)
        return true;
    for (int64_t sum = 0; sum < LINGER_ROUND_MAX;) {
        ssize_t n = recv(l->fd, junk, sizeof(junk), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return true;
        if (n < 0)
            return false;
        sum += n;
    }
    return false;
}

static void drain(struct us_http *h, int64_t now)
{
    (void)pthread_mutex_lock(&h->conn_lock);
    for (int i = 0; i < h->n_linger;) {
        if (drained(&h->linger[i], now)) {
            (void)close(h->linger[i].fd);
            h->linger[i] = h->linger[--h->n_linger];
        } else {
            i++;
        }
    }
    (void)pthread_mutex_unlock(&h->conn_lock);
}

void usi_watch_add(struct us_http *h, struct us_http_request *r)
{
    (void)pthread_mutex_lock(&h->watch_lock);
    r->watch_id = h->next_watch_id++;
    r->watch_next = h->watched;
    r->watch_at = &h->watched;
    if (r->watch_next != NULL)
        r->watch_next->watch_at = &r->watch_next;
    h->watched = r;
    struct epoll_event e = {.events = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLONESHOT,
                            .data.u64 = r->watch_id};
    (void)epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, r->conn->fd, &e);
    (void)pthread_mutex_unlock(&h->watch_lock);
}

void usi_watch_remove(struct us_http *h, struct us_http_request *r)
{
    (void)pthread_mutex_lock(&h->watch_lock);
    *r->watch_at = r->watch_next;
    if (r->watch_next != NULL)
        r->watch_next->watch_at = r->watch_at;
    (void)epoll_ctl(h->epoll_fd, EPOLL_CTL_DEL, r->conn->fd, NULL);
    (void)pthread_mutex_unlock(&h->watch_lock);
}

/* The event names its request by number: one that was resumed meanwhile is simply not found.
 * While the lock is held the request cannot be resumed, so that it lives through on_gone. */
static void hang_up(struct us_http *h, uint64_t watch_id)
{
    (void)pthread_mutex_lock(&h->watch_lock);
    for (struct us_http_request *r = h->watched; r != NULL; r = r->watch_next) {
        if (r->watch_id != watch_id)
            continue;
        atomic_store(&r->gone, true);
        h->app.on_gone(h->app.arg, r);
        break;
    }
    (void)pthread_mutex_unlock(&h->watch_lock);
}

static void *watch_loop(void *arg)
{
    struct us_http *h = arg;
    int64_t last = usi_now_ns();
    while (!atomic_load(&h->watch_stop)) {
        struct epoll_event events[32];
        int n = epoll_wait(h->epoll_fd, events, (int)US_COUNT(events), TICK_MS);
        for (int i = 0; i < n; i++)
            hang_up(h, events[i].data.u64);
        usi_stream_round(h);
        int64_t now = usi_now_ns();
        drain(h, now);
        if (now - last >= TICK_MS * 1000000LL) {
            reap(h, now, (double)(now - last) / 1e9);
            last = now;
            atomic_fetch_add(&h->heartbeat, 1);
        }
    }
    return NULL;
}

enum us_status usi_watch_start(struct us_http *h, struct us_err *err)
{
    (void)pthread_mutex_init(&h->conn_lock, NULL);
    (void)pthread_mutex_init(&h->watch_lock, NULL);
    h->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (h->epoll_fd < 0)
        return us_fail(err, US_E_IO, "epoll_create1: %s", strerror(errno));
    US_TRY(usi_stream_start(h, err));
    if (pthread_create(&h->watch_thread, NULL, watch_loop, h) != 0)
        return us_fail(err, US_E_NOMEM, "cannot start the watch thread");
    h->watch_running = true;
    return US_OK;
}

void usi_watch_free(struct us_http *h)
{
    atomic_store(&h->watch_stop, true);
    if (h->watch_running)
        (void)pthread_join(h->watch_thread, NULL);
    usi_stream_free(h);
    if (h->epoll_fd >= 0)
        (void)close(h->epoll_fd);
    for (int i = 0; i < h->n_linger; i++)
        (void)close(h->linger[i].fd);
    (void)pthread_mutex_destroy(&h->watch_lock);
    (void)pthread_mutex_destroy(&h->conn_lock);
}
