/* The daemon's certificate; see us_tls.h. */
#include "us_tls.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/x509.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_CHAIN      16
#define MAX_FILE_BYTES (1 << 20)

struct identity {
    gnutls_pcert_st chain[MAX_CHAIN];
    unsigned int n_chain;
    gnutls_privkey_t key;
    int64_t expires_s;
    struct identity *older;
};

static _Atomic(struct identity *) shown;

static void identity_free(struct identity *id)
{
    if (id == NULL)
        return;
    for (unsigned int i = 0; i < id->n_chain; i++)
        gnutls_pcert_deinit(&id->chain[i]);
    if (id->key != NULL)
        gnutls_privkey_deinit(id->key);
    free(id);
}

/* A whole small file; data is the caller's. secret: its rights must be narrow. */
static enum us_status read_pem(const char *path, bool secret, gnutls_datum_t *ret,
                               struct us_err *err)
{
    struct stat st;
    enum us_status result = US_OK;
    unsigned char *text = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) {
        result = us_fail(err, US_E_IO, "%s: %s", path, strerror(errno));
        goto out;
    }
    if (secret && (st.st_mode & (S_IROTH | S_IWOTH)) != 0) {
        result = us_fail(err, US_E_ARG,
                         "%s: everybody may %s this key (mode %03o); expected its owner and group "
                         "alone: chmod 640 or stricter",
                         path, (st.st_mode & S_IROTH) != 0 ? "read" : "change",
                         (unsigned)st.st_mode & 0777U);
        goto out;
    }
    text = malloc(MAX_FILE_BYTES);
    if (text == NULL) {
        result = us_fail(err, US_E_NOMEM, "%s: no memory to read it", path);
        goto out;
    }
    ssize_t n = read(fd, text, MAX_FILE_BYTES);
    if (n < 0 || n == MAX_FILE_BYTES) {
        result = us_fail(err, US_E_IO, "%s: %s", path, n < 0 ? strerror(errno) : "over 1 MiB");
        goto out;
    }
    *ret = (gnutls_datum_t){text, (unsigned int)n};
    text = NULL;
out:
    free(text);
    if (fd >= 0)
        (void)close(fd);
    return result;
}

static enum us_status read_chain(const char *path, struct identity *id, struct us_err *err)
{
    gnutls_datum_t pem = {NULL, 0};
    gnutls_x509_crt_t first = NULL;
    unsigned int n = MAX_CHAIN;
    US_TRY(read_pem(path, false, &pem, err));
    int e = gnutls_pcert_list_import_x509_raw(id->chain, &n, &pem, GNUTLS_X509_FMT_PEM, 0);
    free(pem.data);
    if (e == GNUTLS_E_SHORT_MEMORY_BUFFER)
        return us_fail(err, US_E_TOO_LARGE, "%s: over %d certificates", path, MAX_CHAIN);
    if (e < 0 || n == 0)
        return us_fail(err, US_E_FORMAT, "%s: no certificate in PEM form: %s", path,
                       gnutls_strerror(e));
    id->n_chain = n;
    e = gnutls_pcert_export_x509(&id->chain[0], &first);
    if (e < 0)
        return us_fail(err, US_E_FORMAT, "%s: %s", path, gnutls_strerror(e));
    id->expires_s = (int64_t)gnutls_x509_crt_get_expiration_time(first);
    gnutls_x509_crt_deinit(first);
    return US_OK;
}

static enum us_status read_key(const char *path, struct identity *id, struct us_err *err)
{
    gnutls_datum_t pem = {NULL, 0};
    US_TRY(read_pem(path, true, &pem, err));
    int e = gnutls_privkey_init(&id->key);
    if (e >= 0)
        e = gnutls_privkey_import_x509_raw(id->key, &pem, GNUTLS_X509_FMT_PEM, NULL, 0);
    explicit_bzero(pem.data, pem.size);
    free(pem.data);
    if (e == GNUTLS_E_DECRYPTION_FAILED)
        return us_fail(err, US_E_FORMAT, "%s: the key has a password; expected one without", path);
    return e >= 0 ? US_OK
                  : us_fail(err, US_E_FORMAT, "%s: no private key in PEM form: %s", path,
                            gnutls_strerror(e));
}

/* Whether certificate and key belong together: both name one public key. */
static bool is_pair(struct identity *id)
{
    unsigned char a[64], b[64];
    size_t n_a = sizeof(a), n_b = sizeof(b);
    gnutls_pubkey_t mine = NULL;
    bool same =
        gnutls_pubkey_init(&mine) >= 0 && gnutls_pubkey_import_privkey(mine, id->key, 0, 0) >= 0 &&
        gnutls_pubkey_get_key_id(mine, GNUTLS_KEYID_USE_SHA256, a, &n_a) >= 0 &&
        gnutls_pubkey_get_key_id(id->chain[0].pubkey, GNUTLS_KEYID_USE_SHA256, b, &n_b) >= 0 &&
        n_a == n_b && memcmp(a, b, n_a) == 0;
    if (mine != NULL)
        gnutls_pubkey_deinit(mine);
    return same;
}

static enum us_status read_identity(const char *cert, const char *key, struct identity **ret,
                                    struct us_err *err)
{
    struct identity *id = calloc(1, sizeof(*id));
    if (id == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the certificate");
    enum us_status st = read_chain(cert, id, err);
    if (st != US_OK)
        us_err_prefix(err, "tls-cert");
    if (st == US_OK && (st = read_key(key, id, err)) != US_OK)
        us_err_prefix(err, "tls-key");
    if (st == US_OK && !is_pair(id))
        st = us_fail(err, US_E_ARG, "tls-key: %s is not the key of the first certificate in %s",
                     key, cert);
    if (st != US_OK) {
        identity_free(id);
        return st;
    }
    *ret = id;
    return US_OK;
}

enum us_status us_tls_check(const char *cert, const char *key, struct us_err *err)
{
    struct identity *id = NULL;
    US_TRY(read_identity(cert, key, &id, err));
    identity_free(id);
    return US_OK;
}

enum us_status us_tls_load(const char *cert, const char *key, struct us_err *err)
{
    struct identity *id = NULL;
    US_TRY(read_identity(cert, key, &id, err));
    id->older = atomic_load(&shown);
    atomic_store(&shown, id);
    return US_OK;
}

int64_t us_tls_expires_s(void)
{
    const struct identity *id = atomic_load(&shown);
    return id != NULL ? id->expires_s : 0;
}

void us_tls_release(void)
{
    struct identity *id = atomic_exchange(&shown, NULL);
    while (id != NULL) {
        struct identity *older = id->older;
        identity_free(id);
        id = older;
    }
}

int us_tls_retrieve(gnutls_session_t session, const gnutls_datum_t *authorities, int n_authorities,
                    const gnutls_pk_algorithm_t *algorithms, int n_algorithms,
                    gnutls_pcert_st **ret_chain, unsigned int *ret_n, gnutls_privkey_t *ret_key)
{
    struct identity *id = atomic_load(&shown);
    if (id == NULL)
        return -1;
    *ret_chain = id->chain;
    *ret_n = id->n_chain;
    *ret_key = id->key;
    return 0;
}

void us_tls_send(gnutls_session_t session, const void *bytes, size_t n)
{
    const char *p = bytes;
    while (n > 0) {
        ssize_t k = gnutls_record_send(session, p, n);
        if (k == GNUTLS_E_INTERRUPTED)
            continue;
        if (k <= 0)
            return;
        p += k;
        n -= (size_t)k;
    }
}
