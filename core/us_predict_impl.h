/*
 * Internal to the predictor: us_predict.c (settings, what every frame needs), us_predict_grid.c
 * (where tiles lie), and the two routes of a frame:
 *   us_predict_pool.c     worker threads, each with one patch (us_predict_tile.c) and its memory
 *   us_predict_batched.c  the frame in the backend's memory, many patches a run (us_frame_ops.h)
 * The backend decides which; the same pixels come out, to the last bit where the backend's ops give
 * the same bits.
 */
#ifndef US_PREDICT_IMPL_H
#define US_PREDICT_IMPL_H

#include <pthread.h>

#include "us_plan.h"
#include "us_predict.h"
#include "us_pyramid.h"

/* Sizes of tiled prediction (spec 17.1, 17.2), the same for both axes. */
struct us_tiling_geometry {
    int32_t size;    /* side of what the network sees */
    int32_t pad;     /* dropped on each side of its output */
    int32_t grid;    /* side of the tile that is kept: size - 2 pad */
    int32_t samples; /* predictions of each pixel, those of all passes together */
    int32_t passes;  /* over the frame, each on a grid of its own */
};

/* One pass: tiles that cover every pixel once. Those at the border may reach beyond the frame. */
struct us_tiling_pass {
    int64_t y0, x0;     /* top left corner of the first tile, 0 or negative */
    int64_t rows, cols; /* tiles */
    int32_t first, n;   /* its samples: first .. first + n - 1; n >= 1 */
};

struct us_tiling_geometry usi_tiling_geometry(const struct us_model *m,
                                              const struct us_predict_config *cfg);
/* Pass k, 0 <= k < g->passes, of a frame of h x w. */
struct us_tiling_pass usi_tiling_pass(const struct us_tiling_geometry *g, int32_t k, int64_t h,
                                      int64_t w);

/* One call of us_predict_run; the pool's workers share it. */
struct us_predict_job {
    const struct us_pyramid *pyramid;
    struct us_predict_frame *frame;
    struct us_tiling_pass pass; /* constant while workers run */
    _Atomic int64_t next;       /* tile of the pass */
    _Atomic bool stop;          /* a failure or a cancel was seen */
    _Atomic bool paused;        /* somebody else's turn was seen */
    int64_t done, total;        /* patches of all passes; done is under the pool's lock */
    uint64_t seed;
    /* The frame in the backend's memory, and its tiles whose merging is queued: the batched route.
     */
    char *memory;
    size_t memory_bytes;
    int64_t merged;
    enum us_status status;
};

/* One thread with its own memory. */
struct us_worker {
    struct us_predictor *owner;
    pthread_t thread;
    bool started;
    struct us_exec *exec;
    double *mean, *m2;     /* [grid, grid, target_channels]: moments of one tile in one pass */
    enum us_status status; /* of its start */
    struct us_err err;
};

struct us_batched; /* us_predict_batched.c */

struct us_predictor {
    const struct us_model *model;
    struct us_backend *be;
    struct us_predict_config cfg;
    struct us_tiling_geometry geo;
    struct us_net *net; /* own graph where the size differs from the model's, else NULL */
    struct us_plan *plan;
    struct us_batched *batched; /* NULL: the pool */
    struct us_worker *workers;
    int32_t n_workers;

    /* lock guards what follows; busy serialises computing: a call holds it but while it passes its
     * turn on. Lock order: busy, then lock. */
    pthread_mutex_t busy, lock;
    pthread_cond_t wake, idle;
    struct us_predict_job *job;
    uint64_t generation; /* of the job; workers wait for it to change */
    int32_t running;     /* workers not yet back from the current generation */
    bool quit;
};

/* Makes p->plan for so many patches per run; resident as in us_plan.h. */
enum us_status usi_predict_plan(struct us_predictor *p, int32_t batch, bool resident,
                                struct us_err *err) US_WARN_UNUSED;

/* What the latents of a tile draw for one sample. */
struct us_noise usi_predict_noise(const struct us_predictor *p, const struct us_predict_job *job,
                                  int64_t index, int32_t sample);
bool usi_predict_cancelled(const struct us_predict_frame *f);
/* Whether another frame's turn has come; remembers a yes in job->paused. */
bool usi_predict_turn_wanted(struct us_predict_job *job);
/* Gives the turn away and waits for the next; the predictor is free meanwhile. */
void usi_predict_pass_on(struct us_predictor *p, struct us_predict_job *job);

/* The pool: starts its threads; ends them (also after a failed start). */
enum us_status usi_pool_start(struct us_predictor *p, struct us_err *err) US_WARN_UNUSED;
void usi_pool_stop(struct us_predictor *p);
/* Predicts every tile of every pass. The job's pyramid, frame and total are set. */
enum us_status usi_pool_run(struct us_predictor *p, struct us_predict_job *job,
                            struct us_err *err) US_WARN_UNUSED;
/* Predicts tile number `index` of the current pass with the worker's memory. */
enum us_status usi_predict_tile(struct us_worker *w, struct us_predict_job *job,
                                int64_t index) US_WARN_UNUSED;

/* The batched route: makes p->plan for p->cfg.batch patches, which is halved as often as memory
 * demands. */
enum us_status usi_batched_new(struct us_predictor *p, struct us_err *err) US_WARN_UNUSED;
void usi_batched_free(struct us_predictor *p);
/* As usi_pool_run, by the calling thread. */
enum us_status usi_batched_run(struct us_predictor *p, struct us_predict_job *job,
                               struct us_err *err) US_WARN_UNUSED;
/* Backend memory beside plan and frame, and that a frame takes while it is predicted. */
size_t usi_batched_bytes(const struct us_predictor *p);
size_t usi_batched_frame_bytes(const struct us_predictor *p, int64_t h, int64_t w);

#endif
