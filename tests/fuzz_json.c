/* fuzz_json.c - JSON: a text that was read, written and read again is written the same. See fuzz.h. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "io/json.h"

static void write_tree(JsonWriter *w, const Json *value)
{
    if (value->type == JSON_STRING)
        json_string(w, value->string);
    else if (value->type == JSON_NUMBER)
        json_number(w, value->number);
    else if (value->type == JSON_BOOL)
        json_bool(w, value->number != 0);
    else if (value->type == JSON_NULL)
        json_null(w);
    else {
        int is_object = value->type == JSON_OBJECT;
        json_open(w, is_object ? '{' : '[');
        for (size_t i = 0; i < value->n; i++) {
            if (is_object)
                json_key(w, value->children[i].key);
            write_tree(w, &value->children[i]);
        }
        json_close(w, is_object ? '}' : ']');
    }
}

int FUZZ_TARGET(const uint8_t *bytes, size_t n)
{
    Error err;
    err.message[0] = 0;
    const Json *tree = json_parse((const char *)bytes, n, "fuzz", &err), *again;
    if (!tree)
        return err.message[0] ? 0 : (abort(), 0);
    JsonWriter first, second;
    json_begin(&first);
    json_begin(&second);
    write_tree(&first, tree);
    again = json_parse(first.text, first.length, "again", &err);
    if (!again)
        abort();
    write_tree(&second, again);
    if (strcmp(first.text, second.text) != 0)
        abort();
    json_end(&first);
    json_end(&second);
    json_free(again);
    json_free(tree);
    return 0;
}
