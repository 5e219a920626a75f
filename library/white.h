/* white.h - the white of 16-bit images (option white). */
#ifndef SAMLAD_LIBRARY_WHITE_H
#define SAMLAD_LIBRARY_WHITE_H

#include "library/handle.h"

/* Where the option is auto, set it by the normal images. A bank then records the number. */
int white_settle(Samlad *s, const char *const *paths, int n, Error *err);

#endif
