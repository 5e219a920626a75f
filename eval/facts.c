/* eval/facts.c - see facts.h. */
#include "eval/facts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/json.h"

void facts_add(Facts *f, const char *key, const char *value)
{
    if (f->n == (int)(sizeof f->keys / sizeof *f->keys))
        return; /* a longer file is not ours, so its facts differ in any case. */
    char *k = strdup(key), *v = strdup(value);
    if (!k || !v) {
        free(k), free(v);
        f->failed = 1;
        return;
    }
    f->keys[f->n] = k;
    f->values[f->n++] = v;
}

static void describe_one(void *facts, const char *key, const char *value)
{
    facts_add(facts, key, value);
}

int facts_describe(Facts *f, const Samlad *s, Error *err)
{
    samlad_describe(s, describe_one, f);
    return f->failed ? fail_memory(err, "the settings", sizeof *f) : 0;
}

void facts_add_int(Facts *f, const char *key, long long value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", value);
    facts_add(f, key, text);
}

void facts_free(Facts *f)
{
    for (int i = 0; i < f->n; i++)
        free(f->keys[i]), free(f->values[i]);
    *f = (Facts){0};
}

const char *facts_get(const Facts *f, const char *key)
{
    for (int i = 0; i < f->n; i++)
        if (strcmp(f->keys[i], key) == 0)
            return f->values[i];
    return NULL;
}

/* Where the data set is and what its folders are called may change: the images' checksums are facts, too. */
static int is_place(const char *key)
{
    return strncmp(key, "data", 4) == 0 && (key[4] == '\0' || key[4] == '.');
}

int digest_line(Digest *d, const char *name, const char *detail, Error *err)
{
    size_t size = strlen(name) + strlen(detail) + 3;
    if (d->n + size > d->capacity) {
        size_t capacity = 2 * (d->n + size);
        char *text = realloc(d->text, capacity);
        if (!text)
            return fail_memory(err, "a checksum", capacity);
        d->text = text;
        d->capacity = capacity;
    }
    d->n += (size_t)sprintf(d->text + d->n, "%s %s\n", name, detail);
    return 0;
}

void digest_sha256(const Digest *d, char hex[65])
{
    sha256(d->text ? d->text : "", d->n, hex);
}

int facts_differ(const Facts *then, const Facts *today, int *in_then)
{
    *in_then = 0;
    for (int i = 0; i < today->n; i++) {
        const char *value = facts_get(then, today->keys[i]);
        if (!is_place(today->keys[i]) && (!value || strcmp(value, today->values[i]) != 0))
            return i;
    }
    *in_then = 1;
    for (int i = 0; i < then->n; i++)
        if (!is_place(then->keys[i]) && !facts_get(today, then->keys[i]))
            return i;
    return -1;
}

int facts_read(Facts *f, const char *path, Error *err)
{
    *f = (Facts){0};
    const Json *json = json_read(path, err);
    if (!json)
        return -1;
    int status = json->type == JSON_OBJECT ? 0 : fail(err, "%s: this is no file of samlad eval", path);
    for (size_t i = 0; i < json->n && !status; i++) {
        const Json *child = &json->children[i];
        if (child->type == JSON_STRING)
            facts_add(f, child->key, child->string);
        else
            status = fail(err, "%s: %s is not a string", path, child->key);
    }
    json_free(json);
    if (f->failed)
        status = fail_memory(err, path, sizeof *f);
    if (status)
        facts_free(f);
    return status;
}

int facts_moved(const Facts *then, const Facts *today)
{
    const Facts *const both[] = {then, today};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < both[k]->n; i++) {
            const char *other = facts_get(both[!k], both[k]->keys[i]);
            if (is_place(both[k]->keys[i]) && (!other || strcmp(other, both[k]->values[i]) != 0))
                return 1;
        }
    return 0;
}

int facts_save(const Facts *f, const char *path, Error *err)
{
    JsonWriter w;
    json_begin(&w);
    json_open(&w, '{');
    for (int i = 0; i < f->n; i++)
        json_key(&w, f->keys[i]), json_string(&w, f->values[i]);
    json_close(&w, '}');
    int status = w.failed ? fail_memory(err, path, w.length) : json_save(&w, path, err);
    json_end(&w);
    return status;
}

/* Write the facts, unless another process was first. */
static int facts_publish(const Facts *f, const char *path, Error *err)
{
    char *temporary = temporary_name(path);
    int status = temporary ? facts_save(f, temporary, err) : fail_memory(err, path, strlen(path));
    if (!status)
        status = file_sync(temporary, err) || file_publish(temporary, path, err) < 0 ? -1 : 0;
    free(temporary);
    return status;
}

/* A key in words: "option.k" is an option of the command, "weights.sam.sha256" a file. */
static const char *words_of(const char *key, char text[96])
{
    if (strncmp(key, "option.", 7) == 0)
        snprintf(text, 96, "--%.60s", key + 7);
    else if (strncmp(key, "weights.", 8) == 0)
        snprintf(text, 96, "the weights of --%.*s (sha256)", (int)strcspn(key + 8, "."), key + 8);
    else if (strncmp(key, "normal.", 7) == 0)
        snprintf(text, 96, "the normal images (%.60s)", key + 7);
    else if (strncmp(key, "masks.", 6) == 0)
        snprintf(text, 96, "the masks (%.60s)", key + 6);
    else if (strncmp(key, "test.", 5) == 0)
        snprintf(text, 96, "the test images (%.60s)", key + 5);
    else if (strcmp(key, "samlad") == 0)
        snprintf(text, 96, "samlad's version");
    else
        snprintf(text, 96, "--%.60s", key);
    return text;
}

int facts_settle(const Facts *today, const char *path, Error *err)
{
    Facts then;
    char what[96];
    int in_then;
    if (today->failed)
        return fail_memory(err, path, sizeof then);
    if (!file_exists(path) && facts_publish(today, path, err))
        return -1;
    if (facts_read(&then, path, err))
        return -1;
    int i = facts_differ(&then, today, &in_then), status = 0;
    if (i >= 0) {
        const char *key = in_then ? then.keys[i] : today->keys[i], *was = facts_get(&then, key),
                   *is = facts_get(today, key);
        status = fail(err,
                      "%s: the run in this folder has other settings: %s was %.64s and is %.64s now; "
                      "use the old ones, or give another folder",
                      path, words_of(key, what), was ? was : "missing", is ? is : "missing");
    }
    facts_free(&then);
    return status;
}
