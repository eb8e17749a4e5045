/* Stopping on request; see us_interrupt.h. */
#include "us_interrupt.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

static atomic_bool stop;
static atomic_int stop_signal;

static void on_signal(int signal)
{
    atomic_store(&stop_signal, signal);
    atomic_store(&stop, true);
}

const atomic_bool *us_interrupt_install(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct sigaction old, sa = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
        (void)sigemptyset(&sa.sa_mask);
        /* What the parent ignores (nohup) stays ignored. */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            (void)sigaction(signals[i], &sa, NULL);
    }
    return &stop;
}

int us_interrupt_signal(void)
{
    return atomic_load(&stop_signal);
}
