#!/usr/bin/env python3
"""Trains the tiny SAM's mask decoder further, alone, on the prompts of the automatic mask generator.

    python train_sam_decoder.py --init weights/sam_tiny.safetensors --out DIR --minutes 60

train_sam.py asks at objects, in whole pictures. The generator asks on a grid, mostly in enlarged crops. Of all masks of a
thing it keeps the one with the highest predicted IoU, so the IoU head decides which parts are found. Here three of four
views are crops of the generator's first layer, and a third of the points lie on its grid. The IoU head gets a high weight.
It learns the IoU with the object or composite of the view that the mask fits best. The masks' losses are train_sam.py's.
The image encoder and the prompt encoder do not change. Muon trains the hidden matrices, AdamW the rest. The learning rate
falls with the wall clock. The average (EMA) of the weights ships.
"""
import argparse
import os

import numpy as np
import torch
from PIL import Image

from run import Run
from sam_model import PIXEL_MEAN, PIXEL_STD, TinySam, call, unfold_masks
from scenes import MIXED, TRAY, Scenes
from train_sam import (EDGE_WEIGHT, Optimizer, crop_boxes, export, families, held_out_average, named_parameters, point_loss,
                       read_weights, second_round, turned, whole_of)

SIZE = 256  # pixels of a scene
GRID = 16  # points a side of the generator's grid
CROP_SHARE = 0.75  # of the views
GRID_SHARE = 1 / 3  # of the points
BOX_SHARE = 0.15  # of the prompts: forgotten within minutes when they are never asked
IOU_WEIGHT = 15
SMALLEST = 10  # pixels of an object in a view


# ---------------------------------------------------------------- views, points, targets

def load_view(scenes, crops, side, trays, rng):
    """-> rgb [side][side][3] u8, ids [side][side] u16, objects, which of its borders (left, top, right, bottom) cut the scene."""
    kind = TRAY if rng.random() < trays else MIXED
    rgb, ids, _, objects = scenes.render(int(rng.integers(0, 1 << 40)), 0, float(rng.uniform(0.5, 1)), kind, SIZE)
    rgb, ids = turned(rgb, ids, int(rng.integers(0, 8)))
    x0, y0, x1, y1 = crops[int(rng.integers(len(crops)))] if rng.random() < CROP_SHARE else (0, 0, SIZE, SIZE)
    rgb = np.ascontiguousarray(rgb[y0:y1, x0:x1])
    if rgb.shape[:2] != (side, side):
        rgb = np.asarray(Image.fromarray(rgb).resize((side, side), Image.BILINEAR))
    rows, columns = (a + ((np.arange(side) + 0.5) * (b - a) / side).astype(int) for a, b in ((y0, y1), (x0, x1)))
    ids = np.ascontiguousarray(ids[rows[:, None], columns[None]].astype(np.uint16))
    return rgb, ids, objects, (x0 > 0, y0 > 0, x1 < SIZE, y1 < SIZE)


