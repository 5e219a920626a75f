/* foreign_names.h - how other libraries name the tensors of the models that samlad has. Data alone.
 *
 * load/foreign.c compiles these tables, and tools/convert.py reads them out of this file: keep a row on a line.
 * The columns of a family's table: the foreign name, the official name, the piece.
 *   #      a number; in the official name the same number
 *   +      that number plus one
 *   $      one more than the largest + of the file
 *   *      the rest of the name, in both
 *   ""     the network does not need the tensor
 *   piece  1, 2, 3: the rows of the official tensor come from several foreign ones, in this order; else 0 */
#ifndef SAMLAD_FOREIGN_NAMES_H
#define SAMLAD_FOREIGN_NAMES_H

typedef struct ForeignName {
    const char *foreign, *official;
    int piece;
} ForeignName;

/* clang-format off */

/* Hugging Face transformers: Dinov2Model, Dinov2WithRegistersModel, ViTModel, DeiTModel, ViTMSNModel and
 * ViTMAEModel. A saved file has the names of transformers 4. Those of transformers 5 in memory come from a
 * model.state_dict() that somebody saved. */
static const ForeignName HF_VIT[] = {
    {"embeddings.cls_token", "cls_token", 0},
    {"embeddings.mask_token", "", 0},
    {"embeddings.register_tokens", "register_tokens", 0},
    {"embeddings.position_embeddings", "pos_embed", 0},
    {"embeddings.patch_embeddings.projection.*", "patch_embed.proj.*", 0},
    {"layernorm.*", "norm.*", 0},
    /* DINOv2's blocks */
    {"encoder.layer.#.norm1.*", "blocks.#.norm1.*", 0},
    {"encoder.layer.#.norm2.*", "blocks.#.norm2.*", 0},
    {"encoder.layer.#.layer_scale1.lambda1", "blocks.#.ls1.gamma", 0},
    {"encoder.layer.#.layer_scale2.lambda1", "blocks.#.ls2.gamma", 0},
    {"encoder.layer.#.mlp.fc1.*", "blocks.#.mlp.fc1.*", 0},
    {"encoder.layer.#.mlp.fc2.*", "blocks.#.mlp.fc2.*", 0},
    {"encoder.layer.#.mlp.weights_in.*", "blocks.#.mlp.w12.*", 0},
    {"encoder.layer.#.mlp.weights_out.*", "blocks.#.mlp.w3.*", 0},
    /* ViT's blocks */
    {"encoder.layer.#.layernorm_before.*", "blocks.#.norm1.*", 0},
    {"encoder.layer.#.layernorm_after.*", "blocks.#.norm2.*", 0},
    {"encoder.layer.#.intermediate.dense.*", "blocks.#.mlp.fc1.*", 0},
    {"encoder.layer.#.output.dense.*", "blocks.#.mlp.fc2.*", 0},
    /* the attention of both */
    {"encoder.layer.#.attention.attention.query.*", "blocks.#.attn.qkv.*", 1},
    {"encoder.layer.#.attention.attention.key.*", "blocks.#.attn.qkv.*", 2},
    {"encoder.layer.#.attention.attention.value.*", "blocks.#.attn.qkv.*", 3},
    {"encoder.layer.#.attention.output.dense.*", "blocks.#.attn.proj.*", 0},
    /* DINOv2 in the memory of transformers 5, as far as it differs */
    {"encoder.layer.#.attention.q_proj.*", "blocks.#.attn.qkv.*", 1},
    {"encoder.layer.#.attention.k_proj.*", "blocks.#.attn.qkv.*", 2},
    {"encoder.layer.#.attention.v_proj.*", "blocks.#.attn.qkv.*", 3},
    {"encoder.layer.#.attention.o_proj.*", "blocks.#.attn.proj.*", 0},
    {"encoder.layer.#.mlp.gate_proj.*", "blocks.#.mlp.w12.*", 1},
    {"encoder.layer.#.mlp.up_proj.*", "blocks.#.mlp.w12.*", 2},
    {"encoder.layer.#.mlp.down_proj.*", "blocks.#.mlp.w3.*", 0},
    /* ViT in the memory of transformers 5 */
    {"layers.#.layernorm_before.*", "blocks.#.norm1.*", 0},
    {"layers.#.layernorm_after.*", "blocks.#.norm2.*", 0},
    {"layers.#.attention.q_proj.*", "blocks.#.attn.qkv.*", 1},
    {"layers.#.attention.k_proj.*", "blocks.#.attn.qkv.*", 2},
    {"layers.#.attention.v_proj.*", "blocks.#.attn.qkv.*", 3},
    {"layers.#.attention.o_proj.*", "blocks.#.attn.proj.*", 0},
    {"layers.#.mlp.fc1.*", "blocks.#.mlp.fc1.*", 0},
    {"layers.#.mlp.fc2.*", "blocks.#.mlp.fc2.*", 0},
    /* on top */
    {"pooler.*", "", 0},
    {"classifier.*", "", 0},
};

