/* sam_rows.c - the fast form of sam.h's SamRows: from SAM's low-res mask logits to the picture, row by row
 * (segment_anything: Sam.postprocess_masks).
 *
 * postprocess_masks resizes twice, bilinearly: [4g][4g] -> [S][S], crop to [input_h][input_w], -> [h][w].
 * sam.c does exactly this. Here the rows of the result are made one after another, and no full-size array is
 * kept. Of each stage only two rows are held: the rows above and below the current one. Each number has the
 * same bits as in sam.c: first a mean of two columns, then one of two rows, in float32.
 *
 * Most numbers are not computed at all. Bilinear interpolation gives weighted means, and the caller only asks
 * on which side of some limits a number lies. If all logits around lie on one side, so does every pixel
 * between them. In a large picture only a seam along the mask's edge has to be computed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/fail.h"
#include "sam.h"

#define LEAST_WIDTH 8  /* pixels of the picture per low-res column; with fewer, runs save nothing. */
#define BLOCK       64 /* pixels */

/* align_corners=False: out[i] = weight0[i]·in[index0[i]] + weight1[i]·in[index1[i]]. */
typedef struct Axis {
    int *index0, *index1;
    float *weight0, *weight1;
} Axis;

/* A range of columns or rows. */
typedef struct Span {
    int first, end;
} Span;

/* Columns of the picture, first to end - 1, that depend on the same low-res columns, low to high. */
typedef struct Group {
    int first, end, low, high;
} Group;

struct SamRows {
    Arena arena;
    const float *low_res;
    float limits[SAM_MAX_LIMITS];
    int n_limits;
    int low_size, input_w, original_w, original_h;
    int factor;     /* sides of the network's input to those of the low-res logits; 0: not whole. */
    int one_resize; /* the picture has the input's size: the second resize would change no number. */
    int next;       /* the row that sam_rows_next gives next. */
    Axis low_x, low_y, full_x, full_y;
    float *low_rows[2];  /* [input_w] low-res rows low_at[] stretched to the input's width. */
    float *full_rows[2]; /* [original_w] input rows full_at[] stretched to the picture's width. */
    int low_at[2], full_at[2];
    float *input_row, *row;      /* [input_w], [original_w] */
    uint8_t *reaches;            /* [low_size] does a logit of this low-res row reach the lowest limit? */
    Span input_span, final_span; /* columns of the input and of the picture that depend on such rows. */
    int by_runs;                 /* 1: low-res columns are wide enough for runs to save time. */
    Group *groups;               /* [n_groups] all columns of the picture, from the left. */
    int n_groups, n_runs;
    SamRun *runs;        /* [n_runs] of the picture's rows that depend on low-res rows runs_of[]. */
    int runs_of[2];      /* the first and the last of them. */
    float *most, *least; /* [low_size] of these rows' logits, column by column. */
};

static Axis axis_take(Arena *arena, int n_out)
{
    Axis a;
    a.index0 = arena_take(arena, (size_t)n_out * sizeof(int));
    a.index1 = arena_take(arena, (size_t)n_out * sizeof(int));
    a.weight0 = arena_floats(arena, (size_t)n_out);
    a.weight1 = arena_floats(arena, (size_t)n_out);
    return a;
}

/* The first n_out outputs of a resize from n_in to n_scale samples: their inputs and weights. */
static void axis_fill(Axis *a, int n_out, int n_in, int n_scale)
{
    for (int i = 0; i < n_out; i++) {
        int at[2];
        float weight[2];
        bilinear_places(at, weight, i, n_in, (float)n_in / (float)n_scale);
        a->index0[i] = at[0], a->index1[i] = at[1];
        a->weight0[i] = weight[0], a->weight1[i] = weight[1];
    }
}

static void layout_rows(SamRows *r, int input_h)
{
    Arena *arena = &r->arena;
    r->low_x = axis_take(arena, r->input_w);
    r->low_y = axis_take(arena, input_h);
    r->full_x = axis_take(arena, r->original_w);
    r->full_y = axis_take(arena, r->original_h);
    for (int i = 0; i < 2; i++) {
        r->low_rows[i] = arena_floats(arena, (size_t)r->input_w);
        r->full_rows[i] = arena_floats(arena, (size_t)r->original_w);
    }
    r->input_row = arena_floats(arena, (size_t)r->input_w);
    r->row = arena_floats(arena, (size_t)r->original_w);
    r->reaches = arena_take(arena, (size_t)r->low_size);
    r->groups = arena_take(arena, (size_t)r->original_w * sizeof(Group));
    r->runs = arena_take(arena, ((size_t)r->original_w + 1) * sizeof(SamRun));
    r->most = arena_floats(arena, (size_t)r->low_size);
    r->least = arena_floats(arena, (size_t)r->low_size);
}

