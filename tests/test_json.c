/* test_json.c - the JSON reader and writer, and io/file.c's files and folders. */
#include "test.h"

#include <fcntl.h>
#include <locale.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/file.h"
#include "io/json.h"
#include "io/number.h"
#include "bank/options.h"

#define TMP "test_json.tmp"

static const Json *parse(const char *text, Error *err)
{
    return json_parse(text, strlen(text), "text.json", err);
}

static void test_tree(void)
{
    Error err = {""};
    const Json *root =
        parse(" {\"a\": [1, -2.5e3, true, false, null, \"x\"], \"b\": {\"c\": []}, \"\": {}}\r\n\t", &err);
    REQUIRE(root);
    CHECK(root->type == JSON_OBJECT && root->n == 3 && root->key == NULL);
    const Json *a = json_get(root, "a"), *c = json_get(json_get(root, "b"), "c");
    REQUIRE(a && c);
    CHECK(a->type == JSON_ARRAY && a->n == 6 && strcmp(a->key, "a") == 0);
    CHECK(a->children[0].type == JSON_NUMBER && a->children[0].number == 1);
    CHECK(a->children[1].number == -2500);
    CHECK(a->children[2].type == JSON_BOOL && a->children[2].number == 1);
    CHECK(a->children[3].type == JSON_BOOL && a->children[3].number == 0);
    CHECK(a->children[4].type == JSON_NULL);
    CHECK(a->children[5].type == JSON_STRING && strcmp(a->children[5].string, "x") == 0);
    CHECK(c->type == JSON_ARRAY && c->n == 0);
    CHECK(json_get(root, "") && json_get(root, "")->type == JSON_OBJECT);
    CHECK(!json_get(root, "missing") && !json_get(a, "a") && !json_get(NULL, "a"));
    json_free(root);
    json_free(NULL);
}

