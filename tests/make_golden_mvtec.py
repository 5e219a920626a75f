#!/usr/bin/env python3
"""Make tests/golden/mvtec.safetensors: small data sets with anomaly maps, and the figures of MVTec's own evaluation
scripts and scikit-learn for them.

    make_golden_mvtec.py --ad MVTEC_AD_EVALUATION --loco MVTEC_LOCO_AD_EVALUATION [--writer build/tests/test_mvtec]

The two folders are the unpacked archives mvtec_ad_evaluation and mvtec_loco_ad_evaluation from MVTec's data set pages; the
scripts run unmodified, as commands, on PNG masks and float TIFF maps. Needs numpy, scipy, tifffile, PIL, scikit-learn, tqdm.
With --writer, samlad's io/tiff.c writes the maps' files (through the test program, which reads them from the golden).
tifffile and PIL must then read the same bits, and the scripts must give the same numbers.

MVTec AD categories (masks: any number of components)
  bottle    scores all different
  cable     scores on few levels: ties across images and classes; one map is constant; one mask is empty
  capsule   one score everywhere
MVTec LOCO categories (a mask a defect; overlapping, disconnected, saturating relatively and absolutely)
  pushpins  scores on few levels, so that the script with a small --curve_max_distance finds every point of the curve
  screw_bag scores all different; the script's own threshold search stops before it has all. So beside its default run, its
            classes run on all thresholds (the method that chooses the first thresholds is replaced)
  juice_bottle  tied image scores, to record the script's result
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from golden_io import aligned, load, save

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
KINDS = ("good", "logical_anomalies", "structural_anomalies")
DEFECTS = [
    {"defect_name": "part_missing", "pixel_value": 255, "saturation_threshold": 1.0, "relative_saturation": True},
    {"defect_name": "part_extra", "pixel_value": 254, "saturation_threshold": 0.37, "relative_saturation": True},
    {"defect_name": "box", "pixel_value": 253, "saturation_threshold": 20, "relative_saturation": False},
    {"defect_name": "larger_than_any", "pixel_value": 7, "saturation_threshold": 5000, "relative_saturation": False},
]


# ---- the data ----------------------------------------------------------------------------------------------------------


def blob(rng, height, width):
    """One to three boxes."""
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        h, w = rng.integers(1, 9, 2)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        mask[y:y + h, x:x + w] = True
    return mask


def scores(rng, truth, levels):
    """Smooth noise, higher where the truth is; rounded to `levels` steps a unit."""
    noise = gaussian_filter(rng.standard_normal(truth.shape), 1.5) * 3 + 0.1 * rng.standard_normal(truth.shape)
    field = noise + rng.uniform(0, 2) * gaussian_filter(truth.astype(float), 1)
    return (np.round(field * levels) / levels if levels else field).astype(np.float32)


def make_ad(rng, category, height=29, width=37):
    kinds = [0] * 5 + [1] * 4 + [2] * 3
    masks = np.zeros((len(kinds), height, width), np.uint8)
    for i, kind in enumerate(kinds):
        if kind:
            masks[i][blob(rng, height, width)] = 255
    masks[5] = 0
    masks[5, 3:6, 4:9] = masks[5, 6:12, 9:11] = 255  # two boxes that touch at a corner: one component
    maps = np.stack([scores(rng, m > 0, 8 if category == "cable" else 0) for m in masks])
    if category == "cable":
        masks[-1] = 0
        maps[6] = 0.25
    if category == "capsule":
        maps[:] = -3.5
    return {"maps": maps, "masks": masks, "kinds": np.array(kinds, np.uint8)}


def make_loco(rng, category, height=27, width=31):
    kinds = [0] * 5 + [1] * 4 + [2] * 4
    channels, owners = [], []
    for i, kind in enumerate(kinds):
        for _ in range(rng.integers(1, 4) if kind else 0):
            channels.append(blob(rng, height, width) * np.uint8(DEFECTS[rng.integers(len(DEFECTS))]["pixel_value"]))
            owners.append(i)
    channels, owners = np.array(channels), np.array(owners, np.uint8)
    maps = []
    for i in range(len(kinds)):
        field = scores(rng, np.any(channels[owners == i] > 0, 0) if kinds[i] else np.zeros((height, width), bool),
                       24 if category == "pushpins" else 0)
        y, x = rng.integers(0, height), rng.integers(0, width)
        if category == "pushpins":  # no two images have the same maximum
            field[y, x] = 8 + ((7 * i) % 13) / 16
        if category == "juice_bottle":
            field[y, x] = 8 + (i % 3)
        maps.append(field)
    return {"maps": np.stack(maps), "channels": channels, "owners": owners, "kinds": np.array(kinds, np.uint8)}


# ---- the scripts -------------------------------------------------------------------------------------------------------


def write_maps(folder, names, maps, writer, tensor):
    if writer:
        subprocess.run([writer, "--write-maps", tensor, folder], check=True)
    for i, name in enumerate(names):
        path = os.path.join(folder, name + ".tiff")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if writer:
            os.rename(os.path.join(folder, "%d.tiff" % i), path)
            assert np.array_equal(tifffile.imread(path), maps[i]), path
            assert tifffile.imread(path).dtype == np.float32, path
            assert np.array_equal(np.asarray(Image.open(path)), maps[i]), path
        else:
            tifffile.imwrite(path, maps[i])


def write_png(path, mask):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(mask).save(path)


def run(script, *arguments):
    out = tempfile.mkdtemp()
    subprocess.run([sys.executable, "evaluate_experiment.py", *arguments, "--output_dir", out], check=True,
                   cwd=script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.path.join(out, "metrics.json")) as f:
        return json.load(f)


def run_ad(script, base, category, data, writer):
    root, maps = os.path.join(base, "data"), os.path.join(base, "maps")
    names = ["%s/%03d" % (("good", "broken", "contamination")[k], i) for i, k in enumerate(data["kinds"])]
    for name, mask in zip(names, data["masks"]):
        write_png(os.path.join(root, category, "test", name + ".png"), np.zeros_like(mask))
        if not name.startswith("good"):
            write_png(os.path.join(root, category, "ground_truth", name + "_mask.png"), mask)
    write_maps(os.path.join(maps, category, "test"), names, data["maps"], writer, "ad." + category)
    results = [run(script, "--dataset_base_dir", root, "--anomaly_maps_dir", maps, "--evaluated_objects", category,
                   "--pro_integration_limit", str(limit))[category] for limit in LIMITS]
    return {"au_pro": np.array([r["au_pro"] for r in results]),
            "image_auroc": np.array([results[0]["classification_au_roc"]])}


def write_loco(base, category, data, writer):
    root, maps = os.path.join(base, "data"), os.path.join(base, "maps")
    names = ["%s/%03d" % (KINDS[k], i) for i, k in enumerate(data["kinds"])]
    counts = {}
    for channel, owner in zip(data["channels"], data["owners"]):
        counts[owner] = counts.get(owner, -1) + 1
        write_png(os.path.join(root, category, "ground_truth", names[owner], "%03d.png" % counts[owner]), channel)
    with open(os.path.join(root, category, "defects_config.json"), "w") as f:
        json.dump(DEFECTS, f)
    write_maps(os.path.join(maps, category, "test"), names, data["maps"], writer, "loco." + category)
    return root, maps


def loco_numbers(metrics):
    """au_spro [logical, structural, mean][limit], image_auroc [logical, structural, mean]."""
    order = ("logical_anomalies", "structural_anomalies", "mean")
    spro, roc = metrics["localization"]["auc_spro"], metrics["classification"]["auc_roc"]
    limit = {float(k): k for k in spro["mean"]}
    return {"au_spro": np.array([[spro[k][limit[x]] for x in LIMITS] for k in order]),
            "image_auroc": np.array([roc[k] for k in order])}


ALL_THRESHOLDS = """
import json, os, sys
sys.path.insert(0, os.getcwd())
import numpy as np
import evaluate_experiment as e
from src.aggregation import MetricsAggregator
def thresholds(self):
    s = np.unique(np.stack([m.np_array for m in self.anomaly_maps]))[::-1].astype(np.float64)
    return [s[0] + 1] + s.tolist() + [s[-1] - 1]
