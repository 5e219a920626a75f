#!/usr/bin/env python3
"""Goldens for tests/test_sam.c, from the official Segment Anything package and from MobileSAM's.

    python3 tests/make_golden_sam.py --segment-anything PATH --mobile-sam PATH [-o tests/golden]

The models are small, of the official classes, with random weights. These are rounded to float16 and stored so. They are
scaled so that attention is far from uniform and masks have both signs. Writes sam_*_model.safetensors and
sam_*_golden.safetensors. The PATHs are checkouts of facebookresearch/segment-anything and ChaoningZhang/MobileSAM. Without
the latter its goldens are not made. Needs torch, torchvision, numpy, PIL.
"""
import argparse
import importlib.util
import os
import sys
import types
from functools import partial

import numpy as np
import torch

import golden_io


def save(path, tensors, metadata):
    golden_io.save(path, golden_io.aligned(dict(sorted(tensors.items()))), metadata, spaced=True)


def build(metadata, encoder=None):
    """The official classes as a samlad weights file describes them, or with another image encoder."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    get = lambda key: int(metadata["sam." + key])
    floats = lambda key: [float(v) for v in metadata["sam." + key].split(",")]
    channels, size, patch = get("out_chans"), get("image_size"), get("patch_size")
    sam = Sam(
        image_encoder=encoder or ImageEncoderViT(
            img_size=size, patch_size=patch, embed_dim=get("embed_dim"), depth=get("depth"),
            num_heads=get("n_heads"), mlp_ratio=float(metadata["sam.mlp_ratio"]), out_chans=channels,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=get("window_size"),
            global_attn_indexes=[int(v) for v in metadata["sam.global_attn_indexes"].split(",") if v]),
        prompt_encoder=PromptEncoder(
            embed_dim=channels, image_embedding_size=(size // patch, size // patch),
            input_image_size=(size, size), mask_in_chans=get("mask_in_chans")),
        mask_decoder=MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(
                depth=get("decoder_depth"), embedding_dim=channels, num_heads=get("decoder_heads"),
                mlp_dim=get("decoder_mlp_dim"), attention_downsample_rate=get("attention_downsample_rate")),
            num_multimask_outputs=get("num_multimask_outputs"), iou_head_depth=get("iou_head_depth"),
            iou_head_hidden_dim=get("iou_head_hidden_dim")),
        pixel_mean=floats("pixel_mean"), pixel_std=floats("pixel_std"))
    return sam.eval()


def describe(size, patch, dim, depth, heads, ratio, window, indexes, channels, mask_in, layers, mlp, dec_heads,
             rate, masks, iou_depth, iou_hidden):
    """The metadata of a samlad weights file."""
    names = ("image_size patch_size embed_dim depth n_heads mlp_ratio window_size global_attn_indexes "
             "out_chans mask_in_chans decoder_depth decoder_mlp_dim decoder_heads attention_downsample_rate "
             "num_multimask_outputs iou_head_depth iou_head_hidden_dim").split()
    values = (size, patch, dim, depth, heads, ratio, window, indexes, channels, mask_in, layers, mlp,
              dec_heads, rate, masks, iou_depth, iou_hidden)
    metadata = {"sam." + k: str(v) for k, v in zip(names, values)}
    metadata.update({"samlad.model": "sam", "sam.pixel_mean": "123.675,116.28,103.53",
                     "sam.pixel_std": "58.395,57.12,57.375"})
    return metadata


def describe_mobile(size, dim, *rest):
    """The same of a file with a TinyViT, whose shapes tell all other sizes."""
    metadata = describe(size, 16, dim, 0, 0, 0, 0, "", *rest)
    for key in ("depth", "n_heads", "mlp_ratio", "window_size", "global_attn_indexes"):
        del metadata["sam." + key]
    return {**metadata, "sam.encoder": "tiny_vit"}


def tiny_vit_module(path):
    """MobileSAM's tiny_vit_sam.py. It needs three functions of timm that torch has as well, and timm's registration."""
    for name in ("timm", "timm.models", "timm.models.layers", "timm.models.registry"):
        sys.modules.setdefault(name, types.ModuleType(name))
    layers, registry = sys.modules["timm.models.layers"], sys.modules["timm.models.registry"]
    layers.DropPath, layers.trunc_normal_ = torch.nn.Identity, torch.nn.init.trunc_normal_
    layers.to_2tuple, registry.register_model = lambda n: (n, n), lambda function: function
    spec = importlib.util.spec_from_file_location(
        "tiny_vit_sam", os.path.join(path, "mobile_sam", "modeling", "tiny_vit_sam.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_mobile(path, metadata):
    """build_sam_vit_t"""
    return build(metadata, tiny_vit_module(path).TinyViT(
        img_size=1024, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2], num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7], drop_path_rate=0.0))


def build_small_mobile(path, metadata, dims, depths, heads, windows):
    """MobileSAM at another size. Three constants of the official class are for one size only: the grid that
    forward_features makes of the tokens, the neck's channels, and the stride of the last merging. That stride is 1 if a
    stage is 320, 448 or 576 wide. This function sets them for this size in the same way."""
    module = tiny_vit_module(path)
    size, channels = int(metadata["sam.image_size"]), int(metadata["sam.out_chans"])

    class TinyViT(module.TinyViT):
        def forward_features(self, x):
            x = self.patch_embed(x)
            for layer in self.layers:
                x = layer(x)
            return self.neck(x.view(len(x), size // 16, size // 16, -1).permute(0, 3, 1, 2))

    vit = TinyViT(img_size=size, embed_dims=dims, depths=depths, num_heads=heads, window_sizes=windows,
                  drop_path_rate=0.0)
    vit.layers[2].downsample.conv2.c.stride = (1, 1)
    conv = partial(torch.nn.Conv2d, out_channels=channels, bias=False)
    vit.neck = torch.nn.Sequential(conv(dims[-1], kernel_size=1), module.LayerNorm2d(channels),
                                   conv(channels, kernel_size=3, padding=1), module.LayerNorm2d(channels))
    return build(metadata, vit)


def randomise(sam, seed, rel_pos_rows=None):
    """Weights that make the outputs vary, rounded to float16. rel_pos_rows: other lengths for the tables."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sam.named_parameters():
        shape = list(p.shape)
        if rel_pos_rows and "rel_pos" in name:
            shape[0] = rel_pos_rows[name[-1]]
        r = torch.randn(shape, generator=g)
        if "norm" in name or name.endswith((".neck.1.weight", ".neck.3.weight", "downscaling.1.weight",
                                            "downscaling.4.weight", "upscaling.1.weight", "bn.weight")):
            r = 1 + 0.3 * r if name.endswith("weight") else 0.2 * r
        elif name.endswith("bias"):
            r = 0.2 * r
        elif "rel_pos" in name:
            r = 0.4 * r
        elif "attention_biases" in name:
            r = 0.7 * r
        elif ("embed" in name and "patch" not in name) or "iou_token" in name or "mask_tokens" in name:
            r = 0.7 * r
        else:
            r = r * 1.3 / (r[0].numel() ** 0.5)
        p.data = r.half().float()
    for name, b in sam.named_buffers():
        if name.endswith(("gaussian_matrix", "running_mean")):
            b.copy_(torch.randn(b.shape, generator=g).half().float())
        elif name.endswith("running_var"):
            b.copy_((0.2 + torch.randn(b.shape, generator=g) ** 2).half().float())
    sam.eval()  # a TinyViT then gathers its attention biases again


