/* io/json.c - see json.h. A recursive-descent reader (RFC 8259) that builds a tree, and a writer.
 *
 * Memory of the reader. One buffer holds all strings; it is never longer than the text, because each
 * string loses two quotes and gains one NUL. A stack holds the values of open containers. Chunks hold the
 * children of closed containers side by side. So a hostile text costs at most a constant times its own
 * length. */
#include "io/json.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/file.h"
#include "io/number.h"

#define JSON_MAX_DEPTH  64
#define JSON_MAX_FILE   ((size_t)1 << 26)
#define JSON_MAX_VALUES ((size_t)1 << 23) /* a header of 100 MB can hold this many, in 400 MB of memory. */
#define JSON_MAX_NUMBER 400               /* characters; the shortest text of any double needs 25. */

typedef struct Chunk Chunk;
struct Chunk {
    Chunk *next;
    size_t used, capacity;
    Json nodes[];
};

/* json_free gets the address of `root`, the first member. */
typedef struct Document {
    Json root;
    char *strings;
    Chunk *chunks;
} Document;

typedef struct Parser {
    const char *text, *name;
    size_t at, length;
    int depth;
    Document *doc;
    size_t strings_used, n_values;
    Json *stack; /* values of open containers. */
    size_t stack_used, stack_capacity;
    Error *err;
} Parser;

static int parse_value(Parser *p, Json *value);

/* ---- small helpers ---------------------------------------------------------------------------------*/

static int syntax(Parser *p, size_t at, const char *what)
{
    return fail(p->err, "%s: JSON error at byte %zu: %s", p->name, at, what);
}

static void skip_space(Parser *p)
{
    while (p->at < p->length) {
        char c = p->text[p->at];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t')
            break;
        p->at++;
    }
}

static int peek(const Parser *p) /* the next byte, -1 at the end. */
{
    return p->at < p->length ? (unsigned char)p->text[p->at] : -1;
}

/* n nodes side by side, which live as long as the document. */
static Json *take_nodes(Parser *p, size_t n)
{
    Chunk *chunk = p->doc->chunks;
    if (!chunk || chunk->capacity - chunk->used < n) {
        size_t capacity = chunk ? 2 * chunk->capacity : 64;
        if (capacity > 65536)
            capacity = 65536;
        if (capacity < n)
            capacity = n;
        chunk = malloc(sizeof *chunk + capacity * sizeof(Json));
        if (!chunk) {
            fail_memory(p->err, "JSON values", capacity * sizeof(Json));
            return NULL;
        }
        *chunk = (Chunk){p->doc->chunks, 0, capacity};
        p->doc->chunks = chunk;
    }
    chunk->used += n;
    return chunk->nodes + chunk->used - n;
}

static int push_value(Parser *p, const Json *value)
{
    if (++p->n_values > JSON_MAX_VALUES)
        return syntax(p, p->at, "more than 8,388,608 values");
    if (p->stack_used == p->stack_capacity) {
        size_t capacity = p->stack_capacity ? 2 * p->stack_capacity : 64;
        Json *grown = realloc(p->stack, capacity * sizeof *grown);
        if (!grown)
            return fail_memory(p->err, "JSON values", capacity * sizeof *grown);
        p->stack = grown;
        p->stack_capacity = capacity;
    }
    p->stack[p->stack_used++] = *value;
    return 0;
}

/* ---- strings ---------------------------------------------------------------------------------------*/

/* Length of the UTF-8 sequence at s, of which n bytes are present; 0 when it is malformed. Unicode 15,
 * table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    if (n == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    size_t length = s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (length == 0 || length > n)
        return 0;
    unsigned low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    unsigned high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return length;
}

static size_t utf8_put(char *out, unsigned c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[length] | c);
    return length;
}

static int parse_hex4(Parser *p, unsigned *value)
{
    *value = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        int c = peek(p);
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return syntax(p, p->at, "expected four hexadecimal digits after \\u");
        *value = *value << 4 | (unsigned)digit;
    }
    return 0;
}

/* After "\u": read the character, which may take a surrogate pair. */
static int parse_unicode(Parser *p, unsigned *c)
{
    size_t start = p->at;
    if (parse_hex4(p, c))
        return -1;
    if (*c == 0)
        return syntax(p, start, "a string holds \\u0000, which is not supported");
    if (*c < 0xd800 || *c > 0xdfff)
        return 0;
    unsigned low = 0;
    if (*c > 0xdbff || p->length - p->at < 2 || p->text[p->at] != '\\' || p->text[p->at + 1] != 'u')
        return syntax(p, start, "half of a surrogate pair stands alone");
    p->at += 2;
    if (parse_hex4(p, &low))
        return -1;
    if (low < 0xdc00 || low > 0xdfff)
        return syntax(p, start, "half of a surrogate pair stands alone");
    *c = 0x10000 + ((*c - 0xd800) << 10) + (low - 0xdc00);
    return 0;
}

