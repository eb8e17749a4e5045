/*
 * Finding cuDNN at run time. A build with CUDA starts everywhere; this is where a machine without
 * the library learns what it lacks.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "us_cudnn.h"

/* Where the system's loader finds it, and beside CUDA where that was installed by hand. */
#define LIBRARY     "libcudnn.so.9"
#define BESIDE_CUDA "/usr/local/cuda/lib64/" LIBRARY
/* The first with the graph interface as used here. */
#define OLDEST 90000

static const struct {
    const char *symbol;
    size_t at; /* of the field */
} functions[] = {
#define US_CUDNN_FN(field, symbol) {#symbol, offsetof(struct us_cudnn_api, field)},
#include "us_cudnn_api.def"
#undef US_CUDNN_FN
};

/* Object and function pointers have one size here (POSIX dlsym asks for that), but ISO C has no
 * conversion between them: hence memcpy. */
static enum us_status find_functions(struct us_cudnn_api *api, const char *name, struct us_err *err)
{
    for (size_t i = 0; i < US_COUNT(functions); i++) {
        void *p = dlsym(api->lib, functions[i].symbol);
        if (p == NULL)
            return us_fail(err, US_E_UNSUPPORTED, "cuDNN: %s has no %s", name, functions[i].symbol);
        memcpy((char *)api + functions[i].at, &p, sizeof(p));
    }
    return US_OK;
}

enum us_status usi_cudnn_load(struct us_cudnn_api *api, struct us_err *err)
{
    const char *name = getenv("USPLIT_CUDNN");
    if (name == NULL || name[0] == '\0')
        name = LIBRARY;
    memset(api, 0, sizeof(*api));
    api->lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (api->lib == NULL) {
        enum us_status missing =
            us_fail(err, US_E_UNSUPPORTED, "cuDNN 9 is missing (%s)", dlerror());
        if (strcmp(name, LIBRARY) == 0)
            api->lib = dlopen(BESIDE_CUDA, RTLD_NOW | RTLD_LOCAL);
        if (api->lib == NULL)
            return missing;
    }
    enum us_status s = find_functions(api, name, err);
    if (s == US_OK && api->version() < OLDEST)
        s = us_fail(err, US_E_UNSUPPORTED, "cuDNN: %s is version %zu, at least %d is needed", name,
                    api->version(), OLDEST);
    if (s != US_OK)
        usi_cudnn_unload(api);
    return s;
}

void usi_cudnn_unload(struct us_cudnn_api *api)
{
    if (api->lib != NULL)
        (void)dlclose(api->lib);
    api->lib = NULL;
}
