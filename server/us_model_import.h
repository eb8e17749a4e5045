/*
 * Other people's checkpoints as models, and models as theirs: the files of us_torch.h and
 * us_state_dict.h, the hyper-parameters that some of them carry, and core's us_import.h.
 */
#ifndef US_MODEL_IMPORT_H
#define US_MODEL_IMPORT_H

#include "us_import.h"

struct us_model_source;

/* A PyTorch zip (.pt, .pth, .ckpt) or a safetensors file, by its first bytes. Errors name the
 * file. */
enum us_status us_model_source_open(const char *path, struct us_model_source **ret,
                                    struct us_err *err) US_WARN_UNUSED;
void us_model_source_free(struct us_model_source *s);

/* Sets what the file's hyper-parameters say of the network; the rest stays. E_UNSUPPORTED names a
 * setting that our networks do not have (another activation). */
enum us_status us_model_source_hints(const struct us_model_source *s, struct us_import_hints *hints,
                                     struct us_err *err) US_WARN_UNUSED;

enum us_status us_model_source_import(const struct us_model_source *s,
                                      const struct us_import_hints *hints, struct us_model **ret,
                                      struct us_import_report *report,
                                      struct us_err *err) US_WARN_UNUSED;

/* Sets what the hyper-parameters say of the images; true if that includes all means and standard
 * deviations. */
bool us_model_source_data(const struct us_model_source *s, struct us_model_data *data,
                          int32_t n_targets);

/* How many foreign classes the file names that were passed over, and the first. */
int32_t us_model_source_foreign(const struct us_model_source *s, const char **ret_first);

/* Writes the parameters in upstream's naming, which PyTorch loads strictly: OUT.pt and OUT.pth as a
 * state dictionary, OUT.ckpt with it as the member state_dict, OUT.safetensors as it is. E_ARG for
 * another name; E_UNSUPPORTED for a model without the tensors that only training needs. input: the
 * model's own file, which is not overwritten. */
enum us_status us_model_export(struct us_model *m, const char *input, const char *path,
                               struct us_err *err) US_WARN_UNUSED;

#endif
