/* io/json.h - a small JSON reader (a tree) and writer (a growing string).
 *
 * Reader: RFC 8259. UTF-8 is checked, depth is limited to 64, the number of nodes is bounded by the text's
 * length. Numbers are doubles (integers up to 2^53 are exact). Duplicate keys are refused. Errors name
 * file and byte offset. */
#ifndef SAMLAD_IO_JSON_H
#define SAMLAD_IO_JSON_H

#include <stddef.h>

#include "io/error.h"

typedef enum JsonType { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct Json Json;
struct Json {
    JsonType type;
    const char *key;      /* inside an object, else NULL. */
    const char *string;   /* JSON_STRING, NUL-terminated, UTF-8, escapes resolved; \u0000 is refused. */
    double number;        /* JSON_NUMBER; JSON_BOOL: 0 or 1. */
    size_t n;             /* children of array and object. */
    const Json *children; /* [n], contiguous */
};

/* Parse text[length]; `name` is for messages. The tree and its strings live until json_free. */
const Json *json_parse(const char *text, size_t length, const char *name, Error *err);
const Json *json_read(const char *path, Error *err); /* whole file, at most 64 MiB. */
void json_free(const Json *root);
const Json *json_get(const Json *object, const char *key); /* NULL when absent or not an object. */

/* ---- writing: commas and quotes are put automatically -------------------------------------------------- */
typedef struct JsonWriter {
    char *text; /* NUL-terminated */
    size_t length, capacity;
    int needs_comma, failed; /* failed: out of memory; the text is unusable. */
} JsonWriter;

void json_begin(JsonWriter *w);
void json_end(JsonWriter *w);                 /* frees */
void json_open(JsonWriter *w, char bracket);  /* '{' or '[' */
void json_close(JsonWriter *w, char bracket); /* '}' or ']' */
void json_key(JsonWriter *w, const char *key);
void json_string(JsonWriter *w, const char *value); /* invalid UTF-8 bytes become U+FFFD. */
void json_number(JsonWriter *w, double value);      /* shortest that reads back; NaN and inf -> null. */
void json_float(JsonWriter *w, float value);        /* shortest that reads back as float. */
void json_floats(JsonWriter *w, const char *key, const float *values, int n); /* KEY: [n] */
void json_int(JsonWriter *w, long long value);
void json_bool(JsonWriter *w, int value);
void json_null(JsonWriter *w);
int json_save(const JsonWriter *w, const char *path,
              Error *err); /* text and a newline; temporary name, then rename. */

#endif