static int parse_escape(Parser *p, unsigned *c)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    int e = peek(p);
    p->at += e >= 0;
    if (e == 'u')
        return parse_unicode(p, c);
    const char *found = e > 0 ? strchr(from, e) : NULL;
    if (!found)
        return syntax(p, p->at, "unknown escape in a string");
    *c = (unsigned char)to[found - from];
    return 0;
}

static int parse_string(Parser *p, const char **string)
{
    size_t start = p->at++; /* the opening quote */
    char *begin = p->doc->strings + p->strings_used, *out = begin;
    for (;;) {
        int c = peek(p);
        if (c < 0)
            return syntax(p, start, "this string does not end");
        if (c < 0x20)
            return syntax(p, p->at, "control character in a string");
        if (c == '"')
            break;
        if (c == '\\') {
            unsigned character;
            p->at++;
            if (parse_escape(p, &character))
                return -1;
            out += utf8_put(out, character);
            continue;
        }
        size_t n = utf8_length((const unsigned char *)p->text + p->at, p->length - p->at);
        if (n == 0)
            return syntax(p, p->at, "a string is not valid UTF-8");
        memcpy(out, p->text + p->at, n);
        out += n;
        p->at += n;
    }
    p->at++;
    *out++ = 0;
    p->strings_used += (size_t)(out - begin);
    *string = begin;
    return 0;
}

/* ---- numbers ---------------------------------------------------------------------------------------*/

static size_t count_digits(const Parser *p, size_t at)
{
    size_t n = 0;
    while (at + n < p->length && p->text[at + n] >= '0' && p->text[at + n] <= '9')
        n++;
    return n;
}

/* The grammar is checked by hand, because strtod would take "0x10", "+1", "inf". number_read gives the
 * value, correctly rounded. */
static int parse_number(Parser *p, Json *value)
{
    size_t start = p->at, at = p->at + (peek(p) == '-');
    size_t digits = count_digits(p, at);
    if (digits == 0)
        return syntax(p, start, "expected a value");
    if (digits > 1 && p->text[at] == '0')
        return syntax(p, start, "a number begins with 0");
    at += digits;
    if (at < p->length && p->text[at] == '.') {
        digits = count_digits(p, ++at);
        if (digits == 0)
            return syntax(p, start, "expected digits after the decimal point");
        at += digits;
    }
    if (at < p->length && (p->text[at] == 'e' || p->text[at] == 'E')) {
        at++;
        at += at < p->length && (p->text[at] == '+' || p->text[at] == '-');
        digits = count_digits(p, at);
        if (digits == 0)
            return syntax(p, start, "expected digits in the exponent");
        at += digits;
    }
    char token[JSON_MAX_NUMBER + 1];
    if (at - start > JSON_MAX_NUMBER)
        return syntax(p, start, "a number is longer than 400 characters");
    memcpy(token, p->text + start, at - start);
    token[at - start] = 0;
    value->type = JSON_NUMBER;
    value->number = number_read(token, NULL);
    if (!isfinite(value->number))
        return syntax(p, start, "a number is too large for a double");
    p->at = at;
    return 0;
}

/* ---- containers ------------------------------------------------------------------------------------*/

static int compare_keys(const void *a, const void *b)
{
    return strcmp((*(const Json *const *)a)->key, (*(const Json *const *)b)->key);
}

/* Find duplicate keys: sort pointers to the members and compare neighbours, in n log n even for a hostile
 * file. */
static int check_keys(Parser *p, const Json *members, size_t n, size_t at)
{
    if (n < 2)
        return 0;
    const Json **sorted = malloc(n * sizeof *sorted);
    if (!sorted)
        return fail_memory(p->err, "JSON keys", n * sizeof *sorted);
    for (size_t i = 0; i < n; i++)
        sorted[i] = members + i;
    qsort(sorted, n, sizeof *sorted, compare_keys);
    int status = 0;
    for (size_t i = 1; i < n && !status; i++)
        if (strcmp(sorted[i - 1]->key, sorted[i]->key) == 0)
            status = fail(p->err, "%s: JSON error at byte %zu: this object has the key \"%.100s\" twice",
                          p->name, at, sorted[i]->key);
    free(sorted);
    return status;
}

