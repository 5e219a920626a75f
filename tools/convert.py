#!/usr/bin/env python3
"""convert.py - PyTorch checkpoints -> safetensors files that samlad opens.

    convert.py CHECKPOINT -o FILE.safetensors [--dtype f32|f16|bf16]

Needs only Python 3.8: no torch, no numpy. checkpoint.py opens the file and executes no code of it. The steps:

  1. Recognise the model by names and shapes alone, and derive its configuration from them. Wrappers
     ("state_dict", "model", "teacher") and prefixes ("module.", "teacher.backbone.") are removed. Optimisers
     and heads are left out. foreign.py gives Hugging Face's and timm's tensors their official names, and reads
     the settings in config.json beside the file.
  2. Require every tensor of the architecture, with its exact shape. A tensor without a place in it is refused:
     the file is a variant that we would compute wrongly.
  3. Stream the tensors, chunk by chunk, under their official names to a temporary file, then rename it. The
     configuration goes into the file's __metadata__, as strings ("vit.depth": "12").

A refusal is one sentence, with exit status 1 and no output file (2: wrong usage).
"""

import argparse
import json
import math
import os
import re
import struct
import sys

sys.dont_write_bytecode = True  # no .pyc files beside a tool in a checkout
from checkpoint import (ITEM_SIZE, Inert, Joined, Refusal, Several, Tensor, dicts_with_tensors, open_checkpoint,
                        shape_text, shown)
from foreign import family_names, official_tensors, refuse_strangers, settings_beside

DESCRIPTION = """\
Convert a PyTorch checkpoint (.pth, .pt, .bin, .ckpt, .safetensors, an index of shards, or the folder of
either) to a safetensors file that samlad opens. The model is recognised by its tensors, in the official naming,
Hugging Face's or timm's: DINOv2, ViT, DeiT, DINO, Segment Anything; MobileSAM and FeatUp in the official one.
Nothing in the checkpoint is executed, and neither torch nor numpy is needed.
"""
EPILOG = """\
examples:
  convert.py sam_vit_h_4b8939.pth -o sam_vit_h.safetensors --dtype f16
      Segment Anything, half the size. samlad always computes in f32. It uses an f32 file in place, shared
      between processes; an f16 or bf16 file becomes f32 in each process's own memory
  convert.py dinov2_vits14_reg4_pretrain.pth -o dinov2_vits14_reg.safetensors
      DINOv2 S/B/L/g, with or without registers
  convert.py deit_small.pth -o deit_small.safetensors --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
      a plain timm ViT; give the normalisation of its images when it is not 0.5, because the file lacks it
  convert.py dino16_jbu_stack_cocostuff.ckpt -o featup.safetensors
      FeatUp's JBU stack from a PyTorch Lightning checkpoint
  convert.py dinov2-base/pytorch_model.bin -o dinov2_base.safetensors
      Hugging Face's file; config.json and preprocessor_config.json beside it are read
  convert.py decoder.pth --base sam_vit_b_01ec64.pth -o sam_tuned.safetensors
      a fine-tune that holds only a part of SAM, with the rest from the base
  convert.py some.pth --list
      list the contents of a file and the recognised model; convert nothing

weights/README.md lists the official files, their sizes and checksums.
"""

FLOAT_TYPES = ("F32", "F64", "F16", "BF16")
MAX_BLOCKS = 512
MAX_PREFIX = 512  # of names, and of the keys of the dicts around them


def official_files():
    """{file name: (size in bytes, sha256)} from the table in weights/README.md; {} without that file."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "weights", "README.md")
    try:
        with open(path, encoding="utf-8") as f:
            rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in f if line.startswith("| ")]
    except (OSError, UnicodeDecodeError):
        return {}
    rows = [row for row in rows if len(row) == 5 and re.fullmatch("[0-9,]+", row[2])
            and re.fullmatch("[0-9a-f]{64}", row[3])]
    return {row[1].split("`")[0].rsplit("/", 1)[-1]: (int(row[2].replace(",", "")), row[3]) for row in rows}


OFFICIAL_FILES = official_files()


# ---- recognising the model ---------------------------------------------------------------------------------

class Model:
    """The model of a state dict. `config` is for __metadata__. `shapes` = {official name: shape} of the required
    tensors, `optional` of the others. `own` = the beginning of the names of the model's tensors. `unused` = a
    pattern of tensors that its forward pass does not need."""

    def __init__(self, summary, config, shapes, optional, own):
        self.summary, self.config, self.own = summary, config, own
        self.shapes, self.optional, self.unused = shapes, optional, "$"
        self.notes = []


class StateDict:
    """The tensors below one prefix of one dict, without the prefix, and the sentences that refuse them.
    `title` names the model that they look like so far. `n_heads` of a ViT is the user's (or our own
    metadata's), or None."""

    def __init__(self, path, where, tensors, n_heads=None):
        self.path, self.where, self.tensors, self.n_heads = path, where, tensors, n_heads
        self.title = "a model"
        self.naming = ""  # " in Hugging Face's naming"
        self.settings = {}  # metadata from the files beside the checkpoint

    def refuse(self, why):
        raise Refusal("%s: %s" % (self.path, why))

    def refuse_tensor(self, name, why):
        self.refuse("looks like %s%s, but tensor %s %s" % (self.title, self.naming, shown(name), why))

    def shape(self, name, n_dims):
        tensor = self.tensors.get(name)
        if tensor is None:
            self.refuse_tensor(name, "is missing")
        if len(tensor.shape) != n_dims or 0 in tensor.shape:
            shape = shape_text(tensor.shape)
            self.refuse_tensor(name, "has shape %s, expected %d dimensions" % (shape, n_dims))
        return tensor.shape

    def count(self, before, after):
        """How many i there are in BEFORE.i.AFTER; all of 0..n-1 must be there."""
        pattern = re.compile(re.escape(before) + r"\.(\d{1,4})\.")
        found = {int(match.group(1)) for match in map(pattern.match, self.tensors) if match}
        if len(found) > MAX_BLOCKS:
            self.refuse("has %d blocks named %s.*, more than any %s" % (len(found), before, self.title))
        for i in range(len(found) or 1):
            if i not in found:
                self.refuse_tensor("%s.%d.%s" % (before, i, after), "is missing")
        return len(found)


