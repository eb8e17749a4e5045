/*
 * What --backend means, for both programs. `auto` takes a GPU that works from driver to cuDNN, and
 * the processor otherwise; naming `cuda` says what is missing instead.
 */
#ifndef US_BACKEND_CHOICE_H
#define US_BACKEND_CHOICE_H

#include "us_backend.h"

/* The words, in the order of the indices below. A machine with more GPUs chooses by
 * CUDA_VISIBLE_DEVICES. */
#define US_BACKEND_WORDS "auto|ref|cpu|cuda|cuda:0|cuda:1|cuda:2|cuda:3|cuda:4|cuda:5|cuda:6|cuda:7"

enum us_backend_word {
    US_BACKEND_AUTO = 0,
    US_BACKEND_REF,
    US_BACKEND_CPU,
    US_BACKEND_CUDA,   /* the first GPU */
    US_BACKEND_CUDA_0, /* and the others after it */
};

/* Opens the backend of a word, by its index. Caller frees with ops->free. US_E_UNSUPPORTED: this
 * build or this machine does not have it, and *err says what is missing. */
enum us_status us_backend_choose(int64_t word, struct us_backend **ret,
                                 struct us_err *err) US_WARN_UNUSED;

#endif
