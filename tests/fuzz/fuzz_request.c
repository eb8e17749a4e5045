/*
 * libFuzzer target for what a stranger sends before any body: request targets, headers and their
 * framing, site checks, negotiation, query parameters; and for the configuration text. The first
 * byte chooses the parser, so that a corpus file says what it is for.
 *
 * Beyond "no crash", each parser's promise is asserted: what it accepts is within its bounds.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "us_config.h"
#include "us_predict_query.h"
#include "us_problem.h"
#include "us_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool inside(const struct us_target *t, const char *s)
{
    return s >= t->store && s + strlen(s) < t->store + sizeof(t->store);
}

static void fuzz_target(const char *text)
{
    struct us_target t;
    struct us_predict_query q;
    struct us_predict_config config = {.samples = 1};
    struct us_predict_file_options file = {.plane_mean = true, .channel = -1, .pages = 't'};
    struct us_err err;
    if (us_target_parse(text, &t, &err) != US_OK)
        return;
    for (int i = 0; i < t.n_segments; i++)
        US_ASSERT(inside(&t, t.segment[i]) && strchr(t.segment[i], '/') == NULL);
    for (int i = 0; i < t.n_params; i++)
        US_ASSERT(inside(&t, t.param[i].name) && inside(&t, t.param[i].value));
    if (us_predict_query_parse(&t, &q, &err) != US_OK)
        return;
    us_predict_query_apply(&q, &config, &file);
    US_ASSERT(config.samples >= 1 && config.samples <= US_MAX_SAMPLES);
    US_ASSERT(config.padding >= 0 && config.padding <= US_MAX_PATCH);
    US_ASSERT(file.n_mix >= 0 && file.n_mix <= US_MAX_TARGETS);
    US_ASSERT(file.plane_mean || file.plane_std);
}

/* "Name: value" lines, as a head. text is changed. */
static void fuzz_head(char *text)
{
    struct us_head h = {0};
    struct us_framing f;
    struct us_err err;
    for (char *line = text, *next; line != NULL && h.n < US_MAX_HEADERS; line = next) {
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        char *colon = strchr(line, ':');
        if (colon != NULL)
            *colon++ = '\0';
        h.header[h.n++] = (struct us_header){line, colon};
    }
    if (us_head_check(&h, true, &f, &err) == US_OK)
        US_ASSERT(!(f.chunked && f.has_length) && f.length <= INT64_MAX);
    (void)!us_head_check_site(&h, "a, b.example", false, &err);
    (void)us_media_accept(us_head_get(&h, "Accept"));
    (void)us_media_of_body(us_head_get(&h, "Content-Type"));
}

static void fuzz_words(const char *text)
{
    struct us_listen l;
    (void)us_media_accept(text);
    (void)us_media_of_body(text);
    (void)us_etag_listed(text, "abc");
    (void)us_request_id_ok(text);
    if (us_model_name_ok(text))
        US_ASSERT(strlen(text) <= US_MAX_MODEL_NAME && strpbrk(text, "/\\") == NULL);
    if (us_listen_parse(text, &l, NULL) == US_OK)
        US_ASSERT(memchr(l.host, '\0', sizeof(l.host)) != NULL);
    char *json = us_problem_json(400, text, text, "id");
    US_ASSERT(json != NULL && strchr(json, '\n') == NULL);
    free(json);
}

static void fuzz_config(const char *text, size_t n)
{
    struct us_config c = us_config_defaults();
    struct us_err err;
    if (us_config_parse(&c, text, n, "f", &err) != US_OK)
        return;
    US_ASSERT(c.threads >= 0 && c.threads <= US_MAX_THREADS && c.max_queue >= 1);
    (void)!us_config_check(&c, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > (64 << 10))
        return 0;
    char *text = malloc(size); /* without the first byte, with a NUL */
    if (text == NULL)
        return 0;
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    if (data[0] == 't')
        fuzz_target(text);
    else if (data[0] == 'h')
        fuzz_head(text);
    else if (data[0] == 'c')
        fuzz_config(text, size - 1);
    else
        fuzz_words(text);
    free(text);
    return 0;
}