/* timm's VisionTransformer: the official names, but for the registers. */
static const ForeignName TIMM_VIT[] = {
    {"cls_token", "cls_token", 0},
    {"mask_token", "mask_token", 0},
    {"reg_token", "register_tokens", 0},
    {"register_tokens", "register_tokens", 0},
    {"pos_embed", "pos_embed", 0},
    {"patch_embed.proj.*", "patch_embed.proj.*", 0},
    {"blocks.#.norm1.*", "blocks.#.norm1.*", 0},
    {"blocks.#.norm2.*", "blocks.#.norm2.*", 0},
    {"blocks.#.attn.qkv.*", "blocks.#.attn.qkv.*", 0},
    {"blocks.#.attn.proj.*", "blocks.#.attn.proj.*", 0},
    {"blocks.#.ls1.gamma", "blocks.#.ls1.gamma", 0},
    {"blocks.#.ls2.gamma", "blocks.#.ls2.gamma", 0},
    {"blocks.#.mlp.fc1.*", "blocks.#.mlp.fc1.*", 0},
    {"blocks.#.mlp.fc2.*", "blocks.#.mlp.fc2.*", 0},
    {"blocks.#.mlp.w12.*", "blocks.#.mlp.w12.*", 0},
    {"blocks.#.mlp.w3.*", "blocks.#.mlp.w3.*", 0},
    {"norm.*", "norm.*", 0},
    {"head.*", "", 0},
};

/* timm's SwiGLUPacked: fc1 has twice the rows that fc2 has columns. These rows come before TIMM_VIT's. */
static const ForeignName TIMM_SWIGLU[] = {
    {"blocks.#.mlp.fc1.*", "blocks.#.mlp.w12.*", 0},
    {"blocks.#.mlp.fc2.*", "blocks.#.mlp.w3.*", 0},
};

