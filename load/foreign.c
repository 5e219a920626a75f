/* foreign.c - see foreign.h. The names are in load/foreign_names.h. */
#include "load/foreign.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "io/shards.h"
#include "load/foreign_names.h"

/* A model of samlad has fewer tensors: 256 blocks of 16. */
enum { MAX_TENSORS = 8192 };

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* ---- patterns -----------------------------------------------------------------------------------------*/

/* What # and * of a pattern stand for. */
typedef struct Match {
    int number;
    const char *rest;
} Match;

static int is_number(char c)
{
    return c == '#' || c == '+' || c == '$';
}

/* Does the name fit the pattern? */
static int fits(const char *pattern, const char *name, Match *m)
{
    *m = (Match){0, ""};
    for (; *pattern && *pattern != '*'; pattern++)
        if (is_number(*pattern)) {
            const size_t digits = strspn(name, "0123456789");
            if (digits == 0 || digits > 4)
                return 0;
            m->number = atoi(name);
            name += digits;
        } else if (*name++ != *pattern) {
            return 0;
        }
    if (*pattern == '*') {
        m->rest = name;
        return *name != '\0';
    }
    return *name == '\0';
}

/* The official pattern with the numbers and the rest put in. -1: too long for a model's name. */
static int fill(char *out, size_t size, const char *pattern, const Match *m, int last)
{
    size_t at = 0;
    for (; *pattern && at < size; pattern++) {
        if (*pattern == '#' || *pattern == '+' || *pattern == '$')
            at += (size_t)snprintf(out + at, size - at, "%d",
                                   *pattern == '#'   ? m->number
                                   : *pattern == '+' ? m->number + 1
                                                     : last);
        else if (*pattern == '*')
            at += (size_t)snprintf(out + at, size - at, "%s", m->rest);
        else
            out[at++] = *pattern;
    }
    if (at >= size)
        return -1;
    out[at] = '\0';
    return 0;
}

/* ---- the families -------------------------------------------------------------------------------------*/

/* The end of one name identifies a family. What stands before it is the prefix ("dinov2."). Of several
 * families the first is taken: a SAM also has the tensors of a ViT. */
static const struct {
    const char *anchor, *title;
} FAMILIES[] = {
    [FOREIGN_HF_VIT] = {"embeddings.patch_embeddings.projection.weight", "a ViT in Hugging Face's naming"},
    [FOREIGN_TIMM_VIT] = {"patch_embed.proj.weight", "a ViT in timm's or the official naming"},
    [FOREIGN_HF_SAM] = {"vision_encoder.patch_embed.projection.weight", "SAM in Hugging Face's naming"},
    [FOREIGN_SAM] = {"image_encoder.patch_embed.proj.weight", "SAM"},
};
static const ForeignKind ORDER[] = {FOREIGN_HF_SAM, FOREIGN_SAM, FOREIGN_HF_VIT, FOREIGN_TIMM_VIT};

/* The tensor that ends with the family's anchor, with the shortest prefix. NULL: none. */
static const StTensor *find_anchor(const Safetensors *file, ForeignKind kind, size_t *prefix)
{
    const char *anchor = FAMILIES[kind].anchor;
    const size_t length = strlen(anchor);
    const StTensor *found = NULL;
    for (size_t i = 0; i < st_count(file); i++) {
        const StTensor *t = st_at(file, i);
        const size_t n = strlen(t->name);
        if (n < length || strcmp(t->name + n - length, anchor) != 0 ||
            (n > length && t->name[n - length - 1] != '.'))
            continue;
        if (!found || n - length < *prefix) {
            found = t;
            *prefix = n - length;
        }
    }
    return found;
}

/* A DINOv2 of timm with SwiGLU packs the gate into fc1. */
static int has_packed_swiglu(const Safetensors *file, size_t prefix, const char *anchor)
{
    char name[512];
    snprintf(name, sizeof name, "%.*sblocks.0.mlp.fc1.weight", (int)prefix, anchor);
    const StTensor *fc1 = st_find(file, name);
    snprintf(name, sizeof name, "%.*sblocks.0.mlp.fc2.weight", (int)prefix, anchor);
    const StTensor *fc2 = st_find(file, name);
    return fc1 && fc2 && fc1->n_dims == 2 && fc2->n_dims == 2 && fc2->shape[1] > 0 &&
           fc1->shape[0] % 2 == 0 && fc1->shape[0] / 2 == fc2->shape[1];
}

/* One or two tables of the family, the special one first. */
typedef struct Tables {
    const ForeignName *rows[2];
    size_t n[2];
    int official; /* the names stand in the official column. */
} Tables;

