/* `usplit model show` and `usplit model check`: what a model file holds, and whether it is sound.
 */
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "us_commands.h"
#include "us_model.h"
#include "us_plan.h"

struct show_opts {
    bool json, plan, params;
};

#define OPT(member) .offset = offsetof(struct show_opts, member)
static const struct us_cli_opt show_table[] = {
    {"plan", US_CLI_FLAG, OPT(plan), .help = "also the operations of the inference plan, in order"},
    {"params", US_CLI_FLAG, OPT(params), .help = "also the table of parameters"},
    {"json", US_CLI_FLAG, OPT(json), .help = "print as JSON"},
};
#undef OPT

static const char *variant_name(const struct us_arch *a)
{
    if (a->lc_scales == 1)
        return "vanilla";
    if (!a->decoder_retain)
        return "Lean-LC";
    return a->n_levels > a->lc_scales - 1 ? "Deep-LC" : "Regular-LC";
}

static const char *param_use(const struct us_param *p)
{
    if ((p->flags & US_PARAM_DEAD) != 0)
        return "dead";
    if ((p->flags & US_PARAM_TRAIN_ONLY) != 0)
        return "training";
    return (p->flags & US_PARAM_OPTIONAL) != 0 ? "optional" : "prediction";
}

static const char *param_shape(const struct us_param *p, char *buf, size_t n)
{
    size_t used = 0;
    buf[0] = '\0';
    for (int32_t i = 0; i < p->ndim && used < n; i++)
        used += (size_t)snprintf(buf + used, n - used, "%s%" PRId64, i > 0 ? "," : "", p->dim[i]);
    return buf;
}

/* "1,2,3" of the z_dims. */
static const char *z_dims_text(const struct us_arch *a, char *buf, size_t n)
{
    size_t used = 0;
    buf[0] = '\0';
    for (int32_t i = 0; i < a->n_levels && used < n; i++)
        used += (size_t)snprintf(buf + used, n - used, "%s%d", i > 0 ? "," : "", (int)a->z_dims[i]);
    return buf;
}

static void print_data(const struct us_model *m)
{
    const struct us_model_data *d = &m->data;
    us_cli_print(stdout, "input         mean %g, std %g; mixing %s, context %s with %s padding\n",
                 d->input_mean, d->input_std, d->mixing == US_MIX_SUM ? "sum" : "average",
                 d->context_method == US_CONTEXT_SINGLE ? "single" : "halving",
                 d->context_padding == US_PAD_ZERO ? "zero" : "reflect");
    for (int32_t c = 0; c < m->arch.target_channels; c++) {
        char clip[32] = "none";
        if (d->has_clip && isfinite(d->clip[c]))
            (void)snprintf(clip, sizeof(clip), "%g", d->clip[c]);
        us_cli_print(stdout, "target %d      %s: mean %g, std %g, clip %s\n", (int)c,
                     d->channels[c], d->target_mean[c], d->target_std[c], clip);
    }
    if (d->pixel_size_um > 0)
        us_cli_print(stdout, "pixel size    %g um\n", d->pixel_size_um);
}

static void print_model(const struct us_model *m)
{
    const struct us_arch *a = &m->arch;
    char z[US_MAX_LEVELS * 8];
    us_cli_print(stdout, "name          %s\n", m->name);
    us_cli_print(stdout, "sha256        %s\n", m->sha256);
    us_cli_print(stdout, "network       %s %s, %d levels of z %s, %d input scale%s\n",
                 a->stochastic ? "HVAE" : "HAE", variant_name(a), (int)a->n_levels,
                 z_dims_text(a, z, sizeof(z)), (int)a->lc_scales, a->lc_scales == 1 ? "" : "s");
    us_cli_print(stdout, "              %d filters, %d block%s per level, patch %d\n",
                 (int)a->n_filters, (int)a->blocks_per_level, a->blocks_per_level == 1 ? "" : "s",
                 (int)m->patch_size);
    us_cli_print(stdout, "parameters    %" PRId64 " trainable, in %d tensors\n",
                 us_net_n_trainable(m->net), (int)m->net->n_params);
    us_cli_print(stdout, "completeness  %s\n",
                 m->complete ? "complete: can predict and be trained on" : "prediction only");
    us_cli_print(stdout, "prediction    inner padding %d, %d sample%s\n", (int)m->inner_padding,
                 (int)m->samples, m->samples == 1 ? "" : "s");
    print_data(m);
}

static void print_params(const struct us_model *m)
{
    us_cli_print(stdout, "\n");
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        char shape[96];
        us_cli_print(stdout, "%-10s %-16s %s\n", param_use(p), param_shape(p, shape, sizeof(shape)),
                     p->name);
    }
}

static json_t *params_json(const struct us_model *m)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        json_t *shape = json_array();
        for (int32_t k = 0; k < p->ndim; k++)
            (void)json_array_append_new(shape, json_integer(p->dim[k]));
        (void)json_array_append_new(list, json_pack("{s:s, s:o, s:s}", "name", p->name, "shape",
                                                    shape, "use", param_use(p)));
    }
    return list;
}

