#!/usr/bin/env python3
"""Measures a tiny SAM file with the official classes on held-out scenes (seeds from 2^41; training uses seeds below 2^40).

    python eval_sam.py --segment-anything CHECKOUT --weights sam_tiny.safetensors -o sam_tiny.json

Points: for every object larger than 1 % of the image, one random point of its visible pixels; its mask is its visible area,
without the parts that are objects of their own. Masks are compared at the scene's resolution after SAM's own
post-processing. Automatic masks: the official generator with the settings in the file's metadata on tray scenes; a part (with
what is mounted on it) counts as found when a mask has IoU >= 0.75 with it. --samlad PROGRAM makes these masks with `samlad
segment` (the same ones, sooner, so on more scenes). --products N (with --samlad): also of the parts of N products of `samlad synth tray`,
which the demo draws and no training saw, five good images each. --tune instead searches those settings on other seeds.
"""
import argparse
import itertools
import json
import os
import subprocess
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torchvision.ops import batched_nms

import safetensors_io
from sam_model import config_from_metadata, official_sam
from scenes import TRAY, Scenes
from train_sam import HELD_OUT, families

POINT_SEEDS, TRAY_SEEDS, TUNE_SEEDS = HELD_OUT + 10_000_000, HELD_OUT + 20_000_000, HELD_OUT + 30_000_000
PRODUCT_SEEDS, IMAGES_A_PRODUCT = 1001, 5  # of `samlad synth tray`


def ious(masks, target):
    """masks [n][h][w] bool, target [h][w] bool -> [n]"""
    both = (masks & target).sum((1, 2))
    return both / np.maximum(masks.sum((1, 2)) + target.sum() - both, 1)


