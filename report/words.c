/* words.c - a result in sentences and in JSON. See report.h; docs/OUTPUT.md lists the fields. */
#include "report/report.h"

#include "library/doubt.h"

/* ================================================================================================
 * Sentences
 * ============================================================================================== */

enum { SENTENCE = 512 }; /* bytes; a bank's long image name is cut. */

static const char *verdict_name(SamladVerdict verdict)
{
    return verdict == VERDICT_EXTRA ? "extra" : verdict == VERDICT_DAMAGED ? "damaged" : "normal";
}

static void describe_object(char text[SENTENCE], const SamladObject *o)
{
    const double x = o->box[0], y = o->box[1], width = o->box[2], height = o->box[3];
    int n = snprintf(text, SENTENCE, "%s at (%.0f, %.0f) of %.0fx%.0f pixels",
                     o->background ? "the background" : "an object", x, y, width, height);
    text += n;
    if (o->verdict == VERDICT_EXTRA && o->alike > 1)
        snprintf(text, SENTENCE - n,
                 ", or another of the %d alike, is one too many (unmatched together %.2f)", o->alike,
                 (double)o->counted);
    else if (o->verdict == VERDICT_EXTRA)
        snprintf(text, SENTENCE - n, " has no counterpart in the normal images (unmatched %.2f)",
                 (double)o->unmatched);
    else
        snprintf(text, SENTENCE - n, " differs from its counterparts around (%.0f, %.0f) (z %.1f)",
                 (double)o->damage_at[0], (double)o->damage_at[1], (double)o->damage);
}

static void describe_missing(char text[SENTENCE], const Samlad *s, const SamladResult *r,
                             const SamladMissing *m)
{
    const double x = m->box[0], y = m->box[1], width = m->box[2], height = m->box[3];
    char alike[64] = "";
    if (m->alike > 1)
        snprintf(alike, sizeof alike, "or another of the %d alike, ", m->alike);
    snprintf(text, SENTENCE,
             "object %d of %s, %sexpected at (%.0f, %.0f) within %.0fx%.0f pixels, was not found (unmatched "
             "%.2f in %d of %d references)",
             m->object, samlad_bank_name(s, r->references[m->reference]), alike, x, y, width, height,
             (double)m->unmatched, m->support, r->n_references);
}

static void describe_doubt(char text[SENTENCE], const Doubt *doubt)
{
    const double x = doubt->x, y = doubt->y, evidence = doubt->evidence;
    if (doubt->kind == DOUBT_LAYOUT)
        snprintf(
            text, SENTENCE,
            "the object around (%.0f, %.0f) differs most from similar ones by what lies where in it (z %.1f)",
            x, y, evidence);
    else if (doubt->kind == DOUBT_LOGICAL)
        snprintf(
            text, SENTENCE,
            "what is missing or too many is suspected most around (%.0f, %.0f), not clearly enough to be "
            "named (unmatched %.2f)",
            x, y, evidence);
    else
        snprintf(
            text, SENTENCE,
            "the image differs most from normal ones around (%.0f, %.0f), not enough to be called damaged "
            "(z %.1f)",
            x, y, evidence);
}

/* ================================================================================================
 * Text
 * ============================================================================================== */

void report_plain(FILE *out, const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        int second = c > (const unsigned char *)text && c[-1] == 0xc2 && *c >= 0x80 && *c < 0xa0;
        int first = *c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0;
        fprintf(out, *c < ' ' || *c == 0x7f || first || second ? "\\x%02x" : "%c", *c);
    }
}

/* One reason, indented below the rank. Scores take nine characters. */
static void print_reason(FILE *out, const char *kind, const char *text)
{
    fprintf(out, "           %s: ", kind);
    report_plain(out, text);
    fputs("\n", out);
}

int report_text(FILE *out, const Samlad *s, const SamladResult *r)
{
    char text[SENTENCE];
    int n = r->n_missing;
    for (int i = 0; i < r->n_missing; i++) {
        describe_missing(text, s, r, &r->missing[i]);
        print_reason(out, "missing", text);
    }
    for (int i = 0; i < r->n_objects; i++)
        if (r->objects[i].verdict != VERDICT_NORMAL) {
            describe_object(text, &r->objects[i]);
            print_reason(out, verdict_name(r->objects[i].verdict), text);
            n++;
        }
    Doubt doubt;
    if (find_doubt(&doubt, r)) {
        describe_doubt(text, &doubt);
        print_reason(out, "doubtful", text);
        n++;
    }
    return n;
}

/* ================================================================================================
 * JSON
 * ============================================================================================== */

static void key_int(JsonWriter *w, const char *key, int value)
{
    json_key(w, key);
    json_int(w, value);
}

