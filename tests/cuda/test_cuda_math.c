/*
 * One formula, two compilers: what gcc and nvcc make of core/math must give the same bits, on the
 * host and, where there is a GPU, on the device. A NaN equals any NaN: its payload is not promised.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "us_cuda_math_cases.h"
#include "us_cuda_math_check.h"

/* Every exponent and both signs with 509 mantissas, the words round 0, the powers of two and the
 * largest; 509 is prime, so that low and high bits both vary. */
#define N_MANTISSAS 509
#define N_EDGES     64
#define N_WORDS     (512 * N_MANTISSAS + 2 * N_EDGES + 32)

static uint32_t words[N_WORDS], expected[N_WORDS], found[N_WORDS];

static const char *const names[US_MATH_CASE_COUNT] = {
#define US_MATH_CASE(name, result) #name,
#include "us_cuda_math_cases.def"
#undef US_MATH_CASE
};

static int fill_words(void **state)
{
    int64_t n = 0;
    for (uint32_t exponent = 0; exponent < 512; exponent++)
        for (uint32_t k = 0; k < N_MANTISSAS; k++)
            words[n++] = exponent << 23 | (k * 0x7fffffu / (N_MANTISSAS - 1) ^ (k & 7u));
    for (uint32_t k = 0; k < N_EDGES; k++) {
        words[n++] = k;
        words[n++] = ~k;
    }
    for (uint32_t k = 0; k < 32; k++)
        words[n++] = 1u << k;
    return n == N_WORDS ? 0 : -1;
}

static uint32_t by_gcc(int which, uint32_t u)
{
    switch (which) {
#define US_MATH_CASE(name, result)                                                                 \
    case US_CASE_##name:                                                                           \
        return us_case_##name(u);
#include "us_cuda_math_cases.def"
#undef US_MATH_CASE
    }
    fail_msg("no case %d", which);
    return 0;
}

static int is_nan(uint32_t u)
{
    return (u & 0x7fffffffu) > 0x7f800000u;
}

/* Integer results have no NaN; treating those bit patterns alike would hide an error. */
static int is_float_case(int which)
{
    return which != US_CASE_bf16_of_f32 &&
           !(which >= US_CASE_philox_word_0 && which <= US_CASE_philox_word_3) &&
           !(which >= US_CASE_noise_position && which <= US_CASE_noise_c2) &&
           !(which >= US_CASE_halving_left && which <= US_CASE_patch_source_zero);
}

static void compare(int which, const char *where)
{
    for (int64_t i = 0; i < N_WORDS; i++) {
        if (expected[i] == found[i])
            continue;
        if (is_float_case(which) && is_nan(expected[i]) && is_nan(found[i]))
            continue;
        fail_msg("%s at %08x: gcc %08x, %s %08x", names[which], words[i], expected[i], where,
                 found[i]);
    }
}

static void nvcc_host_code_gives_the_same_bits_as_gcc(void **state)
{
    for (int which = 0; which < US_MATH_CASE_COUNT; which++) {
        for (int64_t i = 0; i < N_WORDS; i++)
            expected[i] = by_gcc(which, words[i]);
        us_cuda_math_host(which, words, found, N_WORDS);
        compare(which, "nvcc host");
    }
}

static void device_gives_the_same_bits_as_gcc(void **state)
{
    struct us_err err = {0};
    for (int which = 0; which < US_MATH_CASE_COUNT; which++) {
        enum us_status s = us_cuda_math_device(which, words, found, N_WORDS, &err);
        if (s == US_E_UNSUPPORTED) {
            print_message("%s\n", err.msg);
            skip();
        }
        if (s != US_OK)
            fail_msg("%s", err.msg);
        for (int64_t i = 0; i < N_WORDS; i++)
            expected[i] = by_gcc(which, words[i]);
        compare(which, "device");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nvcc_host_code_gives_the_same_bits_as_gcc),
        cmocka_unit_test(device_gives_the_same_bits_as_gcc),
    };
    return cmocka_run_group_tests(tests, fill_words, NULL);
}