static int parse_member_key(Parser *p, const char **key)
{
    skip_space(p);
    if (peek(p) != '"')
        return syntax(p, p->at, "expected a key in quotes");
    if (parse_string(p, key))
        return -1;
    skip_space(p);
    if (peek(p) != ':')
        return syntax(p, p->at, "expected ':' after a key");
    p->at++;
    return 0;
}

/* Array or object: its children wait on the stack until the closing bracket, then move to a chunk side by
 * side. */
static int parse_container(Parser *p, Json *value)
{
    size_t start = p->at, base = p->stack_used;
    int is_object = p->text[start] == '{', close = is_object ? '}' : ']';
    if (p->depth == JSON_MAX_DEPTH)
        return syntax(p, start, "nested deeper than 64 levels");
    p->depth++;
    p->at++;
    skip_space(p);
    int more = peek(p) != close;
    while (more) {
        Json child = {0};
        if (is_object && parse_member_key(p, &child.key))
            return -1;
        if (parse_value(p, &child) || push_value(p, &child))
            return -1;
        skip_space(p);
        more = peek(p) == ',';
        if (!more && peek(p) != close)
            return syntax(p, p->at, is_object ? "expected ',' or '}'" : "expected ',' or ']'");
        p->at += (size_t)more;
    }
    p->at++;
    p->depth--;
    value->type = is_object ? JSON_OBJECT : JSON_ARRAY;
    value->n = p->stack_used - base;
    if (value->n > 0) {
        Json *children = take_nodes(p, value->n);
        if (!children)
            return -1;
        memcpy(children, p->stack + base, value->n * sizeof *children);
        value->children = children;
        p->stack_used = base;
    }
    return is_object ? check_keys(p, value->children, value->n, start) : 0;
}

static int parse_word(Parser *p, Json *value, const char *word, JsonType type, double number)
{
    size_t n = strlen(word);
    if (p->length - p->at < n || memcmp(p->text + p->at, word, n) != 0)
        return syntax(p, p->at, "expected a value");
    p->at += n;
    value->type = type;
    value->number = number;
    return 0;
}

static int parse_value(Parser *p, Json *value)
{
    skip_space(p);
    switch (peek(p)) {
    case -1:
        return syntax(p, p->at, "the text ends where a value is expected");
    case '{':
    case '[':
        return parse_container(p, value);
    case '"':
        value->type = JSON_STRING;
        return parse_string(p, &value->string);
    case 't':
        return parse_word(p, value, "true", JSON_BOOL, 1);
    case 'f':
        return parse_word(p, value, "false", JSON_BOOL, 0);
    case 'n':
        return parse_word(p, value, "null", JSON_NULL, 0);
    default:
        return parse_number(p, value);
    }
}

const Json *json_parse(const char *text, size_t length, const char *name, Error *err)
{
    Document *doc = calloc(1, sizeof *doc);
    char *strings = doc ? malloc(length + 1) : NULL;
    if (!strings) {
        free(doc);
        fail_memory(err, name, length + 1);
        return NULL;
    }
    doc->strings = strings;
    Parser p = {.text = text, .name = name, .length = length, .doc = doc, .err = err};
    int status = parse_value(&p, &doc->root);
    if (!status) {
        skip_space(&p);
        if (p.at < length)
            status = syntax(&p, p.at, "something follows the value");
    }
    free(p.stack);
    if (!status)
        return &doc->root;
    json_free(&doc->root);
    return NULL;
}

const Json *json_read(const char *path, Error *err)
{
    size_t n;
    uint8_t *bytes = file_read(path, JSON_MAX_FILE, &n, err);
    if (!bytes)
        return NULL;
    const Json *root = json_parse((const char *)bytes, n, path, err);
    free(bytes);
    return root;
}

