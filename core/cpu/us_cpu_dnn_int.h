/*
 * What the files that speak oneDNN (us_cpu_dnn*.c) share; nobody else includes this. Prediction's
 * convolutions stand in us_cpu_dnn.c, training's in us_cpu_dnn_train.c.
 */
#ifndef US_CPU_DNN_INT_H
#define US_CPU_DNN_INT_H

#include <dnnl.h>

#include "us_cpu_dnn.h"

struct usi_dnn {
    dnnl_engine_t engine;
    dnnl_cpu_isa_t isa;
};

/* "unimplemented" and so on; a static string. */
const char *usi_dnn_word(dnnl_status_t s);

/* Out of memory keeps its own code: the caller may retry with less. */
enum us_status usi_dnn_status(dnnl_status_t s);

static inline dnnl_data_type_t usi_dnn_dtype(enum us_dtype t)
{
    return t == US_F32 ? dnnl_f32 : dnnl_bf16;
}

/* A dense map [n, h, w, c]. */
dnnl_status_t usi_dnn_nhwc(dnnl_memory_desc_t *md, int32_t n, int32_t c, int32_t h, int32_t w,
                           enum us_dtype t);

/* Confines the calling thread's OpenMP regions to itself: a primitive is laid out for as many
 * threads as its creator may use, and OpenMP's further threads would spin on the processors of the
 * workers. Returns what usi_dnn_release takes. */
int usi_dnn_confine(void);
void usi_dnn_release(int threads);

#endif
