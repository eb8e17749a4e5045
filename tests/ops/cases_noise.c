/*
 * What the latents' noise is a function of, to the bit, on every backend: seams between patches
 * depend on it, and so does "the same seed gives the same bytes".
 */
#include <stdlib.h>
#include <string.h>

#include "ops_test.h"

enum { SIDE = 8, Z = 12, COUNT = SIDE * SIDE * Z };

/* z of a posterior with mean 0 and log-variance 0: the noise itself. */
static void draw(struct us_backend *be, const struct us_noise *noise, int32_t level, float *z)
{
    static const struct us_rect whole = {0, 0, 0, 0};
    struct ops_case c = {.name = "noise", .kind = US_OP_latent};
    struct ops_data d = {0};
    struct ops_result r = {0};
    struct us_latent_desc *l = &c.d.latent;
    l->in = ops_map(1, SIDE, SIDE, 2 * Z, whole, false);
    l->out = ops_map(1, SIDE, SIDE, Z, whole, false);
    l->level = level;
    l->var_clip_max = 20;
    c.in[0] = &l->in;
    c.out = &l->out;
    d.in[0] = calloc((size_t)us_map_count(&l->in), sizeof(float));
    assert_non_null(d.in[0]);
    d.noise[0] = *noise;
    assert_int_equal(ops_run(be, &c, &d, &r), US_OK);
    memcpy(z, r.out, COUNT * sizeof(*z));
    ops_result_free(&r);
    free(d.in[0]);
}

/* How many numbers of two draws are the same. */
static int n_same(const float *a, const float *b)
{
    int n = 0;
    for (int i = 0; i < COUNT; i++)
        n += a[i] == b[i];
    return n;
}

void overlapping_patches_draw_the_same_image_keyed_noise(void **state)
{
    (void)state;
    enum { LEVEL = 2, PITCH = 8, DY = 3, DX = 2 };
    struct us_noise a = {
        .seed = 5, .image_keyed = true, .patch = 1, .centre_y = -9, .centre_x = 1001};
    struct us_noise b = a;
    b.patch = 2;
    b.centre_y += DY * PITCH;
    b.centre_x += DX * PITCH;
    for (int i = 0; ops_backend(i) != NULL; i++) {
        float za[COUNT], zb[COUNT];
        draw(ops_backend(i), &a, LEVEL, za);
        draw(ops_backend(i), &b, LEVEL, zb);
        for (int y = 0; y + DY < SIDE; y++)
            assert_memory_equal(zb + y * SIDE * Z, za + ((y + DY) * SIDE + DX) * Z,
                                (SIDE - DX) * Z * sizeof(float));
        assert_true(n_same(za, zb) < COUNT / 100);
    }
}

void noise_changes_with_every_part_of_its_key(void **state)
{
    (void)state;
    static const struct {
        const char *part;
        struct us_noise noise;
        int32_t level;
        bool changes;
    } rows[] = {
        {"low half of the seed", {.seed = 8}, 1, true},
        {"high half of the seed", {.seed = 7 + ((uint64_t)1 << 40)}, 1, true},
        {"frame", {.seed = 7, .frame = 1}, 1, true},
        {"sample", {.seed = 7, .sample = 1}, 1, true},
        {"patch", {.seed = 7, .patch = 1}, 1, true},
        {"level", {.seed = 7}, 2, true},
        {"keying", {.seed = 7, .image_keyed = true, .centre_y = 16, .centre_x = 16}, 1, true},
        {"centre, which a patch key does not hold", {.seed = 7, .centre_y = 99}, 1, false},
    };
    static const struct us_noise base = {.seed = 7};
    for (int i = 0; ops_backend(i) != NULL; i++) {
        float want[COUNT], z[COUNT];
        draw(ops_backend(i), &base, 1, want);
        for (size_t r = 0; r < US_COUNT(rows); r++) {
            draw(ops_backend(i), &rows[r].noise, rows[r].level, z);
            int n = n_same(want, z);
            if (rows[r].changes ? n > COUNT / 100 : n != COUNT)
                fail_msg("%s: %d of %d numbers are the same", rows[r].part, n, COUNT);
        }
    }
}