static void find_groups(SamRows *r)
{
    const Axis *in = &r->low_x, *out = &r->full_x;
    r->n_groups = 0;
    for (int x = 0; x < r->original_w; x++) {
        const int low = in->index0[out->index0[x]], high = in->index1[out->index1[x]];
        Group *last = r->groups + r->n_groups - 1;
        if (r->n_groups > 0 && last->low == low && last->high == high)
            last->end++;
        else
            r->groups[r->n_groups++] = (Group){x, x + 1, low, high};
    }
}

SamRows *sam_rows_new(const Sam *sam, const SamImage *image, Error *err)
{
    SamRows *r = calloc(1, sizeof *r);
    if (!r) {
        fail_memory(err, "mask rows", sizeof *r);
        return NULL;
    }
    r->low_size = 4 * sam->weights.grid;
    r->input_w = image->input_w;
    r->original_h = image->original_h;
    r->original_w = image->original_w;
    r->factor =
        sam->weights.config.image_size % r->low_size ? 0 : sam->weights.config.image_size / r->low_size;
    r->one_resize = image->original_w == image->input_w && image->original_h == image->input_h;
    layout_rows(r, image->input_h);
    if (arena_allocate(&r->arena)) {
        fail_memory(err, "mask rows", r->arena.size);
        free(r);
        return NULL;
    }
    layout_rows(r, image->input_h);
    axis_fill(&r->low_x, image->input_w, r->low_size, sam->weights.config.image_size);
    axis_fill(&r->low_y, image->input_h, r->low_size, sam->weights.config.image_size);
    axis_fill(&r->full_x, r->original_w, image->input_w, r->original_w);
    axis_fill(&r->full_y, r->original_h, image->input_h, r->original_h);
    find_groups(r);
    r->by_runs =
        (double)r->original_w / r->input_w * sam->weights.config.image_size / r->low_size >= LEAST_WIDTH;
    return r;
}

void sam_rows_free(SamRows *rows)
{
    if (!rows)
        return;
    free(rows->arena.base);
    free(rows);
}

/* The low-res columns at which a logit of the row reaches the limit; none: an empty span. Both resizes take
 * weighted means, so no result exceeds the largest input except by rounding. The rounding is a few units in
 * the last place of the largest |logit|, and 1e-5 of it is ample. */
static Span reaching_columns(const float *row, int n, float limit)
{
    enum { APART = 16 }; /* independent maxima, for vectors. */
    float high[APART], low[APART];
    for (int i = 0; i < APART; i++)
        high[i] = -INFINITY, low[i] = INFINITY;
    int x = 0;
    for (; x + APART <= n; x += APART)
        for (int i = 0; i < APART; i++) {
            high[i] = row[x + i] > high[i] ? row[x + i] : high[i];
            low[i] = row[x + i] < low[i] ? row[x + i] : low[i];
        }
    float highest = -INFINITY, lowest = INFINITY;
    for (int i = 0; i < APART; i++) {
        highest = high[i] > highest ? high[i] : highest;
        lowest = low[i] < lowest ? low[i] : lowest;
    }
    for (; x < n; x++) {
        highest = row[x] > highest ? row[x] : highest;
        lowest = row[x] < lowest ? row[x] : lowest;
    }
    const float slack = 1e-5f * (highest > -lowest ? highest : -lowest);
    Span span = {0, n};
    if (highest + slack < limit)
        return (Span){0, 0};
    while (row[span.first] + slack < limit)
        span.first++;
    while (row[span.end - 1] + slack < limit)
        span.end--;
    return span;
}

/* Columns of the picture, and of the input, that depend on low-res columns of the span. */
static void find_columns(SamRows *r, Span low)
{
    const Axis *in = &r->low_x, *out = &r->full_x;
    Span *s = &r->final_span;
    *s = (Span){0, r->original_w};
    while (s->first < s->end && in->index1[out->index1[s->first]] < low.first)
        s->first++;
    while (s->end > s->first && in->index0[out->index0[s->end - 1]] >= low.end)
        s->end--;
    r->input_span =
        r->one_resize || s->first == s->end ? *s : (Span){out->index0[s->first], out->index1[s->end - 1] + 1};
}