def number_text(x):
    return repr(x)[:-2] if repr(x).endswith(".0") else repr(x)


def ratio_text(dim, hidden):
    """hidden / dim such that int(dim * ratio) is hidden again, as the official constructors compute it."""
    ratio = hidden / dim
    return number_text(ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim)


def add_linear(shapes, name, n_out, n_in):
    shapes[name + ".weight"], shapes[name + ".bias"] = (n_out, n_in), (n_out,)


def add_norm(shapes, name, n):
    shapes[name + ".weight"], shapes[name + ".bias"] = (n,), (n,)


# -- ViT: dinov2/models/vision_transformer.py and timm/models/vision_transformer.py, which share their names

DINOV2_BLOCKS = {384: 12, 768: 12, 1024: 24, 1536: 40}
TIMM_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # where a head has not 64 channels; vit.c knows them too


def vit_heads(sd, dim, is_dinov2):
    """The file does not say it: 64 channels a head in all of DINOv2 and most of timm."""
    n_heads = sd.n_heads or int(sd.settings.get("vit.n_heads", 0)) or (0 if is_dinov2 else TIMM_HEADS.get(dim, 0))
    if not n_heads and dim % 64:
        sd.refuse("is a ViT of dim %d, no multiple of 64, so its number of heads must be given by --heads"
                  % dim)
    if n_heads and dim % n_heads:
        sd.refuse("is a ViT of dim %d, which %d heads do not divide" % (dim, n_heads))
    return n_heads or dim // 64


def vit_ffn(sd, dim):
    """("mlp" or "swiglu", hidden width, mlp_ratio as the constructor was given it)"""
    if "blocks.0.mlp.w12.weight" not in sd.tensors:
        hidden = sd.shape("blocks.0.mlp.fc1.weight", 2)[0]
        return "mlp", hidden, ratio_text(dim, hidden)
    hidden = sd.shape("blocks.0.mlp.w3.weight", 2)[1]
    # SwiGLUFFNFused takes two thirds of dim * ratio, rounded up to a multiple of 8
    for ratio in (4.0, hidden * 1.5 / dim, (hidden * 1.5 + 0.5) / dim):
        if (int(int(dim * ratio) * 2 / 3) + 7) // 8 * 8 == hidden:
            return "swiglu", hidden, number_text(ratio)
    return "swiglu", hidden, number_text(hidden * 1.5 / dim)  # timm's; vit.hidden_dim has the width


def vit_grid(sd):
    n = sd.shape("pos_embed", 3)[1]
    for n_cls in (1, 0):  # timm's no_embed_class models give the class token no position
        grid = math.isqrt(max(n - n_cls, 0))
        if grid > 0 and grid * grid == n - n_cls:
            return n, grid
    return sd.refuse("is %s with %d positions, expected a class token and a square grid" % (sd.title, n))


def has_square_positions(sd):
    """timm's class token may have no position."""
    n = sd.shape("pos_embed", 3)[1] if "pos_embed" in sd.tensors else 0
    return n > 0 and math.isqrt(n) ** 2 == n


def recognise_vit(sd):
    layer_scale = "blocks.0.ls1.gamma" in sd.tensors
    # DeiT-3 has LayerScale too, but neither registers nor a position for the class token
    is_dinov2 = layer_scale and ("register_tokens" in sd.tensors or not has_square_positions(sd))
    sd.title = "a DINOv2 ViT" if is_dinov2 else "a ViT with LayerScale" if layer_scale else "a plain ViT"
    dim, n_rgb, patch, patch_w = sd.shape("patch_embed.proj.weight", 4)
    if n_rgb != 3 or patch != patch_w:
        sd.refuse("is %s on patches of %d x %d x %d, expected 3 channels and square ones"
                  % (sd.title, n_rgb, patch, patch_w))
    n_positions, grid = vit_grid(sd)
    depth = sd.count("blocks", "norm1.weight")
    n_registers = sd.shape("register_tokens", 3)[1] if "register_tokens" in sd.tensors else 0
    ffn, hidden, ratio = vit_ffn(sd, dim)

    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, n_positions, dim)}
    if n_registers:
        shapes["register_tokens"] = (1, n_registers, dim)
    shapes["patch_embed.proj.weight"], shapes["patch_embed.proj.bias"] = (dim, 3, patch, patch), (dim,)
    for block in ("blocks.%d." % i for i in range(depth)):
        add_norm(shapes, block + "norm1", dim)
        add_linear(shapes, block + "attn.qkv", 3 * dim, dim)
        if "blocks.0.attn.qkv.bias" not in sd.tensors:
            del shapes[block + "attn.qkv.bias"]
        add_linear(shapes, block + "attn.proj", dim, dim)
        if layer_scale:
            shapes[block + "ls1.gamma"] = (dim,)
        add_norm(shapes, block + "norm2", dim)
        if ffn == "swiglu":
            add_linear(shapes, block + "mlp.w12", 2 * hidden, dim)
            add_linear(shapes, block + "mlp.w3", dim, hidden)
        else:
            add_linear(shapes, block + "mlp.fc1", hidden, dim)
            add_linear(shapes, block + "mlp.fc2", dim, hidden)
        if layer_scale:
            shapes[block + "ls2.gamma"] = (dim,)
    add_norm(shapes, "norm", dim)

    # dinov2/hub/backbones.py: without registers the offset 0.1; with them the plain size form, antialiased
    offset, antialias = ("0.1", "0") if is_dinov2 and not n_registers else ("0.0", "1")
    config = {
        "samlad.model": "vit", "vit.family": "dinov2" if is_dinov2 else "timm",
        "vit.image_size": str(grid * patch), "vit.patch_size": str(patch), "vit.dim": str(dim),
        "vit.depth": str(depth),
        "vit.n_heads": str(vit_heads(sd, dim, is_dinov2)), "vit.mlp_ratio": ratio, "vit.ffn": ffn,
        "vit.n_registers": str(n_registers),
        "vit.layer_scale": str(int(layer_scale)), "vit.eps": "1e-6",
        "vit.interpolate_offset": offset, "vit.interpolate_antialias": antialias,
        "vit.mean": "0.485,0.456,0.406" if layer_scale else "0.5,0.5,0.5",
        "vit.std": "0.229,0.224,0.225" if layer_scale else "0.5,0.5,0.5",
    }
    if ffn == "swiglu" and hidden % 8:
        config["vit.hidden_dim"] = str(hidden)
    config.update(sd.settings)
    model = Model("%s: image %d, patch %d, dim %d, %d blocks, %d registers, %s"
                  % (sd.title[2:], grid * patch, patch, dim, depth, n_registers, ffn), config, shapes,
                  {"mask_token": (1, dim)} if is_dinov2 else {},
                  ("blocks.", "patch_embed.", "pos_embed", "cls_token", "reg_token", "register_tokens",
                   "dist_token",
                   "norm_pre.", "norm."))
    if is_dinov2 and DINOV2_BLOCKS.get(dim, depth) != depth:
        model.notes.append("the official DINOv2 of dim %d has %d blocks, this one %d"
                           % (dim, DINOV2_BLOCKS[dim], depth))
    if not layer_scale and "vit.mean" not in sd.settings:
        model.notes.append("a ViT's file does not say how its images were normalised: mean = std = 0.5 "
                           "(timm's augreg models) unless --mean and --std say otherwise")
    return model


