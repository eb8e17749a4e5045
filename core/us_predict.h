/*
 * Tiled prediction of frames (model-spec 17): normalise, cut patches with lateral context, run the
 * network, keep the centres (inner padding), put the result back in the target's units.
 *
 * On the host a predictor owns a pool of worker threads; one worker = one patch = one thread. A
 * device (us_frame_ops.h) is given a whole frame and many patches a run, by the calling thread.
 * Results depend on model, frame, settings and seed only: never on the number of threads, the batch
 * size or on what else is running.
 */
#ifndef US_PREDICT_H
#define US_PREDICT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "us_backend.h"
#include "us_model.h"

enum us_tiling { US_TILING_INNER = 0, US_TILING_OUTER };
enum us_noise_key { US_NOISE_PATCH = 0, US_NOISE_IMAGE };
/* Where the tiles of a frame meet. SHIFTED deals the samples out to up to 16 passes, each on a
 * grid shifted by its own part of a tile (us_predict_grid.c says by how much), so that no seam
 * has the weight of more than one pass. What does not depend on the sample is computed once per
 * pass instead of once. */
enum us_grid { US_GRID_FIXED = 0, US_GRID_SHIFTED };
enum us_precision { US_PREC_AUTO = 0, US_PREC_F32, US_PREC_BF16 };

struct us_predict_config {
    enum us_precision precision; /* AUTO: bf16 where the backend has it fast, else f32 */
    enum us_tiling tiling;
    int32_t padding;   /* pixels dropped (inner) or added (outer) per side; 0 <= p */
    enum us_grid grid; /* the same for one sample */
    bool latent_mean;  /* instead of sampling; then every pass makes one prediction */
    int32_t samples;   /* posterior samples to average, 1..US_MAX_SAMPLES */
    uint64_t seed;
    enum us_noise_key noise;
    bool want_std; /* also the standard deviation over samples */
    /* Patches that a worker takes at a time, on a device: that one run takes; a device without the
     * memory for so many takes fewer. 0 = choose. */
    int32_t batch;
    int32_t threads; /* 0 = one per available processor; a device is driven by one */
    bool whole_maps; /* compute whole maps (us_plan.h): for the bench and for tests */
    int32_t align;   /* of regions (us_plan.h), likewise */
};

/* Inner tiling, padding and samples as the model file recommends, sample, seed 0, patch noise. */
struct us_predict_config us_predict_defaults(const struct us_model *m);

struct us_predictor; /* model + backend + plan + workers */

/* Opens a predictor. m and be are borrowed and must outlive it. E_ARG names the setting that does
 * not fit the model (padding too large, odd grid, outer padding the network cannot take). */
enum us_status us_predictor_new(const struct us_model *m, struct us_backend *be,
                                const struct us_predict_config *cfg, struct us_predictor **ret,
                                struct us_err *err) US_WARN_UNUSED;
void us_predictor_free(struct us_predictor *p);

struct us_predictor_stats {
    const char *backend;
    enum us_precision precision;
    int32_t threads, batch; /* as they are: chosen, and fitted to memory */
    int32_t grid;           /* side of the tiles, from one seam to the next */
    int32_t passes;         /* over each frame; 1 on a fixed grid */
    /* Memory of the backend: packed_bytes + threads * worker_bytes, now. On a device it holds what
     * was kept of the last frame. */
    size_t packed_bytes, worker_bytes;
    double flops_patch; /* one sample */
};
struct us_predictor_stats us_predictor_stats(const struct us_predictor *p);

/* Number of patches that one frame of h x w takes, those of all passes together. */
int64_t us_predict_n_patches(const struct us_predictor *p, int64_t h, int64_t w);
/* Floating-point operations that it takes, all samples: what its time grows with. */
double us_predict_flops(const struct us_predictor *p, int64_t h, int64_t w);
/* Bytes of the device that hold it while it is predicted, with std if cfg.want_std; 0 on the host,
 * where frame and result stand in the caller's memory. */
size_t us_predict_frame_bytes(const struct us_predictor *p, int64_t h, int64_t w);

/* Turns at the processor, for one that computes several frames at a time. wanted is asked between
 * patches (by any thread, often: it must be cheap) or runs; once it says true the computing stops
 * there, and the calling thread calls pass_on, which returns when the frame is to go on. Meanwhile
 * another call may use the same predictor. No byte depends on it. */
struct us_predict_turns {
    bool (*wanted)(void *arg);
    void (*pass_on)(void *arg);
    void *arg;
};

/*
 * Predicts one frame. in: f32 [h, w]. mean: f32 [target_channels][h][w], required; std: the same
 * shape, or NULL (required if cfg.want_std). Both caller's, every pixel is written; after a failure
 * they hold nothing of use. std is the sample standard deviation (n - 1) over a pixel's
 * predictions, 0 for one.
 *
 * frame_index keys the noise. NaN or infinite pixels are refused: E_FORMAT with the position.
 * cancel (nullable) is polled between patches or runs: E_CANCELLED. progress (nullable) is called
 * from worker threads or the calling one, never concurrently, with patches done and total of this
 * frame. A frame that the device has no memory for: E_NOMEM with what it needs. seed (nullable)
 * stands for the configuration's.
 */
struct us_predict_frame {
    const float *in;
    int64_t h, w;
    uint32_t frame_index;
    float *mean, *std;
    const uint64_t *seed;
    const struct us_predict_turns *turns; /* nullable */
    const atomic_bool *cancel;
    void (*progress)(void *arg, int64_t done, int64_t total);
    void *progress_arg;
    /* Set by the call. */
    int64_t n_clipped; /* input pixels above the clip */
    double seconds;    /* wall time in patches */
};

/* One call at a time per predictor computes (E_BUSY otherwise); one that passed its turn on does
 * not. */
enum us_status us_predict_run(struct us_predictor *p, struct us_predict_frame *f,
                              struct us_err *err) US_WARN_UNUSED;

#endif