def measure_points(predictor, scenes, n_images, size, first=POINT_SEEDS, kind=0, difficulty=1.0, smallest=0.01):
    """-> a dictionary of figures over all objects larger than `smallest` of the image."""
    rng = np.random.default_rng(7)
    best, either, single, predicted, true, chosen = [], [], [], [], [], []
    for i in range(n_images):
        rgb, ids, _, objects = scenes.render(first + i, 0, difficulty, kind, size)
        wanted = [k + 1 for k in range(len(objects)) if objects["area"][k] > smallest * size * size]
        if not wanted:
            continue
        marks, _ = families(objects)
        points = []
        for k in wanted:
            at = np.flatnonzero(ids.ravel() == k)
            at = at[rng.integers(len(at))]
            points.append([at % size, at // size])
        predictor.set_image(rgb)
        xy = torch.as_tensor(predictor.transform.apply_coords(np.float32(points), (size, size)))[:, None]
        labels = torch.ones(len(points), 1, dtype=torch.int)
        masks, quality, _ = predictor.predict_torch(xy.float(), labels, multimask_output=True)
        one, _, _ = predictor.predict_torch(xy.float(), labels, multimask_output=False)
        masks, one = masks.numpy(), one.numpy()
        for j, k in enumerate(wanted):
            iou = ious(masks[j], ids == k)
            whole = ious(masks[j], marks[k][ids] > 0)
            best.append(iou.max()), either.append(max(iou.max(), whole.max())), single.append(ious(one[j], ids == k)[0])
            predicted.extend(quality[j].tolist()), true.extend(np.maximum(iou, whole).tolist())
            chosen.append(iou[int(quality[j].argmax())])
    best = np.array(best)
    return {"images": n_images, "size": size, "objects": len(best), "mean_best_iou": best.mean(),
            "share_at_075": (best >= 0.75).mean(), "median_best_iou": np.median(best),
            "mean_best_iou_object_or_whole": np.mean(either), "share_at_075_object_or_whole": np.mean(np.array(either) >= 0.75),
            "mean_single_mask_iou": np.mean(single), "mean_iou_of_highest_predicted": np.mean(chosen),
            "iou_head_correlation": np.corrcoef(predicted, true)[0, 1]}


def tray_parts(ids, objects):
    """Masks of the parts in a tray scene, without the tray and its floors; a mounted part belongs to the part below it."""
    marks, roots = families(objects)
    parts = []
    for k in range(1, len(objects)):
        if objects["parent"][k] < 0:
            mask = marks[k + 1][ids] > 0
            if mask.any():
                parts.append(mask)
    return parts


class SamladGenerator:
    """`samlad segment` with the settings in the weights' metadata in the official generator's place."""

    def __init__(self, program, weights, points_per_side):
        self.command = [os.path.abspath(program), "segment", "--sam", os.path.abspath(weights), "--points", str(points_per_side)]

    def generate(self, rgb):
        from segment_anything.utils.amg import rle_to_mask
        with tempfile.TemporaryDirectory() as folder:
            Image.fromarray(rgb).save(f"{folder}/scene.png")
            subprocess.run([*self.command, f"{folder}/scene.png", "-o", f"{folder}/masks"], check=True, stdout=subprocess.DEVNULL)
            with open(f"{folder}/masks/scene_masks.json") as file:
                return [{"segmentation": rle_to_mask(m["segmentation"])} for m in json.load(file)]


def recall(found, areas):
    """Shares at IoU 0.75 of parts by size."""
    found, areas = np.array(found), np.array(areas)
    out = {}
    for name, floor in (("all", 0), ("over_0.5_percent", 0.005), ("over_1_percent", 0.01)):
        keep = areas > floor
        out[f"parts_{name}"], out[f"found_{name}"] = int(keep.sum()), float(found[keep].mean()) if keep.any() else None
    return out


def held_out_trays(scenes, n_images, size):
    for i in range(n_images):
        rgb, ids, _, objects = scenes.render(TRAY_SEEDS + i, 0, 1.0, TRAY, size)
        yield rgb, tray_parts(ids, objects)


def product_trays(program, n_products):
    for seed in range(PRODUCT_SEEDS, PRODUCT_SEEDS + n_products):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([program, "synth", "tray", f"{folder}/tray", "--seed", str(seed), "--parts"], check=True,
                           stdout=subprocess.DEVNULL)
            for i in range(IMAGES_A_PRODUCT):
                rgb = np.array(Image.open(f"{folder}/tray/test/good/{i:03d}.png"))
                ids = np.array(Image.open(f"{folder}/tray/parts/test/good/{i:03d}.png"))
                yield rgb, [ids == k for k in np.unique(ids[ids > 0])]


def measure_trays(generator, trays):
    found, areas, counts, seconds = [], [], [], 0.0
    for rgb, parts in trays:
        start = time.time()
        masks = [m["segmentation"] for m in generator.generate(rgb)]
        seconds += time.time() - start
        counts.append(len(masks))
        stack = np.array(masks)
        for part in parts:
            areas.append(part.mean())
            found.append(len(masks) > 0 and ious(stack, part).max() >= 0.75)
    return {"images": len(counts), "size": rgb.shape[0], **recall(found, areas), "masks_per_image": float(np.mean(counts)),
            "seconds_per_image": seconds / len(counts)}


def tune(sam, scenes, n_images, size, points_per_side, crop_layers):
    """All masks once, then every combination of the thresholds on them."""
    from segment_anything import SamAutomaticMaskGenerator
    generator = SamAutomaticMaskGenerator(sam, points_per_side=points_per_side, pred_iou_thresh=0.3, stability_score_thresh=0.5,
                                          box_nms_thresh=0.97, stability_score_offset=1.0, crop_n_layers=crop_layers,
                                          crop_nms_thresh=0.97)
    raw = []
    for i in range(n_images):
        rgb, ids, _, objects = scenes.render(TUNE_SEEDS + i, 0, 1.0, TRAY, size)
        out = generator.generate(rgb)
        parts = tray_parts(ids, objects)
        stack = np.array([m["segmentation"] for m in out])
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (m["bbox"] for m in out)]).float()
        raw.append((np.array([m["predicted_iou"] for m in out]), np.array([m["stability_score"] for m in out]), boxes,
                    np.array([ious(stack, p) for p in parts]).reshape(len(parts), len(out)), [p.mean() for p in parts]))
    results = []
    qualities, stabilities, overlaps = (0.3, 0.5, 0.6, 0.7, 0.8), (0.5, 0.7, 0.8, 0.85, 0.9), (0.5, 0.6, 0.7, 0.8, 0.9)
    for quality, stability, nms in itertools.product(qualities, stabilities, overlaps):
        found, areas, n = [], [], 0
        for q, s, boxes, overlap, area in raw:
            keep = np.flatnonzero((q > quality) & (s >= stability))
            kept = keep
            if len(keep):
                kept = keep[batched_nms(boxes[keep], torch.tensor(q[keep]).float(), torch.zeros(len(keep)), nms).numpy()]
            n += len(kept)
            found.extend((overlap[:, kept].max(1) >= 0.75) if len(kept) else np.zeros(len(overlap), bool)), areas.extend(area)
        results.append({"pred_iou_thresh": quality, "stability_score_thresh": stability, "box_nms_thresh": nms,
                        "masks_per_image": n / n_images, **recall(found, areas)})
    return sorted(results, key=lambda r: -r["found_over_0.5_percent"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment-anything", required=True, help="checkout of facebookresearch/segment-anything")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--trays", type=int, default=30)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--samlad", metavar="PROGRAM", help="make the automatic masks with it instead of the official generator")
    parser.add_argument("--products", type=int, default=0, metavar="N", help="with --samlad: also the trays of N products")
    parser.add_argument("--tune", action="store_true", help="search the automatic mask settings and stop")
    parser.add_argument("--points-per-side", type=int, help="instead of the file's")
    parser.add_argument("--crop-layers", type=int, default=0, help="layers of crops with --tune")
    parser.add_argument("--json", "-o", help="write the figures there (merged into an existing file)")
    args = parser.parse_args()
    if args.products and not args.samlad:
        parser.error("--products needs --samlad PROGRAM, which draws them")
    torch.set_num_threads(1)
    tensors, meta = safetensors_io.load(args.weights)
    sam = official_sam(args.segment_anything, config_from_metadata(meta), tensors)
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor
    scenes = Scenes()
    side = args.points_per_side or int(meta["amg.points_per_side"])
    if args.tune:
        for row in tune(sam, scenes, args.trays, args.size, side, args.crop_layers)[:25]:
            print(json.dumps(row))
        return
    settings = {k[4:]: float(v) if "thresh" in k or "offset" in k else int(v) for k, v in meta.items() if k.startswith("amg.")}
    settings["points_per_side"] = side
    figures = {}
    if args.images:
        figures["points"] = measure_points(SamPredictor(sam), scenes, args.images, args.size)
        print(json.dumps(figures["points"], indent=1), flush=True)
    generator = SamladGenerator(args.samlad, args.weights, side) if args.samlad else SamAutomaticMaskGenerator(sam, **settings)
    name = "trays_by_samlad" if args.samlad else "trays"
    if args.trays:
        figures[name] = {**measure_trays(generator, held_out_trays(scenes, args.trays, args.size)), "settings": settings}
        print(json.dumps(figures[name], indent=1), flush=True)
    if args.products:
        figures["products_by_samlad"] = {"products": args.products, "seeds_from": PRODUCT_SEEDS,
                                         **measure_trays(generator, product_trays(args.samlad, args.products)), "settings": settings}
        print(json.dumps(figures["products_by_samlad"], indent=1))
    if args.json:
        try:
            with open(args.json) as file:
                report = json.load(file)
        except FileNotFoundError:
            report = {}
        report.setdefault("held_out", {}).update(figures)  # the trays by samlad stand beside the official generator's
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