static void test_strings(void)
{
    static const char *cases[][2] = {
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
        {"\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\"", "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"\"\xc3\xa9\xef\xbf\xbf\xf4\x8f\xbf\xbf\"", "\xc3\xa9\xef\xbf\xbf\xf4\x8f\xbf\xbf"},
        {"\"\\uFFFF\"", "\xef\xbf\xbf"},
        {"\"\"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        const Json *root = parse(cases[i][0], &err);
        CHECK_MSG(root && strcmp(root->string, cases[i][1]) == 0, "case %zu: %s", i, err.message);
        json_free(root);
    }
}

static void test_numbers(void)
{
    static const struct {
        const char *text;
        double value;
    } cases[] = {
        {"0", 0},      {"-0", 0},     {"9007199254740993", 9007199254740992.0},           {"0.1", 0.1},
        {"1E+2", 100}, {"1e-400", 0}, {"1.7976931348623157e308", 1.7976931348623157e308}, {"5e-324", 5e-324}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        const Json *root = parse(cases[i].text, &err);
        CHECK_MSG(root && root->number == cases[i].value, "case %zu: %s", i, err.message);
        json_free(root);
    }
}

static void test_refuses(void)
{
    static const char *cases[] = {
        "",
        " ",
        "{",
        "[",
        "]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "nul",
        "nulll",
        "True",
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "0x10",
        "inf",
        "NaN",
        "1e999",
        "1 1",
        "\"",
        "\"\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"\\u0000\"",
        "\"\n\"",
        "\"\x1f\"",
        "\"\x80\"",
        "\"\xc0\xaf\"",
        "\"\xe0\x80\x80\"",
        "\"\xed\xa0\x80\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xf5\"",
        "\"\xe2\x82\"",
        "{\"a\":1,\"b\":2,\"a\":3}",
        "{\"\\u0061\":1,\"a\":2}",
        "// comment\n1",
        "[1]]",
        "'a'",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Error err = {""};
        const Json *root = parse(cases[i], &err);
        CHECK_MSG(!root, "case %zu was read: %s", i, cases[i]);
        CHECK_MSG(strstr(err.message, "text.json: JSON error at byte ") == err.message, "%s", err.message);
        json_free(root);
    }
}

static void test_depth(void)
{
    char text[256];
    for (int depth = 63; depth <= 66; depth++) {
        Error err = {""};
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        const Json *root = json_parse(text, 2 * (size_t)depth, "deep", &err);
        CHECK_MSG((root != NULL) == (depth <= 64), "depth %d: %s", depth, err.message);
        json_free(root);
    }
}

static void test_many_keys(void)
{
    JsonWriter w;
    Error err = {""};
    char key[32];
    json_begin(&w);
    json_open(&w, '{');
    for (int i = 0; i < 20000; i++) {
        snprintf(key, sizeof key, "key%d", i);
        json_key(&w, key);
        json_int(&w, i);
    }
    json_close(&w, '}');
    const Json *root = json_parse(w.text, w.length, "many", &err);
    REQUIRE(root);
    CHECK(root->n == 20000 && json_get(root, "key19999")->number == 19999);
    json_free(root);
    json_end(&w);
}

static void test_writer(void)
{
    JsonWriter w;
    json_begin(&w);
    json_open(&w, '{');
    json_key(&w, "a\"\n");
    json_open(&w, '[');
    json_number(&w, 0.1);
    json_number(&w, NAN);
    json_float(&w, 0.1f);
    json_int(&w, -7);
    json_open(&w, '[');
    json_close(&w, ']');
    json_bool(&w, 1);
    json_null(&w);
    json_close(&w, ']');
    json_key(&w, "b");
    json_string(&w, "\xc3\xa9\xff\x01");
    json_close(&w, '}');
    CHECK_MSG(
        strcmp(w.text,
               "{\"a\\\"\\u000a\":[0.1,null,0.1,-7,[],true,null],\"b\":\"\xc3\xa9\xef\xbf\xbd\\u0001\"}") ==
            0,
        "%s", w.text);
    CHECK(w.length == strlen(w.text) && !w.failed);
    json_end(&w);
}

/* Written numbers read back as the same bits. */
static void test_writer_exact(void)
{
    uint64_t state = 1;
    for (int i = 0; i < 20000; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        double d;
        float f;
        uint32_t u = (uint32_t)(state >> 32);
        memcpy(&d, &state, 8);
        memcpy(&f, &u, 4);
        if (!isfinite(d) || !isfinite(f))
            continue;
        JsonWriter w;
        Error err;
        json_begin(&w);
        json_open(&w, '[');
        json_number(&w, d);
        json_float(&w, f);
        json_close(&w, ']');
        const Json *root = json_parse(w.text, w.length, "numbers", &err);
        CHECK_MSG(root && root->children[0].number == d && (float)root->children[1].number == f, "%s",
                  w.text);
        json_free(root);
        json_end(&w);
    }
}

/* ---- files and folders -----------------------------------------------------------------------------*/

static void test_files(void)
{
    Error err = {""};
    size_t n;
    CHECK(file_write(TMP, "hello\n", 6, &err) == 0);
    uint8_t *bytes = file_read(TMP, 6, &n, &err);
    REQUIRE(bytes);
    CHECK(n == 6 && strcmp((char *)bytes, "hello\n") == 0);
    free(bytes);
    CHECK(!file_read(TMP, 5, &n, &err) && strstr(err.message, "larger than"));
    CHECK(file_exists(TMP) && !dir_exists(TMP));
    CHECK(file_write(TMP, "", 0, &err) == 0);
    bytes = file_read(TMP, 0, &n, &err);
    CHECK(bytes && n == 0 && bytes[0] == 0);
    free(bytes);
    /* reading an endless device ends at the limit; writing to a device does not replace it */
    CHECK(!file_read("/dev/zero", 100000, &n, &err) && strstr(err.message, "larger than"));
    CHECK(file_write("/dev/null", "x", 1, &err) == 0);
    struct stat info;
    CHECK(stat("/dev/null", &info) == 0 && S_ISCHR(info.st_mode));
    CHECK(file_write("no/such/folder/file", "x", 1, &err) != 0 && strstr(err.message, "cannot create"));
    CHECK(file_write("/dev/full", "x", 1, &err) != 0 && strstr(err.message, "cannot write"));
    unlink(TMP);
    CHECK(!file_exists(TMP));
}

static int holds(const char *path, const char *text)
{
    Error err;
    size_t n;
    uint8_t *bytes = file_read(path, 100, &n, &err);
    int same = bytes && strcmp((char *)bytes, text) == 0;
    free(bytes);
    return same;
}

static int is_link(const char *path)
{
    struct stat info;
    return lstat(path, &info) == 0 && S_ISLNK(info.st_mode);
}

/* The file behind a link is replaced or made, and the link stays. An open stream of the shell is written
 * to. */
static void test_links(void)
{
    Error err = {""};
    const char *dir = TMP ".links", *target = TMP ".links/below/file", *link_ = TMP ".links/link",
               *second = TMP ".links/second";
    REQUIRE(dir_make(TMP ".links/below", &err) == 0 && file_write(target, "old", 3, &err) == 0);
    REQUIRE(symlink("below/file", link_) == 0 && symlink("link", second) == 0);
    CHECK_MSG(file_write(second, "new", 3, &err) == 0, "%s", err.message);
    CHECK(is_link(second) && is_link(link_) && !is_link(target) && holds(target, "new"));
    CHECK(unlink(target) == 0 && file_write(second, "anew", 4, &err) == 0);
    CHECK(is_link(link_) && holds(target, "anew"));
    CHECK(unlink(link_) == 0 && symlink("second", link_) == 0);
    CHECK(file_write(second, "x", 1, &err) != 0 && strstr(err.message, "cannot follow the link"));
    /* standard output goes to a file, through our own link and as /dev/stdout */
    fflush(stdout);
    int kept = dup(STDOUT_FILENO), file = open(target, O_WRONLY | O_APPEND);
    REQUIRE(kept >= 0 && file >= 0 && unlink(link_) == 0 && symlink("/dev/stdout", link_) == 0);
    dup2(file, STDOUT_FILENO);
    int status = file_write(second, " more", 5, &err);
    dup2(kept, STDOUT_FILENO);
    close(kept), close(file);
    CHECK_MSG(status == 0 && is_link(link_) && is_link("/dev/stdout") && holds(target, "anew more"), "%s",
              err.message);
    CHECK(out_try(second, &err) == 0 && out_try(target, &err) == 0 && holds(target, "anew more"));
    CHECK(out_try(dir, &err) != 0 && strstr(err.message, "is a folder"));
    CHECK(out_try(TMP ".links/nowhere/file", &err) != 0 &&
          strstr(err.message, "nowhere/file: cannot create"));
    size_t n;
    char **names = dir_list(dir, 0, &n, &err);
    CHECK(names && n <= 2); /* only the links: nothing was left behind */
    free(names);
    CHECK(dir_remove(dir, &err) == 0);
}

/* A dropped put leaves the old file unchanged. */
static void test_drop(void)
{
    Error err = {""};
    OutFile out;
    size_t n;
    CHECK(file_write(TMP, "old", 3, &err) == 0);
    REQUIRE(out_open(&out, TMP, &err) == 0);
    out_put(&out, "new", 3);
    char tmp[256];
    snprintf(tmp, sizeof tmp, "%s", out.tmp);
    CHECK(file_exists(tmp));
    out_drop(&out);
    CHECK(!file_exists(tmp));
    uint8_t *bytes = file_read(TMP, 10, &n, &err);
    CHECK(bytes && strcmp((char *)bytes, "old") == 0);
    free(bytes);
    unlink(TMP);
}

/* A folder with readable names but unreadable entries (r--) is an error, not an empty folder. Mode bits do
 * not stop root, so root runs this as another user. */
static void test_folder_in_part(void)
{
    Error err = {""};
    size_t n;
    char folder[] = "/tmp/samlad_test_json.XXXXXX", file[80], dangling[80], loop[80];
    REQUIRE(mkdtemp(folder));
    snprintf(file, sizeof file, "%s/a", folder);
    snprintf(dangling, sizeof dangling, "%s/dangling", folder);
    snprintf(loop, sizeof loop, "%s/loop", folder);
    CHECK(chmod(folder, 0755) == 0 && file_write(file, "", 0, &err) == 0);
    CHECK(symlink("nowhere", dangling) == 0 && symlink("loop", loop) == 0);
    char **names = dir_list(folder, 0, &n, &err);
    CHECK(names && n == 3 && strcmp(names[0], "a") == 0); /* links that lead nowhere are no folders */
    free(names);
    names = dir_list(folder, 1, &n, &err);
    CHECK(names && n == 0);
    free(names);
    CHECK(chmod(folder, 0444) == 0);
    const int root = geteuid() == 0;
    CHECK(!root || seteuid(65534) == 0);
    names = dir_list(folder, 0, &n, &err);
    CHECK(!root || seteuid(0) == 0);
    CHECK(!names && n == 0 && strstr(err.message, folder) == err.message &&
          strstr(err.message, ": cannot be read: Permission denied"));
    free(names);
    CHECK(chmod(folder, 0755) == 0);
    unlink(file), unlink(dangling), unlink(loop), rmdir(folder);
}

static void test_folders(void)
{
    Error err = {""};
    size_t n;
    CHECK(dir_make(TMP ".d/b/c/", &err) == 0 && dir_make(TMP ".d/a", &err) == 0 &&
          dir_make(TMP ".d/a", &err) == 0);
    CHECK(dir_exists(TMP ".d/b/c"));
    static const char *files[] = {"z", "B", "a b", ".hidden"};
    for (int i = 0; i < 4; i++) {
        char path[256];
        snprintf(path, sizeof path, TMP ".d/%s", files[i]);
        CHECK(file_write(path, "", 0, &err) == 0);
    }
    CHECK(dir_make(TMP ".d/z/y", &err) != 0 && strstr(err.message, "cannot make the folder"));
    char **names = dir_list(TMP ".d", 0, &n, &err);
    REQUIRE(names);
    CHECK(n == 3 && strcmp(names[0], "B") == 0 && strcmp(names[1], "a b") == 0 && strcmp(names[2], "z") == 0);
    free(names);
    names = dir_list(TMP ".d", 1, &n, &err);
    REQUIRE(names);
    CHECK(n == 2 && strcmp(names[0], "a") == 0 && strcmp(names[1], "b") == 0);
    free(names);
    names = dir_list(TMP ".d/a", 0, &n, &err);
    CHECK(names && n == 0);
    free(names);
    CHECK(!dir_list("no/such/folder", 0, &n, &err) && strstr(err.message, "no/such/folder"));
    for (int i = 0; i < 4; i++) {
        char path[256];
        snprintf(path, sizeof path, TMP ".d/%s", files[i]);
        unlink(path);
    }
    rmdir(TMP ".d/b/c"), rmdir(TMP ".d/b"), rmdir(TMP ".d/a"), rmdir(TMP ".d");
}

static void test_save(void)
{
    JsonWriter w;
    Error err = {""};
    json_begin(&w);
    json_int(&w, 5);
    CHECK(json_save(&w, TMP, &err) == 0);
    json_end(&w);
    const Json *root = json_read(TMP, &err);
    CHECK(root && root->number == 5);
    json_free(root);
    unlink(TMP);
    CHECK(!json_read(TMP, &err) && strstr(err.message, TMP));
}

/* Numbers in files do not depend on the locale. */
static void check_numbers(void)
{
    char text[64], *end;
    CHECK(strtod("0.75", NULL) == 0); /* so it is one */
    CHECK(number_read("0.75rest", &end) == 0.75 && strcmp(end, "rest") == 0);
    CHECK(number_read("-1.5e3,7", &end) == -1500 && strcmp(end, ",7") == 0);
    snprintf(text, sizeof text, "0%s75", localeconv()->decimal_point);
    CHECK(number_read(text, &end) == 0 && end == text + 1);
    CHECK(number_read("-.5e-1.5", &end) == (double)-0.05 && strcmp(end, ".5") == 0);
    CHECK(number_read("17 and 2.5", &end) == 17 && strcmp(end, " and 2.5") == 0);
    CHECK(number_read("x", &end) == 0 && strcmp(end, "x") == 0);
    number_write(text, sizeof text, 17, 0.1);
    CHECK_MSG(strcmp(text, "0.10000000000000001") == 0, "0.1 is written as %s", text);

    Options o, again;
    Error err = {""};
    options_default(&o), options_default(&again);
    o.omm.tau = 0.0123456789f, o.amg.crop_overlap_ratio = 1 / 3.0;
    for (int i = 0; i < option_count; i++) {
        option_text(&o, &option_table[i], text, sizeof text);
        CHECK_MSG(!strstr(text, localeconv()->decimal_point) &&
                      !option_set(&again, &option_table[i], text, "file", &err),
                  "%s", err.message);
    }
    CHECK(again.omm.tau == o.omm.tau && again.amg.crop_overlap_ratio == o.amg.crop_overlap_ratio);

    JsonWriter w;
    json_begin(&w);
    json_number(&w, 0.5);
    const Json *half = json_parse(w.text, w.length, "text", &err);
    CHECK(strcmp(w.text, "0.5") == 0 && half && half->number == 0.5);
    json_free(half);
    json_end(&w);
}

/* Set the first of these locales that is installed, and return its name. */
static int have_locale(const char *const *names)
{
    while (*names && !setlocale(LC_NUMERIC, *names))
        names++;
    return *names != NULL;
}

/* A program whose locale has a decimal comma writes and reads the same files. */
static void test_decimal_comma(void)
{
    if (!have_locale((const char *const[]){"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8",
                                           "nl_NL.UTF-8", NULL}) ||
        strcmp(localeconv()->decimal_point, ",") != 0) { /* musl takes every name and keeps the point. */
        setlocale(LC_NUMERIC, "C");
        SKIP("no locale with a decimal comma is installed (localedef -i de_DE -f UTF-8 de_DE.UTF-8 makes "
             "one)");
    }
    check_numbers();
    setlocale(LC_NUMERIC, "C");
}

/* The same with a point of two bytes. */
static void test_decimal_momayyez(void)
{
    if (!have_locale((const char *const[]){"ps_AF.UTF-8", "ps_AF.utf8", "fa_IR.UTF-8", "fa_IR.utf8", NULL}) ||
        strlen(localeconv()->decimal_point) < 2) {
        setlocale(LC_NUMERIC, "C");
        SKIP("no locale with a decimal point of several bytes is installed (localedef -i ps_AF -f UTF-8 "
             "ps_AF.UTF-8 makes one)");
    }
    check_numbers();
    setlocale(LC_NUMERIC, "C");
}

int main(void)
{
    RUN(test_tree);
    RUN(test_strings);
    RUN(test_numbers);
    RUN(test_refuses);
    RUN(test_depth);
    RUN(test_many_keys);
    RUN(test_writer);
    RUN(test_writer_exact);
    RUN(test_files);
    RUN(test_links);
    RUN(test_drop);
    RUN(test_folders);
    RUN(test_folder_in_part);
    RUN(test_save);
    RUN(test_decimal_comma);
    RUN(test_decimal_momayyez);
    return test_summary();
}