static Tables tables_of(ForeignKind kind, int packed)
{
    switch (kind) {
    case FOREIGN_HF_VIT:
        return (Tables){{HF_VIT}, {COUNT(HF_VIT)}, 0};
    case FOREIGN_TIMM_VIT:
        return (Tables){
            {packed ? TIMM_SWIGLU : NULL, TIMM_VIT}, {packed ? COUNT(TIMM_SWIGLU) : 0, COUNT(TIMM_VIT)}, 0};
    case FOREIGN_HF_SAM:
        return (Tables){{HF_SAM}, {COUNT(HF_SAM)}, 0};
    default:
        return (Tables){{HF_SAM}, {COUNT(HF_SAM)}, 1};
    }
}

static const ForeignName *find_row(const Tables *tables, const char *name, Match *m)
{
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < tables->n[k]; i++) {
            const ForeignName *row = &tables->rows[k][i];
            if (fits(tables->official ? row->official : row->foreign, name, m))
                return row;
        }
    return NULL;
}

/* What $ stands for: one more than the largest number that + gives. */
static int last_number(const Tables *tables, const ForeignTensors *p, const char *anchor)
{
    int last = 1;
    Match m;
    for (size_t i = 0; i < st_count(p->file); i++) {
        const char *name = st_at(p->file, i)->name;
        if (strncmp(name, anchor, p->prefix) != 0)
            continue;
        const ForeignName *row = find_row(tables, name + p->prefix, &m);
        if (row && strchr(row->official, '+') && m.number + 2 > last)
            last = m.number + 2;
    }
    return last;
}

/* ---- placing ------------------------------------------------------------------------------------------*/

static int compare_placed(const void *a, const void *b)
{
    const ForeignTensor *x = a, *y = b;
    const int order = strcmp(x->official, y->official);
    return order ? order : x->piece - y->piece;
}

static int begins_with(const char *name, const char *prefix, size_t n, const char *rest)
{
    return strncmp(name, prefix, n) == 0 && strncmp(name + n, rest, strlen(rest)) == 0;
}

/* transformers 5 saves ViTMSNForImageClassification with vit.embeddings, but encoder.layer: do the blocks lie
 * outside the prefix? */
static int blocks_lie_outside(const ForeignTensors *p, const char *anchor)
{
    int outside = 0;
    for (size_t i = 0; i < st_count(p->file) && p->kind == FOREIGN_HF_VIT && p->prefix; i++) {
        const char *name = st_at(p->file, i)->name;
        if (begins_with(name, anchor, p->prefix, "encoder.layer.") ||
            begins_with(name, anchor, p->prefix, "layers."))
            return 0;
        outside |= begins_with(name, "", 0, "encoder.layer.");
    }
    return outside;
}

/* Give each tensor below the prefix its place. */
static int place(ForeignTensors *p, const Tables *tables, const char *anchor, Error *err)
{
    const int last = tables->official ? 0 : last_number(tables, p, anchor),
              outside = blocks_lie_outside(p, anchor);
    for (size_t i = 0; i < st_count(p->file); i++) {
        const StTensor *t = st_at(p->file, i);
        const int is_below = strncmp(t->name, anchor, p->prefix) == 0;
        if (t->n_elements == 0 || (!is_below && !(outside && begins_with(t->name, "", 0, "encoder.layer."))))
            continue;
        const char *name = is_below ? t->name + p->prefix : t->name;
        Match m;
        const ForeignName *row = find_row(tables, name, &m);
        if (!row)
            return fail(err, "%s: tensor %.200s has no place in %s", st_path(p->file), t->name,
                        FAMILIES[p->kind].title);
        if (!*row->official)
            continue;
        ForeignTensor *placed = &p->placed[p->n++];
        placed->piece = tables->official ? 0 : row->piece;
        placed->tensor = t;
        placed->foreign = name;
        if (tables->official ? snprintf(placed->official, sizeof placed->official, "%s", name) >=
                                   (int)sizeof placed->official
                             : fill(placed->official, sizeof placed->official, row->official, &m, last))
            return fail(err, "%s: tensor %.200s has no place in %s", st_path(p->file), t->name,
                        FAMILIES[p->kind].title);
        p->renamed |= strcmp(placed->official, t->name) != 0;
    }
    qsort(p->placed, p->n, sizeof *p->placed, compare_placed);
    return 0;
}