/* Hugging Face transformers: SamModel. The right column is the whole of Segment Anything. */
static const ForeignName HF_SAM[] = {
    {"vision_encoder.pos_embed", "image_encoder.pos_embed", 0},
    {"vision_encoder.patch_embed.projection.*", "image_encoder.patch_embed.proj.*", 0},
    {"vision_encoder.layers.#.layer_norm1.*", "image_encoder.blocks.#.norm1.*", 0},
    {"vision_encoder.layers.#.layer_norm2.*", "image_encoder.blocks.#.norm2.*", 0},
    {"vision_encoder.layers.#.attn.qkv.*", "image_encoder.blocks.#.attn.qkv.*", 0},
    {"vision_encoder.layers.#.attn.proj.*", "image_encoder.blocks.#.attn.proj.*", 0},
    {"vision_encoder.layers.#.attn.rel_pos_h", "image_encoder.blocks.#.attn.rel_pos_h", 0},
    {"vision_encoder.layers.#.attn.rel_pos_w", "image_encoder.blocks.#.attn.rel_pos_w", 0},
    {"vision_encoder.layers.#.mlp.lin1.*", "image_encoder.blocks.#.mlp.lin1.*", 0},
    {"vision_encoder.layers.#.mlp.lin2.*", "image_encoder.blocks.#.mlp.lin2.*", 0},
    {"vision_encoder.neck.conv1.weight", "image_encoder.neck.0.weight", 0},
    {"vision_encoder.neck.layer_norm1.*", "image_encoder.neck.1.*", 0},
    {"vision_encoder.neck.conv2.weight", "image_encoder.neck.2.weight", 0},
    {"vision_encoder.neck.layer_norm2.*", "image_encoder.neck.3.*", 0},
    {"shared_image_embedding.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", 0},
    {"prompt_encoder.shared_embedding.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", 0},
    {"prompt_encoder.point_embed.#.weight", "prompt_encoder.point_embeddings.#.weight", 0},
    {"prompt_encoder.not_a_point_embed.weight", "prompt_encoder.not_a_point_embed.weight", 0},
    {"prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight", 0},
    {"prompt_encoder.mask_embed.conv1.*", "prompt_encoder.mask_downscaling.0.*", 0},
    {"prompt_encoder.mask_embed.layer_norm1.*", "prompt_encoder.mask_downscaling.1.*", 0},
    {"prompt_encoder.mask_embed.conv2.*", "prompt_encoder.mask_downscaling.3.*", 0},
    {"prompt_encoder.mask_embed.layer_norm2.*", "prompt_encoder.mask_downscaling.4.*", 0},
    {"prompt_encoder.mask_embed.conv3.*", "prompt_encoder.mask_downscaling.6.*", 0},
    {"mask_decoder.iou_token.weight", "mask_decoder.iou_token.weight", 0},
    {"mask_decoder.mask_tokens.weight", "mask_decoder.mask_tokens.weight", 0},
    {"mask_decoder.transformer.layers.#.self_attn.*", "mask_decoder.transformer.layers.#.self_attn.*", 0},
    {"mask_decoder.transformer.layers.#.cross_attn_token_to_image.*", "mask_decoder.transformer.layers.#.cross_attn_token_to_image.*", 0},
    {"mask_decoder.transformer.layers.#.cross_attn_image_to_token.*", "mask_decoder.transformer.layers.#.cross_attn_image_to_token.*", 0},
    {"mask_decoder.transformer.layers.#.layer_norm1.*", "mask_decoder.transformer.layers.#.norm1.*", 0},
    {"mask_decoder.transformer.layers.#.layer_norm2.*", "mask_decoder.transformer.layers.#.norm2.*", 0},
    {"mask_decoder.transformer.layers.#.layer_norm3.*", "mask_decoder.transformer.layers.#.norm3.*", 0},
    {"mask_decoder.transformer.layers.#.layer_norm4.*", "mask_decoder.transformer.layers.#.norm4.*", 0},
    {"mask_decoder.transformer.layers.#.mlp.lin1.*", "mask_decoder.transformer.layers.#.mlp.lin1.*", 0},
    {"mask_decoder.transformer.layers.#.mlp.lin2.*", "mask_decoder.transformer.layers.#.mlp.lin2.*", 0},
    {"mask_decoder.transformer.final_attn_token_to_image.*", "mask_decoder.transformer.final_attn_token_to_image.*", 0},
    {"mask_decoder.transformer.layer_norm_final_attn.*", "mask_decoder.transformer.norm_final_attn.*", 0},
    {"mask_decoder.upscale_conv1.*", "mask_decoder.output_upscaling.0.*", 0},
    {"mask_decoder.upscale_layer_norm.*", "mask_decoder.output_upscaling.1.*", 0},
    {"mask_decoder.upscale_conv2.*", "mask_decoder.output_upscaling.3.*", 0},
    {"mask_decoder.output_hypernetworks_mlps.#.proj_in.*", "mask_decoder.output_hypernetworks_mlps.#.layers.0.*", 0},
    {"mask_decoder.output_hypernetworks_mlps.#.layers.0.*", "mask_decoder.output_hypernetworks_mlps.#.layers.1.*", 0},
    {"mask_decoder.output_hypernetworks_mlps.#.proj_out.*", "mask_decoder.output_hypernetworks_mlps.#.layers.2.*", 0},
    {"mask_decoder.iou_prediction_head.proj_in.*", "mask_decoder.iou_prediction_head.layers.0.*", 0},
    {"mask_decoder.iou_prediction_head.layers.#.*", "mask_decoder.iou_prediction_head.layers.+.*", 0},
    {"mask_decoder.iou_prediction_head.proj_out.*", "mask_decoder.iou_prediction_head.layers.$.*", 0},
};

/* The classes of transformers, by config.json's model_type: the defaults of num_attention_heads and of
 * layer_norm_eps. A config.json leaves out what equals them. */
typedef struct ForeignClass {
    const char *model_type;
    int n_heads;
    double eps;
} ForeignClass;

