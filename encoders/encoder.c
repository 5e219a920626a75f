/* encoder.c - the table of image encoders. See encoder.h. */
#include "encoders/encoder.h"

#include <stdio.h>
#include <string.h>

#include "io/fail.h"

static const SamEncoder *const encoders[] = {
    &tiny_vit_encoder,
};
enum { N_ENCODERS = sizeof encoders / sizeof *encoders };

int sam_encoder_find(const SamEncoder **encoder, const Safetensors *weights, Error *err)
{
    const char *name = st_meta(weights, "sam.encoder");
    char known[128] = "vit";
    *encoder = NULL;
    if (!name || strcmp(name, "vit") == 0)
        return 0;
    for (int i = 0; i < N_ENCODERS; i++) {
        if (strcmp(name, encoders[i]->name) == 0) {
            *encoder = encoders[i];
            return 0;
        }
        const size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, " or %s", encoders[i]->name);
    }
    return fail(err, "%s: metadata key sam.encoder is %.60s, expected %s", st_path(weights), name, known);
}
