#!/usr/bin/env python3
"""Golden files of tests/test_tensor.c, made with PyTorch (1.13 was used), Pillow and SciPy.

    python3 tests/make_golden_tensor.py --segment-anything PATH [--out tests/golden]

PATH is a checkout of facebookresearch/segment-anything (its add_decomposed_rel_pos is the truth of the
attention with relative positions). Cases are numbered: bilinear.0.x, bilinear.0.y, bilinear.1.x, ...; the
test reads sizes from the shapes and runs cases until a number is missing. Maps are channel-last.
"""
import argparse
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from golden_io import save

torch.set_num_threads(1)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def nchw(x):
    return torch.from_numpy(x).permute(2, 0, 1)[None].contiguous()


def hwc(t):
    return t[0].permute(1, 2, 0).contiguous().numpy()


def interpolations(rng):
    """(ih, iw, channels, output size or None, scale factors or None)"""
    out = {}
    cases = [
        (5, 7, 3, (13, 9), None),
        (16, 16, 1, (32, 32), None),
        (31, 30, 2, (17, 11), None),
        (1, 1, 2, (4, 5), None),
        (2, 3, 1, (1, 1), None),
        (9, 1, 4, (20, 6), None),
        (2, 2, 1030, (1, 3), None),  # more channels than a strip of the C code
        (12, 33, 1, (3, 1100), None),  # more columns than a strip
        (3, 2, 1, (70, 5), None),  # more rows than a band
        (6, 6, 3, None, (2.0, 2.0)),
        (16, 16, 4, None, (37.1 / 16, 23.1 / 16)),  # DINOv2's offset
        (16, 16, 4, None, (9.1 / 16, 11.1 / 16)),
        (10, 10, 2, None, (1.05, 1.35)),  # an axis keeps its size
        (8, 9, 1, (8, 9), None),
    ]
    for mode, antialias in (("bilinear", False), ("bicubic", False), ("bicubic", True)):
        for i, (ih, iw, channels, size, scale) in enumerate(cases):
            x = normal(rng, ih, iw, channels)
            y = F.interpolate(
                nchw(x), size=size, scale_factor=scale, mode=mode, align_corners=False, antialias=antialias
            )
            key = f"{mode}{'_aa' if antialias else ''}.{i}"
            out[key + ".x"], out[key + ".y"] = x, hwc(y)
            out[key + ".scale"] = np.array(scale or (0, 0), np.float64)
    for i, (ih, iw, channels, oh, ow) in enumerate([(8, 8, 3, 4, 4), (13, 7, 2, 5, 3), (3, 4, 1, 7, 9), (5, 5, 2, 1, 1)]):
        x = normal(rng, ih, iw, channels)
        out[f"pool.{i}.x"], out[f"pool.{i}.y"] = x, hwc(F.adaptive_avg_pool2d(nchw(x), (oh, ow)))
    for i, (h, w, channels, sigma) in enumerate([(20, 17, 1, 1.0), (9, 30, 3, 0.6), (5, 4, 2, 2.3), (1, 6, 1, 1.0)]):
        x, sigma = normal(rng, h, w, channels), np.float32(sigma)
        truncate = np.ceil(4 * float(sigma)) / float(sigma)
        y = ndimage.gaussian_filter(x.astype(np.float64), (sigma, sigma, 0), mode="reflect", truncate=truncate)
        out[f"blur.{i}.x"], out[f"blur.{i}.y"] = x, y.astype(np.float32)
        out[f"blur.{i}.sigma"] = np.array([sigma], np.float32)
    return out


def pil_resizes(rng):
    out = {}
    cases = [
        (20, 31, 3, 7, 9),
        (13, 9, 3, 40, 33),
        (1, 1, 3, 5, 4),
        (17, 23, 1, 1, 1),
        (64, 48, 3, 64, 21),  # one pass only
        (30, 41, 4, 13, 41),
        (12, 10, 2, 12, 10),  # a copy
        (50, 70, 1, 224, 37),
        (99, 2, 1, 10, 90),
        (37, 53, 3, 36, 52),
    ]
    for name, mode in (("pil_bilinear", Image.BILINEAR), ("pil_bicubic", Image.BICUBIC)):
        for i, (ih, iw, channels, oh, ow) in enumerate(cases):
            x = rng.integers(0, 256, (ih, iw, channels)).astype(np.uint8)
            x[rng.random(x.shape) < 0.3] = 255  # hard edges: the bicubic filter must clip
            x[rng.random(x.shape) < 0.3] = 0
            planes = [Image.fromarray(x[:, :, c].copy()).resize((ow, oh), mode) for c in range(channels)]
            out[f"{name}.{i}.x"], out[f"{name}.{i}.y"] = x, np.stack([np.asarray(p) for p in planes], -1)
    return out