MetricsAggregator._get_initial_thresholds = thresholds
e.main()
"""


def run_loco_all(script, *arguments):
    out = tempfile.mkdtemp()
    subprocess.run([sys.executable, "-c", ALL_THRESHOLDS, *arguments, "--output_dir", out, "--curve_max_distance", "9"],
                   check=True, cwd=script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(os.path.join(out, "metrics.json")) as f:
        return json.load(f)


def by_sklearn(scores, positive):
    """[AUROC, average precision, best F1, its threshold]."""
    precision, recall, thresholds = precision_recall_curve(positive, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    best = np.flatnonzero(f1[:-1] >= f1[:-1].max() - 1e-15)[-1]  # thresholds ascend: the highest of the best
    return np.array([roc_auc_score(positive, scores), average_precision_score(positive, scores), f1[best], thresholds[best]])


# ---- the golden --------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ad", required=True)
    parser.add_argument("--loco", required=True)
    parser.add_argument("--writer", help="test_mvtec: its TIFF files instead of tifffile's; compares, writes no golden")
    parser.add_argument("-o", default="tests/golden/mvtec.safetensors")
    args = parser.parse_args()
    writer = args.writer and os.path.abspath(args.writer)
    tensors = {}
    rng = np.random.default_rng(20240607)
    for category in ("bottle", "cable", "capsule"):
        data = make_ad(rng, category)
        with tempfile.TemporaryDirectory() as base:
            results = run_ad(args.ad, base, category, data, writer)
        positive = (data["masks"] > 0).ravel()
        results["pixels"] = by_sklearn(data["maps"].ravel(), positive)
        images = np.any(data["masks"] > 0, (1, 2))
        results["images"] = by_sklearn(data["maps"].max((1, 2)), images)
        tensors.update({"ad.%s.%s" % (category, k): v for k, v in {**data, **results}.items()})
        print("ad", category, results)
    for category in ("pushpins", "screw_bag", "juice_bottle"):
        data = make_loco(rng, category)
        with tempfile.TemporaryDirectory() as base:
            root, maps = write_loco(base, category, data, writer)
            arguments = ("--object_name", category, "--dataset_base_dir", root, "--anomaly_maps_dir", maps)
            if category == "pushpins":
                results = loco_numbers(run(args.loco, *arguments, "--curve_max_distance", "1e-9"))
            else:
                results = loco_numbers(run_loco_all(args.loco, *arguments))
            results["au_spro_default"] = loco_numbers(run(args.loco, *arguments))["au_spro"]
        union = np.stack([np.any(data["channels"][data["owners"] == i] > 0, 0) if np.any(data["owners"] == i)
                          else np.zeros(data["maps"].shape[1:], bool) for i in range(len(data["kinds"]))])
        results["pixels"] = by_sklearn(data["maps"].ravel(), union.ravel())
        top, kinds = data["maps"].max((1, 2)), data["kinds"]
        results["images"] = np.stack([by_sklearn(top[(kinds == 0) | (kinds == k)], kinds[(kinds == 0) | (kinds == k)] > 0)
                                      for k in (1, 2)])
        tensors.update({"loco.%s.%s" % (category, k): v for k, v in {**data, **results}.items()})
        print("loco", category, results)
    if not writer:
        save(args.o, aligned(tensors), {"defects_config": json.dumps(DEFECTS)})
        return
    known, _ = load(args.o)
    for name, value in tensors.items():
        assert known[name].tobytes() == np.ascontiguousarray(value).tobytes(), name
    print("with samlad's TIFF files: the same maps, the same numbers (%d tensors)" % len(tensors))


if __name__ == "__main__":
    main()
