/* command/info.c - samlad info: the contents of a weights file or a bank. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command/commands.h"
#include "command/messages.h"
#include "io/safetensors.h"
#include "io/shards.h"
#include "load/foreign.h"
#include "report/report.h"
#include "sam.h"
#include "vit.h"

static const char INFO_HELP[] =
    "usage: samlad info FILE...\n"
    "\n"
    "Print the contents of a weights file or a bank: configuration, tensors, checksum. A checkpoint of\n"
    "Hugging Face or timm (file, index of shards, folder) is shown under the official names.\n";

static void print_tensor(const StTensor *t)
{
    char shape[128] = "scalar";
    int at = 0;
    for (int d = 0; d < t->n_dims && at < (int)sizeof shape - 24; d++)
        at += snprintf(shape + at, sizeof shape - (size_t)at, "[%lld]", (long long)t->shape[d]);
    printf("  ");
    report_plain(stdout, t->name);
    printf("%*s %-5s %s\n", (int)(strlen(t->name) < 60 ? 60 - strlen(t->name) : 0), "",
           st_dtype_name(t->dtype), shape);
}

/* Print a setting of the method in short, as --help does. The file keeps all digits, so that it reads back
 * exactly. */
static void print_value(const char *key, const char *value)
{
    Options o;
    char brief[64];
    const OptionSpec *spec = strncmp(key, "option.", 7) == 0 ? option_find(key + 7) : NULL;
    options_default(&o);
    if (spec && option_set(&o, spec, value, key, NULL) == 0) {
        option_brief(&o, spec, brief, sizeof brief);
        value = brief;
    }
    report_plain(stdout, value);
}

static void print_file(const Safetensors *st, const char *path, const char *title)
{
    char sha[65];
    size_t numbers = 0, bytes = 0;
    for (size_t i = 0; i < st_count(st); i++) {
        numbers += st_at(st, i)->n_elements;
        bytes += st_at(st, i)->n_bytes;
    }
    st_sha256(st, sha);
    report_plain(stdout, path);
    printf(": ");
    report_plain(stdout, title);
    printf("\n  sha256 %s\n  %zu tensors, %zu numbers, %zu bytes\n", sha, st_count(st), numbers, bytes);
    for (size_t i = 0; i < st_meta_count(st); i++) {
        const char *key, *value;
        st_meta_at(st, i, &key, &value);
        printf("  ");
        report_plain(stdout, key);
        printf(" = ");
        print_value(key, value);
        printf("\n");
    }
    printf("\n");
    for (size_t i = 0; i < st_count(st); i++)
        print_tensor(st_at(st, i));
}

/* Can samlad open the model in the file? A file that is neither SAM nor ViT passes. */
static int check_model(Safetensors *st, const char *model, Error *err)
{
    int status = 0;
    if (model && strcmp(model, "sam") == 0) {
        Sam *sam = sam_open(st, err);
        status = sam ? 0 : -1;
        sam_close(sam);
    } else if (model && strcmp(model, "vit") == 0) {
        Vit *vit = vit_open(st, err);
        status = vit ? 0 : -1;
        vit_close(vit);
    }
    return status;
}

/* Print the contents first: they help to find out why a model cannot be opened. */
static int info_one(const char *path, Error *err)
{
    Safetensors *file = st_open_checkpoint(path, err);
    Safetensors *official = file ? weights_official(file, err) : NULL, *st = official ? official : file;
    if (!st)
        return -1;
    const char *model = st_meta(st, "samlad.model"), *kind = st_meta(st, "samlad.kind");
    print_file(st, path, model ? model : kind ? kind : "no samlad metadata");
    const int status = official ? check_model(st, model, err) : -1;
    st_close(st);
    return status;
}

int command_info(Args *args)
{
    Error err;
    if (args->n_inputs == 0)
        return usage_error(args->command, "%s", "no file is given");
    for (int i = 0; i < args->n_inputs; i++)
        if (info_one(args->inputs[i], &err)) {
            fflush(stdout);
            return failed(&err);
        }
    return EXIT_SUCCESS;
}

void help_info(void)
{
    fputs(INFO_HELP, stdout);
}