static const ForeignTensor *find_placed(const ForeignTensors *p, const char *official)
{
    ForeignTensor key = {.piece = 0};
    snprintf(key.official, sizeof key.official, "%s", official);
    size_t low = 0, high = p->n;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (compare_placed(&p->placed[middle], &key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < p->n && strcmp(p->placed[low].official, official) == 0 ? &p->placed[low] : NULL;
}

int64_t placed_dim(const ForeignTensors *p, const char *official, int axis)
{
    const ForeignTensor *found = find_placed(p, official);
    return found && axis < found->tensor->n_dims ? found->tensor->shape[axis] : 0;
}

/* ---- the view -----------------------------------------------------------------------------------------*/

static int same_tensor(const StTensor *a, const StTensor *b)
{
    return a->dtype == b->dtype && a->n_bytes == b->n_bytes && memcmp(a->data, b->data, a->n_bytes) == 0;
}

/* How many pieces make the official tensor of this row; 0: it is whole. */
static int pieces_of(const ForeignTensors *p, const ForeignTensor *placed)
{
    const Tables tables = tables_of(p->kind, 0);
    Match m;
    const ForeignName *row = placed->piece ? find_row(&tables, placed->foreign, &m) : NULL;
    int n = 0;
    for (size_t i = 0; row && i < tables.n[0]; i++)
        if (strcmp(tables.rows[0][i].official, row->official) == 0 && tables.rows[0][i].piece > n)
            n = tables.rows[0][i].piece;
    return n;
}

/* The n places that have one official name: two tensors in one place must be equal, as tied weights are. */
static int check_doubles(const ForeignTensors *p, const ForeignTensor *placed, size_t n, Error *err)
{
    for (size_t i = 1; i < n; i++)
        if (placed[i - 1].piece == 0 || placed[i].piece == placed[i - 1].piece) {
            if (placed[i].piece == 0 && same_tensor(placed[i].tensor, placed[i - 1].tensor))
                continue;
            return fail(err, "%s: tensors %.150s and %.150s are both %s", st_path(p->file),
                        placed[i - 1].tensor->name, placed[i].tensor->name, placed->official);
        }
    return 0;
}

static int add_tensor(StWriter *view, const ForeignTensors *p, const ForeignTensor *placed, size_t n,
                      Error *err)
{
    const StTensor *t = placed->tensor, *pieces[8];
    const int n_pieces = pieces_of(p, placed);
    if (check_doubles(p, placed, n, err))
        return -1;
    if (n_pieces == 0)
        return st_writer_add(view, placed->official, t->dtype, t->n_dims, t->shape, t->data, err);
    for (int i = 0; i < n_pieces; i++) {
        if ((size_t)i >= n || placed[i].piece != i + 1)
            return fail(err, "%s: tensor %.200s is there, but not piece %d of %d that make %s",
                        st_path(p->file), t->name, i + 1, n_pieces, placed->official);
        pieces[i] = placed[i].tensor;
    }
    return st_writer_stack(view, placed->official, p->file, pieces, n_pieces, err);
}

static int add_tensors(StWriter *view, const ForeignTensors *p, Error *err)
{
    for (size_t i = 0, n; i < p->n; i += n) {
        n = 1;
        while (i + n < p->n && strcmp(p->placed[i].official, p->placed[i + n].official) == 0)
            n++;
        if (add_tensor(view, p, &p->placed[i], n, err))
            return -1;
    }
    return 0;
}

/* What the file said itself ({"format": "pt"}), and where the names come from. */
static int add_meta(StWriter *view, const ForeignTensors *p, Error *err)
{
    for (size_t i = 0; i < st_meta_count(p->file); i++) {
        const char *key, *value;
        st_meta_at(p->file, i, &key, &value);
        if (st_writer_meta(view, key, value, err))
            return -1;
    }
    const int is_sam = p->kind == FOREIGN_HF_SAM || p->kind == FOREIGN_SAM;
    return st_writer_meta(view, "samlad.model", is_sam ? "sam" : "vit", err) ||
                   st_writer_meta(view, "samlad.names", FAMILIES[p->kind].title, err)
               ? -1
               : 0;
}

/* `file` itself if nothing differs and nothing lies beside it. */
static Safetensors *make_view(Safetensors *file, const ForeignTensors *p, Error *err)
{
    Safetensors *official = NULL;
    int found = 0;
    StWriter *view = st_writer_new();
    if (!view)
        fail_memory(err, st_path(file), 0);
    else if (add_meta(view, p, err) == 0 && foreign_settings(view, p, &found, err) == 0) {
        if (p->kind == FOREIGN_TIMM_VIT && !p->renamed && !found)
            official = file;
        else if (add_tensors(view, p, err) == 0)
            official = st_view(st_path(file), view, &file, 1, err);
    }
    if (!official || official == file)
        st_writer_free(view);
    return official;
}

/* ---- recognising --------------------------------------------------------------------------------------*/

/* NAME-00001-of-00003.safetensors: a part alone is no model. */
static int is_one_shard(const char *path)
{
    static const char ending[] = ".safetensors", form[] = "-00000-of-00000";
    const size_t n = strlen(path), m = sizeof form - 1 + sizeof ending - 1;
    if (n <= m || strcmp(path + n - (sizeof ending - 1), ending) != 0)
        return 0;
    for (size_t i = 0; i < sizeof form - 1; i++) {
        const char c = path[n - m + i];
        if (form[i] == '0' ? c < '0' || c > '9' : c != form[i])
            return 0;
    }
    return memcmp(path + n - m + 1, "00001-of-00001", 14) != 0;
}

static int refuse_strangers(const Safetensors *file, Error *err)
{
    if (is_one_shard(st_path(file)))
        return fail(err,
                    "%s: one shard of several: give the folder, or the index (model.safetensors.index.json)",
                    st_path(file));
    for (size_t k = 0; k < COUNT(STRANGERS); k++)
        for (size_t i = 0; i < st_count(file); i++)
            if (strstr(st_at(file, i)->name, STRANGERS[k].part))
                return fail(err, "%s: not supported: this is %s (it has a tensor %.150s)", st_path(file),
                            STRANGERS[k].what, st_at(file, i)->name);
    return 0;
}

static int fail_part(const Safetensors *file, const char *part, Error *err)
{
    return fail(err,
                "%.600s: the %s of a SAM alone: join it with a whole SAM by tools/convert.py FILE --base SAM "
                "-o OUT.safetensors",
                st_path(file), part);
}

/* Refuse the other parts, also without their prefix. A MobileSAM has all of them. */
static int refuse_part(const Safetensors *file, Error *err)
{
    static const char *const parts[][2] = {{"iou_token.weight", "mask decoder"},
                                           {"not_a_point_embed.weight", "prompt encoder"},
                                           {"positional_encoding_gaussian_matrix", "prompt encoder"},
                                           {".attn.rel_pos_h", "image encoder"}};
    for (size_t k = 0; k < COUNT(parts) && !st_find(file, "image_encoder.patch_embed.seq.0.c.weight"); k++)
        for (size_t i = 0; i < st_count(file); i++)
            if (strstr(st_at(file, i)->name, parts[k][0]))
                return fail_part(file, parts[k][1], err);
    return 0;
}

/* Refuse the image encoder of a SAM alone. */
static int check_parts(const ForeignTensors *p, Error *err)
{
    const int is_sam = p->kind == FOREIGN_HF_SAM || p->kind == FOREIGN_SAM;
    return !is_sam || find_placed(p, "mask_decoder.iou_token.weight")
               ? 0
               : fail_part(p->file, "image encoder", err);
}

static Safetensors *official_of(Safetensors *file, ForeignKind kind, const StTensor *anchor, size_t prefix,
                                Error *err)
{
    ForeignTensors p = {.file = file, .kind = kind, .prefix = prefix};
    Safetensors *official = NULL;
    const Tables tables =
        tables_of(kind, kind == FOREIGN_TIMM_VIT && has_packed_swiglu(file, prefix, anchor->name));
    p.placed = malloc((st_count(file) + 1) * sizeof *p.placed);
    if (!p.placed)
        fail_memory(err, st_path(file), st_count(file) * sizeof *p.placed);
    else if (kind == FOREIGN_TIMM_VIT && refuse_part(file, err)) /* SAM's encoder, saved alone. */
        ;
    else if (place(&p, &tables, anchor->name, err) == 0 && check_parts(&p, err) == 0)
        official = make_view(file, &p, err);
    free(p.placed);
    return official;
}

Safetensors *weights_official(Safetensors *file, Error *err)
{
    size_t prefix = 0;
    if (st_meta(file, "samlad.model") || st_meta(file, "samlad.kind"))
        return file;
    if (st_count(file) > MAX_TENSORS) {
        fail(err, "%s: holds %zu tensors, more than any model that samlad has", st_path(file),
             st_count(file));
        return NULL;
    }
    if (refuse_strangers(file, err))
        return NULL;
    for (size_t i = 0; i < COUNT(ORDER); i++) {
        const StTensor *anchor = find_anchor(file, ORDER[i], &prefix);
        if (anchor)
            return official_of(file, ORDER[i], anchor, prefix, err);
    }
    if (refuse_part(file, err))
        return NULL;
    if (st_find(file, "image_encoder.patch_embed.seq.0.c.weight")) {
        fail(err,
             "%s: MobileSAM without its settings: convert it with tools/convert.py FILE -o OUT.safetensors",
             st_path(file));
        return NULL;
    }
    return file; /* not a model that we rename; its loader says what is missing. */
}

Safetensors *weights_open(const char *path, Error *err)
{
    Safetensors *file = st_open_checkpoint(path, err);
    Safetensors *official = file ? weights_official(file, err) : NULL;
    if (!official)
        st_close(file);
    return official;
}