def weights_of(sam):
    """Without the tensors that are no weights of SAM: a TinyViT's counts of batches and its classifier."""
    return {k: v.numpy().astype(np.float16) for k, v in sam.state_dict().items()
            if not k.endswith("num_batches_tracked") and not k.startswith(("image_encoder.norm_head", "image_encoder.head"))}


def picture(h, w, seed):
    """Smooth colours, some rectangles, noise."""
    r = np.random.RandomState(seed)
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    image = np.stack([127 + 120 * np.sin(r.rand() * 9 * x + r.rand() * 9 * y + k) for k in range(3)], -1)
    for _ in range(4):
        a, b = r.randint(0, h), r.randint(0, w)
        image[a:a + h // 3 + 1, b:b + w // 3 + 1] = r.randint(0, 256, 3)
    return np.clip(image + r.randn(h, w, 3) * 9, 0, 255).astype(np.uint8)


def grab_encoder(sam, predictor, image):
    """Every stage of the encoder for one picture."""
    out, hooks = {}, []
    def channel_last(x):  # a TinyViT's [channels][h][w] and [tokens][channels]
        x = x.transpose(1, 2, 0) if x.ndim == 3 else x.reshape(int(len(x) ** 0.5), -1, x.shape[-1])
        return np.ascontiguousarray(x)
    mobile = not hasattr(sam.image_encoder, "blocks")
    as_is = channel_last if mobile else np.copy
    def hook(name):
        return lambda module, args, result: out.__setitem__(name, as_is(result[0].numpy()))
    hooks.append(sam.image_encoder.patch_embed.register_forward_hook(hook("sam.patch_embed")))
    for i, block in enumerate(sam.image_encoder.layers if mobile else sam.image_encoder.blocks):
        hooks.append(block.register_forward_hook(hook(f"sam.{'layers' if mobile else 'blocks'}.{i}")))
    hooks.append(sam.image_encoder.register_forward_pre_hook(
        lambda module, args: out.__setitem__("sam.pixels", args[0][0].numpy().copy())))
    predictor.set_image(image)
    for h in hooks:
        h.remove()
    out["sam.embedding"] = predictor.features[0].numpy()
    return out


def grab_prompt(sam, predictor, prompt, multimask):
    out = {}
    def prompt_hook(module, args, result):
        out["sam.sparse"], out["sam.dense"] = result[0][0].numpy().copy(), result[1][0].numpy().copy()
    hook = sam.prompt_encoder.register_forward_hook(prompt_hook)
    logits, iou, low = predictor.predict(multimask_output=multimask, return_logits=True, **prompt)
    hook.remove()
    out.update({"sam.low_res": low, "sam.iou_predictions": iou, "logits": logits})
    return out


def prompts(h, w, side, seed):
    """Name, arguments of SamPredictor.predict, multimask."""
    r = np.random.RandomState(seed)
    xy = lambda n: (r.rand(n, 2) * [w, h]).astype(np.float32)
    box = np.array([w * 0.2, h * 0.15, w * 0.8, h * 0.7], np.float32)
    mask = (r.randn(1, side, side) * 3).astype(np.float32)
    yield "point", dict(point_coords=xy(1), point_labels=np.array([1])), True
    yield "points", dict(point_coords=xy(3), point_labels=np.array([1, 0, -1])), False
    yield "box", dict(box=box), False
    yield "box_points", dict(point_coords=xy(2), point_labels=np.array([1, 0]), box=box), True
    yield "mask", dict(point_coords=xy(1), point_labels=np.array([1]), mask_input=mask), True
    yield "nothing", dict(), True


def golden(sam, sizes, seed, names=None):
    from segment_anything import SamPredictor
    predictor, out = SamPredictor(sam), {}
    side = 4 * sam.prompt_encoder.image_embedding_size[0]
    for i, (h, w) in enumerate(sizes):
        image = picture(h, w, seed + i)
        out[f"{i}.image"] = image
        for k, v in grab_encoder(sam, predictor, image).items():
            if i == 0 or k == "sam.embedding":
                out[f"{i}.{k}"] = v
        for name, prompt, multimask in prompts(h, w, side, seed + i):
            if i > 0 and name not in ("point", "box_points") or names and name not in names:
                continue
            at = f"{i}.{name}."
            for k, v in prompt.items():
                out[at + k] = v.astype(np.int32) if v.dtype == np.int64 else v
            result = grab_prompt(sam, predictor, prompt, multimask)
            for k, v in result.items():
                if k == "logits" and name != "point" or k == "sam.dense" and name != "mask" or v.size == 0:
                    continue
                out[at + k] = v[:1] if k == "logits" else v
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment-anything", required=True)
    parser.add_argument("--mobile-sam")
    parser.add_argument("-o", "--output", default="tests/golden")
    args = parser.parse_args()
    sys.path.insert(0, args.segment_anything)
    torch.set_num_threads(1)
    with torch.no_grad():
        # Grid 7 and windows of 3: the last windows are padded. Block 1 is global. Wide, tall, odd and tiny
        # pictures.
        metadata = describe(56, 8, 24, 3, 2, 2.0, 3, "1", 32, 8, 2, 40, 4, 2, 3, 3, 24)
        sam = build(metadata)
        randomise(sam, 1)
        save(f"{args.output}/sam_window_model.safetensors", weights_of(sam), metadata)
        save(f"{args.output}/sam_window_golden.safetensors",
             golden(sam, [(37, 91), (83, 31), (64, 64), (9, 14)], 10), {"pictures": 4})
        # The official tables of relative positions have 2·4-1 = 7 rows (windows) and 11 (global). Give them other
        # lengths, as when a model is used at another size. All other numbers differ as well.
        metadata = describe(48, 8, 20, 2, 2, 2.5, 4, "1", 16, 4, 1, 24, 2, 1, 2, 2, 12)
        sam = build(metadata)
        randomise(sam, 2, {"h": 9, "w": 5})
        save(f"{args.output}/sam_resampled_model.safetensors", weights_of(sam), metadata)
        save(f"{args.output}/sam_resampled_golden.safetensors", golden(sam, [(50, 40)], 20), {"pictures": 1})
        # 169 positions, more than a tile of the decoder; the last windows are not whole.
        metadata = describe(52, 4, 8, 2, 2, 2.0, 5, "0", 16, 4, 2, 16, 2, 2, 3, 2, 12)
        sam = build(metadata)
        randomise(sam, 3)
        save(f"{args.output}/sam_blocks_model.safetensors", weights_of(sam), metadata)
        save(f"{args.output}/sam_blocks_golden.safetensors",
             golden(sam, [(40, 61)], 30, ("point", "mask")), {"pictures": 1})
        if args.mobile_sam:
            # Maps of 32, 16, 8 and 8 places a side: windows of 7 and 5 are padded, one of 8 is the whole map.
            metadata = describe_mobile(128, 16, 16, 4, 1, 24, 2, 1, 2, 2, 12)
            sam = build_small_mobile(args.mobile_sam, metadata, [8, 16, 24, 16], [2, 2, 2, 1], [1, 2, 3, 2],
                                     [7, 7, 5, 8])
            randomise(sam, 4)
            save(f"{args.output}/sam_tiny_vit_model.safetensors", weights_of(sam), metadata)
            save(f"{args.output}/sam_tiny_vit_golden.safetensors",
                 golden(sam, [(90, 61), (30, 100)], 40, ("point", "box_points")), {"pictures": 2})


if __name__ == "__main__":
    main()
