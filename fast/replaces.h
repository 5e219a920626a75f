/* replaces.h - the functions of the plain form that fast/ replaces.
 *
 * tensor.c and the chapters are plain and complete: `make PLAIN=1` builds them without fast/. The fast
 * build compiles each of them, X.c, with -DCOMPILES_X and this header in front. Each function listed in X's
 * section below then gets the name plain_*. fast/ defines the function itself, under the same name and
 * contract. Callers need no change. The plain form stays in the library as the truth of the tests.
 *
 * If a function calls a replaced function of the same file, it must be replaced too. Otherwise it would call
 * the plain one. */
#ifndef SAMLAD_REPLACES_H
#define SAMLAD_REPLACES_H

#ifdef COMPILES_tensor
/* gemm.c: */
#define linear    plain_linear
#define matmul    plain_matmul
#define matmul_nt plain_matmul_nt
/* bf16.c: */
#define bf16_round             plain_bf16_round
#define linear_layer           plain_linear_layer
#define linear_layer_gelu      plain_linear_layer_gelu
#define linear_pack            plain_linear_pack
#define bf16_attention_scratch plain_bf16_attention_scratch
#define bf16_window_scratch    plain_bf16_window_scratch
/* attention.c: */
#define attention        plain_attention
#define window_attention plain_window_attention
#define attention_reserve plain_attention_reserve
/* elements.c: */
#define dot            plain_dot
#define layer_norm     plain_layer_norm
#define add_layer_norm plain_add_layer_norm
#define softmax_rows   plain_softmax_rows
#define gelu           plain_gelu
#define relu           plain_relu
#define sigmoid        plain_sigmoid
#define swiglu         plain_swiglu
#define add            plain_add
#define add_rows       plain_add_rows
#define add_scaled     plain_add_scaled
#define l2_normalise   plain_l2_normalise
/* conv.c: */
#define conv2d_scratch           plain_conv2d_scratch
#define conv2d                   plain_conv2d
#define depthwise_conv3x3        plain_depthwise_conv3x3
#define conv_transpose2d_scratch plain_conv_transpose2d_scratch
#define conv_transpose2d         plain_conv_transpose2d
/* resample.c: */
#define interpolate_bilinear plain_interpolate_bilinear
#define resize_u8            plain_resize_u8
/* amm_gram.c: */
#define sample_half   plain_sample_half
#define distance_half plain_distance_half
#define centre_rows   plain_centre_rows
#define gram_rows     plain_gram_rows
#define residual_rows plain_residual_rows
#endif

#ifdef COMPILES_featup
#define featup_upsample  plain_featup_upsample
#define features_to_grid plain_features_to_grid
#endif

#ifdef COMPILES_sam
/* many prompts on one image: fast/sam_prompts.c. */
#define sam_decoder_new     plain_sam_decoder_new
#define sam_decoder_free    plain_sam_decoder_free
#define sam_scratch_new     plain_sam_scratch_new
#define sam_scratch_prompts plain_sam_scratch_prompts
#define sam_scratch_free    plain_sam_scratch_free
#define sam_decode_prompts  plain_sam_decode_prompts
#define sam_decode_masks    plain_sam_decode_masks
/* rows of large masks: fast/sam_rows.c. */
#define sam_rows_new        plain_sam_rows_new
#define sam_rows_free       plain_sam_rows_free
#define sam_rows_begin      plain_sam_rows_begin
#define sam_rows_next       plain_sam_rows_next
#endif

#ifdef COMPILES_amm
#define amm_structural plain_amm_structural
#endif

#endif
