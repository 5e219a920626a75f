/* batch.h - adding many normal images to a bank. */
#ifndef SAMLAD_LIBRARY_BATCH_H
#define SAMLAD_LIBRARY_BATCH_H

#include "library/handle.h"

/* Read and analyse the images, several at once (samlad_images_at_once). Add them to the builder in the given
 * order. */
int batch_files(BankBuilder *builder, const Samlad *s, const char *const *paths, int n,
                const Listener *listener, Error *err);
/* Add stored scenes in the given order. names [n] are those of their images. */
int batch_scenes(BankBuilder *builder, const Samlad *s, const char *const *scenes, const char *const *names,
                 int n, Error *err);

#endif
