#!/usr/bin/env python3
"""Trains the tiny SAM that samlad ships, on procedural scenes, within a given wall time on one CPU core.

    python train_sam.py --out DIR --minutes 100                 a run from nothing
    python train_sam.py --out DIR --resume DIR/last.pt          goes on with a checkpoint, its schedule and its options
    python train_sam.py --out DIR --minutes 60 --init weights/sam_tiny.safetensors --lr-scale 0.5
    ... --image-size 224                                        the same weights, position tables stretched to another size

Every step: B new scenes; A points an image. A dense auxiliary head (dropped at the end) turns the neck's output into
embeddings of the finest grid, predicts the mask of each of the A points by a dot product, and where boundaries run; the real
decoder does R of the points. Losses of a mask: weighted cross entropy + focal + dice. Of the three outputs the best pays for
the object under the point, the best other one for the whole that the object belongs to; output 0 (single mask) and the IoU
head learn too. Some prompts are boxes; every few steps a second round corrects a mask with a second point and the first mask
as mask prompt.
Hidden matrices are trained by Muon (orthogonalised momentum), the rest by AdamW; the weights that ship are an average (EMA).
The learning rate follows the wall clock, so that a run ends when it should. Seeds: training below 2^40, held out from 2^41.
"""
import argparse
import math
import os
import time
import typing

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import safetensors_io
from run import Run, parse, save_atomically
from sam_model import (BF16, CONFIG, PIXEL_MEAN, PIXEL_STD, MaskSumsFunction, TinySam, call, config_from_metadata, linear,
                       metadata, unfold_masks)
from scenes import MIXED, TRAY, Scenes

HELD_OUT = 1 << 41
EDGE_WEIGHT = 48  # cells at object boundaries count three times (the others 16)
# Recommended options: for masks to look at (with every part), and where they differ, for the method's objects (each thing
# once).
RECOMMENDED = {"amg.points_per_side": 16, "amg.pred_iou_thresh": 0.5, "amg.stability_score_thresh": 0.6,
               "amg.stability_score_offset": 1.0, "amg.box_nms_thresh": 0.9, "amg.crop_n_layers": 1, "amg.crop_nms_thresh": 0.95,
               "amg.crop_n_points_downscale_factor": 1, "amg.min_mask_region_area": 0,
               "objects.pred_iou_thresh": 0.6, "objects.stability_score_thresh": 0.7, "objects.box_nms_thresh": 0.8,
               "objects.crop_nms_thresh": 0.8, "objects.crop_own_points": 1}


# ---------------------------------------------------------------- scenes to batches

def turned(rgb, ids, turns):
    """Flipped or turned by quarters, one of eight ways."""
    if turns & 1:
        rgb, ids = rgb[:, ::-1], ids[:, ::-1]
    if turns & 2:
        rgb, ids = rgb[::-1], ids[::-1]
    if turns & 4:
        rgb, ids = rgb.transpose(1, 0, 2), ids.T
    return rgb, ids


