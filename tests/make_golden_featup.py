"""Golden files of test_featup.c: the official JBU stack with random weights, and on the real stack.

    python3 tests/make_golden_featup.py --featup PATH [--data DIR] [--out tests/golden]

--featup: a checkout of mhamilton723/FeatUp; --data: the folder of real test data (SAMLAD_DATA). Of
its stack only outputs are stored. Needs torch and numpy.

The official weighted sum is a CUDA extension (featup/adaptive_conv_cuda). Its kernel computes
out[b,c,h,w] = sum_ij filters[b,h,w,i,j] * input[b,c,h+i,w+j]; here that formula is written with torch's unfold.
"""
import argparse
import os
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F

from golden_io import load_torch, save

torch.set_num_threads(1)


class AdaptiveConv:
    @staticmethod
    def apply(padded, filters):
        b, c, _, _ = padded.shape
        _, h, w, kh, kw = filters.shape
        neighbours = F.unfold(padded, (kh, kw)).reshape(b, c, kh * kw, h, w)
        return torch.einsum("bcphw,bhwp->bchw", neighbours, filters.reshape(b, h, w, kh * kw))


def official_stack(path, dim):
    extension = types.ModuleType("featup.adaptive_conv_cuda.adaptive_conv")
    extension.AdaptiveConv = AdaptiveConv
    sys.modules["featup.adaptive_conv_cuda.adaptive_conv"] = extension
    sys.path.insert(0, path)
    from featup.upsamplers import JBUStack
    return JBUStack(dim).eval()


def randomise(stack):
    with torch.no_grad():
        for name, p in stack.named_parameters():
            if name.endswith("range_temp"):
                p.copy_(torch.rand(()) * 2 - 1.5)
            elif name.endswith("sigma_spatial"):
                p.copy_(torch.rand(()) * 0.8 + 0.5)
            elif p.dim() > 1:
                p.copy_(torch.randn(p.shape) / p[0].numel() ** 0.5)
            else:
                p.copy_(torch.randn(p.shape) * 0.3)


def guidance_image(h, w):
    """Edges, gradients and noise, of about the normalised pixels' range."""
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    planes = [torch.sin(9 * x + 4 * y), ((x * 5).floor() + (y * 4).floor()) % 2 * 2 - 1, 2 * (x - y)]
    return (torch.stack(planes) + 0.2 * torch.randn(3, h, w)).half().float()[None]


def run(stack, golden, case, features, guidance, stages, every):
    """Each stage's output, every `every`-th row of the larger ones."""
    golden[f"{case}.features"] = features[0].permute(1, 2, 0).numpy()
    golden[f"{case}.guidance"] = guidance[0].numpy().astype(np.float16)
    with torch.no_grad():
        x = features
        for i in range(stages):
            x = stack.upsample(x, guidance, [stack.up1, stack.up2, stack.up3, stack.up4][i])
            y = x
            if i == 3 and stack.fixup_proj[1].weight.shape[0] == features.shape[1]:
                y = stack.fixup_proj(x) * 0.1 + x
                if stages == 4:
                    assert torch.equal(y, stack(features, guidance))
            golden[f"{case}.stage{i + 1}"] = y[0].permute(1, 2, 0)[::every[i]].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--featup", required=True)
    parser.add_argument("--data")
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden"))
    args = parser.parse_args()
    torch.manual_seed(20240602)

    stack = official_stack(args.featup, 7)
    randomise(stack)
    save(f"{args.out}/featup_model.safetensors", {k: v.numpy() for k, v in stack.state_dict().items()})
    golden = {}
    run(stack, golden, "5x6x7", torch.randn(1, 7, 5, 6), guidance_image(50, 47), 4, [1, 2, 4, 16])
    # 83 channels: the vector loops of 64 or 32, of 16 or 8, and the last few. 35 columns: wider than a tile. The
    # guidance is smaller than the result.
    run(stack, golden, "3x4x83", torch.randn(1, 83, 3, 4), guidance_image(24, 32), 2, [2, 5])
    run(stack, golden, "2x35x3", torch.randn(1, 3, 2, 35), guidance_image(4, 50), 2, [1, 2])
    save(f"{args.out}/featup_golden.safetensors", golden)

    if args.data:
        weights, _ = load_torch(f"{args.data}/featup/clip_jbu_stack.safetensors")
        real = official_stack(args.featup, 512)
        scalars = ("range_temp", "sigma_spatial")
        real.load_state_dict({k.replace("upsampler.", "", 1): v.reshape(()) if k.endswith(scalars) else v
                              for k, v in weights.items()}, strict=True)
        golden = {}
        run(real, golden, "6x6x8", torch.randn(1, 8, 6, 6), guidance_image(96, 96), 4, [1, 2, 4, 8])
        save(f"{args.out}/featup_real_golden.safetensors", golden)


if __name__ == "__main__":
    main()
