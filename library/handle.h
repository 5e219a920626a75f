/* handle.h - the members of a Samlad. Private to library/. */
#ifndef SAMLAD_LIBRARY_HANDLE_H
#define SAMLAD_LIBRARY_HANDLE_H

#include "bank/bank.h"
#include "library/networks.h"
#include "samlad.h"

struct Samlad {
    Networks networks;
    Options asked;   /* as the caller set them: 0 may stand for the weights' recommendation. */
    Options options; /* the same with the recommendations filled in. */
    WeightsId vit, sam, featup, dcga;
    Bank bank;
    int has_bank;
    int shared;                         /* 1: networks and bank belong to another handle. */
    unsigned char was_set[MAX_OPTIONS]; /* by samlad_set, in option_table's order. */
};

/* Make the options from the caller's settings and the weights' recommendations. */
int handle_complete(Samlad *s, Error *err);
void handle_drop_bank(Samlad *s);
/* One checksum of everything that decides a scene: the weights and all options of features. */
void handle_maker(const Samlad *s, char hex[65]);

/* The program's progress function, or none. */
typedef struct Listener {
    SamladProgress progress;
    void *user;
} Listener;

static inline void tell(const Listener *listener, const char *what, int done, int total)
{
    if (listener->progress)
        listener->progress(listener->user, what, done, total);
}

#endif
