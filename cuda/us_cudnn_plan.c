/*
 * From an operation graph to an execution plan: ask cuDNN's heuristics, drop what may not be used,
 * finalize. Policy: the same bits every time, so no engine with
 * CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC; sums in f32 of the operands as they are, so none that
 * rounds operands, reduces in lower precision or transforms them (FFT, Winograd); tensor cores on
 * f32, which means TF32, only where the description allows it. Engines that compile their kernel at
 * run time are used only when asked for (USPLIT_CUDNN_COMPILE=1): a model has dozens of shapes, and
 * each costs seconds at every start.
 */
#include <string.h>

#include "us_cudnn.h"

/* A way that wants more is not worth its speed. */
#define MAX_WORKSPACE_BYTES (512LL << 20)

/* Asked for per mode of the heuristics. */
#define MAX_CONFIGS 24

#define NOTE(name) (1u << CUDNN_NUMERICAL_NOTE_##name)

static uint32_t refused_notes(const struct us_conv_desc *d)
{
    uint32_t no = NOTE(NONDETERMINISTIC) | NOTE(DOWN_CONVERT_INPUTS) |
                  NOTE(REDUCED_PRECISION_REDUCTION) | NOTE(FFT) | NOTE(WINOGRAD) |
                  NOTE(WINOGRAD_TILE_4x4) | NOTE(WINOGRAD_TILE_6x6) | NOTE(WINOGRAD_TILE_13x13);
    if (d->dtype == US_F32 && !d->tf32)
        no |= NOTE(TENSOR_CORE);
    return no;
}

/* The numerical notes of an engine as bits; every bit where it does not say. */
static uint32_t engine_notes(const struct us_cudnn_api *api, cudnnBackendDescriptor_t engine)
{
    cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    int64_t n = 0;
    uint32_t bits = 0;
    if (api->desc_get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                      CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n, note) != CUDNN_STATUS_SUCCESS)
        return UINT32_MAX;
    for (int64_t i = 0; i < n && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT; i++)
        bits |= 1u << (note[i] & 31);
    return bits;
}

/* Whether the engine compiles a kernel for the plan: seconds for each, every time the program
 * starts. */