static const ForeignClass HF_CLASSES[] = {
    {"dinov2", 12, 1e-6},
    {"dinov2_with_registers", 12, 1e-6},
    {"vit", 12, 1e-12},
    {"deit", 12, 1e-12},
    {"vit_mae", 12, 1e-12},
    {"vit_msn", 12, 1e-6},
};

/* The classes that prepare images, by preprocessor_config.json's image_processor_type: the defaults of
 * image_mean and image_std. */
typedef struct ForeignProcessor {
    const char *type, *mean, *std;
} ForeignProcessor;

static const ForeignProcessor HF_PROCESSORS[] = {
    {"ViTImageProcessor", "0.5,0.5,0.5", "0.5,0.5,0.5"},
    {"DeiTImageProcessor", "0.5,0.5,0.5", "0.5,0.5,0.5"},
    {"BitImageProcessor", "0.48145466,0.4578275,0.40821073", "0.26862954,0.26130258,0.27577711"},
    {"SamImageProcessor", "0.485,0.456,0.406", "0.229,0.224,0.225"},
};

/* Models that samlad does not have: a part of one tensor's name, and what the model is. The first row that
 * fits names it, before any model is recognised. */
typedef struct Stranger {
    const char *part, *what;
} Stranger;

static const Stranger STRANGERS[] = {
    {".lora_", "LoRA weights, which are no model alone: merge them into their model first"},
    {"detr_decoder.", "SAM 3"},
    {"geometry_encoder.", "SAM 3"},
    {"tracker_model.", "SAM 3"},
    {"detector.backbone.", "SAM 3"},
    {"image_encoder.trunk.", "SAM 2"},
    {"memory_attention.", "SAM 2"},
    {"sam_mask_decoder.", "SAM 2"},
    {"vision_encoder.backbone.", "SAM 2 (in Hugging Face's naming)"},
    {"mask_decoder.hf_token.", "HQ-SAM"},
    {"mask_decoder.hq_token.", "HQ-SAM (in Hugging Face's naming)"},
    {"mask_decoder.final_output_upscaling_layers.", "EfficientSAM"},
    {"image_encoder.backbone.stages.", "EfficientViT-SAM"},
    {"image_encoder.features.", "RepViT-SAM"},
    {"image_encoder.stages.", "EdgeSAM"},
    {".Adapter.", "SAM with adapters (SAM-Med2D, Medical SAM Adapter)"},
    {".depthwise_conv.", "DINOv3's ConvNeXt (in Hugging Face's naming)"},
    {".mlp.dwconv.", "SegFormer"},
    {".dwconv.", "ConvNeXt"},
    {".layer.0.convolution.", "ResNet (in Hugging Face's naming)"},
    {"rope_embed.periods", "DINOv3"},
    {"rope_embeddings.", "DINOv3"},
    {"storage_tokens", "DINOv3"},
    {"embeddings.patch_embeddings.weight", "DINOv3 (in Hugging Face's naming)"},
    {"attn.qkv.bias_mask", "DINOv3"},
    {"attn.q_bias", "BEiT, EVA or DINOv3 (in timm's naming)"},
    {".gamma_1", "DINOv3, EVA or BEiT (in timm's naming)"},
    {".lambda_1", "BEiT (in Hugging Face's naming)"},
    {"relative_position_bias_table", "Swin or BEiT"},
    {"visual.transformer.resblocks.", "CLIP"},
    {"visual.trunk.", "CLIP (OpenCLIP's, on a model of timm)"},
    {"embeddings.class_embedding", "CLIP (in Hugging Face's naming)"},
    {"norm_pre.", "CLIP's ViT (in timm's naming)"},
    {"embeddings.patch_embedding.", "SigLIP (in Hugging Face's naming)"},
    {"attn_pool.latent", "SigLIP's ViT (in timm's naming)"},
    {"dist_token", "DeiT with a distillation token"},
    {"embeddings.distillation_token", "DeiT with a distillation token"},
    {"downsample_layers.", "ConvNeXt"},
    {"blocks.0.conv_dw.", "ConvNeXt (in timm's naming)"},
    {"layer1.0.conv1.", "ResNet"},
    {"model.0.conv.", "YOLO or FastSAM"},
    {"model.diffusion_model.", "Stable Diffusion"},
    {"embed_tokens.", "a language model"},
};

/* clang-format on */

#endif
