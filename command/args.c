/* command/args.c - see args.h. */
#include "command/args.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/messages.h"
#include "io/fail.h"

/* ================================================================================================
 * Values
 * ============================================================================================== */

/* n comma-separated numbers, and nothing after them. 0 / -1. */
static int parse_floats(const char *text, float *values, int n)
{
    for (int i = 0; i < n; i++) {
        char *end;
        values[i] = strtof(text, &end);
        if (end == text || !isfinite(values[i]) || *end != (i + 1 < n ? ',' : '\0'))
            return -1;
        text = end + 1;
    }
    return 0;
}

/* A whole number from 0 to max. 0 / -1. */
static int parse_number(const char *text, uint64_t max, uint64_t *value)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (end == text || *end || errno || !isdigit((unsigned char)*text) || v > max)
        return -1;
    *value = v;
    return 0;
}

/* ================================================================================================
 * Options with a value: each function returns 0, or an exit status after a message
 * ============================================================================================== */

static int empty_name(const Args *args, const char *name)
{
    return usage_error(args->command, "--%s is given an empty name", name);
}

/* --featup takes a file, "none", or the number of stages. */
static int take_featup(Args *args, const char *value)
{
    if (!*value)
        return empty_name(args, "featup");
    if (value[0] >= '0' && value[0] <= '4' && !value[1]) {
        args->set[args->n_set] = option_find("featup-stages");
        args->set_value[args->n_set++] = value;
    } else if (strcmp(value, "none") == 0) {
        args->no_featup = 1;
    } else {
        args->weights.featup = value;
    }
    return 0;
}

static int take_point(Args *args, const char *value)
{
    float v[3] = {0, 0, 1};
    if (parse_floats(value, v, 2) && (parse_floats(value, v, 3) || (v[2] != 0 && v[2] != 1)))
        return usage_error(args->command, "--point '%s' is not X,Y or X,Y,LABEL with label 1 or 0", value);
    if (args->n_points == MAX_POINTS)
        return usage_error(args->command, "%s", "more than 256 points");
    args->points[args->n_points][0] = v[0];
    args->points[args->n_points][1] = v[1];
    args->labels[args->n_points++] = (int)v[2];
    return 0;
}

static int take_box(Args *args, const char *value)
{
    if (args->has_box)
        return usage_error(args->command, "--box '%s': a prompt has one box, and this is the second", value);
    if (parse_floats(value, args->box, 4))
        return usage_error(args->command, "--box '%s' is not X0,Y0,X1,Y1", value);
    if (args->box[0] >= args->box[2] || args->box[1] >= args->box[3])
        return usage_error(args->command, "--box '%s': expected X0 < X1 and Y0 < Y1", value);
    args->has_box = 1;
    return 0;
}

static int take_category(Args *args, const char *value)
{
    if (args->n_categories == MAX_WORDS)
        return usage_error(args->command, "%s", "more than 64 categories");
    if (!*value || strchr(value, '/') || strcmp(value, ".") == 0 || strcmp(value, "..") == 0)
        return usage_error(args->command, "--category '%s' is not the name of a folder in the data set",
                           value);
    args->categories[args->n_categories++] = value;
    return 0;
}

static int take_setting(Args *args, const char *value)
{
    if (args->n_settings == MAX_WORDS)
        return usage_error(args->command, "%s", "more than 64 settings");
    args->settings[args->n_settings++] = value;
    return 0;
}

static int take_seed(Args *args, const char *value)
{
    if (parse_number(value, UINT64_MAX, &args->seed))
        return usage_error(args->command, "--seed '%s' is not a whole number", value);
    args->has_seed = 1;
    return 0;
}

static int take_max_bank(Args *args, const char *value)
{
    uint64_t number;
    if (parse_number(value, 1 << 24, &number) || number == 0)
        return usage_error(args->command, "--max-bank '%s' is not a whole number above 0", value);
    args->max_bank = (int)number;
    return 0;
}

static int take_hold_out(Args *args, const char *value)
{
    uint64_t number;
    if (parse_number(value, 1 << 24, &number) || number == 0)
        return usage_error(args->command, "--hold-out '%s' is not a whole number above 0", value);
    args->hold_out = (int)number;
    return 0;
}

/* An option of the method. Its value is tried here, so that a wrong one is wrong usage. */
static int take_method_option(Args *args, const OptionSpec *option, const char *value)
{
    Options scratch;
    Error err;
    char where[80];
    options_default(&scratch);
    snprintf(where, sizeof where, "--%s", option->name);
    if (option_set(&scratch, option, value, where, &err))
        return usage_error(args->command, "%s", err.message);
    args->set[args->n_set] = option;
    args->set_value[args->n_set++] = value;
    return 0;
}

