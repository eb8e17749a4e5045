/* Pictures of a training run; see us_train_pictures.h. */
#include "us_train_pictures.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "us_evaluate.h"
#include "us_plot.h"

enum { EPOCH_X, LOSS, VAL_LOSS, VAL_PSNR, STEP_X, STEP_LOSS, N_COLUMNS };

/* Columns of the history; the first four per epoch, the others per step told. */
struct history {
    double *v[N_COLUMNS];
    int64_t n_epochs, n_steps, cap;
};

static double member(const json_t *line, const char *key)
{
    const json_t *v = json_object_get(line, key);
    return json_is_number(v) ? json_number_value(v) : (double)NAN;
}

static bool grow(struct history *h)
{
    if (h->n_epochs < h->cap && h->n_steps < h->cap)
        return true;
    int64_t cap = h->cap > 0 ? 2 * h->cap : 64;
    for (int i = 0; i < N_COLUMNS; i++) {
        double *more = reallocarray(h->v[i], (size_t)cap, sizeof(*more));
        if (more == NULL)
            return false;
        h->v[i] = more;
    }
    h->cap = cap;
    return true;
}

static void take_line(struct history *h, const json_t *line)
{
    const char *event = json_string_value(json_object_get(line, "event"));
    if (event != NULL && strcmp(event, "epoch") == 0) {
        int64_t i = h->n_epochs++;
        h->v[EPOCH_X][i] = member(line, "epoch");
        h->v[LOSS][i] = member(line, "loss");
        h->v[VAL_LOSS][i] = member(line, "val_loss");
        h->v[VAL_PSNR][i] = member(line, "val_psnr");
    } else if (event != NULL && strcmp(event, "step") == 0) {
        int64_t i = h->n_steps++;
        h->v[STEP_X][i] = member(line, "step");
        h->v[STEP_LOSS][i] = member(line, "loss");
    }
}

static enum us_status read_history(const char *path, struct history *h, struct us_err *err)
{
    FILE *in = fopen(path, "re");
    if (in == NULL)
        return us_fail(err, US_E_IO, "%s: %s", path, strerror(errno));
    char *text = NULL;
    size_t cap = 0;
    enum us_status s = US_OK;
    while (s == US_OK && getline(&text, &cap, in) > 0) {
        json_t *line = json_loads(text, 0, NULL);
        if (!grow(h))
            s = us_fail(err, US_E_NOMEM, "%s: out of memory", path);
        else
            take_line(h, line);
        json_decref(line);
    }
    free(text);
    (void)fclose(in);
    return s;
}

static enum us_status plot_history(const struct history *h, const char *png, struct us_err *err)
{
    bool steps = h->n_epochs < 2 && h->n_steps > 1;
    const struct us_plot_series loss[] = {
        {"train", h->v[EPOCH_X], h->v[LOSS], h->n_epochs},
        {"validation", h->v[EPOCH_X], h->v[VAL_LOSS], h->n_epochs}};
    const struct us_plot_series step_loss = {"train", h->v[STEP_X], h->v[STEP_LOSS], h->n_steps};
    const struct us_plot_series psnr = {"validation", h->v[EPOCH_X], h->v[VAL_PSNR], h->n_epochs};
    const struct us_plot_chart charts[] = {
        {steps ? "loss of single steps" : "loss (train: with KL)", steps ? "step" : "epoch",
         steps ? &step_loss : loss, steps ? 1 : 2},
        {"PSNR, dB", "epoch", &psnr, 1}};
    return us_plot_lines(png, charts, 2, err);
}

enum us_status us_train_curves(const char *history, const char *png, struct us_err *err)
{
    struct history h = {0};
    enum us_status s = read_history(history, &h, err);
    if (s == US_OK)
        s = plot_history(&h, png, err);
    for (int i = 0; i < N_COLUMNS; i++)
        free(h.v[i]);
    return s;
}

/* The first frame of the test split, else of validation, else of training. */
static int64_t example_frame(const struct us_dataset *d)
{
    static const enum us_split order[] = {US_SPLIT_TEST, US_SPLIT_VAL, US_SPLIT_TRAIN};
    for (size_t i = 0; i < US_COUNT(order); i++) {
        int64_t n = 0;
        const int64_t *frames = us_dataset_frames(d, order[i], &n);
        if (n > 0)
            return frames[0];
    }
    return 0;
}

/* Above: input and truth; below: the predictions, each with its truth's contrast. */
static enum us_status plot_example(const struct us_model *m, const struct us_eval_frame *e,
                                   const char *png, struct us_err *err)
{
    struct us_plot_panel p[2 * (US_MAX_TARGETS + 1)];
    char caption[US_MAX_TARGETS][US_MAX_NAME + 16];
    int32_t columns = e->n_targets + 1;
    int64_t n = e->h * e->w;
    p[0] = (struct us_plot_panel){.caption = "input", .pixels = e->input, .h = e->h, .w = e->w};
    us_plot_contrast(e->input, n, &p[0].low, &p[0].high);
    p[columns] = (struct us_plot_panel){.caption = "predicted:"};
    for (int32_t c = 0; c < e->n_targets; c++) {
        (void)snprintf(caption[c], sizeof(caption[c]), "%s", m->data.channels[c]);
        struct us_plot_panel *truth = &p[1 + c], *mean = &p[columns + 1 + c];
        *truth = (struct us_plot_panel){
            .caption = caption[c], .pixels = e->truth + c * n, .h = e->h, .w = e->w};
        us_plot_contrast(truth->pixels, n, &truth->low, &truth->high);
        *mean = *truth;
        mean->pixels = e->mean + c * n;
    }
    return us_plot_panels(png, p, 2 * columns, columns, err);
}

enum us_status us_train_example(const struct us_model *m, struct us_backend *be,
                                struct us_dataset *d, const char *png, struct us_err *err)
{
    struct us_predict_config cfg = us_predict_defaults(m);
    struct us_predictor *p = NULL;
    struct us_eval_frame e = {0};
    enum us_status s = us_predictor_new(m, be, &cfg, &p, err);
    if (s == US_OK)
        s = us_eval_frame_run(p, m, us_dataset_source(d), example_frame(d), NULL, &e, err);
    if (s == US_OK)
        s = plot_example(m, &e, png, err);
    us_eval_frame_release(&e);
    us_predictor_free(p);
    return s;
}
