/* The commands of `usplit`, one file each; usplit.c chooses among them. */
#ifndef US_COMMANDS_H
#define US_COMMANDS_H

#include "us_backend_choice.h"
#include "us_cli.h"
#include "us_image.h"
#include "us_predict.h"

extern const struct us_cli_cmd us_cmd_predict;
extern const struct us_cli_cmd us_cmd_model_show;
extern const struct us_cli_cmd us_cmd_model_check;
extern const struct us_cli_cmd us_cmd_model_init;
extern const struct us_cli_cmd us_cmd_model_import;
extern const struct us_cli_cmd us_cmd_model_export;
extern const struct us_cli_cmd us_cmd_metrics;
extern const struct us_cli_cmd us_cmd_dataset_critters;
extern const struct us_cli_cmd us_cmd_train;
extern const struct us_cli_cmd us_cmd_evaluate;
extern const struct us_cli_cmd us_cmd_watch;

/* The choices of --precision, in the order of the words that the tables list. */
#define US_PRECISION_WORDS "auto|f32|bf16"

void us_cli_backend_free(struct us_backend *be); /* NULL is fine */

/* The version of this program. */
#define US_PROGRAM "usplit " US_VERSION

#endif
