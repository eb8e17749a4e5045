/* The notification protocol of systemd (sd_notify(3)), by hand: one datagram per message. */
#ifndef US_NOTIFY_H
#define US_NOTIFY_H

#include <stdint.h>

/* Sends "READY=1" and the like to $NOTIFY_SOCKET; does nothing without one. */
void us_notify(const char *message);

/* How often WATCHDOG=1 is due: half of $WATCHDOG_USEC in milliseconds, 0 without a watchdog. */
int64_t us_notify_watchdog_ms(void);

#endif
