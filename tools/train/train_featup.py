#!/usr/bin/env python3
"""Trains FeatUp's joint bilateral stack for a backbone: three stages, about 19,000 numbers.

    train_featup.py --out DIR --minutes 25 [--photos FOLDER] [--resume DIR/checkpoint.pt]

FeatUp's multi-view reconstruction (Fu et al. 2024; mhamilton723/FeatUp, featup/train_jbu_upsampler.py). The
features of a window are upsampled along the window's edges. A view is a shifted and half of the times zoomed
part of the window. The same part of the upsampled features, downsampled, must be what the frozen backbone sees in the view.
Shifts by less than a patch tell where inside a patch a feature belongs.

The downsampler learns too and is dropped afterwards: in each patch a softmax of a learned linear map of the
features, with a weight and a bias for each place in the patch. A second map predicts how well a patch can be
known at all; the loss is the likelihood of the difference under it.

All channels of a pixel share one kernel. So a projection before the stack is a projection after it. A step
upsamples a random projection of the features, in units of each channel's deviation, and the downsampler's map.

Ours, not FeatUp's: three stages; a loss after each stage, so that one or two of them serve as well; views inside
the window instead of mirrored borders; the average (EMA) of the weights; no dropout; no CRF loss (its weight is
0.001 there). No view is mirrored: the shipped network was taught to tell a thing from its mirror image. Its features
of a mirrored view differ from the mirrored features by 0.54 of a channel's variance, those of a shifted one by 0.24.

Windows are of drawn scenes, and with --photos of pictures in a folder. Scene seeds are in [2^39, 2^40), those of
the held-out figure from 2^41 on.
"""
import argparse
import ctypes
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import safetensors_io
import scenes as S
from native import HERE, compiled
from run import Run, parse, save_atomically
from train_vit import FIRST_SEED, MEAN, STD, enlarge, load_vit, turn_arrays, write_page

HELD_OUT = 2 ** 41
PHOTO_SHARE = .25  # of the pictures, with --photos
PAGE_SHARE = .1  # of the drawn pictures: handwritten pages
MAX_ZOOM = 1.5  # of a view
CHANNELS = 30  # of the random projection
RADIUS, DIAMETER = 3, 7
TAPS = DIAMETER ** 2
KEY_DIM = 32
SHIPPED = os.path.join(HERE, "..", "..", "weights", "vit_tiny.safetensors")


# ---------------------------------------------------------------- sums over neighbours

KERNELS = ctypes.CDLL(compiled("featup", ("featup_kernels.c",), ("-std=c11", "-O3", "-march=native", "-ffast-math")))


def call(name, a, b, out):
    """The function of featup_kernels.c on each image of a batch; `name` also names the argument that has the channels."""
    H, W, C = (out if name != "neighbour_dot" else a).shape[1:]
    a, b = a.contiguous(), b.contiguous()
    for i in range(len(a)):
        getattr(KERNELS, name)(H, W, C, *(ctypes.c_void_p(t[i].data_ptr()) for t in (a, b, out)))
    return out


def neighbour_dot(a, b):
    return call("neighbour_dot", a, b, a.new_empty(*a.shape[:3], TAPS))


def neighbour_sum(kernel, b):
    return call("neighbour_sum", kernel, b, torch.zeros_like(b))


def neighbour_spread(kernel, a):
    return call("neighbour_spread", kernel, a, torch.zeros_like(a))


class NeighbourDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return neighbour_dot(x, x)

    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        return neighbour_sum(grad, x) + neighbour_spread(grad, x)


class NeighbourSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernel, b):
        ctx.save_for_backward(kernel, b)
        return neighbour_sum(kernel, b)

    @staticmethod
    def backward(ctx, grad):
        kernel, b = ctx.saved_tensors
        return neighbour_dot(grad, b), neighbour_spread(kernel, grad)


# ---------------------------------------------------------------- the stack

def resized(x, size, mode):
    """x [B][h][w][C] -> [B][H][W][C], size = (H, W)."""
    x = x.permute(0, 3, 1, 2)
    x = F.adaptive_avg_pool2d(x, size) if mode == "area" else F.interpolate(x, size, mode=mode, align_corners=False)
    return x.permute(0, 2, 3, 1).contiguous()


