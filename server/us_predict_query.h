/*
 * The query parameters of the predict route, decoded and checked: pure, fuzzed.
 *
 * What is not given stays at the model's own recommendation, which is known only once the model
 * is loaded: so parsing fills a struct of "given" values and applying comes later.
 */
#ifndef US_PREDICT_QUERY_H
#define US_PREDICT_QUERY_H

#include "us_predict.h"
#include "us_predict_file.h"
#include "us_request.h"

struct us_predict_query {
    uint32_t given; /* bit per parameter, in the order of the table in us_predict_query.c */
    struct us_predict_config config;
    struct us_predict_file_options file;
};

/* E_ARG: an unknown or repeated name (400). E_UNSUPPORTED: a value that is not allowed (422).
 * Both name parameter, value and what is allowed. */
enum us_status us_predict_query_parse(const struct us_target *t, struct us_predict_query *ret,
                                      struct us_err *err) US_WARN_UNUSED;

/* Puts the given values over what *config and *file hold already. */
void us_predict_query_apply(const struct us_predict_query *q, struct us_predict_config *config,
                            struct us_predict_file_options *file);

/* The i-th parameter and what it may be, in words; false: there are no more. */
bool us_predict_query_param(int i, const char **name, const char **allowed);

#endif