void json_free(const Json *root)
{
    if (!root)
        return;
    Document *doc = (Document *)(uintptr_t)root; /* root is the first member; const was for readers only. */
    for (Chunk *chunk = doc->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    free(doc->strings);
    free(doc);
}

const Json *json_get(const Json *object, const char *key)
{
    if (!object || object->type != JSON_OBJECT)
        return NULL;
    for (size_t i = 0; i < object->n; i++)
        if (strcmp(object->children[i].key, key) == 0)
            return &object->children[i];
    return NULL;
}

/* ---- writer ----------------------------------------------------------------------------------------*/

static void put(JsonWriter *w, const char *bytes, size_t n)
{
    if (w->failed)
        return;
    if (w->capacity - w->length <= n) { /* one byte stays for the NUL. */
        size_t capacity = 2 * w->capacity + n + 256;
        char *grown = realloc(w->text, capacity);
        if (!grown) {
            w->failed = 1;
            return;
        }
        w->text = grown;
        w->capacity = capacity;
    }
    memcpy(w->text + w->length, bytes, n);
    w->length += n;
    w->text[w->length] = 0;
}

/* Before any value or key: put the comma if it is needed. After a key none is needed. */
static void separate(JsonWriter *w)
{
    if (w->needs_comma)
        put(w, ",", 1);
    w->needs_comma = 1;
}

void json_begin(JsonWriter *w)
{
    memset(w, 0, sizeof *w);
    put(w, "", 0);
}

void json_end(JsonWriter *w)
{
    free(w->text);
    memset(w, 0, sizeof *w);
}

void json_open(JsonWriter *w, char bracket)
{
    separate(w);
    put(w, &bracket, 1);
    w->needs_comma = 0;
}

void json_close(JsonWriter *w, char bracket)
{
    put(w, &bracket, 1);
    w->needs_comma = 1;
}

static void put_quoted(JsonWriter *w, const char *value)
{
    const unsigned char *s = (const unsigned char *)value;
    size_t left = strlen(value);
    put(w, "\"", 1);
    while (left > 0) {
        char escape[8];
        size_t n = utf8_length(s, left);
        if (n == 0) {
            put(w, "\xef\xbf\xbd", 3); /* U+FFFD stands for a byte that is not UTF-8. */
            n = 1;
        } else if (*s == '"' || *s == '\\') {
            escape[0] = '\\', escape[1] = (char)*s;
            put(w, escape, 2);
        } else if (*s < 0x20 || *s == 0x7f) {
            put(w, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", *s));
        } else {
            put(w, (const char *)s, n);
        }
        s += n;
        left -= n;
    }
    put(w, "\"", 1);
}

void json_key(JsonWriter *w, const char *key)
{
    separate(w);
    put_quoted(w, key);
    put(w, ":", 1);
    w->needs_comma = 0;
}

void json_string(JsonWriter *w, const char *value)
{
    separate(w);
    put_quoted(w, value);
}

void json_number(JsonWriter *w, double value)
{
    if (!isfinite(value)) {
        json_null(w);
        return;
    }
    /* A double always keeps 15 digits, and %g drops trailing zeros: the first precision that reads back is
     * the shortest. */
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        number_write(text, sizeof text, digits, value);
        if (number_read(text, NULL) == value)
            break;
    }
    separate(w);
    put(w, text, strlen(text));
}

void json_float(JsonWriter *w, float value)
{
    if (!isfinite(value)) {
        json_null(w);
        return;
    }
    char text[40];
    for (int digits = 6; digits <= 9; digits++) { /* the same for float. */
        number_write(text, sizeof text, digits, (double)value);
        if ((float)number_read(text, NULL) == value)
            break;
    }
    separate(w);
    put(w, text, strlen(text));
}

void json_floats(JsonWriter *w, const char *key, const float *values, int n)
{
    json_key(w, key);
    json_open(w, '[');
    for (int i = 0; i < n; i++)
        json_float(w, values[i]);
    json_close(w, ']');
}

void json_int(JsonWriter *w, long long value)
{
    char text[24];
    separate(w);
    put(w, text, (size_t)snprintf(text, sizeof text, "%lld", value));
}

void json_bool(JsonWriter *w, int value)
{
    separate(w);
    put(w, value ? "true" : "false", value ? 4 : 5);
}

void json_null(JsonWriter *w)
{
    separate(w);
    put(w, "null", 4);
}

int json_save(const JsonWriter *w, const char *path, Error *err)
{
    if (w->failed)
        return fail(err, "%s: out of memory while the JSON text was made", path);
    OutFile out;
    if (out_open(&out, path, err))
        return -1;
    out_put(&out, w->text, w->length);
    out_put(&out, "\n", 1);
    return out_commit(&out, err);
}