class JbuLearnedRange(nn.Module):
    """A stage, as featup.c explains it, in the official names; numbers in them count layers without weights, too."""

    def __init__(self):
        super().__init__()
        self.range_temp = nn.Parameter(torch.tensor(0.))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.))
        self.range_proj = nn.Sequential(nn.Linear(3, KEY_DIM), nn.GELU(), nn.Identity(), nn.Linear(KEY_DIM, KEY_DIM))
        self.fixup_proj = nn.Sequential(nn.Linear(TAPS + 3, TAPS), nn.GELU(), nn.Identity(), nn.Linear(TAPS, TAPS))
        nn.init.zeros_(self.fixup_proj[3].weight), nn.init.zeros_(self.fixup_proj[3].bias)

    def kernel(self, guidance):
        factor = self.range_temp.exp().clamp(1e-4, 1e4)
        range_kernel = (factor * NeighbourDot.apply(self.range_proj(guidance))).softmax(-1)
        at = torch.linspace(-1, 1, DIAMETER)
        spatial_kernel = torch.exp(-(at[:, None] ** 2 + at ** 2).flatten() / (2 * self.sigma_spatial ** 2))
        combined = range_kernel * spatial_kernel
        combined = combined / combined.sum(-1, keepdim=True).clamp(min=1e-7)
        return combined + .1 * self.fixup_proj(torch.cat([combined, guidance], -1))

    def forward(self, source, guidance):
        size = 2 * source.shape[1], 2 * source.shape[2]
        return NeighbourSum.apply(self.kernel(resized(guidance, size, "area")), resized(source, size, "bicubic"))


class Stack(nn.Module):
    def __init__(self, stages=3):
        super().__init__()
        for i in range(stages):
            setattr(self, f"up{i + 1}", JbuLearnedRange())

    def forward(self, source, guidance):
        """source [B][h][w][C], guidance [B][H][W][3] -> the features after each stage."""
        results = []
        for up in self.children():
            source = up(source, guidance)
            results.append(source)
        return results


def official(state):
    """{name: numpy}: the official names and shapes: a linear layer is a 1x1 convolution, a scalar has shape [1]."""
    shape = {0: (1,), 2: (1, 1)}
    return {name: v.detach().float().reshape(*v.shape, *shape.get(v.ndim, ())).numpy() for name, v in state.items()}


def load_stack(path):
    tensors = safetensors_io.load(path)[0]
    stages = sum(name.endswith("range_temp") for name in tensors)
    prefix = next(name for name in tensors if name.endswith("up1.range_temp"))[:-len("up1.range_temp")]
    stack = Stack(stages)
    own = stack.state_dict()
    stack.load_state_dict({n: torch.from_numpy(tensors[prefix + n].astype(np.float32)).reshape(v.shape) for n, v in own.items()})
    return stack


# ---------------------------------------------------------------- the downsampler

class Downsampler(nn.Module):
    """FeatUp's AttentionDownsampler: in each patch a softmax over its places; and the map of its uncertainty."""

    def __init__(self, dim, patch, stages):
        super().__init__()
        self.patch = patch
        self.attention = nn.Linear(dim, 1)
        self.uncertainty = nn.Linear(dim, 1)
        nn.init.zeros_(self.attention.weight), nn.init.zeros_(self.attention.bias)
        nn.init.zeros_(self.uncertainty.weight), nn.init.zeros_(self.uncertainty.bias)
        self.weight = nn.Parameter(torch.ones(stages, patch * patch))
        self.bias = nn.Parameter(torch.zeros(stages, patch * patch))

    def forward(self, x, stage):
        """x [B][H][H][C + 1], the attention's map last -> [B][H/patch][H/patch][C]."""
        b, side, _, channels = x.shape
        g, p = side // self.patch, self.patch
        x = x.view(b, g, p, g, p, channels).permute(0, 1, 3, 2, 4, 5).reshape(b, g, g, p * p, channels)
        chance = (x[..., -1] * self.weight[stage] + self.bias[stage]).softmax(-1)
        return torch.einsum("bhwp,bhwpc->bhwc", chance, x[..., :-1])


# ---------------------------------------------------------------- windows and views

