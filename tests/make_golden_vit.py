"""Golden files of test_vit.c: official models with random weights at small sizes, and their outputs.

    python3 tests/make_golden_vit.py --dinov2 PATH --timm PATH [--data DIR] [--out tests/golden]

--dinov2: a checkout of facebookresearch/dinov2; --timm: of huggingface/pytorch-image-models; --data: the
folder of real test data (SAMLAD_DATA). Of its ViT-Tiny only outputs are stored. Needs torch, numpy, PIL.

vit_NAME_model.safetensors  the weights, with the official tensor names and our configuration in __metadata__
vit_NAME_golden.safetensors per input size: HxW.pixels and the official intermediate and final tensors
vit_views_golden.safetensors a picture, and the features of both of its views on a grid (test_bank.c)
"""
import argparse
import math
import os
import sys

os.environ["XFORMERS_DISABLED"] = "1"
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from golden_io import load_torch, save

torch.set_num_threads(1)


def attention_of_old_torch():
    """torch 1.13 has no scaled_dot_product_attention, which both packages call."""
    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False):
        assert attn_mask is None and not is_causal and dropout_p == 0
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v
    if not hasattr(F, "scaled_dot_product_attention"):
        F.scaled_dot_product_attention = attention


def randomise(model, half=False):
    """Weights of a scale at which every part changes the output (LayerScale near 1, not 1e-5)."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("gamma"):
                p.copy_(0.5 + torch.rand(p.shape))
            elif "norm" in name and name.endswith("weight"):
                p.copy_(0.5 + torch.rand(p.shape))
            elif p.dim() > 1 and "token" not in name and "pos" not in name:
                p.copy_(torch.randn(p.shape) / math.sqrt(p[0].numel()) * 1.5)
            else:
                p.copy_(torch.randn(p.shape) * 0.4)
            if half:
                p.copy_(p.half().float())


def state(model, half=False):
    return {k: v.numpy().astype(np.float16 if half else np.float32) for k, v in model.state_dict().items()}


def config(family, image, patch, dim, depth, heads, ffn="mlp", registers=0, layer_scale=1, offset=0.1,
           antialias=0):
    return {"samlad.model": "vit", "vit.family": family, "vit.image_size": str(image),
            "vit.patch_size": str(patch), "vit.dim": str(dim), "vit.depth": str(depth), "vit.n_heads": str(heads),
            "vit.mlp_ratio": "4", "vit.ffn": ffn, "vit.n_registers": str(registers),
            "vit.layer_scale": str(layer_scale), "vit.interpolate_offset": str(offset),
            "vit.interpolate_antialias": str(antialias), "vit.eps": "1e-6",
            "vit.mean": "0.485,0.456,0.406", "vit.std": "0.229,0.224,0.225"}


def run(model, embed, n_prefix, sizes, taps):
    """All outputs at each size; every token of every block for the sizes in taps."""
    out = {}
    with torch.no_grad():
        for h, w in sizes:
            pixels = torch.randn(1, 3, h, w).half().float()
            key = f"{h}x{w}"
            out[key + ".pixels"] = pixels[0].numpy().astype(np.float16)
            x = embed(pixels)
            if (h, w) in taps:
                out[key + ".embed"] = x[0].numpy()
            for i, block in enumerate(model.blocks):
                x = block(x)
                if (h, w) in taps:
                    out[key + f".blocks.{i}"] = x[0].numpy()
                if i < len(model.blocks) - 1 and (h, w) in taps:
                    inner = F.layer_norm(x, x.shape[-1:], eps=1e-6)
                    out[key + f".layer{i + 1}.cls"] = inner[0, 0].numpy()
                    out[key + f".layer{i + 1}.patches"] = inner[0, n_prefix:].numpy()
            x = model.norm(x)
            out[key + ".cls"] = x[0, 0].numpy()
            out[key + ".patches"] = x[0, n_prefix:].numpy()
    return out


def dinov2(out, name, sizes, taps, *, image, patch, dim, depth, heads, ffn="mlp", registers=0, offset=0.1,
           antialias=0, raw=False):
    from functools import partial
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer
    model = DinoVisionTransformer(
        img_size=image, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, mlp_ratio=4,
        init_values=1.0, ffn_layer={"swiglu": "swiglufused"}.get(ffn, ffn), block_chunks=0,
        num_register_tokens=registers,
        interpolate_antialias=bool(antialias), interpolate_offset=offset,
        block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention)).eval()
    randomise(model, raw)
    golden = run(model, model.prepare_tokens_with_masks, 1 + registers, sizes, taps)
    with torch.no_grad():  # this loop through the blocks is the official forward
        h, w = sizes[0]
        x = torch.from_numpy(golden[f"{h}x{w}.pixels"].astype(np.float32))[None]
        official = model.forward_features(x)
        assert torch.equal(official["x_norm_patchtokens"][0], torch.from_numpy(golden[f"{h}x{w}.patches"]))
    meta = config("dinov2", image, patch, dim, depth, heads, ffn, registers, 1, offset, antialias)
    save(f"{out}/vit_{name}_model.safetensors", state(model, raw), None if raw else meta)
    save(f"{out}/vit_{name}_golden.safetensors", golden)
    return model


def timm_vit(**kwargs):
    from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(num_classes=0, dynamic_img_size=True, **kwargs).eval()


def timm_embed(model):
    return lambda pixels: model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels))))


def timm(out, name, sizes, taps, *, image, patch, dim, depth, heads, no_embed_class=False):
    model = timm_vit(img_size=image, patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads,
                     no_embed_class=no_embed_class)
    randomise(model)
    golden = run(model, timm_embed(model), 1, sizes, taps)
    meta = config("timm", image, patch, dim, depth, heads, layer_scale=0, offset=0.0, antialias=1)
    save(f"{out}/vit_{name}_model.safetensors", state(model), meta)
    save(f"{out}/vit_{name}_golden.safetensors", golden)


def synthetic_picture():
    y, x = np.mgrid[0:60, 0:80]
    checks = 255 * ((x // 10 + y // 10) % 2)
    picture = np.stack([128 + 100 * np.sin(x / 5 + y / 9), checks, 3 * x], -1)
    picture += np.random.default_rng(5).normal(0, 20, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def two_views(out, model, patch=14, h=56, w=70, grid=(13, 16)):
    """Features of the picture, and of the picture moved by half a patch, enlarged 8 times: their mean on the grid."""
    picture = synthetic_picture()
    resized = Image.fromarray(picture).resize((w, h), Image.BICUBIC)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(np.array(resized)).float() / 255 - mean) / std).permute(2, 0, 1)[None]

    def enlarged(x):
        with torch.no_grad():
            tokens = model.forward_features(x)["x_norm_patchtokens"]
        features = tokens.reshape(1, h // patch, w // patch, -1).permute(0, 3, 1, 2)
        return F.interpolate(features, scale_factor=8, mode="bilinear")

    half = patch // 2
    moved = F.pad(pixels, (0, half, 0, half), mode="reflect")[..., half:, half:]
    back = F.pad(enlarged(moved)[..., :-4, :-4], (4, 0, 4, 0), mode="replicate")
    both = F.adaptive_avg_pool2d((enlarged(pixels) + back) / 2, grid)
    save(f"{out}/vit_views_golden.safetensors",
         {"image": picture, "features": both[0].permute(1, 2, 0).contiguous().numpy()})


def real_vit_tiny(out, data):
    """ViT-Tiny's own preprocessing and outputs (every 4th patch) on a small synthetic picture."""
    weights, _ = load_torch(f"{data}/vit_tiny/vit_tiny_patch16_224.safetensors")
    model = timm_vit(img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3)
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("head.")}, strict=True)
    picture = synthetic_picture()
    golden = {"image": picture}
    for h, w in [(224, 224), (160, 256)]:
        resized = Image.fromarray(picture).resize((w, h), Image.BICUBIC)
        pixels = (torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
        golden[f"{h}x{w}.resized_row"] = pixels[:, h // 3].numpy()
        with torch.no_grad():
            features = model.forward_features(pixels[None])
            tokens = timm_embed(model)(pixels[None])
            for block in model.blocks[:9]:
                tokens = block(tokens)
            inner = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        golden[f"{h}x{w}.cls"] = features[0, 0].numpy()
        golden[f"{h}x{w}.patches"] = features[0, 1::4].numpy()
        golden[f"{h}x{w}.layer9.patches"] = inner[0, 1::4].numpy()
    save(f"{out}/vit_tiny_golden.safetensors", golden)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dinov2", required=True)
    parser.add_argument("--timm", required=True)
    parser.add_argument("--data")
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden"))
    args = parser.parse_args()
    sys.path[:0] = [args.dinov2, args.timm]
    attention_of_old_torch()
    torch.manual_seed(20240601)

    # 2x8 patches: as many as in the trained 4x4 grid, but still resized
    model = dinov2(args.out, "dinov2", [(56, 56), (28, 112), (98, 70), (42, 28)], [(98, 70)],
                   image=56, patch=14, dim=24, depth=3, heads=3)
    two_views(args.out, model)
    dinov2(args.out, "registers", [(28, 28), (14, 56), (49, 63), (21, 14)], [(49, 63)],
           image=28, patch=7, dim=24, depth=3, heads=2, registers=4, offset=0.0, antialias=1)
    dinov2(args.out, "swiglu", [(28, 28), (35, 77)], [(35, 77)],
           image=28, patch=7, dim=20, depth=2, heads=2, ffn="swiglu")
    # as published: no metadata, half precision; everything is recognised from names and shapes
    dinov2(args.out, "raw", [(56, 56), (70, 42)], [(70, 42)],
           image=56, patch=14, dim=64, depth=1, heads=1, registers=4, offset=0.0, antialias=1, raw=True)
    timm(args.out, "timm", [(32, 32), (16, 64), (56, 40)], [(56, 40)],
         image=32, patch=8, dim=24, depth=3, heads=4)
    timm(args.out, "timm_nocls", [(32, 32), (24, 56)], [], image=32, patch=8, dim=16, depth=2, heads=2,
         no_embed_class=True)
    if args.data:
        real_vit_tiny(args.out, args.data)


if __name__ == "__main__":
    main()
