/* What the parts of usplitd share: one struct, made in usplitd.c and passed to every route. */
#ifndef US_SERVER_H
#define US_SERVER_H

#include <limits.h>
#include <stdatomic.h>

#include "us_auth.h"
#include "us_backend.h"
#include "us_config.h"
#include "us_datasets.h"
#include "us_http.h"
#include "us_jobs.h"
#include "us_owners.h"
#include "us_predictors.h"
#include "us_registry.h"
#include "us_store.h"
#include "us_telemetry.h"
#include "us_work.h"

struct us_server {
    struct us_config config;
    char models_dir[PATH_MAX / 2], spool_dir[PATH_MAX / 2];
    char datasets_dir[PATH_MAX / 2], jobs_dir[PATH_MAX / 2];
    int lock_fd; /* holds DATA-DIR/lock */
    struct us_backend *backend;
    struct us_backend *train_backend; /* one of its own: both compute at the same time */
    struct us_registry *registry;
    struct us_predictors *predictors;
    struct us_work *work;
    struct us_store *store;
    struct us_auth *auth;
    struct us_owners *owners;
    struct us_datasets *datasets;
    struct us_jobs *jobs;
    struct us_http *http;
    struct us_telemetry metrics;
    int64_t started_s;    /* since 1970 */
    atomic_bool draining; /* new work gets 503 */
    atomic_bool checked;  /* every model found at the start has been read once */
    struct us_task check_task;
    atomic_bool check_running;
};

/* Reads models that appeared in the folder, on a worker, unless that is under way already. */
void us_server_check_models(struct us_server *s);

#endif