def draw_points(ids, counts, n, rng):
    """[(x, y)]: most of them in an object each, small ones nearly as often as large ones, the rest on the generator's grid."""
    side = ids.shape[0]
    candidates = np.flatnonzero(counts >= SMALLEST)
    chance = np.clip(counts[candidates] / (0.008 * side * side), 0.2, 1.0)
    chance[candidates == 0] = 0.4
    on_grid = int(n * GRID_SHARE)
    points = []
    for i in rng.choice(candidates, n - on_grid, p=chance / chance.sum()):
        at = np.flatnonzero(ids.ravel() == i)
        at = int(at[rng.integers(len(at))])
        points.append((at % side, at // side))
    step = side // GRID
    return points + [(int(x) * step + step // 2, int(y) * step + step // 2) for x, y in rng.integers(0, GRID, (on_grid, 2))]


def all_things(counts, marks):
    """[K][256] u8: which ids each object and each composite of the view consists of."""
    things = [np.eye(256, dtype=np.uint8)[k] for k in np.flatnonzero(counts >= SMALLEST)]
    things += [marks[k] for k in range(1, 255) if marks[k].sum() > 1 and counts[marks[k] > 0].sum() >= SMALLEST]
    return np.array(things, np.uint8).reshape(-1, 256)


class Views:
    """B views with R points each, as tensors; masks in the folded order of the decoder (sam_model.fold_masks)."""

    def __init__(self, scenes, crops, model, B, R, trays, rng):
        side, g = model.c["image_size"], model.grid
        self.images = torch.zeros(B, 3, side, side)
        self.xy, self.boxes = torch.zeros(B, R, 2), torch.zeros(B, R, 4)
        self.cut, self.things = [], []
        has_whole = np.zeros((B, R), bool)
        targets, weights = np.zeros((B, R, 2, 16 * g * g), np.uint8), np.zeros((B, 16 * g * g), np.uint8)
        for b in range(B):
            rgb, ids, objects, cut = load_view(scenes, crops, side, trays, rng)
            self.images[b] = torch.from_numpy(((rgb - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)).transpose(2, 0, 1))
            self.cut.append(cut)
            counts = np.bincount(ids.ravel(), minlength=256)
            counts[255] = 0
            marks, roots = families(objects)
            member = np.zeros((R, 2, 256), np.uint8)
            for r, (x, y) in enumerate(draw_points(ids, counts, R, rng)):
                i = int(ids[y, x])
                whole = whole_of(i, objects, marks, roots, rng)
                ys, xs = np.nonzero(ids == i)
                self.xy[b, r] = torch.tensor([x, y])
                self.boxes[b, r] = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                member[r, 0, i], has_whole[b, r] = 1, whole is not None
                if whole is not None:
                    member[r, 1] = whole
            call("fold_targets", 2 * R, g, ids, member, targets[b])
            call("fold_weights", g, side, side, EDGE_WEIGHT, ids, weights[b])
            things = all_things(counts, marks)
            folded = np.zeros((len(things), 16 * g * g), np.uint8)
            call("fold_targets", len(things), g, ids, things, folded)
            self.things.append(torch.from_numpy(folded > 127))
        self.targets, self.weights = torch.from_numpy(targets), torch.from_numpy(weights)
        self.has_whole = torch.from_numpy(has_whole)

    def true_ious(self, masks, grid):
        """masks [P][M][n] bool -> the IoU of each with its best fit [P][M], and whether it touches a cut border [P][M]."""
        P, M, _ = masks.shape
        R = P // len(self.things)
        best, touches = torch.zeros(P, M), torch.zeros(P, M, dtype=torch.bool)
        for b, things in enumerate(self.things):
            rows = slice(b * R, (b + 1) * R)
            mine, wanted = masks[rows].reshape(R * M, -1).float(), things.float()
            both = mine @ wanted.t()
            either = mine.sum(1, keepdim=True) + wanted.sum(1) - both
            best[rows] = (both / either.clamp(min=1)).max(1)[0].view(R, M)
            picture = unfold_masks(masks[rows], grid)
            left, top, right, bottom = self.cut[b]
            for is_cut, border in ((left, picture[..., 0]), (top, picture[..., 0, :]), (right, picture[..., -1]),
                                   (bottom, picture[..., -1, :])):
                if is_cut:
                    touches[rows] |= border.any(-1)
        return best, touches


# ---------------------------------------------------------------- a step

def head_loss(views, asked, grid):
    """The IoU head's squared error, and its correlation with the truth among the masks that the generator would keep."""
    with torch.no_grad():
        true, touches = views.true_ious(asked.logits > 0, grid)
        true = torch.where(asked.is_box.view(-1, 1), asked.iou[..., 0], true)
        # the generator drops masks at cut borders; good ones matter more than bad ones, the single mask less
        weight = torch.where(touches & ~asked.is_box.view(-1, 1), 0.1, 1.0) * (0.3 + true)
        weight[:, 0] *= 0.5
    kept = ~touches[:, 1:]
    pair = torch.stack([asked.predicted.detach()[:, 1:][kept], true[:, 1:][kept]])
    return (weight * (asked.predicted - true) ** 2).sum() / weight.sum(), torch.corrcoef(pair)[0, 1].item()


def step_loss(model, views, R, step, rng):
    """-> loss, logs."""
    with torch.no_grad():
        embedding = model.encode(views.images)
    loss, logs, asked = point_loss(model, views, embedding, R, rng, BOX_SHARE, all_masks=step % 4 == 0)
    head, logs["correlation"] = head_loss(views, asked, model.grid)
    logs["head"] = head.item()
    loss = loss + IOU_WEIGHT * head
    if step % 4 == 3:
        more, logs["refined"] = second_round(model, embedding, asked, rng)
        loss = loss + 0.5 * more
    return loss, logs


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", required=True, help="safetensors file to start from")
    parser.add_argument("--out", required=True, help="folder for log.txt and export/")
    parser.add_argument("--minutes", type=float, default=60, help="wall time that the schedule ends at")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, default=8, help="views a step")
    parser.add_argument("--points", type=int, default=24, help="points a view")
    parser.add_argument("--trays", type=float, default=0.6, help="share of the scenes drawn as trays")
    parser.add_argument("--lr-scale", type=float, default=0.4)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tensors, config, carried = read_weights(args.init)
    model = TinySam(config)
    model.load_official(tensors)
    named = named_parameters(model)
    trained = {n: p for n, p in named.items() if n.startswith("mask_decoder.")}
    for name, p in named.items():
        p.requires_grad_(name in trained)
    optimizer = Optimizer(trained, 0.01 * args.lr_scale, 0.0015 * args.lr_scale, 0.05)
    scenes, crops = Scenes(), crop_boxes(SIZE)
    run = Run(args.out, args.minutes, 100, trained, trained, optimizer, model.official_state())

    def save():
        export(os.path.join(args.out, "export", "sam_tiny.safetensors"), model, run.ema, carried,
               {"training.decoder_steps": run.step, "training.decoder_seed": args.seed})

    run.log(f"start: {sum(p.numel() for p in trained.values())} parameters, {vars(args)}")
    while (progress := run.progress()) < 1:
        rng = np.random.default_rng([args.seed, run.step, 5])
        views = run.drawn(lambda: Views(scenes, crops, model, args.images, args.points, args.trays, rng))
        loss, logs = step_loss(model, views, args.points, run.step, rng)
        run.descend(loss, logs, progress, save)
    save()
    run.log(f"end: step {run.step}, {run.step * args.images} views, {held_out_average(model.c, run.ema, scenes, 128)}")


if __name__ == "__main__":
    main()
