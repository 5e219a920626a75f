/* eval/evaluate.h - one category in MVTec LOCO's layout: train/good is the bank, test/good against every
 * other test folder. */
#ifndef SAMLAD_EVAL_EVALUATE_H
#define SAMLAD_EVAL_EVALUATE_H

#include "../samlad.h"

enum { EVALUATE_MAX_KINDS = 64 };

typedef struct EvaluateKind {
    char name[128]; /* "logical_anomalies" */
    int n;
    double auroc; /* against test/good */
} EvaluateKind;

typedef struct Evaluation {
    int n_bank, n_good, n_images; /* n_images: all of test */
    int n_kinds;
    EvaluateKind kinds[EVALUATE_MAX_KINDS]; /* by name */
    double auroc;                           /* all anomalies against test/good */
    double pixel_auroc;                     /* NAN without ground_truth */
    double seconds_bank, seconds_detect;
} Evaluation;

/* Called after each image; `what` names the work. */
typedef SamladProgress EvaluateProgress;

/* Build the bank from dir/train/good, or load it from `bank`, then detect all of dir/test. out: folder for
 * results.jsonl, and for every image heat map, overlay and float TIFF under KIND/NAME (NULL: none). max_bank:
 * at most so many normal images (0: all). */
int evaluate(Samlad *s, const char *dir, const char *bank, const char *out, int max_bank, Evaluation *result,
             EvaluateProgress progress, void *user, Error *err);

/* Does the name end like an image's (.png .jpg .jpeg .pgm .ppm .pnm .pbm, any case)? */
int looks_like_image(const char *name);

/* The outputs of one detected image: PREFIX_heat.png, PREFIX_overlay.png, PREFIX.tiff. */
int write_pictures(const SamladResult *result, const uint8_t *rgb, const char *prefix, Error *err);

#endif
