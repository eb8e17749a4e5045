/* `usplit dataset critters`: the paper's synthetic data as OME-TIFF (core/us_critters.h). */
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "us_commands.h"
#include "us_critters.h"
#include "us_interrupt.h"
#include "us_outfile.h"
#include "us_progress.h"

#define CRITTER_CHANNELS 2

struct critters_opts {
    int64_t size, join, pairs, frames, seed;
    const char *mixed;
    bool quiet;
};

#define OPT(member) .offset = offsetof(struct critters_opts, member)
static const struct us_cli_opt critters_table[] = {
    {"size", US_CLI_INT, OPT(size), 89, 4096, .arg = "128|256", .def = "256",
     .help = "side of a frame; the paper has 128 and 256"},
    {"join", US_CLI_INT, OPT(join), 0, 100, .arg = "0|25", .def = "0",
     .help = "0: curves of two frequencies; 25: two curves joined by a third"},
    {"pairs", US_CLI_INT, OPT(pairs), 1, 2, .arg = "1|2", .def = "2",
     .help = "kinds of curve per channel; 2, the paper's, takes hours to learn, 1 minutes"},
    {"frames", US_CLI_INT, OPT(frames), 1, US_MAX_PLANES / CRITTER_CHANNELS, .arg = "N",
     .required = true, .help = "number of frames; the paper has 1000"},
    {"seed", US_CLI_INT, OPT(seed), 0, INT64_MAX, .arg = "S", .def = "0",
     .help = "equal seeds give equal frames"},
    {"mixed", US_CLI_TEXT, OPT(mixed), .arg = "OUT2.tif",
     .help = "also write the average of both channels, the input of a network"},
    {"quiet", US_CLI_FLAG, OPT(quiet), .help = "print nothing but errors"},
};
#undef OPT

/* One file being written; path NULL: none. */
struct stack {
    struct us_outfile out;
    struct us_image_writer *writer;
};

static enum us_status stack_open(struct stack *k, const char *path, const struct critters_opts *o,
                                 int64_t n_channels, struct us_err *err)
{
    if (path == NULL)
        return US_OK;
    struct us_image_info info = {.container = US_CONTAINER_OME_TIFF,
                                 .pixel = US_PIXEL_F32,
                                 .t = o->frames,
                                 .z = 1,
                                 .c = n_channels,
                                 .h = o->size,
                                 .w = o->size,
                                 .axes_stated = true};
    char note[160];
    (void)snprintf(note, sizeof(note),
                   "{\"software\":\"" US_PROGRAM "\",\"dataset\":\"critters\",\"size\":%" PRId64
                   ",\"join\":%" PRId64 ",\"pairs\":%" PRId64 ",\"seed\":%" PRId64 "}",
                   o->size, o->join, o->pairs, o->seed);
    for (int64_t c = 0; c < n_channels; c++)
        (void)snprintf(info.channel_name[c], US_MAX_NAME,
                       n_channels == 1 ? "mixed" : "critters %" PRId64, c + 1);
    struct us_image_write_options wo = {.software = US_PROGRAM, .description_json = note};
    US_TRY(us_outfile_begin(&k->out, path, NULL, err));
    return us_image_create(k->out.tmp, &info, &wo, &k->writer, err);
}

static enum us_status stack_finish(struct stack *k, struct us_err *err)
{
    if (k->writer == NULL)
        return US_OK;
    enum us_status s = us_image_finish(k->writer, err);
    k->writer = NULL; /* freed in any case */
    return s == US_OK ? us_outfile_commit(&k->out, err) : s;
}

static void stack_release(struct stack *k)
{
    us_image_abandon(k->writer);
    us_outfile_abandon(&k->out);
}

/* Writes one frame; frame and plane are buffers of 2 and 1 planes. */
static enum us_status write_frame(struct stack stacks[2], const double *frame, float *plane,
                                  int64_t n, struct us_err *err)
{
    for (int c = 0; c < CRITTER_CHANNELS; c++) {
        for (int64_t i = 0; i < n; i++)
            plane[i] = (float)frame[c * n + i];
        US_TRY(us_image_write_plane(stacks[0].writer, plane, err));
    }
    if (stacks[1].writer == NULL)
        return US_OK;
    for (int64_t i = 0; i < n; i++)
        plane[i] = 0.5F * (float)frame[i] + 0.5F * (float)frame[n + i];
    return us_image_write_plane(stacks[1].writer, plane, err);
}

static enum us_status write_frames(const struct critters_opts *o, struct stack stacks[2],
                                   struct us_err *err)
{
    const atomic_bool *cancel = us_interrupt_install();
    struct us_critters_config cfg = {.size = (int32_t)o->size,
                                     .join = (int32_t)o->join,
                                     .pairs = (int32_t)o->pairs,
                                     .seed = (uint64_t)o->seed};
    int64_t n = o->size * o->size;
    enum us_status s = US_OK;
    double *frame = calloc((size_t)(CRITTER_CHANNELS * n), sizeof(*frame));
    float *plane = calloc((size_t)n, sizeof(*plane));
    struct us_progress bar;
    us_progress_start(&bar, "frames", o->quiet);
    if (frame == NULL || plane == NULL)
        s = us_fail(err, US_E_NOMEM, "no memory for a frame of %" PRId64 " pixels", n);
    for (int64_t t = 0; s == US_OK && t < o->frames; t++) {
        if (atomic_load(cancel))
            s = us_fail(err, US_E_CANCELLED, "cancelled");
        if (s == US_OK)
            s = us_critters_frame(&cfg, t, frame, err);
        if (s == US_OK)
            s = write_frame(stacks, frame, plane, n, err);
        us_progress_update(&bar, t + 1, o->frames);
    }
    us_progress_end(&bar);
    free(frame);
    free(plane);
    return s;
}

static int run_critters(const struct us_cli_args *a)
{
    const struct critters_opts *o = a->opts;
    struct us_err err = {0};
    struct stack stacks[2] = {0};
    if (o->mixed != NULL && strcmp(o->mixed, a->arg[0]) == 0) {
        us_cli_print(stderr, "usplit dataset critters: --mixed: %s is the other output\n",
                     o->mixed);
        return 2;
    }
    enum us_status s = stack_open(&stacks[0], a->arg[0], o, CRITTER_CHANNELS, &err);
    if (s == US_OK)
        s = stack_open(&stacks[1], o->mixed, o, 1, &err);
    if (s == US_OK)
        s = write_frames(o, stacks, &err);
    for (int i = 0; i < 2; i++) {
        if (s == US_OK)
            s = stack_finish(&stacks[i], &err);
        stack_release(&stacks[i]);
    }
    if (s == US_OK && !o->quiet)
        us_cli_print(stderr, "%s: %" PRId64 " frames of 2 channels, %" PRId64 " x %" PRId64 "\n",
                     a->arg[0], o->frames, o->size, o->size);
    return s == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_dataset_critters = {
    .name = "dataset critters",
    .summary = "Make the paper's synthetic two-channel data, SinosoidalCritters.",
    .args = "OUT.tif",
    .min_args = 1,
    .max_args = 1,
    .opts = critters_table,
    .n_opts = US_COUNT(critters_table),
    .opts_bytes = sizeof(struct critters_opts),
    .run = run_critters,
};
