/*
 * What GET /metrics tells (us_telemetry.def is the list). What happens is counted where it happens,
 * with atomics; what is (queue, jobs, memory) is looked at when somebody asks.
 */
#ifndef US_TELEMETRY_H
#define US_TELEMETRY_H

#include <stdatomic.h>
#include <stdint.h>

#define US_METRIC_BUCKETS    14
#define US_METRIC_MAX_ROUTES 64
#define US_METRIC_CLASSES    5 /* 1xx .. 5xx */

struct us_histogram {
    _Atomic uint64_t bucket[US_METRIC_BUCKETS + 1]; /* not cumulated; the last has no bound */
    _Atomic uint64_t sum_millionths;
};

/* Zero-initialised. */
struct us_telemetry {
    struct us_histogram request[US_METRIC_MAX_ROUTES][US_METRIC_CLASSES];
    struct us_histogram queue_wait, rate;
    _Atomic uint64_t in_bytes, out_bytes, patches, unauthorized, forbidden;
};

/* A request that is over. route: index into us_routes; -1: none. */
void us_telemetry_request(struct us_telemetry *m, int route, int status, double seconds,
                          int64_t in_bytes, int64_t out_bytes);
void us_telemetry_prediction(struct us_telemetry *m, double queue_s, int64_t patches,
                             double compute_s);

#endif