static void key_float(JsonWriter *w, const char *key, float value)
{
    json_key(w, key);
    json_float(w, value);
}

static void key_string(JsonWriter *w, const char *key, const char *value)
{
    json_key(w, key);
    json_string(w, value);
}

static void json_match(JsonWriter *w, const SamladMatch *m)
{
    json_open(w, '{');
    key_int(w, "reference", m->reference);
    key_int(w, "object", m->object);
    key_float(w, "assignment", m->assignment);
    key_float(w, "similarity", m->similarity);
    json_close(w, '}');
}

static void json_object(JsonWriter *w, const SamladObject *o, int id)
{
    char text[SENTENCE];
    json_open(w, '{');
    key_int(w, "id", id);
    key_string(w, "verdict", verdict_name(o->verdict));
    json_key(w, "background"), json_bool(w, o->background);
    json_floats(w, "bbox", o->box, 4);
    key_float(w, "area", o->area);
    json_floats(w, "centroid", o->centroid, 2);
    key_float(w, "unmatched", o->unmatched);
    key_int(w, "alike", o->alike);
    key_float(w, "counted", o->counted);
    key_float(w, "unusual", o->unusual);
    key_float(w, "damage", o->damage);
    json_key(w, "matches"), json_open(w, '[');
    for (int k = 0; k < o->n_matches; k++)
        json_match(w, &o->matches[k]);
    json_close(w, ']');
    if (o->verdict != VERDICT_NORMAL) {
        describe_object(text, o);
        key_string(w, "reason", text);
    }
    json_close(w, '}');
}

static void json_missing(JsonWriter *w, const Samlad *s, const SamladResult *r, const SamladMissing *m)
{
    char text[SENTENCE];
    describe_missing(text, s, r, m);
    json_open(w, '{');
    key_int(w, "reference", m->reference);
    key_int(w, "object", m->object);
    json_floats(w, "bbox", m->box, 4);
    key_float(w, "unmatched", m->unmatched);
    key_int(w, "alike", m->alike);
    key_float(w, "evidence", m->evidence);
    key_int(w, "support", m->support);
    key_string(w, "reason", text);
    json_close(w, '}');
}

static void json_doubt(JsonWriter *w, const SamladResult *r)
{
    static const char *const kinds[] = {"structural", "logical", "layout"};
    Doubt doubt;
    char text[SENTENCE];
    if (!find_doubt(&doubt, r)) {
        json_null(w);
        return;
    }
    describe_doubt(text, &doubt);
    json_open(w, '{');
    key_string(w, "kind", kinds[doubt.kind]);
    json_floats(w, "at", (float[]){doubt.x, doubt.y}, 2);
    key_float(w, doubt.kind == DOUBT_LOGICAL ? "unmatched" : "z", doubt.evidence);
    key_string(w, "reason", text);
    json_close(w, '}');
}

/* The image's numbers. */
static void json_scores(JsonWriter *w, const SamladResult *r, const char *image)
{
    key_string(w, "image", image);
    key_int(w, "width", r->width);
    key_int(w, "height", r->height);
    key_float(w, "score", r->score);
    key_float(w, "structural", r->structural);
    key_float(w, "logical", r->logical);
    key_float(w, "layout", r->layout);
    key_float(w, "structural_z", r->structural_z);
    key_float(w, "logical_z", r->logical_z);
    key_float(w, "layout_z", r->layout_z);
    key_float(w, "rank", r->rank);
    key_float(w, "threshold", r->threshold);
    json_key(w, "anomalous");
    if (r->anomalous < 0)
        json_null(w);
    else
        json_bool(w, r->anomalous);
}

void report_members(JsonWriter *w, const Samlad *s, const SamladResult *r, const char *image)
{
    json_scores(w, r, image);
    json_key(w, "references"), json_open(w, '[');
    for (int k = 0; k < r->n_references; k++)
        json_string(w, samlad_bank_name(s, r->references[k]));
    json_close(w, ']');
    json_key(w, "objects"), json_open(w, '[');
    for (int i = 0; i < r->n_objects; i++)
        json_object(w, &r->objects[i], i);
    json_close(w, ']');
    json_key(w, "missing"), json_open(w, '[');
    for (int i = 0; i < r->n_missing; i++)
        json_missing(w, s, r, &r->missing[i]);
    json_close(w, ']');
    json_key(w, "doubt"), json_doubt(w, r);
}

void report_json(JsonWriter *w, const Samlad *s, const SamladResult *r, const char *image)
{
    json_open(w, '{');
    report_members(w, s, r, image);
    json_close(w, '}');
}