def crop_boxes(side, layer=1):
    """The crops (x0, y0, x1, y1) of a square picture in a layer of the official generator, 2^layer a side: their overlap, a share
    of the picture, is rounded down, their sides up."""
    n = 2 ** layer
    overlap = int(512 / 1500 * side * (2 / n))
    length = -(-(overlap * (n - 1) + side) // n)
    starts = [i * (length - overlap) for i in range(n)]
    return [(x, y, min(x + length, side), min(y + length, side)) for x in starts for y in starts]


def load_scene(scenes, seed, difficulty, side, rng, trays=0.0, crops=0.0):
    """-> image [h][w][3] u8 and ids [h][w] with max(h, w) = side, objects. Rendered at this size, or larger and reduced,
    sometimes a part of it; flipped or turned by quarters. `trays` is the chance of a tray in place of the mixture, `crops`
    that of a crop of the automatic masks' first two layers."""
    kind = TRAY if rng.random() < trays else MIXED
    size = w = h = side
    if rng.random() < crops:
        boxes = crop_boxes(side, 1 + int(rng.integers(0, 2)))
        x, y, x1, y1 = boxes[int(rng.integers(0, len(boxes)))]
        w, h = x1 - x, y1 - y
    elif rng.random() < 0.6:
        x = y = 0
    else:
        size = w = h = int(rng.integers(180, 289))
        if rng.random() < 0.4:  # a window of the scene, not always square
            scale = rng.uniform(0.5, 1.0)
            w, h = (max(48, int(size * scale * rng.uniform(0.65, 1.0))) for _ in range(2))
        x, y = int(rng.integers(0, size - w + 1)), int(rng.integers(0, size - h + 1))
    rgb, ids, _, objects = scenes.render(seed, difficulty=difficulty, kind=kind, size=size)
    if max(w, h) != side or size != side:
        new_w, new_h = (int(v * side / max(w, h) + 0.5) for v in (w, h))
        rgb = np.asarray(Image.fromarray(rgb[y:y + h, x:x + w]).resize((new_w, new_h), Image.BILINEAR))
        rows = y + ((np.arange(new_h) + 0.5) * h / new_h).astype(int)
        cols = x + ((np.arange(new_w) + 0.5) * w / new_w).astype(int)
        ids = ids[rows[:, None], cols[None, :]]
    rgb, ids = turned(rgb, ids, int(rng.integers(0, 8)))
    return rgb, ids, objects


def families(objects):
    """[256][256] u8: row i marks id i and everything that is part of it; and the root of every id."""
    n = len(objects)
    marks = np.eye(256, dtype=np.uint8)
    roots = np.arange(256)
    for i in range(n - 1, -1, -1):  # parents come before their parts
        parent = objects["parent"][i]
        if parent >= 0:
            marks[parent + 1] |= marks[i + 1]
    for i in range(n):
        parent = objects["parent"][i]
        if parent >= 0:
            roots[i + 1] = roots[parent + 1]
    return marks, roots


def whole_of(i, objects, marks, roots, rng):
    """The composite that a point on id i may also mean: i with its parts, or the carrier that i is a part of."""
    parent = objects["parent"][i - 1] if i > 0 else -1
    has_parts = i > 0 and marks[i].sum() > 1
    if has_parts and (parent < 0 or rng.random() < 0.5):
        return marks[i]
    return marks[parent + 1] if parent >= 0 else None


class Batch:
    """B scenes with A points each, as tensors."""

    def __init__(self, scenes, model, B, A, difficulty, seeds, rng, trays=0.0, crops=0.0):
        side, g = model.c["image_size"], model.grid
        self.images = torch.zeros(B, 3, side, side)
        self.xy = np.zeros((B, A, 2), np.float32)
        self.boxes = np.zeros((B, A, 4), np.float32)
        self.has_whole = np.zeros((B, A), bool)
        self.area = np.zeros((B, A), np.float32)
        self.targets = np.zeros((B, A, 2, 16 * g * g), np.uint8)
        self.weights = np.zeros((B, 16 * g * g), np.uint8)
        mean, std = np.float32(PIXEL_MEAN), np.float32(PIXEL_STD)
        for b in range(B):
            rgb, ids, objects = load_scene(scenes, int(seeds[b]), float(difficulty[b]), side, rng, trays, crops)
            h, w = ids.shape
            self.images[b, :, :h, :w] = torch.from_numpy(((rgb - mean) / std).transpose(2, 0, 1))
            padded = np.full((side, side), 255, np.uint16)
            padded[:h, :w] = ids
            counts = np.bincount(ids.ravel(), minlength=256)
            counts[255] = 0
            candidates = np.flatnonzero(counts >= 10)
            chance = np.clip(np.sqrt(counts[candidates] / (0.008 * side * side)), 0.2, 1.0)  # small ones nearly as often
            chance[candidates == 0] = 0.6
            picks = rng.choice(candidates, A, p=chance / chance.sum())
            marks, roots = families(objects)
            member = np.zeros((A, 2, 256), np.uint8)
            pixels = {i: np.flatnonzero(ids.ravel() == i) for i in set(picks.tolist())}
            for a, i in enumerate(picks.tolist()):
                at = pixels[i][rng.integers(len(pixels[i]))]
                self.xy[b, a] = at % w, at // w
                whole = whole_of(i, objects, marks, roots, rng)
                self.has_whole[b, a] = whole is not None
                member[a, 0, i], member[a, 1] = 1, whole if whole is not None else 0
                ys, xs = pixels[i] // w, pixels[i] % w
                self.boxes[b, a] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
                self.area[b, a] = len(pixels[i]) / (h * w) if i > 0 else 0  # the background is no object
            call("fold_targets", 2 * A, g, padded, member, self.targets[b])
            call("fold_weights", g, h, w, EDGE_WEIGHT, padded, self.weights[b])
        self.xy, self.boxes = torch.from_numpy(self.xy), torch.from_numpy(self.boxes)
        self.targets, self.weights = torch.from_numpy(self.targets), torch.from_numpy(self.weights)
        self.has_whole, self.area = torch.from_numpy(self.has_whole), torch.from_numpy(self.area)


# ---------------------------------------------------------------- another image size

def stretch_tables(tensors, config, image_size):
    """Absolute and relative positions interpolated from the size in `config` to `image_size`; windows keep their
    share of the grid. Everything else of SAM is free of the size. -> tensors, config."""
    c = dict(config, image_size=image_size)
    grid, before = image_size // c["patch_size"], config["image_size"] // c["patch_size"]
    c["window_size"] = max(1, config["window_size"] * grid // before)
    result = {}
    for name, value in tensors.items():
        x = torch.from_numpy(value.astype(np.float32))
        if name.endswith("image_encoder.pos_embed"):
            x = F.interpolate(x.permute(0, 3, 1, 2), (grid, grid), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        elif "rel_pos" in name:
            block = int(name.split("blocks.")[1].split(".")[0])
            side = grid if block in c["global_attn_indexes"] else c["window_size"]
            x = F.interpolate(x.t().unsqueeze(0), 2 * side - 1, mode="linear", align_corners=False)[0].t()
        result[name] = x.contiguous().numpy()
    return result, c


# ---------------------------------------------------------------- losses

def mask_losses(sums, targets, weights):
    """sums [P][M][K][6], targets u8 [P][K][n], weights u8 [P][n] -> loss [P][M][K], hard IoU [P][M][K]."""
    valid = (weights > 0).unsqueeze(1)
    total = weights.sum(-1, dtype=torch.float32).view(-1, 1, 1) / 16
    t_area = (targets.sum(-1, dtype=torch.float32) / 255).unsqueeze(1)
    t_hard = ((targets > 127) & valid).sum(-1, dtype=torch.float32).unsqueeze(1)
    bce, focal, inter, area, hard_inter, hard = sums.unbind(-1)
    dice = 1 - (2 * inter + 1) / (area + t_area + 1)
    iou = hard_inter / (hard + t_hard - hard_inter).clamp(min=1)
    return 2 * bce / total + 5 * focal / total + dice, iou.detach()


class DenseHead(nn.Module):
    """Auxiliary: embeddings of the finest grid from the neck's output and its position; logits = <q at the point, k everywhere>.
    """

    def __init__(self, channels, dim=16):
        super().__init__()
        self.dim = dim
        self.w = nn.Parameter(torch.randn(2 * dim * 16, channels) / math.sqrt(channels))
        self.b = nn.Parameter(torch.zeros(2 * dim * 16))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.edge_w, self.edge_b = nn.Parameter(torch.zeros(16, channels)), nn.Parameter(torch.full((16,), -2.0))

    def edges(self, embedding, weights):
        """Cross entropy of 'an object boundary runs through this fine cell' for every cell inside the image."""
        logits = linear(embedding, self.edge_w, self.edge_b).float().transpose(1, 2).reshape(weights.shape)
        return F.binary_cross_entropy_with_logits(logits, (weights == EDGE_WEIGHT).float(), (weights > 0).float())

    def forward(self, embedding, position, xy, grid, patch):
        B, N, _ = embedding.shape
        A = xy.shape[1]
        qk = linear(embedding + position, self.w, self.b).float().view(B, N, 16, 2, self.dim)
        fine = (xy / (patch / 4)).long()
        cell = (fine[..., 1] // 4) * grid + fine[..., 0] // 4
        y, x = fine[..., 1] % 4, fine[..., 0] % 4
        sub = ((y // 2) * 2 + x // 2) * 4 + (y % 2) * 2 + x % 2
        q = qk[torch.arange(B).view(-1, 1), cell, sub, 0]
        k = qk[:, :, :, 1].permute(0, 3, 2, 1).reshape(B, self.dim, 16 * N)
        return (torch.bmm(q / self.dim ** 0.5, k) + self.bias).view(B * A, 1, 16 * N)


class Asked(typing.NamedTuple):
    """P = B*R prompts and the decoder's answers."""
    coordinates: torch.Tensor  # [P][2][2]
    labels: torch.Tensor  # [P][2]
    is_box: torch.Tensor  # [P]
    targets: torch.Tensor  # [P][2][n] u8: the object, the whole
    weights: torch.Tensor  # [P][n] u8
    has_whole: torch.Tensor  # [P]: a point on something that has or is part of a composite
    logits: torch.Tensor  # [P][M][n]
    predicted: torch.Tensor  # [P][M] the IoU head's
    iou: torch.Tensor  # [P][M][2]


def point_loss(model, batch, embedding, R, rng, box_share=0.2, all_masks=True):
    """The decoder on the first R points of every image, some of them as boxes. -> the masks' loss, logs, Asked."""
    B = embedding.shape[0]
    P = B * R
    xy, boxes = batch.xy[:, :R].reshape(P, 2), batch.boxes[:, :R].reshape(P, 4)
    is_box = torch.from_numpy(rng.random(P) < box_share)
    noise = torch.from_numpy(rng.normal(0, 0.05, (P, 4)).astype(np.float32)).clamp(-0.1, 0.1)
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = (boxes + noise * size).clamp(0, model.c["image_size"])
    coordinates = torch.where(is_box.view(-1, 1, 1), boxes.view(P, 2, 2), torch.stack([xy, torch.zeros_like(xy)], 1))
    labels = torch.where(is_box.view(-1, 1), torch.tensor([[2, 3]]), torch.tensor([[1, -1]]))
    logits, predicted = model.decode(embedding, model.p["prompt_encoder.no_mask_embed.weight"],
                                     model.embed_prompts(coordinates, labels))
    targets = batch.targets[:, :R].reshape(P, 2, -1)
    weights = batch.weights.repeat_interleave(R, 0)
    loss, iou = mask_losses(MaskSumsFunction.apply(logits, targets, weights), targets, weights)
    has_whole = batch.has_whole[:, :R].reshape(P) & ~is_box

    leaf, whole = loss[:, 1:, 0], loss[:, 1:, 1]
    best, which = leaf.min(1)
    other = whole.scatter(1, which.view(-1, 1), 1e9).min(1)[0]
    total = best.mean() + 0.5 * torch.where(has_whole, other, torch.zeros_like(other)).mean()
    total = total + (0.3 * loss[:, 0, 0]).mean()
    if all_masks:  # now and then all three, so that none of them dies
        total = total + 0.15 * leaf.mean()
    logs = {"mask": best.mean().item(), "iou": iou[:, 1:, 0].max(1)[0].mean().item(), "single": iou[:, 0, 0].mean().item()}
    return total, logs, Asked(coordinates, labels, is_box, targets, weights, has_whole, logits, predicted, iou)


def head_loss(asked):
    """The IoU head's squared error: a point may mean the object or the whole, whichever a mask fits better."""
    iou = asked.iou
    return F.mse_loss(asked.predicted, torch.where(asked.has_whole.view(-1, 1), iou.max(-1)[0], iou[..., 0]))


def second_round(model, embedding, asked, rng, per_image=4):
    """Corrects some masks of the first round: a second point in the wrong region, the first logits as mask prompt."""
    B, g = embedding.shape[0], model.grid
    R = len(asked.labels) // B
    rows = torch.from_numpy(np.concatenate([b * R + rng.choice(R, per_image, replace=False) for b in range(B)]))
    best = asked.iou[rows, :, 0].argmax(1)
    previous = unfold_masks(asked.logits.detach()[rows, best], g)
    targets, weights = asked.targets[rows, :1].contiguous(), asked.weights[rows]
    wanted = unfold_masks((targets[:, 0] > 127) & (weights > 0), g)
    valid = unfold_masks(weights > 0, g)
    wrong = ((previous > 0) != wanted) & valid
    points, signs = torch.zeros(len(rows), 1, 2), torch.full((len(rows), 1), -1)
    for k in range(len(rows)):
        places = np.flatnonzero(wrong[k].numpy().ravel())
        if len(places):
            at = int(places[rng.integers(len(places))])
            points[k, 0] = torch.tensor([at % (4 * g) * 2 + 0.5, at // (4 * g) * 2 + 0.5])
            signs[k, 0] = int(wanted[k].reshape(-1)[at])
    sparse = model.embed_prompts(torch.cat([points, asked.coordinates[rows]], 1), torch.cat([signs, asked.labels[rows]], 1))
    dense = model.embed_masks(previous.unsqueeze(1).clamp(-12, 12))
    logits, predicted = model.decode(embedding.repeat_interleave(per_image, 0), dense, sparse)
    loss, iou = mask_losses(MaskSumsFunction.apply(logits, targets, weights), targets, weights)
    total = loss[:, 0, 0].mean() + loss[:, 1:, 0].min(1)[0].mean() + F.mse_loss(predicted, iou[..., 0])
    return total, iou[:, 0, 0].mean().item()


# ---------------------------------------------------------------- optimiser

class Optimizer:
    """Muon for the hidden matrices, AdamW for the rest. Moments are part of the checkpoint."""

    def __init__(self, named, muon_lr, adam_lr, decay):
        self.rates = muon_lr, adam_lr, decay
        self.named = {n: p for n, p in named.items() if not n.endswith("k_proj.bias")}  # softmax ignores k's bias
        self.muon = {}
        for name, p in self.named.items():
            inside = ("blocks." in name or "transformer." in name) and "rel_pos" not in name
            if inside and p.ndim == 2 and min(p.shape) >= 32:
                self.muon[name] = torch.zeros_like(p)
        self.adam = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.named.items() if n not in self.muon}
        self.steps = 0

    def state(self):
        return {"muon": self.muon, "adam": self.adam, "steps": self.steps}

    def load(self, state):
        self.steps = state["steps"]
        for name in self.muon:
            self.muon[name].copy_(state["muon"][name])
        for name in self.adam.keys() & state["adam"].keys():
            for mine, saved in zip(self.adam[name], state["adam"][name]):
                mine.copy_(saved)

    @staticmethod
    def orthogonalise(m):
        """Newton-Schulz, five steps of Muon's quintic, on a batch of matrices [n][rows <= cols][cols]."""
        x = m / (m.norm(dim=(1, 2), keepdim=True) + 1e-7)
        x = x.to(BF16)
        for _ in range(5):
            a = torch.bmm(x, x.transpose(1, 2))
            b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
            x = torch.baddbmm(x, b, x, beta=3.4445)
        return x.float()

    @torch.no_grad()
    def step(self, scale, clip=1.0):
        muon_lr, adam_lr, decay = (self.rates[0] * scale, self.rates[1] * scale, self.rates[2])
        self.steps += 1
        grads = [p.grad for p in self.named.values() if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(grads)).norm().item()
        factor = min(1.0, clip / (norm + 1e-6))
        if not math.isfinite(norm):
            return norm
        torch._foreach_mul_(grads, factor)
        groups = {}
        for name, moment in self.muon.items():
            p = self.named[name]
            moment.mul_(0.95).add_(p.grad)
            update = p.grad + 0.95 * moment
            for piece, target in zip(update.chunk(3) if "qkv" in name else [update], p.chunk(3) if "qkv" in name else [p]):
                wide = piece.shape[0] <= piece.shape[1]
                piece = piece if wide else piece.t()
                groups.setdefault(tuple(piece.shape), []).append((piece, target, wide))
        for pieces in groups.values():
            result = self.orthogonalise(torch.stack([piece for piece, _, _ in pieces]))
            for x, (_, target, wide) in zip(result, pieces):
                x = x if wide else x.t()
                target.mul_(1 - muon_lr * decay).add_(x, alpha=-muon_lr * math.sqrt(max(1.0, x.shape[0] / x.shape[1])))
        names = [n for n in self.adam if self.named[n].grad is not None]
        p, g = [self.named[n] for n in names], [self.named[n].grad for n in names]
        m, v = [self.adam[n][0] for n in names], [self.adam[n][1] for n in names]
        torch._foreach_mul_(m, 0.9), torch._foreach_add_(m, g, alpha=0.1)
        torch._foreach_mul_(v, 0.98), torch._foreach_addcmul_(v, g, g, 0.02)
        c1, c2 = 1 - 0.9 ** self.steps, 1 - 0.98 ** self.steps
        bottom = torch._foreach_sqrt(v)
        torch._foreach_add_(bottom, 1e-8 * math.sqrt(c2))
        torch._foreach_addcdiv_(p, m, bottom, -adam_lr * math.sqrt(c2) / c1)
        return norm


# ---------------------------------------------------------------- the run

def held_out(model, scenes, n_images, first, R=24):
    """Point prompts on held-out scenes (low-resolution IoU): quick figures for the log; eval_sam.py measures properly."""
    rng, best, single = np.random.default_rng(1), [], []
    with torch.no_grad():
        for i in range(0, n_images, 8):
            batch = Batch(scenes, model, 8, R, np.ones(8), first + i + np.arange(8), rng)
            xy = batch.xy.view(-1, 1, 2)
            sparse = model.embed_prompts(torch.cat([xy, 0 * xy], 1), torch.tensor([[1, -1]]).repeat(len(xy), 1))
            logits, pred = model.decode(model.encode(batch.images), model.p["prompt_encoder.no_mask_embed.weight"], sparse)
            targets, weights = batch.targets.view(8 * R, 2, -1)[:, :1].contiguous(), batch.weights.repeat_interleave(R, 0)
            _, iou = mask_losses(MaskSumsFunction.apply(logits, targets, weights), targets, weights)
            keep = batch.area.view(-1) > 0.01
            iou, pred = iou[keep, :, 0], pred[keep]
            best.append(iou[:, 1:].max(1)[0]), single.append(iou[:, 0])
    best, single = torch.cat(best), torch.cat(single)
    return {"best": best.mean().item(), "at75": (best >= 0.75).float().mean().item(), "single": single.mean().item()}


def held_out_average(config, ema, scenes, n_images):
    model = TinySam(config)
    model.load_official(ema)
    return f"held out (EMA, {n_images} images): {held_out(model, scenes, n_images, HELD_OUT)}"


def read_weights(path, image_size=None):
    """-> tensors, config, the other metadata of the file; positions are stretched for another image size."""
    tensors, meta = safetensors_io.load(path)
    config = config_from_metadata(meta)
    if image_size and image_size != config["image_size"]:
        tensors, config = stretch_tables(tensors, config, image_size)
    tensors = {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()}
    return tensors, config, {k: v for k, v in meta.items() if not k.startswith(("samlad.", "sam."))}


def export(path, model, ema, carried, extra):
    """The average with its metadata: that of the first weights' file (`carried`), changed by this training."""
    state = {name: value.numpy().astype(np.float16) for name, value in ema.items()}
    safetensors_io.save(path, state, metadata(model.c, {**carried, **RECOMMENDED, **extra}))


def named_parameters(model):
    return {name.replace("/", "."): p for name, p in model.named_parameters()}


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for checkpoints, log.txt and export/")
    parser.add_argument("--minutes", type=float, default=100, help="wall time that the schedule ends at (over all resumes)")
    parser.add_argument("--resume", help="checkpoint to go on with; options that are not given are the checkpoint's")
    parser.add_argument("--init", help="safetensors file to start from")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, default=8, help="images a step")
    parser.add_argument("--points", type=int, default=24, help="points an image for the dense head")
    parser.add_argument("--decoded", type=int, default=20, help="of these, for the decoder")
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--adam-lr", type=float, default=0.0015)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--lr-scale", type=float, default=1.0)
    parser.add_argument("--trays", type=float, default=0.0, help="share of the scenes drawn as trays before the mixture is asked")
    parser.add_argument("--crops", type=float, default=0.0, help="share of the scenes seen through a crop of the automatic masks")
    parser.add_argument("--iou-weight", type=float, default=1.0, help="weight of the IoU head's squared error")
    parser.add_argument("--image-size", type=int, help="with --init: train at this size instead of the file's")
    parser.add_argument("--curriculum", type=float, default=0.3, help="share of the run until all scenes are hard")
    return parser


def fixed(saved):
    """The options that a resumed run cannot change."""
    return {"image_size": (saved.get("config") or CONFIG)["image_size"], "init": saved["args"].get("init")}


def main(arguments=None):
    args, saved = parse(make_parser(), arguments, fixed)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tensors, config, carried = None, None, {}
    if saved:
        tensors, config, carried = saved["model"], saved.get("config"), saved.get("carried", {})
    elif args.init:
        tensors, config, carried = read_weights(args.init, args.image_size)
    model = TinySam(config, seed=args.seed)
    dense = DenseHead(model.c["out_chans"])
    if tensors:
        model.load_official(tensors)
    named = {**named_parameters(model), **{"dense." + n: p for n, p in dense.named_parameters()}}
    optimizer = Optimizer(named, args.muon_lr * args.lr_scale, args.adam_lr * args.lr_scale, args.decay)
    scenes, images = Scenes(), 0
    run = Run(args.out, args.minutes, 200, named, model.p, optimizer, model.official_state())
    if saved:
        dense.load_state_dict(saved["dense"], strict=False)
        run.load(saved)
        images = saved["images"]

    def checkpoint():
        save_atomically(os.path.join(args.out, "last.pt"), {
            "config": dict(model.c), "model": model.official_state(), "dense": dense.state_dict(), **run.state(),
            "images": images, "args": vars(args), "carried": carried})
        export(os.path.join(args.out, "export", "sam_tiny.safetensors"), model, run.ema, carried,
               {"training.steps": run.step, "training.images": images, "training.seed": args.seed,
                "training.minutes": f"{run.seconds() / 60:.1f}"})

    checkpoint()
    run.log(f"start: {sum(p.numel() for p in model.parameters())} parameters, {vars(args)}")
    last_eval = time.time()
    while (progress := run.progress()) < 1:
        step = run.step
        rng = np.random.default_rng([args.seed, step])
        ramp = min(1.0, progress / max(args.curriculum, 1e-6)) if not args.init else 1.0
        difficulty = np.clip((0.25 + 0.75 * ramp) * rng.uniform(0.3 + 0.7 * ramp, 1.0, args.images), 0, 1)
        seeds = rng.integers(0, 1 << 40, args.images)
        batch = run.drawn(lambda: Batch(scenes, model, args.images, args.points, difficulty, seeds, rng, args.trays, args.crops))
        embedding = model.encode(batch.images)

        aux_weight = 1.0 if progress < 0.5 else max(0.0, 1.0 - (progress - 0.5) / 0.4)
        loss, logs, asked = point_loss(model, batch, embedding, args.decoded, rng, all_masks=step % 4 == 0)
        head = head_loss(asked)
        loss, logs["head"] = loss + args.iou_weight * head, head.item()
        if aux_weight > 0:
            logits = dense(embedding, model.grid_position().to(BF16), batch.xy, model.grid, model.c["patch_size"])
            targets = batch.targets[:, :, :1].reshape(logits.shape[0], 1, -1)
            weights = batch.weights.repeat_interleave(args.points, 0)
            aux, aux_iou = mask_losses(MaskSumsFunction.apply(logits, targets, weights), targets, weights)
            edges = dense.edges(embedding, batch.weights)
            loss = loss + aux_weight * (0.4 * aux.mean() + 2 * edges)
            logs["dense"], logs["edges"] = aux_iou.mean().item(), edges.item()
        if step % 4 == 3:
            more, logs["refined"] = second_round(model, embedding, asked, rng)
            loss = loss + 0.5 * more
        images += args.images
        run.descend(loss, logs, progress, checkpoint)
        if time.time() - last_eval > 600:
            run.log(held_out_average(model.c, run.ema, scenes, 48))
            last_eval = time.time()
    checkpoint()
    run.log(f"end: step {run.step}, {images} images, {held_out_average(model.c, run.ema, scenes, 128)}")


if __name__ == "__main__":
    main()
