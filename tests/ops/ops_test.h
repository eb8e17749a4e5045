/*
 * The op conformance test: every case of every op on every backend. A case is a descriptor in f32
 * and what its buffers need; its data comes from a generator seeded with the case's name. `ref` is
 * compared with the op's oracle: a direct definition on whole NCHW maps in double, written apart
 * from the backends. Every other backend is compared with ref.
 */
#ifndef OPS_TEST_H
#define OPS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "us_backend.h"
#include "us_limits.h"

#define OPS_MAX_N 3

union ops_desc {
#define US_OP(name) struct us_##name##_desc name;
#include "us_ops.def"
#undef US_OP
};

/* Not to be copied: in and out point into d. */
struct ops_case {
    char name[128];
    enum us_op_kind kind;
    union ops_desc d;
    struct us_map *in[US_OP_MAX_IN]; /* NULL: the op has no such input */
    struct us_map *out;
    bool tail;
    int64_t n_w, n_b, n_scale; /* floats of weights, bias, tail scale (and shift) */
    int64_t fan_in;            /* weights are uniform with variance 1 / fan_in */
    double spread;             /* inputs are uniform in -spread .. spread */
    bool own_dtypes;           /* the case sets its maps' dtypes itself (copy) */
    bool ties;                 /* inputs have few bits, so that rounding them to bf16 meets ties */
    /* Latents only. */
    bool eps_hook, image_keyed;
    int64_t centre;
};

/* Host memory, f32, maps as compact NHWC. Weights an op lacks are NULL. */
struct ops_data {
    float *in[US_OP_MAX_IN];
    float *w, *b, *scale, *shift;
    struct us_noise noise[OPS_MAX_N];
    float *eps[OPS_MAX_N];
    const float *eps_levels[OPS_MAX_N][US_MAX_LEVELS];
};

struct ops_suite {
    int n_cases;
    void (*get)(int i, struct ops_case *c);
    /* out: zeroed double [n, c, full_h, full_w]; what lies outside out.rect is not looked at. */
    void (*oracle)(const struct ops_case *c, const struct ops_data *data, double *out);
    /* Largest |difference| / largest |expected| by the output's dtype; each suite says why. bf16
     * has 8 significant bits, so one rounding is up to 2^-8 of a value. */
    double tol_f32, tol_bf16;
};

#define US_OP(name) extern const struct ops_suite ops_##name##_suite;
#include "us_ops.def"
#undef US_OP

/* ---- ops_data.c ---- */

/* rect, or the whole map where rect is empty. */
struct us_map ops_map(int32_t n, int32_t h, int32_t w, int32_t c, struct us_rect rect, bool zero);
/* Random numbers lo .. hi, deterministic; caller frees. A name's start of the sequence. */
float *ops_uniform(uint64_t *state, int64_t n, double lo, double hi, bool bf16);
uint64_t ops_seed(const char *name);
/* Fills the data of a case; with bf16 inputs and weights are rounded to bf16 first. */
void ops_data_make(const struct ops_case *c, bool bf16, struct ops_data *d);
void ops_data_free(struct ops_data *d);
/* A map as double [n, c, full_h, full_w]: zero outside the rectangle of a zero_outside map, NaN
 * where it is unknown. Caller frees. */
double *ops_expand(const struct us_map *m, const float *buf);
/* Element of such an array. */
int64_t ops_at(const struct us_map *m, int32_t n, int32_t c, int32_t y, int32_t x);
/* out.rect of the oracle's array as f32 compact NHWC, out [us_map_count]. */
void ops_crop(const struct us_map *m, const double *full, float *out);
/* out2 of the oracle from out's array, in place: ELU(scale * v + shift). */
void ops_oracle_tail(const struct us_map *m, const struct ops_data *d, double *full);
double ops_elu(double x);

/* ---- ops_run.c ---- */

/* What a run left, as f32; out2 NULL without tail. */
struct ops_result {
    float *out, *out2;
};
void ops_result_free(struct ops_result *r);

/*
 * Plans, packs, binds and runs the case (whose maps have their final dtypes) twice, between guard
 * bands. Returns US_OK, or US_E_UNSUPPORTED when plan says so; anything else (a status, a damaged
 * guard, an unwritten output, a changed input, a second run with other bits) prints the case's name
 * and what happened and returns US_E_BACKEND.
 */
enum us_status ops_run(struct us_backend *be, const struct ops_case *c, const struct ops_data *d,
                       struct ops_result *ret);
/* The expected result of a case by its oracle. */
void ops_run_oracle(const struct ops_suite *s, const struct ops_case *c, const struct ops_data *d,
                    struct ops_result *ret);

enum us_status ops_plan(struct us_backend *be, enum us_op_kind kind, const union ops_desc *d,
                        struct us_op **ret, struct us_err *err);
enum us_status ops_check(enum us_op_kind kind, const union ops_desc *d, struct us_err *err);

/* ---- ops_properties.c: what must hold to the bit ---- */

/* Gives the case's maps these dtypes, unless it has its own. */
void ops_set_dtypes(struct ops_case *c, enum us_dtype in, enum us_dtype out);
/* The last item of a batch has the bits that it has alone. True also when not supported. */
bool ops_item_is_the_same_alone(struct us_backend *be, enum us_op_kind kind,
                                const struct ops_suite *s, int i, enum us_dtype dtype);
/* A part of the output, from a part of the input, has the bits that it has in the whole map. */
bool ops_part_is_that_of_the_whole(struct us_backend *be, enum us_op_kind kind,
                                   const struct ops_suite *s, int i, enum us_dtype dtype);
/* Whether the case computes a whole map of at least 4 x 4 from whole maps, and is one for which
 * us_backend.h promises that. */
bool ops_is_whole(const struct ops_case *c);

/* ---- ops_cuda.c: the CUDA backend on the host over libraries that refuse ---- */

/* Takes no padding that differs between the sides of an axis and no epilogue; one item of a batch
 * at a time. */
enum us_status ops_cuda_strict_open(struct us_backend **ret, struct us_err *err);
/* Takes nothing. */
enum us_status ops_cuda_direct_open(struct us_backend **ret, struct us_err *err);

/* ---- test_ops.c ---- */

/* The i-th backend under test, NULL past the end. */
struct us_backend *ops_backend(int i);

/* The check and every backend's plan refuse the descriptor with US_E_ARG and say `words`. */
void ops_expect_refused(enum us_op_kind kind, const union ops_desc *d, const char *words,
                        const char *reason);

/* ---- cases_bad.c: tests of their own ---- */

void maps_that_make_no_sense_are_refused(void **state);
void conv2d_windows_that_do_not_fit_are_refused(void **state);
void conv2d_residuals_that_do_not_fit_are_refused(void **state);
void conv_t2d_descriptors_that_do_not_fit_are_refused(void **state);
void gate_descriptors_that_do_not_fit_are_refused(void **state);
void merge_descriptors_that_do_not_fit_are_refused(void **state);
void latent_descriptors_that_do_not_fit_are_refused(void **state);
void affine_elu_descriptors_that_do_not_fit_are_refused(void **state);
void copy_descriptors_that_do_not_fit_are_refused(void **state);

/* ---- cases_noise.c: tests of their own ---- */

void overlapping_patches_draw_the_same_image_keyed_noise(void **state);
void noise_changes_with_every_part_of_its_key(void **state);

#endif
