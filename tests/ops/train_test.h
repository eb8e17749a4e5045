/*
 * The conformance test of training's ops (us_train_ops.h). Three kinds of tests, each on every
 * backend that trains:
 *   - forward and gradient of an op against its definition, written here in double and
 *     differentiated by central differences, f32 maps (train_gradient.c, train_loss.c);
 *   - every backend but ref against ref on many shapes, f32 and bf16 maps (train_agree.c);
 *   - what must hold exactly: copies, layouts, masks, aliasing, Adamax (train_exact.c).
 */
#ifndef TRAIN_TEST_H
#define TRAIN_TEST_H

#include "ops_test.h"
#include "us_train_ops.h"

#define TT_MAX_BUFS 32
#define TT_MAX_LENT 16

/* One run on one backend: its device buffers, between guard bands, and host arrays. */
struct tt {
    struct us_backend *be;
    const struct us_backend_ops *ops;
    const struct us_train_ops *t;
    enum us_dtype dtype; /* of maps */
    bool round;          /* random numbers are rounded to bf16 */
    uint64_t state;      /* of the random numbers */
    struct {
        void *base; /* the buffer begins a guard band later */
        size_t bytes;
        unsigned char *want; /* content that must not change; NULL: an output */
    } bufs[TT_MAX_BUFS];
    int n_bufs;
    void *host[TT_MAX_BUFS];
    int n_host;
    void *lent[TT_MAX_LENT];
    int n_lent;
};

/* Opens on the backend of a test, with random numbers that depend on the name. */
void tt_open(struct tt *tt, struct us_backend *be, const char *name);
/* Checks guard bands and inputs, frees all. */
void tt_close(struct tt *tt);

/* Random numbers lo .. hi; freed by tt_close. */
float *tt_uniform(struct tt *tt, int64_t n, double lo, double hi);
/* Zeros; freed by tt_close. */
void *tt_zeros(struct tt *tt, int64_t n, size_t size);
/* A copy of v in host memory that the device reads; freed by tt_close. */
void *tt_lend(struct tt *tt, const void *v, size_t bytes);

/* Device buffers. v NULL: filled with 0xff, which is NaN in every dtype; _io: starts as v and may
 * change; _in: must stay v. */
void *tt_map_in(struct tt *tt, int64_t n, const float *v);
void *tt_map_io(struct tt *tt, int64_t n, const float *v);
float *tt_f32_in(struct tt *tt, int64_t n, const float *v);
float *tt_f32_io(struct tt *tt, int64_t n, const float *v);
double *tt_f64_in(struct tt *tt, int64_t n, const double *v);
double *tt_f64_io(struct tt *tt, int64_t n, const double *v);
void *tt_raw(struct tt *tt, size_t bytes);

/* What they hold, as a host array that tt_close frees. */
float *tt_get_map(struct tt *tt, const void *p, int64_t n);
float *tt_get_f32(struct tt *tt, const void *p, int64_t n);
double *tt_get_f64(struct tt *tt, const void *p, int64_t n);

void tt_ok(enum us_status s, const char *what);

/* A convolution, planned, bound and packed. */
struct tt_conv {
    struct us_tconv *conv;
    struct us_tconv_ctx *ctx;
    void *packed;
};
/* US_E_UNSUPPORTED if plan says so. */
enum us_status tt_conv_open(struct tt *tt, const struct us_tconv_desc *d, const float *w,
                            const float *b, struct tt_conv *c);
void tt_conv_close(struct tt *tt, struct tt_conv *c);

/* ---- comparisons: NaN differs from everything ---- */

/* |got - want| <= tol * largest |want|. Says where and fails otherwise. */
void tt_expect_near(const char *what, int64_t n, const float *got, const double *want, double tol);
/* got[i] is the derivative of loss by x[first + i], i < n, to tol of the largest. */
typedef double tt_loss(const double *x, const void *ctx);
void tt_expect_gradient(const char *what, int64_t n_x, const float *x, int64_t first, int64_t n,
                        tt_loss *loss, const void *ctx, const float *got, double tol);

/* ---- tests; *state is the index of the backend ---- */

struct us_backend *tt_backend(void **state);

void convolutions_have_the_gradients_of_their_definition(void **state);
void batch_norm_with_elu_has_the_gradients_of_its_definition(void **state);
void batch_norm_keeps_running_statistics(void **state);
void a_constant_channel_has_finite_batch_norm(void **state);
void a_variance_below_zero_counts_as_zero(void **state);
void gates_have_the_gradients_of_their_definition(void **state);
void elu_has_the_gradient_of_its_definition(void **state);
void convolutions_that_do_not_fit_are_refused(void **state);

void posteriors_have_the_gradients_of_their_definition(void **state);
void posterior_gradients_include_the_clip_itself(void **state);
void the_samples_mean_is_the_closed_kl(void **state);
void a_deterministic_posterior_passes_means_only(void **state);
void posterior_noise_is_keyed_by_step_and_item(void **state);
void likelihoods_have_the_gradients_of_their_definition(void **state);
void likelihood_gradients_include_the_bound_itself(void **state);

void windows_pad_crop_and_concatenate(void **state);
void the_prior_changes_layout_and_its_gradient_back(void **state);
void dropout_zeroes_channels_at_its_rate(void **state);
void dropout_depends_on_its_key_only(void **state);
void outputs_may_be_the_documented_inputs(void **state);
void lanes_are_summed_in_order(void **state);
void adamax_takes_the_steps_computed_by_hand(void **state);
void conversion_rounds_as_bf16_does(void **state);

/* Against ref; *state is the index of the backend, bf16 maps where the name says so. */
void every_op_agrees_with_ref_in_f32(void **state);
void every_op_agrees_with_ref_in_bf16(void **state);

#endif
