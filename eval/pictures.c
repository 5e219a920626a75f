/* eval/pictures.c - see pictures.h. */
#include "eval/pictures.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "io/file.h"
#include "io/image.h"
#include "report/report.h"

enum { PATH_SIZE = 4096 };

int has_ending(const char *name, const char *const *endings)
{
    const char *dot = strrchr(name, '.');
    while (dot && *endings && strcasecmp(dot, *endings) != 0)
        endings++;
    return dot && *endings;
}

int looks_like_image(const char *name)
{
    return has_ending(name, (const char *const[]){".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".pnm", ".pbm",
                                                  ".bmp", ".dib", ".tif", ".tiff", NULL});
}

int is_segmented(const char *path)
{
    static const char *const endings[] = {"_masks.png", "_masks_overlay.png"};
    const size_t n = strlen(path);
    char json[PATH_SIZE];
    for (int i = 0; i < 2; i++) {
        const size_t n_ending = strlen(endings[i]);
        if (n >= n_ending && strcmp(path + n - n_ending, endings[i]) == 0 &&
            snprintf(json, sizeof json, "%.*s_masks.json", (int)(n - n_ending), path) < PATH_SIZE &&
            file_exists(json))
            return 1;
    }
    return 0;
}

/* A map of `samlad detect`: NAME.tiff beside NAME_heat.png. */
static int is_own_map(const char *dir, const char *name)
{
    char heat[PATH_SIZE];
    const char *dot = strrchr(name, '.');
    return dot && strcmp(dot, ".tiff") == 0 &&
           snprintf(heat, sizeof heat, "%s/%.*s_heat.png", dir, (int)(dot - name), name) < PATH_SIZE &&
           file_exists(heat);
}

static int is_own(const char *dir, const char *name)
{
    char path[PATH_SIZE];
    return is_own_map(dir, name) ||
           (snprintf(path, sizeof path, "%s/%s", dir, name) < PATH_SIZE && is_segmented(path));
}

static int is_float(const char *dir, const char *name)
{
    char path[PATH_SIZE];
    return has_ending(name, (const char *const[]){".tif", ".tiff", NULL}) &&
           snprintf(path, sizeof path, "%s/%s", dir, name) < PATH_SIZE && image_is_float(path);
}

/* A pipe, a socket, a device: reading it might never end. */
static int is_special(const char *dir, const char *name)
{
    char path[PATH_SIZE];
    struct stat info;
    return snprintf(path, sizeof path, "%s/%s", dir, name) < PATH_SIZE && stat(path, &info) == 0 &&
           !S_ISREG(info.st_mode);
}

int is_picture(const char *dir, const char *name)
{
    return looks_like_image(name) && !is_special(dir, name) && !is_own(dir, name) && !is_float(dir, name);
}

static const char *reason(const char *dir, const char *name)
{
    return !looks_like_image(name) ? "" : is_special(dir, name) ? " (no file)" : " (floats)";
}

void left_out_note(LeftOut *left_out, const char *dir, const char *name)
{
    static const char *const expected[] = {".json", ".jsonl", ".csv", ".list", NULL};
    enum { NAMED = 3 };
    const size_t used = strlen(left_out->names);
    if (is_picture(dir, name) || is_own(dir, name) || has_ending(name, expected))
        return;
    if (left_out->n++ < NAMED)
        snprintf(left_out->names + used, sizeof left_out->names - used, "%s%.70s%s", used ? ", " : "", name,
                 reason(dir, name));
    else if (left_out->n == NAMED + 1)
        strcat(left_out->names, ", ...");
}

void left_out_note_folder(LeftOut *left_out, const char *dir)
{
    size_t n;
    char **names = dir_list(dir, 0, &n, NULL);
    for (size_t i = 0; names && i < n; i++)
        left_out_note(left_out, dir, names[i]);
    free(names);
}

void left_out_tell(FILE *out, const LeftOut *left_out)
{
    if (left_out->n == 0)
        return;
    fprintf(out, left_out->n == 1 ? "%d file is no picture: " : "%d files are no pictures: ", left_out->n);
    report_plain(out, left_out->names);
    fprintf(out, "\n");
}