# -- SAM: segment_anything/build_sam.py and modeling/

def sam_neck(shapes, dim, out_chans):
    """The tensors behind the blocks of either image encoder."""
    neck = "image_encoder.neck."
    shapes[neck + "0.weight"] = (out_chans, dim, 1, 1)
    add_norm(shapes, neck + "1", out_chans)
    shapes[neck + "2.weight"] = (out_chans, out_chans, 3, 3)
    add_norm(shapes, neck + "3", out_chans)


def sam_encoder(sd, shapes):
    """Adds the image encoder's shapes; returns its part of the configuration."""
    e = "image_encoder."
    dim, n_rgb, patch, patch_w = sd.shape(e + "patch_embed.proj.weight", 4)
    _, grid, grid_w, _ = sd.shape(e + "pos_embed", 4)
    if n_rgb != 3 or patch != patch_w or grid != grid_w:
        sd.refuse("is SAM on a grid of %d x %d patches of %d x %d x %d, expected squares of 3 channels"
                  % (grid, grid_w, n_rgb, patch, patch_w))
    depth = sd.count(e + "blocks", "attn.rel_pos_h")
    out_chans = sd.shape(e + "neck.0.weight", 4)[0]
    hidden = sd.shape(e + "blocks.0.mlp.lin1.weight", 2)[0]
    head_dim = sd.shape(e + "blocks.0.attn.rel_pos_h", 2)[1]
    if dim % head_dim:
        sd.refuse("is SAM of dim %d with %d channels a head, which does not divide it" % (dim, head_dim))

    shapes[e + "pos_embed"] = (1, grid, grid, dim)
    shapes[e + "patch_embed.proj.weight"] = (dim, 3, patch, patch)
    shapes[e + "patch_embed.proj.bias"] = (dim,)
    global_blocks, window = [], 0
    for i in range(depth):
        block = e + "blocks.%d." % i
        # A table of relative positions has 2n-1 rows; n is the side of the grid or window that a block attends to.
        rows = sd.shape(block + "attn.rel_pos_h", 2)[0]
        if rows == 2 * grid - 1:
            global_blocks.append(i)
        else:
            window = window or (rows + 1) // 2
            rows = 2 * window - 1
        add_norm(shapes, block + "norm1", dim)
        shapes[block + "attn.rel_pos_h"] = shapes[block + "attn.rel_pos_w"] = (rows, head_dim)
        add_linear(shapes, block + "attn.qkv", 3 * dim, dim)
        add_linear(shapes, block + "attn.proj", dim, dim)
        add_norm(shapes, block + "norm2", dim)
        add_linear(shapes, block + "mlp.lin1", hidden, dim)
        add_linear(shapes, block + "mlp.lin2", dim, hidden)
    sam_neck(shapes, dim, out_chans)
    return {"sam.image_size": str(grid * patch), "sam.patch_size": str(patch), "sam.embed_dim": str(dim),
            "sam.depth": str(depth), "sam.n_heads": str(dim // head_dim),
            "sam.mlp_ratio": ratio_text(dim, hidden),
            "sam.window_size": str(window), "sam.global_attn_indexes": ",".join(map(str, global_blocks)),
            "sam.out_chans": str(out_chans)}


def tiny_vit(sd, shapes):
    """The same of MobileSAM's image encoder: mobile_sam/modeling/tiny_vit_sam.py, build_sam_vit_t"""
    e = "image_encoder."
    stem = sd.shape(e + "patch_embed.seq.0.c.weight", 4)[0]
    dims = [sd.shape(e + "patch_embed.seq.2.c.weight", 4)[0]]
    dims += [sd.shape(e + "layers.%d.downsample.conv1.c.weight" % i, 4)[0] for i in range(3)]
    if sd.count(e + "layers", "blocks.0.*") != 4:
        sd.refuse("is %s of more than 4 stages" % sd.title)
    # These widths decide the stride of PatchMerging, and only the last one must keep the grid.
    if [dim in (320, 448, 576) for dim in dims] != [False, False, False, True]:
        sd.refuse("is %s with stages of %s channels, expected 320, 448 or 576 in the last and only there"
                  % (sd.title, ", ".join(map(str, dims))))

    def conv_bn(name, n_out, n_in, kernel=1):
        shapes[name + ".c.weight"] = (n_out, n_in, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[name + ".bn." + part] = (n_out,)

    def bottleneck(name, n_in, hidden, n_out):
        conv_bn(name + ".conv1", hidden, n_in)
        conv_bn(name + ".conv2", hidden, 1, 3)
        conv_bn(name + ".conv3", n_out, hidden)

    conv_bn(e + "patch_embed.seq.0", stem, 3, 3)
    conv_bn(e + "patch_embed.seq.2", dims[0], stem, 3)
    depths = []
    for stage, dim in enumerate(dims):
        blocks = e + "layers.%d.blocks" % stage
        depths.append(sd.count(blocks, "conv1.c.weight" if stage == 0 else "attn.qkv.weight"))
        for block in ("%s.%d" % (blocks, i) for i in range(depths[-1])):
            if stage == 0:
                bottleneck(block, dim, sd.shape(block + ".conv1.c.weight", 4)[0], dim)
                continue
            n_heads, area = sd.shape(blocks + ".0.attn.attention_biases", 2)
            if dim % n_heads or math.isqrt(area) ** 2 != area:
                sd.refuse("is %s with %d heads for %d channels and %d biases a head, expected heads that divide the "
                          "channels and the square of a window" % (sd.title, n_heads, dim, area))
            hidden = sd.shape(block + ".mlp.fc1.weight", 2)[0]
            shapes[block + ".attn.attention_biases"] = (n_heads, area)
            add_norm(shapes, block + ".attn.norm", dim)
            add_linear(shapes, block + ".attn.qkv", 3 * dim, dim)
            add_linear(shapes, block + ".attn.proj", dim, dim)
            conv_bn(block + ".local_conv", dim, 1, 3)
            add_norm(shapes, block + ".mlp.norm", dim)
            add_linear(shapes, block + ".mlp.fc1", hidden, dim)
            add_linear(shapes, block + ".mlp.fc2", dim, hidden)
        if stage < 3:
            bottleneck(e + "layers.%d.downsample" % stage, dim, dims[stage + 1], dims[stage + 1])
    out_chans = sd.shape(e + "neck.0.weight", 4)[0]
    sam_neck(shapes, dims[3], out_chans)
    return dims, depths, {"sam.encoder": "tiny_vit", "sam.image_size": "1024", "sam.embed_dim": str(dims[3]),
                          "sam.out_chans": str(out_chans)}


def sam_prompt_encoder(sd, shapes, c):
    p = "prompt_encoder."
    inner = sd.shape(p + "mask_downscaling.3.weight", 4)[0]
    shapes[p + "pe_layer.positional_encoding_gaussian_matrix"] = (2, c // 2)
    for i in range(4):  # negative point, positive point, a box's two corners
        shapes[p + "point_embeddings.%d.weight" % i] = (1, c)
    shapes[p + "not_a_point_embed.weight"] = (1, c)
    for i, n_out, n_in, kernel in ((0, inner // 4, 1, 2), (3, inner, inner // 4, 2), (6, c, inner, 1)):
        layer = p + "mask_downscaling.%d" % i
        shapes[layer + ".weight"], shapes[layer + ".bias"] = (n_out, n_in, kernel, kernel), (n_out,)
    add_norm(shapes, p + "mask_downscaling.1", inner // 4)
    add_norm(shapes, p + "mask_downscaling.4", inner)
    shapes[p + "no_mask_embed.weight"] = (1, c)
    return {"sam.mask_in_chans": str(inner)}


def sam_decoder(sd, shapes, c):
    d, t = "mask_decoder.", "mask_decoder.transformer."
    depth = sd.count(t + "layers", "self_attn.q_proj.weight")
    mlp_dim = sd.shape(t + "layers.0.mlp.lin1.weight", 2)[0]
    inner = sd.shape(t + "final_attn_token_to_image.q_proj.weight", 2)[0]
    n_masks = sd.shape(d + "mask_tokens.weight", 2)[0]
    n_heads = int(sd.settings.get("sam.decoder_heads", 8))
    iou_depth = sd.count(d + "iou_prediction_head.layers", "weight")
    iou_hidden = sd.shape(d + "iou_prediction_head.layers.0.weight", 2)[0]
    if c % inner or inner % n_heads or c % 8 or n_masks < 2 or n_masks > MAX_BLOCKS:
        sd.refuse("is SAM with a decoder of %d channels, %d inside its attention, for %d masks, which does "
                  "not fit its %d heads" % (c, inner, n_masks - 1, n_heads))

    def attention(name, width):
        for part in ("q_proj", "k_proj", "v_proj"):
            add_linear(shapes, name + "." + part, width, c)
        add_linear(shapes, name + ".out_proj", c, width)

    def mlp(name, sizes):
        for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:])):
            add_linear(shapes, name + ".layers.%d" % i, n_out, n_in)

    for layer in (t + "layers.%d." % i for i in range(depth)):
        attention(layer + "self_attn", c)
        add_norm(shapes, layer + "norm1", c)
        attention(layer + "cross_attn_token_to_image", inner)
        add_norm(shapes, layer + "norm2", c)
        add_linear(shapes, layer + "mlp.lin1", mlp_dim, c)
        add_linear(shapes, layer + "mlp.lin2", c, mlp_dim)
        add_norm(shapes, layer + "norm3", c)
        add_norm(shapes, layer + "norm4", c)
        attention(layer + "cross_attn_image_to_token", inner)
    attention(t + "final_attn_token_to_image", inner)
    add_norm(shapes, t + "norm_final_attn", c)
    shapes[d + "iou_token.weight"], shapes[d + "mask_tokens.weight"] = (1, c), (n_masks, c)
    for i, n_in, n_out in ((0, c, c // 4), (3, c // 4, c // 8)):  # transposed convolutions: [in][out][2][2]
        layer = d + "output_upscaling.%d" % i
        shapes[layer + ".weight"], shapes[layer + ".bias"] = (n_in, n_out, 2, 2), (n_out,)
    add_norm(shapes, d + "output_upscaling.1", c // 4)
    for i in range(n_masks):
        mlp(d + "output_hypernetworks_mlps.%d" % i, [c, c, c, c // 8])
    mlp(d + "iou_prediction_head", [c] + [iou_hidden] * (iou_depth - 1) + [n_masks])
    return {"sam.decoder_depth": str(depth), "sam.decoder_mlp_dim": str(mlp_dim), "sam.decoder_heads": "8",
            "sam.attention_downsample_rate": str(c // inner), "sam.num_multimask_outputs": str(n_masks - 1),
            "sam.iou_head_depth": str(iou_depth), "sam.iou_head_hidden_dim": str(iou_hidden)}


def sam_rest(sd, shapes, config):
    """The tensors of every SAM behind its image encoder."""
    c = int(config["sam.out_chans"])
    config.update(sam_prompt_encoder(sd, shapes, c))
    config.update(sam_decoder(sd, shapes, c))
    config["sam.pixel_mean"], config["sam.pixel_std"] = "123.675,116.28,103.53", "58.395,57.12,57.375"
    config.update(sd.settings)
    return config


SAM_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def recognise_sam(sd):
    sd.title, shapes, config = "SAM", {}, {"samlad.model": "sam"}
    config.update(sam_encoder(sd, shapes))
    summary = ("image_size", "patch_size", "embed_dim", "depth", "n_heads", "window_size",
               "global_attn_indexes")
    return Model("SAM: image %s, patch %s, dim %s, %s blocks of %s heads, windows of %s, global blocks %s"
                 % tuple(config["sam." + key] or "none" for key in summary),
                 sam_rest(sd, shapes, config), shapes, {}, SAM_PARTS)


def recognise_mobile_sam(sd):
    sd.title, shapes, config = "MobileSAM", {}, {"samlad.model": "sam"}
    dims, depths, encoder = tiny_vit(sd, shapes)
    config.update(encoder)
    model = Model("MobileSAM: image 1024, TinyViT of dims %s with %s blocks"
                  % tuple("-".join(map(str, numbers)) for numbers in (dims, depths)),
                  sam_rest(sd, shapes, config), shapes, {}, SAM_PARTS)
    model.unused = r"image_encoder\.(norm_head|head)\.|.*\.bn\.num_batches_tracked$"
    return model


# -- FeatUp: featup/upsamplers.py, JBUStack

def recognise_featup(sd):
    sd.title, shapes, scalars = "FeatUp's JBU stack", {}, []
    n_stages = 0
    while n_stages < 4 and "up%d.range_temp" % (n_stages + 1) in sd.tensors:
        n_stages += 1
    area = sd.shape("up1.fixup_proj.0.weight", 4)[0]  # the (2·radius+1)² neighbours of a pixel
    radius = (math.isqrt(area) - 1) // 2
    if (2 * radius + 1) ** 2 != area:
        sd.refuse("is %s with %d neighbours, expected the square of an odd number" % (sd.title, area))
    key_dim = sd.shape("up1.range_proj.0.weight", 4)[0]
    for stage in ("up%d." % (i + 1) for i in range(n_stages)):
        scalars += [stage + "range_temp", stage + "sigma_spatial"]
        shapes[stage + "range_temp"] = shapes[stage + "sigma_spatial"] = (1,)
        for name, n_out, n_in in (("range_proj.0", key_dim, 3), ("range_proj.3", key_dim, key_dim),
                                  ("fixup_proj.0", area, area + 3), ("fixup_proj.3", area, area)):
            shapes[stage + name + ".weight"], shapes[stage + name + ".bias"] = (n_out, n_in, 1, 1), (n_out,)
    channels = 0
    if "fixup_proj.1.weight" in sd.tensors:
        channels = sd.shape("fixup_proj.1.weight", 4)[0]
        shapes["fixup_proj.1.weight"], shapes["fixup_proj.1.bias"] = (channels, channels, 1, 1), (channels,)
    for name in scalars:  # PyTorch's scalars have shape []; written as [1]
        tensor = sd.tensors.get(name)
        if tensor is not None and tensor.shape == ():
            sd.tensors[name] = Tensor(tensor.storage, tensor.offset, (1,), (1,))
    config = {"samlad.model": "featup", "featup.stages": str(n_stages), "featup.radius": str(radius),
              "featup.channels": str(channels)}
    return Model("%s: %d stages, radius %d, %d channels" % (sd.title, n_stages, radius, channels), config,
                 shapes, {},
                 ("up1.", "up2.", "up3.", "up4.", "fixup_proj."))


# The end of one name identifies a family; the text before it is the prefix ("teacher.backbone.").
# (its name for --model, that end, the builder of its Model, the beginning of the names in our file, the table of
# load/foreign_names.h, its library)
FAMILIES = (
    ("featup", "up1.range_temp", recognise_featup, "upsampler.", None, ""),
    ("sam", "vision_encoder.patch_embed.projection.weight", recognise_sam, "", "HF_SAM", " in Hugging Face's naming"),
    ("sam", "image_encoder.patch_embed.proj.weight", recognise_sam, "", None, ""),
    ("sam", "image_encoder.patch_embed.seq.0.c.weight", recognise_mobile_sam, "", None, ""),
    ("vit", "embeddings.patch_embeddings.projection.weight", recognise_vit, "", "HF_VIT", " in Hugging Face's naming"),
    ("vit", "patch_embed.proj.weight", recognise_vit, "", "TIMM_VIT", ""),
)


def find_state_dict(checkpoint, wanted, n_heads):
    """(family, StateDict) of the model in the checkpoint. Of a teacher (or moving average) and its student
    the teacher is taken, as DINOv2 publishes it; otherwise the shortest prefix."""
    best = None
    for path, tensors in dicts_with_tensors(checkpoint.root):
        for rank, (kind, anchor, _, _, _, _) in enumerate(FAMILIES):
            for name in tensors:
                prefix = name[:-len(anchor)]
                if not name.endswith(anchor) or (prefix and not prefix.endswith(".")):
                    continue
                if len(prefix) > MAX_PREFIX or any(len(part) > MAX_PREFIX for part in path):
                    continue  # no model's name; 100,000 of them would take minutes
                if wanted not in (None,
                                  kind) or "image_encoder." in prefix:  # some SAM's, not a ViT of its own
                    continue
                words = re.split("[^a-z]+", "/".join(path + (prefix,)).lower())
                role = 0 if "teacher" in words or "ema" in words else 2 if "student" in words else 1
                if best is None or (rank, role, len(prefix)) < best[:3]:
                    best = rank, role, len(prefix), path, prefix, tensors
    if best is None:
        return None, None
    rank, _, _, path, prefix, tensors = best
    family = FAMILIES[rank]
    if family[0] != "featup":  # its file may hold any backbone beside it
        refuse_strangers(checkpoint.path, tensors)
    below = unchunked({name[len(prefix):]: t for name, t in tensors.items() if name.startswith(prefix)})
    if family[4] == "HF_VIT" and not any(name.startswith(("encoder.layer.", "layers.")) for name in below):
        # transformers 5 saves ViTMSNForImageClassification with vit.embeddings, but encoder.layer
        below.update((name, t) for name, t in tensors.items() if name.startswith("encoder.layer."))
    where = "/".join(map(shown, path + ((prefix + "*",) if prefix else ()))) or "the top level"
    sd = StateDict(checkpoint.path, where, below, n_heads)
    earlier = checkpoint.metadata
    if earlier.get("samlad.model") == "sam" and re.fullmatch("[1-9][0-9]?", earlier.get("sam.decoder_heads", "")):
        sd.settings = {key: value for key, value in earlier.items() if key.startswith("sam.")}
    if family[4]:
        sd.naming = family[5]
        sd.tensors = official_tensors(checkpoint, below, family[4], "a model" + family[5], bool(family[5]))
    if family[0] == "sam" and not any(name.startswith("mask_decoder.") for name in sd.tensors):
        sd.refuse("the image encoder of a SAM alone: give a whole SAM with --base")
    if family[4]:
        if "samlad.model" not in earlier:
            sd.settings = settings_beside(checkpoint, family[4], sd.tensors)
    return family, sd


def unchunked(tensors):
    """DINOv2's training code numbers blocks twice, blocks.CHUNK.BLOCK.norm1: the second number counts."""
    renamed = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): t for name, t in tensors.items()}
    return renamed if len(renamed) == len(tensors) else tensors


def pieces_of(tensor):
    return tensor.pieces if type(tensor) is Joined else (tensor,)


def recognise(checkpoint, wanted=None, n_heads=None):
    """(Model, StateDict) with every tensor of the model there, in its shape; Refusal otherwise."""
    family, sd = find_state_dict(checkpoint, wanted, n_heads)
    if family is None:
        refuse_unknown(checkpoint)
    model = family[2](sd)
    kept = dict(model.shapes)
    kept.update({name: shape for name, shape in model.optional.items() if name in sd.tensors})
    total = 0
    for name, shape in kept.items():
        tensor = sd.tensors.get(name)
        if tensor is None:
            sd.refuse_tensor(name, shape_text(shape) + " is missing")
        if tensor.shape != shape:
            found = shape_text(tensor.shape)
            sd.refuse_tensor(name, "has shape %s, expected %s" % (found, shape_text(shape)))
        for piece in pieces_of(tensor):
            if piece.n_elements > piece.storage.n_elements:  # otherwise a small file could fill the disk
                sd.refuse_tensor(name, "repeats the %d elements of its storage (torch's expand), which no model needs"
                                 % piece.storage.n_elements)
            checkpoint.range_of(name, piece)
        if tensor.dtype not in FLOAT_TYPES:
            sd.refuse_tensor(name, "has dtype %s, expected a floating-point one" % tensor.dtype)
        total += tensor.n_elements * ITEM_SIZE[tensor.dtype]
    if total > 4 * checkpoint.size:
        sd.refuse("its tensors share storages so often that %d bytes become %d, which no model does"
                  % (checkpoint.size, total))
    dropped = sorted(name for name in sd.tensors if name not in kept)
    for name in dropped:
        if name.startswith(model.own) and not re.match(model.unused, name):
            sd.refuse_tensor(name, "has no place in it: a variant that is not supported")
    if dropped:
        model.notes.append("left out as not the model's: " + ", ".join(map(shown, dropped[:6]))
                           + (" and %d more" % (len(dropped) - 6) if len(dropped) > 6 else ""))
    sd.tensors = {family[3] + name: sd.tensors[name] for name in kept}
    return model, sd


# ---- a fine-tune of a part of SAM, and its base ---------------------------------------------------------------

HF_SAM_PARTS = ("vision_encoder.", "prompt_encoder.", "mask_decoder.")


def places(tensors, base, names, last):
    """{(prefix, is foreign): {official name: name}} of the tensors that the base has too. A part that was saved alone may lack
    "mask_decoder."."""
    found = {}
    for name in tensors:
        begins = [0] + [i + 1 for i, c in enumerate(name[:MAX_PREFIX]) if c == "."] if len(name) <= MAX_PREFIX else []
        for begin in begins:
            for part in ("",) + SAM_PARTS:
                if part + name[begin:] in base:
                    found.setdefault((name[:begin], False), {}).setdefault(part + name[begin:], name)
            for part in ("",) + HF_SAM_PARTS:
                row = names.find(part + name[begin:])
                if row and row[0] and names.fill(*row[:3], last) in base:
                    found.setdefault((name[:begin], True), {}).setdefault(names.fill(*row[:3], last), name)
    return found


def find_part(checkpoint, base, names, last):
    """(tensors, prefix, {official name: name}, is foreign) of the dict, prefix and naming with the most tensors of the base."""
    best = ({}, "", {}, False)
    for _, tensors in dicts_with_tensors(checkpoint.root):
        for (prefix, foreign), found in sorted(places(tensors, base, names, last).items()):
            if len(found) > len(best[2]):
                best = tensors, prefix, found, foreign
    return best


def check_whole(checkpoint, tensors, prefix, part, base):
    """Refuse half a part, and one with more tensors than the base's: the result would be a mixture."""
    parts = {name.split(".")[0] + "." for name in part}
    for name in base:
        if name.split(".")[0] + "." in parts and name not in part:
            raise Refusal("%s: %s is missing: a part of SAM must be whole" % (checkpoint.path, shown(name)))
    placed = set(part.values())
    for name in tensors:
        own = name[len(prefix):] if name.startswith(prefix) else ""
        if name not in placed and own.startswith(SAM_PARTS + HF_SAM_PARTS):
            raise Refusal("%s: tensor %s has no place in the SAM of --base" % (checkpoint.path, shown(name)))


def merge(checkpoint, base, n_heads=None):
    """(Several, Model, StateDict) of the base with the tensors that the checkpoint has in their place."""
    model, sd = recognise(base, "sam", n_heads)
    if model.config["samlad.model"] != "sam":
        raise Refusal("%s: is no SAM; --base is for fine-tunes of SAM" % base.path)
    for _, tensors in dicts_with_tensors(checkpoint.root):
        refuse_strangers(checkpoint.path, tensors)
    names = family_names("HF_SAM", {})
    tensors, prefix, found, foreign = find_part(checkpoint, sd.tensors, names, int(model.config["sam.iou_head_depth"]) - 1)
    if not found:
        raise Refusal("%s: has no tensor in common with %s" % (checkpoint.path, base.path))
    part = {official: tensors[name] for official, name in found.items()}
    for name, tensor in part.items():
        if tensor.shape != sd.tensors[name].shape:
            raise Refusal("%s: tensor %s has shape %s, in %s it has %s"
                          % (checkpoint.path, shown(found[name]), shape_text(tensor.shape), base.path,
                             shape_text(sd.tensors[name].shape)))
    check_whole(checkpoint, tensors, prefix, found, sd.tensors)
    several = Several(checkpoint.path, "a part of SAM on its base")
    several.metadata = model.config
    several.add(base, {name: t for name, t in sd.tensors.items() if name not in part})
    several.add(checkpoint, part)
    merged, merged_sd = recognise(several, "sam", n_heads)
    merged.config.update(model.config)
    if foreign and any(name.startswith("mask_decoder.") for name in part):
        merged.config["sam.decoder_eps"] = "1e-06"  # transformers' eps, in which it was tuned
    parts = sorted({name.split(".")[0] for name in part})
    merged.notes = ["%d tensors (%s%s) are %s's, the other %d are %s's"
                    % (len(part), ", ".join(parts), ", in Hugging Face's naming" if foreign else "",
                       os.path.basename(checkpoint.path), len(sd.tensors) - len(part), os.path.basename(base.path))]
    n_left = sum(len(tensors) for _, tensors in dicts_with_tensors(checkpoint.root)) - len(part)
    if n_left:
        merged.notes.append("%d tensors of %s have no place in SAM and are left out"
                            % (n_left, os.path.basename(checkpoint.path)))
    return several, merged, merged_sd


def refuse_unknown(checkpoint):
    found = dicts_with_tensors(checkpoint.root)
    if not found:
        what = type(checkpoint.root).__name__ if type(checkpoint.root) is not Inert else checkpoint.root.name
        raise Refusal("%s: holds no dict of tensors (its object is %s); save model.state_dict()"
                      % (checkpoint.path, shown(what)))
    for _, tensors in found:
        refuse_strangers(checkpoint.path, tensors)
        if any(name.endswith(("iou_token.weight", "not_a_point_embed.weight", ".attn.rel_pos_h")) for name in tensors):
            raise Refusal("%s: a part of a SAM alone: give a whole SAM with --base" % checkpoint.path)
    raise Refusal("%s: holds %d tensors (%s, ...), but no model that samlad knows: DINOv2, plain ViT, SAM, "
                  "MobileSAM, FeatUp's JBU stack" % (checkpoint.path, len(found[0][1]), shown(next(iter(found[0][1])))))


# ---- numbers -----------------------------------------------------------------------------------------------

def to_f32(raw, dtype):
    """Little-endian elements of a floating-point dtype -> little-endian f32. Exact, but for F64."""
    if dtype == "BF16":  # the upper half of an f32
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
        return bytes(wide)
    if dtype == "F32":
        return raw
    n = len(raw) // ITEM_SIZE[dtype]
    values = struct.unpack("<%d%s" % (n, "e" if dtype == "F16" else "d"), raw)
    try:
        return struct.pack("<%df" % n, *values)
    except OverflowError:  # beyond f32: infinite, as in torch
        limit = 3.4028235677973366e38  # halfway between the largest f32 and 2^128
        return struct.pack("<%df" % n,
                           *(math.copysign(math.inf, v) if abs(v) >= limit else v for v in values))


def from_f32(raw, dtype):
    """f32 -> F32, F16 or BF16, to nearest even. OverflowError: an F16 cannot hold it."""
    if dtype == "F32":
        return raw
    n = len(raw) // 4
    if dtype == "F16":
        return struct.pack("<%de" % n, *struct.unpack("<%df" % n, raw))
    # BF16 is an f32 without its lower 16 bits, rounded by adding 0x7fff plus the last bit that stays. To all
    # elements at once: they are the 32-bit digits of one large integer; only a NaN could carry into the next.
    if not_finite(raw):
        raw = b"".join(b"\0\0\xc0\x7f" if v != v else struct.pack("<f", v)
                       for v in struct.unpack("<%df" % n, raw))
    digits = int.from_bytes(raw, "little")
    last_bits = (digits >> 16) & int.from_bytes(b"\1\0\0\0" * n, "little")
    digits += last_bits + int.from_bytes(b"\xff\x7f\0\0" * n, "little")
    rounded = digits.to_bytes(4 * n + 1, "little")
    narrow = bytearray(2 * n)
    narrow[0::2], narrow[1::2] = rounded[2:4 * n:4], rounded[3:4 * n:4]
    return bytes(narrow)


def not_finite(raw):
    """How many f32 are NaN or infinite. Their highest byte is 7f or ff: most chunks need no closer look."""
    high = raw[3::4]
    if b"\x7f" not in high and b"\xff" not in high:
        return 0
    return sum(not math.isfinite(v) for v in struct.unpack("<%df" % (len(raw) // 4), raw))


# ---- writing -----------------------------------------------------------------------------------------------

def write_safetensors(out, checkpoint, tensors, metadata, wanted_dtype):
    """Stream `tensors` into a file that gets its name only when it is complete. Returns (bytes, warnings)."""
    dtypes = {name: wanted_dtype or ("F32" if t.dtype == "F64" else t.dtype) for name, t in tensors.items()}
    # F32 first, so that every tensor is aligned to its type
    names = sorted(tensors, key=lambda name: -ITEM_SIZE[dtypes[name]])
    header, end = {"__metadata__": metadata}, 0
    for name in names:
        begin, end = end, end + tensors[name].n_elements * ITEM_SIZE[dtypes[name]]
        header[name] = {"dtype": dtypes[name], "shape": list(tensors[name].shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)

    warnings = []
    temporary = "%s.tmp.%d" % (out, os.getpid())
    try:
        with open(temporary, "xb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                n_bad = write_tensor(f, checkpoint, name, tensors[name], dtypes[name])
                if n_bad:
                    warnings.append("tensor %s has %d values that are NaN or infinite" % (name, n_bad))
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, out)
    except OSError as e:
        raise Refusal("%s: cannot be written: %s" % (out, e.strerror or e))
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return 8 + len(text) + end, warnings


def write_tensor(f, checkpoint, name, tensor, dtype):
    """Convert and append one tensor; returns how many of its values are not finite."""
    n_bad = n_bytes = 0
    for raw in (raw for piece in pieces_of(tensor) for raw in checkpoint.chunks(name, piece)):
        wide = to_f32(raw, tensor.dtype)
        n_bad += not_finite(wide)
        try:
            n_bytes += f.write(raw if dtype == tensor.dtype else from_f32(wide, dtype))
        except OverflowError:
            raise Refusal("%s: tensor %s has values beyond 65504, the largest of f16; use --dtype bf16"
                          % (checkpoint.path, name))
    if n_bytes != tensor.n_elements * ITEM_SIZE[dtype]:
        raise Refusal("%s: tensor %s of shape %s gave %d bytes instead of %d"
                      % (checkpoint.path, name, shape_text(tensor.shape), n_bytes, tensor.n_elements * ITEM_SIZE[dtype]))
    return n_bad


# ---- the command -------------------------------------------------------------------------------------------

def three_numbers(text):
    values = [float(part) for part in text.split(",")]
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError("expected three numbers: R,G,B")
    return ",".join(part.strip() for part in text.split(","))


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="convert.py", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("-o", "--output", metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--dtype", choices=("f32", "f16", "bf16"),
                        help="store all tensors so (default: as the checkpoint has them, f64 as f32)")
    parser.add_argument("--mean", type=three_numbers, metavar="R,G,B",
                        help="mean of the model's training images, in [0,1] (SAM: in [0,255])")
    parser.add_argument("--std", type=three_numbers, metavar="R,G,B", help="their standard deviation")
    parser.add_argument("--heads", type=int, metavar="N",
                        help="a ViT's attention heads, when not one per 64 channels")
    parser.add_argument("--model", choices=("vit", "sam", "featup"),
                        help="which one, of a checkpoint that holds several")
    parser.add_argument("--base", metavar="FILE",
                        help="the SAM that CHECKPOINT, a decoder or an encoder alone, was tuned from")
    parser.add_argument("--list", action="store_true",
                        help="print the contents of the checkpoint, and convert nothing")
    options = parser.parse_args(arguments)
    if not options.list and not options.output:
        parser.error("give -o FILE.safetensors, or --list")
    if options.heads is not None and options.heads < 1:
        parser.error("--heads must be at least 1")
    return options


def recognise_with(checkpoint, options):
    """recognise(), where our own earlier metadata and the command line know more than names and shapes. With --base, of
    the two together. -> (the checkpoint that has the tensors, Model, StateDict)"""
    if options.base:
        base = open_checkpoint(options.base)
        checkpoint, model, sd = merge(checkpoint, base)
        model.config["samlad.base"] = os.path.basename(base.path)
        model.config["samlad.base_sha256"] = base.sha256()
        earlier = {}
    else:
        earlier = checkpoint.metadata if "samlad.model" in checkpoint.metadata else {}
    n_heads = options.heads
    if n_heads is None and re.fullmatch("[1-9][0-9]{0,5}", earlier.get("vit.n_heads", "")):
        n_heads = int(earlier["vit.n_heads"])
    if not options.base:
        model, sd = recognise(checkpoint, options.model, n_heads)
    kind = model.config["samlad.model"]
    if earlier.get("samlad.model") == kind:
        model.config.update(earlier)
        model.notes = []
    if options.heads is not None:
        if kind != "vit":
            raise Refusal("--heads is for a ViT; a %s file says it itself" % kind)
        model.config["vit.n_heads"] = str(options.heads)
    for option, vit_key, sam_key in ((options.mean, "vit.mean", "sam.pixel_mean"),
                                     (options.std, "vit.std", "sam.pixel_std")):
        if option and kind == "featup":
            raise Refusal("--mean and --std are for a ViT or SAM; FeatUp takes the backbone's image")
        if option:
            model.config[vit_key if kind == "vit" else sam_key] = option
    if options.mean and options.std:
        model.notes = [note for note in model.notes if "--mean" not in note]
    return checkpoint, model, sd


def list_checkpoint(checkpoint, options):
    print("%s: %s, %d bytes" % (checkpoint.path, checkpoint.kind, checkpoint.size))
    for key, value in checkpoint.metadata.items():
        print("  metadata %s = %s" % (shown(key), shown(value)))
    for path, tensors in dicts_with_tensors(checkpoint.root):
        print("%s: %d tensors" % ("/".join(map(shown, path)) or "top level", len(tensors)))
        for name, tensor in tensors.items():
            print("  %-60s %-5s %s%s" % (shown(name), tensor.dtype, shape_text(tensor.shape),
                                         "" if tensor.is_contiguous() else "  strides "
                                         + shape_text(tensor.strides)))
    try:
        _, model, sd = recognise_with(checkpoint, options)
        print("recognised at %s: %s" % (sd.where, model.summary))
    except Refusal as why:
        print("not convertible: %s" % why)


def convert(checkpoint, options):
    for path in (checkpoint.path, options.base):
        if path and os.path.exists(options.output) and os.path.exists(path) and os.path.samefile(options.output, path):
            raise Refusal("%s: is the checkpoint itself; give another name to -o" % options.output)
    name, digest = os.path.basename(checkpoint.path), checkpoint.sha256()
    checkpoint, model, sd = recognise_with(checkpoint, options)
    if name in OFFICIAL_FILES:
        same = OFFICIAL_FILES[name] == (checkpoint.size, digest)
        model.notes.append("sha256 is " + ("" if same else "NOT ") + "that of the official file of this name")
    metadata = dict(model.config)
    metadata["samlad.source"], metadata["samlad.source_sha256"] = name, digest
    n_bytes, warnings = write_safetensors(options.output, checkpoint, sd.tensors, metadata,
                                          options.dtype and options.dtype.upper())
    print("%s: %s" % (options.output, model.summary))
    print("  %d tensors, %d values, %d bytes, from %s of %s"
          % (len(sd.tensors), sum(t.n_elements for t in sd.tensors.values()), n_bytes, sd.where, name))
    for note in model.notes:
        print("  note: " + note)
    for warning in warnings:
        print("convert.py: warning: %s: %s" % (checkpoint.path, warning), file=sys.stderr)


def main(arguments=None):
    options = parse_arguments(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        official_size, _ = OFFICIAL_FILES.get(os.path.basename(options.checkpoint), (0, ""))
        checkpoint = open_checkpoint(options.checkpoint, official_size)
        list_checkpoint(checkpoint, options) if options.list else convert(checkpoint, options)
    except Refusal as why:
        print("convert.py: %s" % why, file=sys.stderr)
        return 1
    except BrokenPipeError:  # --list | head
        sys.stderr.close()
        return 1
    except MemoryError:
        print("convert.py: %s: not enough memory" % options.checkpoint, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
