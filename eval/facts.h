/* eval/facts.h - all that the results of a run depend on: settings, checksums of weights and images. A run
 * keeps them as JSON, and refuses to go on when they differ. */
#ifndef SAMLAD_EVAL_FACTS_H
#define SAMLAD_EVAL_FACTS_H

#include <stddef.h>

#include "io/error.h"
#include "samlad.h"

/* Keys and values of run.json or categories/CATEGORY.json. */
typedef struct Facts {
    int n, failed; /* failed: out of memory; a fact is missing. */
    char *keys[256], *values[256];
} Facts;

/* A failure shows in facts_settle and facts_read. */
void facts_add(Facts *facts, const char *key, const char *value);
void facts_add_int(Facts *facts, const char *key, long long value);
int facts_describe(Facts *facts, const Samlad *s, Error *err); /* the facts of samlad_describe. */
int facts_read(Facts *facts, const char *path, Error *err);
const char *facts_get(const Facts *facts, const char *key); /* NULL: none */
void facts_free(Facts *facts);
/* One checksum over lines, one line a file. Start with zeros; free text. */
typedef struct Digest {
    char *text;
    size_t n, capacity;
} Digest;
int digest_line(Digest *digest, const char *name, const char *detail, Error *err);
void digest_sha256(const Digest *digest, char hex[65]);

/* Index of the first fact that differs; -1: none. "data" and "data.*" do not count: images may move. The index is
 * into `today`, or into `then` when `today` lacks the fact (*in_then = 1). */
int facts_differ(const Facts *then, const Facts *today, int *in_then);
/* If `path` is missing, write the facts there. Otherwise compare them with the file: -1 and a sentence that
 * names the first difference. */
int facts_settle(const Facts *today, const char *path, Error *err);
/* Do "data" or "data.*" differ? */
int facts_moved(const Facts *then, const Facts *today);
int facts_save(const Facts *facts, const char *path, Error *err);

#endif
