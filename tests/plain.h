/* plain.h - the plain form's functions that tests compare with. In the fast build they are plain_*, see
 * fast/replaces.h. With PLAIN=1 they are the functions themselves. Then only goldens and libm are the
 * truth. */
#ifndef SAMLAD_TEST_PLAIN_H
#define SAMLAD_TEST_PLAIN_H

#include "tensor.h"

#ifdef PLAIN
#define plain_linear               linear
#define plain_matmul               matmul
#define plain_matmul_nt            matmul_nt
#define plain_bf16_round           bf16_round
#define plain_attention            attention
#define plain_interpolate_bilinear interpolate_bilinear
#define plain_resize_u8            resize_u8
#define plain_sample_half          sample_half
#define plain_distance_half        distance_half
#define plain_centre_rows          centre_rows
#define plain_gram_rows            gram_rows
#define plain_residual_rows        residual_rows
#else
extern __typeof__(linear) plain_linear;
extern __typeof__(matmul) plain_matmul;
extern __typeof__(matmul_nt) plain_matmul_nt;
extern __typeof__(bf16_round) plain_bf16_round;
extern __typeof__(attention) plain_attention;
extern __typeof__(interpolate_bilinear) plain_interpolate_bilinear;
extern __typeof__(resize_u8) plain_resize_u8;
extern __typeof__(sample_half) plain_sample_half;
extern __typeof__(distance_half) plain_distance_half;
extern __typeof__(centre_rows) plain_centre_rows;
extern __typeof__(gram_rows) plain_gram_rows;
extern __typeof__(residual_rows) plain_residual_rows;
#endif

#endif
