/* networks.h - the networks of one handle: opening and sharing them, and what their weights recommend. */
#ifndef SAMLAD_LIBRARY_NETWORKS_H
#define SAMLAD_LIBRARY_NETWORKS_H

#include "algorithm.h"

/* Paths of weights; sam, featup and dcga may be NULL. */
int networks_open(Networks *networks, const char *vit, const char *sam, const char *featup, const char *dcga,
                  Error *err);
/* The same networks with activations of their own, for another thread. `networks` must outlive the copy. */
int networks_share(Networks *copy, const Networks *networks, Error *err);
void networks_close(Networks *networks);
/* Bytes that one more share costs while it works on an image: the networks' activations and the enlarged
 * features. Not counted is what grows with the picture: its pixels, labels and masks. */
size_t networks_image_bytes(const Networks *networks, const Options *options);

/* What SAM's weights recommend for objects, into options that are still at their defaults. */
int networks_recommend(const Networks *networks, Options *options, Error *err);
/* What the backbone's weights recommend, into options that are 0: size with its grid, and layer. A grid is
 * recommended for that size alone: with another size 0 stays and means size/4. */
int networks_complete(const Networks *networks, Options *options, Error *err);
/* Set the encoders' precision as the options say. Not on a share: it has its owner's networks. */
int networks_precision(Networks *networks, const Options *options, Error *err);

#endif