static bool compiles(const struct us_cudnn_api *api, cudnnBackendDescriptor_t engine)
{
    cudnnBackendBehaviorNote_t note[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
    int64_t n = 0;
    if (api->desc_get(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                      CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &n, note) != CUDNN_STATUS_SUCCESS)
        return true;
    for (int64_t i = 0; i < n && i < CUDNN_BEHAVIOR_NOTE_TYPE_COUNT; i++)
        if (note[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION)
            return true;
    return false;
}

static bool may_use(const struct us_conv *c, cudnnBackendDescriptor_t engine)
{
    const struct us_cudnn_api *api = &c->cd->api;
    return (engine_notes(api, engine) & refused_notes(&c->d)) == 0 &&
           (c->cd->compile || !compiles(api, engine));
}

/* The engine of a configuration, as a descriptor that b owns. */
static cudnnBackendDescriptor_t config_engine(struct usi_descs *b, cudnnBackendDescriptor_t config)
{
    int64_t n = 0;
    cudnnBackendDescriptor_t engine = usi_desc_new(b, CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine");
    if (b->status != CUDNN_STATUS_SUCCESS)
        return NULL;
    cudnnStatus_t s = b->api->desc_get(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                       CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine);
    return s == CUDNN_STATUS_SUCCESS && n == 1 ? engine : NULL;
}

static bool read_knobs(struct usi_descs *b, cudnnBackendDescriptor_t config,
                       struct us_cudnn_choice *ret)
{
    const struct us_cudnn_api *api = b->api;
    cudnnBackendDescriptor_t knob[US_CUDNN_MAX_KNOBS];
    int64_t n = 0, got = 0;
    for (int32_t i = 0; i < US_CUDNN_MAX_KNOBS; i++)
        knob[i] = usi_desc_new(b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, "knob");
    if (b->status != CUDNN_STATUS_SUCCESS ||
        api->desc_get(config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                      US_CUDNN_MAX_KNOBS, &n, knob) != CUDNN_STATUS_SUCCESS ||
        n < 0 || n > US_CUDNN_MAX_KNOBS)
        return false;
    for (int64_t i = 0; i < n; i++) {
        cudnnBackendKnobType_t type;
        if (api->desc_get(knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &got,
                          &type) != CUDNN_STATUS_SUCCESS ||
            api->desc_get(knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &got,
                          &ret->value[i]) != CUDNN_STATUS_SUCCESS)
            return false;
        ret->knob[i] = (int32_t)type;
    }
    ret->n_knobs = (int32_t)n;
    return true;
}

/* Reads a configuration into a choice; false: it may not be used, or cannot be read. */
static bool read_config(struct us_conv *c, cudnnBackendDescriptor_t config,
                        struct us_cudnn_choice *ret)
{
    struct usi_descs b = {.api = &c->cd->api};
    int64_t n = 0;
    memset(ret, 0, sizeof(*ret));
    cudnnBackendDescriptor_t engine = config_engine(&b, config);
    bool ok = engine != NULL && may_use(c, engine) &&
              b.api->desc_get(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n,
                              &ret->engine) == CUDNN_STATUS_SUCCESS &&
              read_knobs(&b, config, ret);
    usi_descs_release(&b);
    return ok;
}

static bool same_choice(const struct us_cudnn_choice *a, const struct us_cudnn_choice *b)
{
    return a->engine == b->engine && a->n_knobs == b->n_knobs &&
           memcmp(a->knob, b->knob, (size_t)a->n_knobs * sizeof(a->knob[0])) == 0 &&
           memcmp(a->value, b->value, (size_t)a->n_knobs * sizeof(a->value[0])) == 0;
}

/* Appends what one mode of the heuristics proposes and may be used. */
static void ask(struct us_conv *c, cudnnBackendHeurMode_t mode, struct us_cudnn_choice *list,
                int32_t max, int32_t *n_list)
{
    const struct us_cudnn_api *api = &c->cd->api;
    struct usi_descs b = {.api = api};
    cudnnBackendDescriptor_t config[MAX_CONFIGS];
    int64_t n = 0;
    cudnnBackendDescriptor_t heur =
        usi_desc_new(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, "heuristics");
    usi_desc_link(&b, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, c->graph);
    usi_desc_set(&b, heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (c->cd->device != NULL)
        usi_desc_link(&b, heur, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, c->cd->device);
    usi_desc_finish(&b, heur);
    for (int32_t i = 0; i < MAX_CONFIGS; i++)
        config[i] = usi_desc_new(&b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "engine configuration");
    if (b.status == CUDNN_STATUS_SUCCESS &&
        api->desc_get(heur, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                      MAX_CONFIGS, &n, config) != CUDNN_STATUS_SUCCESS)
        n = 0;
    for (int64_t i = 0; i < n && i < MAX_CONFIGS && *n_list < max; i++) {
        bool known = !read_config(c, config[i], &list[*n_list]);
        for (int32_t j = 0; j < *n_list && !known; j++)
            known = same_choice(&list[j], &list[*n_list]);
        if (!known)
            (*n_list)++;
    }
    usi_descs_release(&b);
}

enum us_status usi_conv_candidates(struct us_conv *c, struct us_cudnn_choice *ret, int32_t max,
                                   int32_t *ret_n, struct us_err *err)
{
    int32_t n = 0;
    ask(c, CUDNN_HEUR_MODE_A, ret, max, &n);
    if (n < max)
        ask(c, CUDNN_HEUR_MODE_FALLBACK, ret, max, &n);
    *ret_n = n;
    if (n == 0)
        return us_fail(err, US_E_UNSUPPORTED,
                       "cuDNN has no deterministic way to do this convolution");
    return US_OK;
}

/* The engine and its knobs as an engine configuration in b. */
static cudnnBackendDescriptor_t make_config(struct usi_descs *b, struct us_conv *c,
                                            const struct us_cudnn_choice *choice)
{
    cudnnBackendDescriptor_t knob[US_CUDNN_MAX_KNOBS];
    cudnnBackendDescriptor_t engine = usi_desc_new(b, CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine");
    usi_desc_link(b, engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, c->graph);
    usi_desc_set(b, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &choice->engine);
    if (c->cd->device != NULL)
        usi_desc_link(b, engine, CUDNN_ATTR_ENGINE_DEVICEPROP, c->cd->device);
    usi_desc_finish(b, engine);
    /* A remembered choice is text from a file: the policy holds for it too. */
    if (b->status == CUDNN_STATUS_SUCCESS && !may_use(c, engine))
        b->status = CUDNN_STATUS_NOT_SUPPORTED;
    for (int32_t i = 0; i < choice->n_knobs; i++) {
        cudnnBackendKnobType_t type = (cudnnBackendKnobType_t)choice->knob[i];
        knob[i] = usi_desc_new(b, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, "knob");
        usi_desc_set(b, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
        usi_desc_set(b, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1,
                     &choice->value[i]);
        usi_desc_finish(b, knob[i]);
    }
    cudnnBackendDescriptor_t config =
        usi_desc_new(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "engine configuration");
    usi_desc_link(b, config, CUDNN_ATTR_ENGINECFG_ENGINE, engine);
    if (choice->n_knobs > 0)
        usi_desc_set(b, config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                     choice->n_knobs, knob);
    usi_desc_finish(b, config);
    return config;
}

static cudnnBackendDescriptor_t make_plan(struct usi_descs *b, const struct us_cudnn *cd,
                                          cudnnBackendDescriptor_t config)
{
    cudnnBackendDescriptor_t plan =
        usi_desc_new(b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "execution plan");
    if (cd->handle != NULL)
        usi_desc_set(b, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &cd->handle);
    if (cd->device != NULL)
        usi_desc_link(b, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, cd->device);
    usi_desc_link(b, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    usi_desc_finish(b, plan);
    return plan;
}

enum us_status usi_conv_plan_choice(struct us_conv *c, const struct us_cudnn_choice *choice,
                                    struct us_err *err)
{
    const struct us_cudnn_api *api = &c->cd->api;
    struct usi_descs b = {.api = api};
    int64_t bytes = 0, n = 0;
    cudnnBackendDescriptor_t plan = make_plan(&b, c->cd, make_config(&b, c, choice));
    enum us_status s = usi_descs_result(&b, err);
    if (s == US_OK && (api->desc_get(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                     CUDNN_TYPE_INT64, 1, &n, &bytes) != CUDNN_STATUS_SUCCESS ||
                       bytes < 0 || bytes > MAX_WORKSPACE_BYTES))
        s = us_fail(err, US_E_UNSUPPORTED, "cuDNN: a plan that wants %lld bytes of workspace",
                    (long long)bytes);
    if (s != US_OK) {
        usi_descs_release(&b);
        return s;
    }
    usi_conv_plan_drop(c);
    b.what = NULL;
    c->plan_descs = b;
    c->plan = plan;
    c->choice = *choice;
    c->workspace_bytes = (size_t)bytes;
    return US_OK;
}

void usi_conv_plan_drop(struct us_conv *c)
{
    usi_descs_release(&c->plan_descs);
    c->plan = NULL;
}