static void plan_line_print(void *arg, const char *text)
{
    us_cli_print(stdout, "%s\n", text);
}

static void plan_line_json(void *arg, const char *text)
{
    (void)json_array_append_new(arg, json_string(text));
}

/* Builds the plan as the CPU backend would run it, one f32 patch, and hands out its lines. */
static enum us_status plan_lines(const struct us_model *m, void (*line)(void *, const char *),
                                 void *arg, struct us_err *err)
{
    struct us_backend *be = NULL;
    struct us_plan *plan = NULL;
    struct us_plan_config cfg = {.dtype = US_F32, .batch = 1};
    US_TRY(us_backend_choose(US_BACKEND_CPU, &be, err));
    enum us_status s = us_plan_build(m->net, m->weights, be, &cfg, &plan, err);
    if (s == US_OK) {
        struct us_plan_stats st = us_plan_stats(plan);
        char text[160];
        us_plan_dump(plan, line, arg);
        (void)snprintf(text, sizeof(text),
                       "%d operations, %.3f GFLOP, weights %.1f MiB, working set %.2f MiB of %.2f",
                       (int)st.n_ops, st.flops * 1e-9, (double)st.packed_bytes / 1048576,
                       (double)st.block_bytes / 1048576, (double)st.sum_bytes / 1048576);
        line(arg, text);
    }
    us_plan_free(plan);
    us_cli_backend_free(be);
    return s;
}

static enum us_status show_json(const struct us_model *m, const struct show_opts *o,
                                struct us_err *err)
{
    char *text = NULL;
    US_TRY(us_model_metadata(m, &text, err));
    json_t *root =
        json_pack("{s:s, s:b, s:s, s:I, s:i, s:o?}", "sha256", m->sha256, "complete",
                  (int)m->complete, "variant", variant_name(&m->arch), "trainable_parameters",
                  (json_int_t)us_net_n_trainable(m->net), "tensors", (int)m->net->n_params,
                  "usplit", json_loads(text, JSON_REJECT_DUPLICATES, NULL));
    free(text);
    if (root == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the report");
    enum us_status s = US_OK;
    if (o->params)
        (void)json_object_set_new(root, "params", params_json(m));
    if (o->plan) {
        json_t *lines = json_array();
        s = plan_lines(m, plan_line_json, lines, err);
        (void)json_object_set_new(root, "plan", lines);
    }
    if (s == US_OK) {
        (void)json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
        (void)fputc('\n', stdout);
    }
    json_decref(root);
    return s;
}

static int run_show(const struct us_cli_args *a)
{
    const struct show_opts *o = a->opts;
    struct us_err err = {0};
    struct us_model *m = NULL;
    enum us_status s = us_model_load(a->arg[0], &m, &err);
    if (s == US_OK && o->json) {
        s = show_json(m, o, &err);
    } else if (s == US_OK) {
        print_model(m);
        if (o->params)
            print_params(m);
        if (o->plan) {
            us_cli_print(stdout, "\n");
            s = plan_lines(m, plan_line_print, NULL, &err);
        }
    }
    us_model_free(m);
    return s == US_OK ? 0 : us_cli_fail(a, &err);
}

/* Weights that would poison every prediction: not finite, or a variance below zero. */
static enum us_status check_weights(const struct us_model *m, struct us_err *err)
{
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        if (p->kind == US_PARAM_BN_COUNT || p->alias_of >= 0)
            continue;
        const float *w = m->weights + p->offset;
        for (int64_t k = 0; k < p->count; k++) {
            if (!isfinite(w[k]))
                return us_fail(err, US_E_FORMAT,
                               "%s: element %" PRId64 " is %g, expected a finite value", p->name, k,
                               (double)w[k]);
            if (p->kind == US_PARAM_BN_VAR && w[k] < 0)
                return us_fail(err, US_E_FORMAT,
                               "%s: element %" PRId64 " is %g, expected a variance", p->name, k,
                               (double)w[k]);
        }
    }
    return US_OK;
}

static int run_check(const struct us_cli_args *a)
{
    struct us_err err = {0};
    struct us_model *m = NULL;
    enum us_status s = us_model_load(a->arg[0], &m, &err);
    if (s == US_OK) {
        s = check_weights(m, &err);
        if (s != US_OK)
            us_err_prefix(&err, "%s", a->arg[0]);
    }
    if (s == US_OK)
        us_cli_print(stdout, "%s: %s\n", a->arg[0],
                     m->complete ? "complete: can predict and be trained on"
                                 : "prediction only: tensors that training needs are missing");
    us_model_free(m);
    return s == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_model_show = {
    .name = "model show",
    .summary = "Print what a model file holds.",
    .args = "FILE",
    .min_args = 1,
    .max_args = 1,
    .opts = show_table,
    .n_opts = US_COUNT(show_table),
    .opts_bytes = sizeof(struct show_opts),
    .run = run_show,
};

const struct us_cli_cmd us_cmd_model_check = {
    .name = "model check",
    .summary = "Verify a model file: exit status 0 if it is sound, else 1.",
    .args = "FILE",
    .min_args = 1,
    .max_args = 1,
    .run = run_check,
};