/* Where to keep the option's text; NULL when the option is none of these. */
static const char **text_of(Args *args, const char *name)
{
    const struct {
        const char *name, **into;
    } texts[] = {{"backbone", &args->weights.vit},
                 {"sam", &args->weights.sam},
                 {"dcga", &args->weights.dcga},
                 {"out", &args->out},
                 {"bank", &args->bank},
                 {"from", &args->from},
                 {"dump", &args->dump},
                 {"mnist", &args->mnist},
                 {"defects", &args->defects},
                 {"dataset", &args->dataset},
                 {"data", &args->data},
                 {"normal", &args->normal},
                 {"anomalous", &args->anomalous},
                 {"masks", &args->masks},
                 {"shard", &args->shard},
                 {"output-mode", &args->output_mode}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(name, texts[i].name) == 0)
            return texts[i].into;
    return NULL;
}

static const struct {
    const char *name;
    int (*take)(Args *args, const char *value);
} PARSED[] = {{"featup", take_featup},     {"point", take_point},      {"box", take_box},
              {"category", take_category}, {"setting", take_setting},  {"seed", take_seed},
              {"max-bank", take_max_bank}, {"hold-out", take_hold_out}};

static int take_option(Args *args, const char *name, const char *value)
{
    if (args->n_set >= MAX_METHOD_OPTIONS - 1)
        return usage_error(args->command, "too many options at --%s", name);
    const char **text = text_of(args, name);
    if (text) {
        *text = value;
        return *value ? 0 : empty_name(args, name);
    }
    for (size_t i = 0; i < sizeof PARSED / sizeof *PARSED; i++)
        if (strcmp(name, PARSED[i].name) == 0)
            return PARSED[i].take(args, value);
    const OptionSpec *option = option_find(name);
    return option ? take_method_option(args, option, value)
                  : usage_error(args->command, "there is no option --%s", name);
}

/* ================================================================================================
 * The command line
 * ============================================================================================== */

/* Is `name` among the words of the list? */
static int is_taken(const char *list, const char *name)
{
    for (size_t n; *list; list += n + (list[n] != '\0')) {
        n = strcspn(list, " ");
        if ((n == strlen(name) && strncmp(list, name, n) == 0) ||
            (n == 1 && *list == '*' && option_find(name)))
            return 1;
    }
    return 0;
}

/* An option without a value: 1 when it is one, and then it is taken. */
static int take_flag(Args *args, const char *name)
{
    const struct {
        const char *name;
        int *into, value;
    } flags[] = {{"json", &args->json, 1},
                 {"single", &args->single, 1},
                 {"merge", &args->merge, 1},
                 {"parts", &args->parts, 1},
                 {"resize-masks", &args->resize_masks, 1},
                 {"skip-unreadable", &args->skip_unreadable, 1},
                 {"force", &args->force, 1},
                 {"no-pictures", &args->pictures, 0},
                 {"no-baselines", &args->baselines, 0}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (strcmp(name, flags[i].name) == 0) {
            *flags[i].into = flags[i].value;
            return 1;
        }
    return 0;
}

/* "--name=value" or "--name value". `next` is the argument behind `arg`, or NULL; *used_next is 1 when it
 * is the value. */
static int take_argument(Args *args, const char *arg, const char *next, int *used_next)
{
    char name[64];
    const char *equals = strchr(arg, '=');
    snprintf(name, sizeof name, "%.*s", (int)(equals ? equals - arg - 2 : (long)strlen(arg) - 2), arg + 2);
    *used_next = 0;
    if (!is_taken(args->takes, name))
        return usage_error(args->command, "there is no option --%s", name);
    if (take_flag(args, name))
        return equals ? usage_error(args->command, "--%s takes no value", name) : 0;
    *used_next = !equals;
    const char *value = equals ? equals + 1 : next;
    return value ? take_option(args, name, value) : usage_error(args->command, "--%s needs a value", name);
}

int args_parse(Args *args, int argc, char **argv)
{
    args->pictures = args->baselines = 1;
    args->inputs = calloc((size_t)argc + 1, sizeof *args->inputs);
    if (!args->inputs) {
        Error err;
        fail_memory(&err, "the arguments", ((size_t)argc + 1) * sizeof *args->inputs);
        return failed(&err);
    }
    int only_inputs = 0; /* 1: after "--" */
    for (int i = 0; i < argc; i++) {
        const char *arg = !only_inputs && strcmp(argv[i], "-o") == 0 ? "--out" : argv[i];
        int used_next = 0, status = 0;
        if (only_inputs)
            args->inputs[args->n_inputs++] = arg;
        else if (strcmp(arg, "--") == 0)
            only_inputs = 1;
        else if (strncmp(arg, "--", 2) == 0)
            status = take_argument(args, arg, i + 1 < argc ? argv[i + 1] : NULL, &used_next);
        else if (arg[0] == '-' && arg[1])
            status = usage_error(args->command, "there is no option %s", arg);
        else
            args->inputs[args->n_inputs++] = arg;
        if (status)
            return status;
        i += used_next;
    }
    return 0;
}