void sam_rows_begin(SamRows *rows, const float *low_res, const float *limits, int n)
{
    const float lowest = n > 0 ? limits[0] : -INFINITY;
    Span hull = {rows->low_size, 0};
    rows->low_res = low_res;
    rows->n_limits = n;
    for (int i = 0; i < n; i++)
        rows->limits[i] = limits[i];
    rows->next = 0;
    rows->runs_of[0] = rows->runs_of[1] = -1;
    for (int i = 0; i < 2; i++)
        rows->low_at[i] = rows->full_at[i] = -1;
    for (int y = 0; y < rows->low_size; y++) {
        const Span span = reaching_columns(low_res + (size_t)y * rows->low_size, rows->low_size, lowest);
        rows->reaches[y] = span.first < span.end;
        if (!rows->reaches[y])
            continue;
        hull.first = span.first < hull.first ? span.first : hull.first;
        hull.end = span.end > hull.end ? span.end : hull.end;
    }
    find_columns(rows, hull);
}

static void stretch(float *out, const float *in, const Axis *x, Span span)
{
    for (int i = span.first; i < span.end; i++)
        out[i] = x->weight0[i] * in[x->index0[i]] + x->weight1[i] * in[x->index1[i]];
}

/* The same for an axis that is `factor` times as long, 2 or 4. The weights repeat and no index is looked up,
 * so the compiler vectorises this loop. `stretch` does both ends. */
static inline void stretch_evenly(float *restrict out, const float *restrict in, const Axis *x, Span span,
                                  int factor)
{
    const int first = span.first / factor + 1, end = span.end / factor - 1;
    if (first >= end) {
        stretch(out, in, x, span);
        return;
    }
    const float *w0 = x->weight0 + factor, *w1 = x->weight1 + factor;
    for (int i = first; i < end; i++)
        for (int j = 0; j < factor; j++) {
            const float *from = in + i - (j < factor / 2);
            out[i * factor + j] = w0[j] * from[0] + w1[j] * from[1];
        }
    stretch(out, in, x, (Span){span.first, first * factor});
    stretch(out, in, x, (Span){end * factor, span.end});
}

static void blend(float *out, const float *a, const float *b, float weight_a, float weight_b, Span span)
{
    for (int i = span.first; i < span.end; i++)
        out[i] = weight_a * a[i] + weight_b * b[i];
}

/* Row y of the low-res logits, stretched to the input's width. Two neighbouring rows have different parities,
 * so both are kept. */
static const float *low_row(SamRows *r, int y)
{
    int slot = y & 1;
    if (r->low_at[slot] != y) {
        const float *low = r->low_res + (size_t)y * r->low_size;
        if (r->factor == 2)
            stretch_evenly(r->low_rows[slot], low, &r->low_x, r->input_span, 2);
        else if (r->factor == 4)
            stretch_evenly(r->low_rows[slot], low, &r->low_x, r->input_span, 4);
        else
            stretch(r->low_rows[slot], low, &r->low_x, r->input_span);
        r->low_at[slot] = y;
    }
    return r->low_rows[slot];
}

/* Row y of the logits at the network's input size. */
static const float *input_row(SamRows *r, int y)
{
    blend(r->input_row, low_row(r, r->low_y.index0[y]), low_row(r, r->low_y.index1[y]), r->low_y.weight0[y],
          r->low_y.weight1[y], r->input_span);
    return r->input_row;
}

/* The same, stretched to the picture's width. */
static const float *full_row(SamRows *r, int y)
{
    int slot = y & 1;
    if (r->full_at[slot] != y) {
        input_row(r, y);
        stretch(r->full_rows[slot], r->input_row, &r->full_x, r->final_span);
        r->full_at[slot] = y;
    }
    return r->full_rows[slot];
}

/* The low-res rows that row y of the picture depends on. */
static void rows_below(const SamRows *r, int y, int below[2])
{
    below[0] = r->low_y.index0[r->full_y.index0[y]];
    below[1] = r->low_y.index1[r->full_y.index1[y]];
}

/* Does one of them reach the lowest limit? */
static int row_reaches(const SamRows *r, const int below[2])
{
    for (int i = below[0]; i <= below[1]; i++)
        if (r->reaches[i])
            return 1;
    return 0;
}

/* The largest and smallest logit of the low-res rows, column by column; returns the largest |logit|. */
static float find_extremes(SamRows *r, const int rows[2])
{
    float most = 0, least = 0;
    for (int x = 0; x < r->low_size; x++)
        r->most[x] = r->least[x] = r->low_res[(size_t)rows[0] * r->low_size + x];
    for (int y = rows[0] + 1; y <= rows[1]; y++)
        for (int x = 0; x < r->low_size; x++) {
            const float logit = r->low_res[(size_t)y * r->low_size + x];
            r->most[x] = logit > r->most[x] ? logit : r->most[x];
            r->least[x] = logit < r->least[x] ? logit : r->least[x];
        }
    for (int x = 0; x < r->low_size; x++)
        most = r->most[x] > most ? r->most[x] : most, least = r->least[x] < least ? r->least[x] : least;
    return most > -least ? most : -least;
}

