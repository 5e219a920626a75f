/* networks.h - the networks of one handle: opening and sharing them, and what their weights recommend. */
#ifndef SAMLAD_LIBRARY_NETWORKS_H
#define SAMLAD_LIBRARY_NETWORKS_H

#include "bank/scene.h"

/* Paths of weights; sam, featup and dcga may be NULL. */
int models_open(Models *models, const char *vit, const char *sam, const char *featup, const char *dcga,
                Error *err);
/* The same networks with activations of their own, for another thread. `models` must outlive the copy. */
int models_share(Models *copy, const Models *models, Error *err);
void models_close(Models *models);

/* What SAM's weights recommend for objects, into options that are still at their defaults. */
int models_recommend(const Models *models, Options *options, Error *err);
/* What the backbone's weights recommend, into options that are 0: size with its grid, and layer. A grid is
 * recommended for that size alone: with another size 0 stays and means size/4. */
int models_complete(const Models *models, Options *options, Error *err);
/* Set the encoders' precision as the options say. Not on a share: it has its owner's networks. */
int models_precision(Models *models, const Options *options, Error *err);

#endif
