#!/usr/bin/env python3
"""Goldens for tests/test_amg.c: the masks of the official SamAutomaticMaskGenerator.

    python3 tests/make_golden_amg.py --segment-anything PATH [-o tests/golden]
        trains a very small SAM for some minutes on coloured shapes and writes amg_model.safetensors, unless
        it exists. Writes amg_golden.safetensors: one picture, several sets of options (crops, small regions,
        no filters)

    python3 tests/make_golden_amg.py --segment-anything PATH --weights weights/sam_tiny.safetensors
            --photo PHOTO.jpg [-o tests/golden/amg_photo.safetensors]
        the masks of a photo with given weights and their recommended options

Every case records the smallest distance of a candidate's score from a threshold. Within rounding of it,
either result is right.
Needs torch, torchvision, numpy, PIL, and OpenCV for the small regions.
"""
import argparse
import hashlib
import os
import sys
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from golden_io import load_torch
from make_golden_sam import build, describe, save, weights_of


def scene(h, w, r, n_shapes):
    """Coloured shapes on a shaded ground; ids [h][w] is the shape of each pixel, 0 the ground."""
    y, x = np.mgrid[0:h, 0:w]
    image = np.ones((h, w, 3)) * r.randint(40, 216, 3)
    image += (x / w * r.randint(-30, 31) + y / h * r.randint(-30, 31))[..., None]
    ids = np.zeros((h, w), int)
    for i in range(n_shapes):
        cy, cx, a, b = r.rand() * h, r.rand() * w, *(0.08 + 0.2 * r.rand(2)) * min(h, w)
        if r.rand() < 0.5:
            inside = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
        else:
            inside = (abs(y - cy) < a) & (abs(x - cx) < b)
        image[inside] = r.randint(0, 256, 3)
        ids[inside] = i + 1
    return np.clip(image + r.randn(h, w, 3) * 4, 0, 255).astype(np.uint8), ids


