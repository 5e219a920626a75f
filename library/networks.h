/* networks.h - the networks of one handle: opening them, sharing them, and taking their weights'
 * recommendations. */
#ifndef SAMLAD_LIBRARY_NETWORKS_H
#define SAMLAD_LIBRARY_NETWORKS_H

#include "algorithm.h"

/* Paths of weights; sam, featup and dcga may be NULL. */
int networks_open(Networks *networks, const char *vit, const char *sam, const char *featup, const char *dcga,
                  Error *err);
/* The same networks with their own activations, for another thread. `networks` must outlive the copy. */
int networks_share(Networks *copy, const Networks *networks, Error *err);
void networks_close(Networks *networks);
/* Bytes that one more share needs while it works on an image: the networks' activations and the enlarged
 * features. Memory that grows with the picture is not counted: its pixels, labels and masks. */
size_t networks_image_bytes(const Networks *networks, const Options *options);

/* Set SAM's recommendations for objects in options that are still at their defaults. */
int networks_recommend(const Networks *networks, Options *options, Error *err);
/* Set the backbone's recommendations in options that are 0: size with its grid, and layer. A grid is
 * recommended only for that size. With another size 0 stays and means size/4. */
int networks_complete(const Networks *networks, Options *options, Error *err);
/* Set the encoders' precision from the options. Not to be called on a share: it has its owner's networks. */
int networks_precision(Networks *networks, const Options *options, Error *err);

#endif
