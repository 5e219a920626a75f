/* replaces.h - which functions of the plain form fast/ replaces.
 *
 * tensor.c and the chapters are plain and complete: `make PLAIN=1` builds them without this room. The fast build
 * compiles each of them, X.c, with -DCOMPILES_X and this header in front. Each function listed in X's section
 * below then gets the name plain_*, and fast/ defines the function itself, under the same name and contract.
 * Callers notice nothing. The plain form stays in the library, and the tests take it as the truth.
 *
 * A function that calls a replaced one of the same file must be replaced too: it would call the plain one. */
#ifndef SAMLAD_REPLACES_H
#define SAMLAD_REPLACES_H

#ifdef COMPILES_tensor
/* fast/amm_gram.c */
#define sample_half   plain_sample_half
#define distance_half plain_distance_half
#define centre_rows   plain_centre_rows
#define gram_rows     plain_gram_rows
#define residual_rows plain_residual_rows
#endif

#ifdef COMPILES_featup
#endif

#ifdef COMPILES_sam
#endif

#ifdef COMPILES_amm
#define amm_structural plain_amm_structural /* fast/amm_gram.c: in squares, on all threads */
#endif

#endif
