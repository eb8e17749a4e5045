/* Which tables of vector code (us_cpu_kernels.h) this processor and system can run. */
#include "us_cpu_kernels.h"

#include "us_status.h"

extern const struct usi_cpu_kernels usi_cpu_kernels_baseline;
#if defined(__x86_64__)
extern const struct usi_cpu_kernels usi_cpu_kernels_avx2;
extern const struct usi_cpu_kernels usi_cpu_kernels_avx512;
#endif

/* The flags with which core/meson.build compiles each table. */
static bool runs_avx2(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") != 0;
#else
    return false;
#endif
}

static bool runs_avx512(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

const struct usi_cpu_kernels *const *usi_cpu_kernels_list(int *ret_n)
{
    /* Each runs what its predecessor runs, so the list can be cut after any of them. */
    static const struct usi_cpu_kernels *const table[] = {
        &usi_cpu_kernels_baseline,
#if defined(__x86_64__)
        &usi_cpu_kernels_avx2,
        &usi_cpu_kernels_avx512,
#endif
    };
    int n = 1;
    if (runs_avx2())
        n = runs_avx512() ? 3 : 2;
    US_ASSERT(n <= (int)US_COUNT(table));
    *ret_n = n;
    return table;
}