def train(sam, steps, seed):
    """Point prompts, best of the masks by binary cross entropy and dice, IoU head by squared error."""
    r = np.random.RandomState(seed)
    size, side = sam.image_encoder.img_size, 4 * sam.prompt_encoder.image_embedding_size[0]
    optimiser = torch.optim.AdamW(sam.parameters(), 2e-3, weight_decay=1e-4)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, step / 50) * (1 - step / steps)
        loss = 0
        scenes = [scene(size, size, r, r.randint(2, 5)) for _ in range(4)]
        pixels = torch.stack([sam.preprocess(torch.as_tensor(s[0]).permute(2, 0, 1).float()) for s in scenes])
        features = sam.image_encoder(pixels)
        for feature, (_, ids) in zip(features, scenes):
            places = [np.argwhere(ids == i) for i in np.unique(ids)]
            chosen = [p[r.randint(len(p))] for p in places for _ in range(2)]
            points = torch.tensor(np.array(chosen)[:, None, ::-1].copy(), dtype=torch.float)
            targets = torch.stack([torch.as_tensor(ids == ids[y, x]) for y, x in chosen]).float()
            targets = F.interpolate(targets[:, None], (side, side), mode="area")
            sparse, dense = sam.prompt_encoder((points, torch.ones(points.shape[:2])), None, None)
            low, iou = sam.mask_decoder(feature[None], sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
            bce = F.binary_cross_entropy_with_logits(low, targets.expand_as(low), reduction="none").mean((2, 3))
            p = low.sigmoid()
            dice = 1 - (2 * (p * targets).sum((2, 3)) + 1) / (p.sum((2, 3)) + targets.sum((2, 3)) + 1)
            hard, truth = low > 0, targets > 0.5
            actual = (hard & truth).sum((2, 3)) / (hard | truth).sum((2, 3)).clamp(min=1)
            loss = loss + ((3 * bce + dice).min(1)[0].mean() + (iou - actual).pow(2).mean()) / len(scenes)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 99:
            best = float(actual.max(1)[0].mean())
            print(f"step {step + 1}: loss {float(loss):.3f}, IoU {best:.2f}", flush=True)
    for p in sam.parameters():
        p.data = p.data.half().float()


class Margins:
    """Watches the official generator: all candidates' scores before any filter, and the smallest difference between
    the scores of two masks of which NMS keeps the better."""

    def __init__(self, generator):
        import segment_anything.automatic_mask_generator as module
        self.iou, self.stability, self.rivals = [], [], [1.0]
        predict, stability = generator.predictor.predict_torch, module.calculate_stability_score
        nms = module.batched_nms

        def watched_predict(*args, **kwargs):
            result = predict(*args, **kwargs)
            self.iou.append(result[1].flatten())
            return result

        def watched_stability(*args, **kwargs):
            result = stability(*args, **kwargs)
            self.stability.append(result)
            return result

        def watched_nms(boxes, scores, *args, **kwargs):
            gaps = (scores[:, None] - scores[None, :]).abs()
            gaps = gaps[(box_iou(boxes, boxes) > kwargs["iou_threshold"]) & (gaps > 0)]
            self.rivals.append(float(gaps.min()) if gaps.numel() else 1.0)
            return nms(boxes, scores, *args, **kwargs)

        def restore():
            module.calculate_stability_score, module.batched_nms = stability, nms

        generator.predictor.predict_torch = watched_predict
        module.calculate_stability_score = watched_stability
        module.batched_nms = watched_nms
        self.restore = restore

    def nearest(self, options):
        def near(values, threshold):
            values = torch.cat(values) if values else torch.zeros(0)
            return float((values - threshold).abs().min()) if threshold > 0 and values.numel() else 1.0
        return (near(self.iou, options["pred_iou_thresh"]),
                near(self.stability, options["stability_score_thresh"]), min(self.rivals))


def pack(all_counts):
    """Run lengths of many masks as bytes. From each the last but one is subtracted, because runs of neighbouring
    columns are alike. Then zigzag, base 128, zlib."""
    out = bytearray()
    for counts in all_counts:
        values = [len(counts)] + [c - (counts[i - 2] if i > 1 else 0) for i, c in enumerate(counts)]
        for v in values:
            v = 2 * v if v >= 0 else -2 * v - 1
            while v >= 128:
                out.append(v & 127 | 128)
                v >>= 7
            out.append(v)
    return np.frombuffer(zlib.compress(bytes(out), 9), np.uint8), len(out)


def run_case(sam, image, options):
    """Tensors and metadata of one case."""
    from segment_anything import SamAutomaticMaskGenerator
    generator = SamAutomaticMaskGenerator(sam, output_mode="uncompressed_rle", **options)
    margins = Margins(generator)
    masks = generator.generate(image)
    margins.restore()
    column = lambda key: np.array([m[key] for m in masks], np.float32)
    runs, n_bytes = pack([m["segmentation"]["counts"] for m in masks])
    tensors = {"bbox": column("bbox").reshape(-1, 4), "area": np.array([m["area"] for m in masks], np.int32),
               "predicted_iou": column("predicted_iou"), "stability_score": column("stability_score"),
               "point": column("point_coords").reshape(-1, 2), "crop_box": column("crop_box").reshape(-1, 4),
               "runs": runs}
    near = margins.nearest(generator_options(generator))
    metadata = {"n": len(masks), "runs_bytes": n_bytes, "margin_iou": near[0], "margin_stability": near[1],
                "margin_nms": near[2]}
    metadata.update({k: repr(v) for k, v in options.items()})
    n_candidates = sum(len(v) for v in margins.iou)
    print(f"{len(masks)} masks of {n_candidates}, nearest to a threshold: {near}, {options}")
    return tensors, metadata


def generator_options(generator):
    return {k: getattr(generator, k) for k in ("pred_iou_thresh", "stability_score_thresh")}


def golden_shapes(output, retrain):
    metadata = describe(64, 8, 32, 3, 2, 2.0, 3, "1", 32, 8, 2, 64, 4, 2, 3, 3, 32)
    sam = build(metadata)
    model = f"{output}/amg_model.safetensors"
    if retrain or not os.path.exists(model):
        train(sam, 1400, 5)
        save(model, weights_of(sam), metadata)
    sam.load_state_dict(load_torch(model)[0], strict=True)
    image, _ = scene(86, 131, np.random.RandomState(77), 9)
    cases = {
        "plain": dict(points_per_side=12, pred_iou_thresh=0.3, stability_score_thresh=0.5),
        "crops": dict(points_per_side=9, pred_iou_thresh=0.25, stability_score_thresh=0.4, crop_n_layers=1,
                      crop_n_points_downscale_factor=2, crop_nms_thresh=0.6),
        "regions": dict(points_per_side=12, pred_iou_thresh=0.2, stability_score_thresh=0.4, box_nms_thresh=0.9,
                        min_mask_region_area=40),
        "all": dict(points_per_side=7, pred_iou_thresh=0.2258, stability_score_thresh=0.4,
                    stability_score_offset=0.6, box_nms_thresh=0.8, crop_n_layers=2,
                    crop_overlap_ratio=0.4, min_mask_region_area=300),
        "unfiltered": dict(points_per_side=10, pred_iou_thresh=0.0, stability_score_thresh=0.0,
                           box_nms_thresh=1.0),
        "nothing": dict(points_per_side=4, pred_iou_thresh=9.0),
    }
    tensors, notes = {"image": image}, {"cases": ",".join(cases)}
    with torch.no_grad():
        for name, options in cases.items():
            t, m = run_case(sam, image, options)
            tensors.update({f"{name}.{k}": v for k, v in t.items() if v.size})
            notes.update({f"{name}.{k}": v for k, v in m.items()})
    save(f"{output}/amg_golden.safetensors", tensors, notes)


def golden_photo(weights, photo, output, overrides):
    from PIL import Image
    tensors, metadata = load_torch(weights)
    sam = build(metadata)
    sam.load_state_dict(tensors, strict=True)
    image = np.asarray(Image.open(photo).convert("RGB"))
    kinds = dict(points_per_side=int, pred_iou_thresh=float, stability_score_thresh=float,
                 stability_score_offset=float, box_nms_thresh=float, crop_n_layers=int,
                 crop_nms_thresh=float, crop_n_points_downscale_factor=int, min_mask_region_area=int)
    options = {k: kind(metadata["amg." + k]) for k, kind in kinds.items() if "amg." + k in metadata}
    options.update({k: kinds[k](v) for k, v in (o.split("=") for o in overrides)})
    with torch.no_grad():
        t, m = run_case(sam, image, options)
    notes = {f"photo.{k}": v for k, v in m.items()}
    notes.update({"photo": os.path.basename(photo), "height": image.shape[0], "width": image.shape[1],
                  "pixels_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
                  "weights_sha256": hashlib.sha256(open(weights, "rb").read()).hexdigest()})
    save(output, {f"photo.{k}": v for k, v in t.items() if v.size}, notes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment-anything", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--photo")
    parser.add_argument("--retrain", action="store_true", help="train the very small SAM anew")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="in place of what the weights recommend")
    parser.add_argument("-o", "--output")
    args = parser.parse_args()
    sys.path.insert(0, args.segment_anything)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.weights:
        golden_photo(args.weights, args.photo, args.output or "tests/golden/amg_photo.safetensors", args.option)
    else:
        golden_shapes(args.output or "tests/golden", args.retrain)


if __name__ == "__main__":
    main()
