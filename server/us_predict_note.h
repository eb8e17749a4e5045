/*
 * Provenance: which model, settings and statistics made a prediction, as one line of JSON that
 * goes into the file itself. Everything needed to make the same bytes again, and nothing that
 * changes from run to run (no time, host, thread count or batch).
 */
#ifndef US_PREDICT_NOTE_H
#define US_PREDICT_NOTE_H

#include "us_predict_file.h"

/* *ret: JSON text, caller frees. E_ARG if a name is not UTF-8 or the seed is above 2^63-1. */
enum us_status us_predict_note(const struct us_predictor *p, const struct us_model *m,
                               const struct us_predict_config *cfg,
                               const struct us_predict_file_options *opt, char **ret,
                               struct us_err *err) US_WARN_UNUSED;

#endif