def networks(rng, segment_anything):
    sys.path.insert(0, segment_anything)
    from segment_anything.modeling.image_encoder import add_decomposed_rel_pos, get_rel_pos

    out = {}
    convolutions = [  # h, w, c_in, c_out, kernel, stride, pad, bias
        (9, 11, 3, 5, 3, 1, 1, True),
        (28, 14, 3, 7, 14, 14, 0, True),
        (7, 6, 8, 9, 1, 1, 0, False),
        (8, 9, 4, 6, 2, 2, 0, True),
        (10, 7, 2, 3, 5, 2, 2, False),
        (2, 3, 2, 3, 3, 1, 2, True),  # padding as wide as the map
        (3, 600, 2, 2, 3, 1, 1, True),  # several bands
    ]
    for i, (h, w, c_in, c_out, kernel, stride, pad, bias) in enumerate(convolutions):
        x, weight, b = normal(rng, h, w, c_in), normal(rng, c_out, c_in, kernel, kernel), normal(rng, c_out)
        y = F.conv2d(nchw(x), torch.from_numpy(weight), torch.from_numpy(b) if bias else None, stride, pad)
        out.update({f"conv2d.{i}.x": x, f"conv2d.{i}.weight": weight, f"conv2d.{i}.y": hwc(y)})
        out[f"conv2d.{i}.options"] = np.array([kernel, stride, pad], np.int32)
        if bias:
            out[f"conv2d.{i}.bias"] = b
    for i, (h, w, c_in, c_out, stride, bias) in enumerate([(5, 7, 6, 3, 2, True), (3, 3, 4, 5, 3, False), (1, 1100, 2, 1, 2, True)]):
        x, weight, b = normal(rng, h, w, c_in), normal(rng, c_in, c_out, stride, stride), normal(rng, c_out)
        y = F.conv_transpose2d(nchw(x), torch.from_numpy(weight), torch.from_numpy(b) if bias else None, stride)
        out.update({f"conv_transpose2d.{i}.x": x, f"conv_transpose2d.{i}.weight": weight, f"conv_transpose2d.{i}.y": hwc(y)})
        if bias:
            out[f"conv_transpose2d.{i}.bias"] = b

    x = np.concatenate([normal(rng, 500) * 3, np.linspace(-8, 8, 301, dtype=np.float32), [0, 1e-20, -1e-20, 80, -80]])
    x = x.astype(np.float32)
    t = torch.from_numpy(x)
    out.update({"gelu.x": x, "gelu.y": F.gelu(t).numpy(), "sigmoid.y": torch.sigmoid(t).numpy(), "silu.y": F.silu(t).numpy()})
    for i, (rows, dim, affine) in enumerate([(5, 192, True), (3, 37, True), (4, 3, False), (2, 384, False)]):
        x, gamma, beta = normal(rng, rows, dim) * 2 + 3, normal(rng, dim), normal(rng, dim)
        tensors = [torch.from_numpy(a) if affine else None for a in (gamma, beta)]
        out.update({f"layer_norm.{i}.x": x, f"layer_norm.{i}.y": F.layer_norm(torch.from_numpy(x), (dim,), *tensors, 1e-6).numpy()})
        if affine:
            out.update({f"layer_norm.{i}.gamma": gamma, f"layer_norm.{i}.beta": beta})
    x = normal(rng, 6, 77) * 5
    out.update({"softmax.x": x, "softmax.y": torch.from_numpy(x).softmax(-1).numpy()})
    x = normal(rng, 6, 77)
    x[2] = 0
    out.update({"l2.x": x, "l2.y": F.normalize(torch.from_numpy(x), dim=-1).numpy()})

    attentions = [  # grid_h, grid_w, heads, head_dim, relative positions
        (5, 7, 2, 16, False),
        (5, 7, 2, 16, True),
        (14, 14, 1, 16, True),
        (3, 11, 3, 5, True),
    ]
    for i, (grid_h, grid_w, heads, dim, relative) in enumerate(attentions):
        n = grid_h * grid_w
        qkv = normal(rng, n, 3, heads, dim)
        q, k, v = torch.from_numpy(qkv).permute(1, 2, 0, 3)
        logits = (q * dim**-0.5) @ k.transpose(-2, -1)
        if relative:
            table_h, table_w = (torch.from_numpy(normal(rng, 2 * g - 1, dim)) for g in (grid_h, grid_w))
            size = (grid_h, grid_w)
            logits = add_decomposed_rel_pos(logits, q, table_h, table_w, size, size)
            out[f"attention.{i}.rel_h"] = get_rel_pos(grid_h, grid_h, table_h).numpy()
            out[f"attention.{i}.rel_w"] = get_rel_pos(grid_w, grid_w, table_w).numpy()
        y = (logits.softmax(-1) @ v).permute(1, 0, 2).reshape(n, heads, dim)
        out.update({f"attention.{i}.qkv": qkv, f"attention.{i}.y": y.contiguous().numpy()})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment-anything", required=True, metavar="PATH")
    parser.add_argument("--out", default="tests/golden")
    args = parser.parse_args()
    save(f"{args.out}/tensor_interpolate.safetensors", interpolations(np.random.default_rng(1)), spaced=True)
    save(f"{args.out}/tensor_pil.safetensors", pil_resizes(np.random.default_rng(2)), spaced=True)
    save(f"{args.out}/tensor_network.safetensors", networks(np.random.default_rng(3), args.segment_anything), spaced=True)


main()