class Pictures:
    """Pictures of the network's input size [S][S][3] u8: drawn scenes, handwritten pages, square parts of photographs."""

    def __init__(self, size, folder=None):
        self.size, self.scenes = size, S.Scenes()
        paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if folder else []
        self.photos = [Image.open(path).convert("RGB") for path in paths]

    def photo(self, rng):
        photo = self.photos[int(rng.integers(len(self.photos)))]
        side = int(rng.uniform(min(self.size / 2, min(photo.size)), min(photo.size)))
        x, y = (int(rng.integers(n - side + 1)) for n in photo.size)
        return np.asarray(photo.crop((x, y, x + side, y + side)).resize((self.size, self.size), Image.BICUBIC))

    def drawn(self, seed, rng):
        if rng.random() < PAGE_SHARE:
            digits = [[None if rng.random() < .06 else int(rng.integers(10)) for _ in range(3)] for _ in range(3)]
            return write_page(rng, digits, (self.size + 2) // 3)[0][:self.size, :self.size]
        kind = S.TRAY if rng.random() < .5 else S.GENERAL
        side = int(self.size * rng.uniform(.6, 1))  # small pictures are enlarged, as for the network
        view = self.scenes.render(seed, int(rng.integers(1, 2 ** 31)), float(rng.uniform(.6, 1)), kind, side)
        return enlarge(view, self.size)[0]

    def __call__(self, seed, rng):
        rgb = self.photo(rng) if rng.random() < PHOTO_SHARE and self.photos else self.drawn(seed, rng)
        return np.ascontiguousarray(turn_arrays(int(rng.integers(8)), rgb)[0])


def normalised(rgb):
    """[B][H][W][3] u8 -> float32, as the network sees it."""
    return (torch.from_numpy(rgb).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)


class Windows:
    """B windows [B][W][W][3] of pictures, and their places [B][2] on the position embedding's grid."""

    def __init__(self, pictures, seeds, rng, side, patch):
        places = (pictures.size - side) // patch + 1
        self.cuts = rng.integers(0, places, (len(seeds), 2))
        at = self.cuts * patch
        self.images = normalised(np.stack([pictures(seed, rng)[y:y + side, x:x + side] for seed, (y, x) in zip(seeds, at)]))


class View:
    """A part of a window of side W, as a picture of V pixels; half of them are zoomed."""

    def __init__(self, rng, W, V):
        zoom = rng.uniform(1, MAX_ZOOM) if rng.random() < .5 else 1.
        room = W - V / zoom
        self.corner = rng.uniform(0, room, 2) if zoom > 1 else rng.integers(0, int(room) + 1, 2)
        y, x = (torch.from_numpy(((np.arange(V) + .5) / zoom + c) * 2 / W - 1).float() for c in self.corner)
        self.grid = torch.stack([x[None].expand(V, V), y[:, None].expand(V, V)], -1)[None]

    def of(self, x):
        """x [B][h][h][C], the window's features or pixels -> [B][V][V][C]."""
        grid = self.grid.expand(len(x), -1, -1, -1)
        x = F.grid_sample(x.permute(0, 3, 1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return x.permute(0, 2, 3, 1)


class Backbone:
    """The frozen network: images [B][H][H][3] -> features [B][h][h][C] in units of each channel's deviation."""

    def __init__(self, path):
        self.model, self.meta = load_vit(path)
        self.patch, self.size = self.model.patch_size, self.model.input_size
        self.dim = self.model.norm.weight.numel()
        self.deviation = torch.ones(self.dim)

    @torch.no_grad()
    def __call__(self, images, cuts):
        side = images.shape[1] // self.patch
        tokens = self.model(images.permute(0, 3, 1, 2).contiguous(), cuts)[:, 1:]
        return tokens.view(len(images), side, side, -1) / self.deviation

    def measure(self, windows):
        var = self(windows.images, windows.cuts).var((0, 1, 2))
        self.deviation = (var + .05 * var.mean()).sqrt()

    def see(self, view, windows):
        """The features of one view of each window, at its place on the position embedding's grid."""
        cuts = windows.cuts + np.round(view.corner / self.patch).astype(int)
        cuts = cuts.clip(0, (self.size - view.grid.shape[1]) // self.patch)
        return self(view.of(windows.images), cuts)


# ---------------------------------------------------------------- loss

def reconstruction(windows, views, backbone, stack, down):
    """-> loss, logs: every view is seen through the features after each stage."""
    low = backbone(windows.images, windows.cuts)
    directions = F.normalize(torch.randn(backbone.dim, CHANNELS), dim=0)
    results = stack(torch.cat([low @ directions, down.attention(low)], -1), windows.images)
    loss, logs = 0, {}
    for view in views:
        seen = backbone.see(view, windows)
        log_scale = down.uncertainty(seen)
        for stage, high in enumerate(results):
            error = (down(view.of(high), stage) - seen @ directions) ** 2
            likelihood = (error / (2 * (2 * log_scale).exp()) + log_scale).mean()
            loss = loss + likelihood / (len(views) * len(results))
            logs.setdefault(f"error{stage + 1}", []).append(error.mean().item())
    return loss, {name: np.mean(v) for name, v in logs.items()}


@torch.no_grad()
def held_out(stack, backbone, pictures, side, view_side, n=24):
    """Squared errors of held-out views, features averaged in each patch without any learned downsampler: bilinear enlargement,
    then after each stage. In units of the variance of a channel; pictures, windows and views are the same at each call."""
    rng = np.random.default_rng(HELD_OUT)
    errors = []
    for i in range(n):
        windows = Windows(pictures, [HELD_OUT + i], rng, side, backbone.patch)
        low = backbone(windows.images, windows.cuts)
        maps = [resized(low, (side, side), "bilinear"), *stack(low, windows.images)]
        for _ in range(2):
            view = View(rng, side, view_side)
            seen = backbone.see(view, windows)
            errors.append([(resized(view.of(m), seen.shape[1:3], "area") - seen).square().mean().item() for m in maps])
    return np.mean(errors, 0)


# ---------------------------------------------------------------- training

class Optimizer:
    """NAdam, as FeatUp has it, with clipped gradients."""

    def __init__(self, parameters, lr):
        self.lr, self.parameters = lr, parameters
        self.inner = torch.optim.NAdam(parameters, lr=lr)

    def state(self):
        return self.inner.state_dict()

    def load(self, state):
        self.inner.load_state_dict(state)

    def step(self, scale):
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.)
        for group in self.inner.param_groups:
            group["lr"] = self.lr * scale
        self.inner.step()
        return norm.item()


def make_parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="folder for checkpoint.pt, log.txt and export/")
    p.add_argument("--minutes", type=float, default=25, help="wall time that the schedule ends at")
    p.add_argument("--backbone", default=SHIPPED, help="safetensors weights of the frozen network")
    p.add_argument("--photos", help="folder of photographs (none: drawn scenes alone)")
    p.add_argument("--resume", help="checkpoint.pt to go on with; options that are not given are the checkpoint's")
    p.add_argument("--stages", type=int, default=3)
    p.add_argument("--window", type=int, default=160, help="side of a window, pixels")
    p.add_argument("--view", type=int, default=112, help="side of a view, pixels")
    p.add_argument("--views", type=int, default=3, help="views of each window")
    p.add_argument("--windows", type=int, default=2, help="windows a step")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=1)
    return p


def main(arguments=None):
    a, saved = parse(make_parser(), arguments, lambda saved: {k: saved["args"][k] for k in ("backbone", "stages")})
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    backbone = Backbone(a.backbone)
    pictures, drawn_only = Pictures(backbone.size, a.photos), Pictures(backbone.size)
    first = FIRST_SEED + a.seed * 2 ** 28
    backbone.measure(Windows(pictures, range(first, first + 64), np.random.default_rng(a.seed), a.window, backbone.patch))
    stack, down = Stack(a.stages), Downsampler(backbone.dim, backbone.patch, a.stages)
    trained = {**{f"stack.{n}": p for n, p in stack.named_parameters()}, **{f"down.{n}": p for n, p in down.named_parameters()}}
    followed = dict(stack.named_parameters())
    run = Run(a.out, a.minutes, 50, trained, followed, Optimizer(list(trained.values()), a.lr),
              {n: v.detach().clone() for n, v in followed.items()})
    if saved:
        stack.load_state_dict(saved["stack"]), down.load_state_dict(saved["down"]), run.load(saved)

    def save():
        save_atomically(os.path.join(a.out, "checkpoint.pt"),
                        {**run.state(), "stack": stack.state_dict(), "down": down.state_dict(), "args": vars(a)})
        meta = {"samlad.model": "featup", "samlad.name": "featup_tiny", "featup.backbone": os.path.basename(a.backbone),
                "training.steps": run.step, "training.seed": a.seed, "training.minutes": f"{run.seconds() / 60:.1f}"}
        safetensors_io.save(os.path.join(a.out, "export", "featup_tiny.safetensors"), official(run.ema), meta)

    def judged():
        average = Stack(a.stages)
        average.load_state_dict(run.ema)
        errors = held_out(average, backbone, drawn_only, a.window, a.view)
        return "held out: bilinear %.4f, stages %s" % (errors[0], " ".join("%.4f" % e for e in errors[1:]))

    run.log(f"start: {sum(p.numel() for p in followed.values())} parameters, {vars(a)}")
    while (progress := run.progress()) < 1:
        rng = np.random.default_rng([a.seed, run.step])
        torch.manual_seed(int(rng.integers(2 ** 62)))
        seeds = range(first + 64 + run.step * a.windows, first + 64 + (run.step + 1) * a.windows)
        windows = run.drawn(lambda: Windows(pictures, seeds, rng, a.window, backbone.patch))
        views = [View(rng, a.window, a.view) for _ in range(a.views)]
        loss, logs = reconstruction(windows, views, backbone, stack, down)
        run.descend(loss, {"loss": loss.item(), **logs}, progress, save)
        if run.step % 500 == 0:
            run.log(judged())
    save()
    run.log(f"end: step {run.step}, {judged()}")


if __name__ == "__main__":
    main()