static void add_run(SamRows *r, int first, int end, int above)
{
    SamRun *last = r->runs + r->n_runs - 1;
    if (r->n_runs > 0 && last->above == above && last->end == first)
        last->end = end;
    else
        r->runs[r->n_runs++] = (SamRun){first, end, above};
}

/* The number of limits below all weighted means of logits from `least` to `most`. SAM_BETWEEN: the means lie
 * on both sides of a limit, or one of them is not a number. slack allows for rounding, see
 * reaching_columns. */
static int side_of(const SamRows *r, float least, float most, float slack)
{
    int n = 0;
    while (n < r->n_limits && least - slack > r->limits[n])
        n++;
    return n == r->n_limits || most + slack < r->limits[n] ? n : SAM_BETWEEN;
}

/* Runs to be computed grow to multiples of BLOCK, for whole vectors, at the cost of known runs beside them.
 * Runs below all limits are left out. */
static void widen_unknown(SamRows *r)
{
    const int found = r->n_runs;
    int done = 0;  /* columns */
    r->n_runs = 0; /* the runs are rewritten in place; there are never more than were read. */
    for (int i = 0; i < found; i++) {
        SamRun run = r->runs[i];
        run.first = run.first > done ? run.first : done;
        if (run.above == SAM_BETWEEN && run.first < run.end) { /* beyond final_span all pixels lie below. */
            const int first = run.first / BLOCK * BLOCK, end = round_up(run.end, BLOCK);
            run.first = first > r->final_span.first ? first : r->final_span.first;
            run.end = end < r->final_span.end ? end : r->final_span.end;
        }
        if (run.first >= run.end || run.above == 0)
            continue;
        if (run.above == SAM_BETWEEN) {
            while (r->n_runs > 0 && r->runs[r->n_runs - 1].first >= run.first)
                r->n_runs--;
            if (r->n_runs > 0 && r->runs[r->n_runs - 1].end > run.first)
                r->runs[r->n_runs - 1].end = run.first;
            done = run.end;
        }
        add_run(r, run.first, run.end, run.above);
    }
}

/* If all logits in a pixel's mean lie on one side of each limit, so does the pixel. */
static void find_runs(SamRows *r, const int rows[2])
{
    if (r->runs_of[0] == rows[0] && r->runs_of[1] == rows[1])
        return;
    r->runs_of[0] = rows[0], r->runs_of[1] = rows[1];
    r->n_runs = 0;
    if (!r->by_runs || r->n_limits == 0) {
        add_run(r, r->final_span.first, r->final_span.end, SAM_BETWEEN);
        return;
    }
    const float slack = 1e-5f * find_extremes(r, rows);
    for (int i = 0; i < r->n_groups; i++) {
        const Group *g = &r->groups[i];
        float most = r->most[g->low], least = r->least[g->low];
        for (int x = g->low + 1; x <= g->high; x++) {
            most = r->most[x] > most ? r->most[x] : most;
            least = r->least[x] < least ? r->least[x] : least;
        }
        add_run(r, g->first, g->end, side_of(r, least, most, slack));
    }
    widen_unknown(r);
}

const float *sam_rows_next(SamRows *rows, const SamRun **runs, int *n_runs)
{
    const int y = rows->next++;
    const Axis *axis = rows->one_resize ? &rows->low_y : &rows->full_y;
    const float *above = NULL, *below = NULL;
    int low[2];
    rows_below(rows, y, low);
    *n_runs = 0;
    if (!row_reaches(rows, low))
        return rows->row;
    find_runs(rows, low);
    *runs = rows->runs, *n_runs = rows->n_runs;
    for (int i = 0; i < rows->n_runs; i++) {
        const SamRun *run = &rows->runs[i];
        if (run->above != SAM_BETWEEN)
            continue;
        if (!above) { /* one_resize: the second resize would be 1·row + 0·neighbour, twice. */
            above = rows->one_resize ? low_row(rows, axis->index0[y]) : full_row(rows, axis->index0[y]);
            below = rows->one_resize ? low_row(rows, axis->index1[y]) : full_row(rows, axis->index1[y]);
        }
        blend(rows->row, above, below, axis->weight0[y], axis->weight1[y], (Span){run->first, run->end});
    }
    return rows->row;
}
