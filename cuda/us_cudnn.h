/*
 * Inside the cuDNN provider of convolutions: what its files share. Nothing but us_cudnn*.c sees
 * cuDNN's header, nothing links its library: it is looked for at run time (us_cudnn_load.c).
 *
 * Of CUDA itself these files use struct us_gpu only, so they also run over a library that is not
 * cuDNN (tests/cuda/fake_cudnn.c) or over the real one without a GPU, where plans can be made for
 * a GPU that is described in words.
 */
#ifndef US_CUDNN_H
#define US_CUDNN_H

#include <cudnn_graph.h>
#include <pthread.h>

#include "us_conv.h"
#include "us_cudnn_cache.h"

struct us_cudnn_api {
    void *lib;
#define US_CUDNN_FN(field, symbol) __typeof__(&symbol) field;
#include "us_cudnn_api.def"
#undef US_CUDNN_FN
};

struct us_cudnn {
    struct us_cudnn_api api;
    struct us_gpu *gpu;
    cudnnHandle_t handle;            /* NULL: plans are made for `device`, nothing can run */
    cudnnBackendDescriptor_t device; /* NULL: the handle's device */
    struct us_cudnn_cache cache;
    char machine[160];    /* what a remembered choice holds for: device and library */
    bool tune;            /* measure; else take the heuristics' first */
    bool compile;         /* use engines that are compiled at run time */
    pthread_mutex_t lock; /* the handle and the cache */
};

/* Loads the library named by USPLIT_CUDNN, or libcudnn.so.9. US_E_UNSUPPORTED says what is wrong
 * with it. */
enum us_status usi_cudnn_load(struct us_cudnn_api *api, struct us_err *err) US_WARN_UNUSED;
void usi_cudnn_unload(struct us_cudnn_api *api);

/* Opens cuDNN for g, or, with json (cuDNN's own description of a device), for planning alone. */
enum us_status usi_cudnn_open(struct us_gpu *g, const char *json, struct us_cudnn **ret,
                              struct us_err *err) US_WARN_UNUSED;

/* ---- descriptors (us_cudnn_desc.c) ---- */

/* Up to 5 tensors, 3 virtual ones, convolution, 2 activations, 4 operations, graph, and for a
 * remembered choice an engine with its knobs. */
#define US_CUDNN_MAX_DESCS 128

/* Descriptors that are freed together. The first failure sticks, and what follows is skipped: so
 * they are built without a check after each line. */
struct usi_descs {
    const struct us_cudnn_api *api;
    cudnnBackendDescriptor_t made[US_CUDNN_MAX_DESCS];
    int32_t n_made;
    cudnnStatus_t status;
    const char *what; /* failed */
};

cudnnBackendDescriptor_t usi_desc_new(struct usi_descs *b, cudnnBackendDescriptorType_t type,
                                      const char *what);
void usi_desc_set(struct usi_descs *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t n, const void *values);
/* One other descriptor. */
void usi_desc_link(struct usi_descs *b, cudnnBackendDescriptor_t d,
                   cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t other);
void usi_desc_finish(struct usi_descs *b, cudnnBackendDescriptor_t d);
void usi_descs_release(struct usi_descs *b);
/* US_OK, or the failure as a status with cuDNN's words. */
enum us_status usi_descs_result(const struct usi_descs *b, struct us_err *err) US_WARN_UNUSED;
enum us_status usi_cudnn_status(cudnnStatus_t s);

/* ---- graphs (us_cudnn_graph.c) ---- */

/* Which of the user's buffers a tensor of the graph is. */
enum usi_conv_uid {
    US_CONV_UID_X = 1,
    US_CONV_UID_Y,
    US_CONV_UID_W,
    US_CONV_UID_BIAS,
    US_CONV_UID_RES,
    US_CONV_UID_VIRTUAL, /* and up: between operations, never in memory */
};

/* The operation graph of one convolution and its epilogue; w_dtype is what FILTER writes. */
cudnnBackendDescriptor_t usi_conv_graph(struct usi_descs *b, const struct us_cudnn *cd,
                                        const struct us_conv_desc *d, enum us_dtype w_dtype);
/* What every address of this map is a multiple of, at least: bytes. */
int64_t usi_conv_alignment(const struct us_conv_map *m, enum us_dtype dtype);

/* ---- plans (us_cudnn_plan.c, us_cudnn_tune.c) ---- */

struct us_conv {
    struct us_conv_desc d;
    struct us_cudnn *cd;
    struct usi_descs descs;      /* of the graph */
    struct usi_descs plan_descs; /* of the plan: candidates come and go */
    cudnnBackendDescriptor_t graph, plan;
    struct us_cudnn_choice choice; /* what the plan was made from */
    size_t workspace_bytes;        /* cuDNN's */
    /* FILTER: what cuDNN writes; bf16 goes to the workspace, after cuDNN's own, and is widened. */
    enum us_dtype w_dtype;
    bool own; /* FILTER: by our kernel, there is no plan */
};

/* Makes c->plan from a choice that was remembered; US_E_UNSUPPORTED where it no longer can. */
enum us_status usi_conv_plan_choice(struct us_conv *c, const struct us_cudnn_choice *choice,
                                    struct us_err *err) US_WARN_UNUSED;
/* Asks the heuristics and fills up to `max` ways that may be used, best guess first. */
enum us_status usi_conv_candidates(struct us_conv *c, struct us_cudnn_choice *ret, int32_t max,
                                   int32_t *ret_n, struct us_err *err) US_WARN_UNUSED;
/* Makes c->plan from the best of the candidates: by time where it can be measured. */
enum us_status usi_conv_tune(struct us_conv *c, struct us_err *err) US_WARN_UNUSED;
/* Bytes of workspace that usi_conv_start needs. */
size_t usi_conv_workspace(const struct us_conv *c);
/* Queues the whole. */
enum us_status usi_conv_start(const struct us_conv *c, const struct us_conv_bufs *b);
/* Queues c->plan alone. */
enum us_status usi_conv_execute(const struct us_conv *c, const struct us_conv_bufs *b);
void usi_conv_plan_drop(struct us_conv *c);

#endif
