#!/usr/bin/env python3
"""Golden for test_baselines.c: the baselines of docs/METHOD.md 9 in float64, as literally as possible.

    python3 tests/make_golden_baselines.py [-o tests/golden]

Every distance is computed for itself; the C code searches by products. Needs numpy.
"""
import argparse

import numpy as np

import golden_io


def average_cells(features):
    """[h][w][C] -> [ceil(h/2)][ceil(w/2)][C]; of an odd side, neighbouring cells share a row (torch's AdaptiveAvgPool2d)."""
    for axis in (0, 1):
        n = features.shape[axis]
        m = (n + 1) // 2
        features = np.stack([features.take(range(i * n // m, -(-(i + 1) * n // m)), axis).mean(axis) for i in range(m)], axis)
    return features


def position_nn(query, bank, references):
    h, w, _ = query.shape
    y, x = np.mgrid[0:h, 0:w]
    nearest = np.full((h, w), np.inf)
    for r in references:
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w)
                there = bank[r][np.clip(y + dy, 0, h - 1), np.clip(x + dx, 0, w - 1)]
                nearest = np.minimum(nearest, np.where(inside, np.linalg.norm(query - there, axis=-1), np.inf))
    return nearest


def patchcore_like(query, bank):
    cells = bank.reshape(-1, bank.shape[-1])
    return np.array([[np.linalg.norm(cells - f, axis=-1).min() for f in row] for row in query])


def anomaly_dino(query, bank):
    cells = bank.reshape(-1, bank.shape[-1])
    cells = cells / np.linalg.norm(cells, axis=-1, keepdims=True)
    return np.array([[(1 - cells @ (f / np.linalg.norm(f))).min() for f in row] for row in query])


def top_percent(values):
    return np.sort(values.ravel())[-(-(-values.size // 100)):].mean()


def main(out):
    r = np.random.RandomState(8)
    n_images, h, w, C = 4, 27, 39, 6  # odd sides; more cells than a block of queries, and of the bank
    place = r.randn(h, w, C)
    features = (place + 0.4 * r.randn(n_images, h, w, C) + 0.5).astype(np.float16)
    query = (place + 0.4 * r.randn(h, w, C) + 0.5).astype(np.float32)
    query[4:9, 30:36] += 2
    references = np.array([2, 0, 3], np.int32)
    bank = np.stack([average_cells(f) for f in features.astype(np.float64)])
    cells = average_cells(query.astype(np.float64))
    maps = {"position-nn": position_nn(cells, bank, references), "patchcore-like": patchcore_like(cells, bank),
            "anomaly-dino": anomaly_dino(cells, bank)}
    scores = [top_percent(maps["position-nn"]), maps["patchcore-like"].max(), top_percent(maps["anomaly-dino"])]
    tensors = {"features": features, "query": query, "references": references, "scores": np.array(scores, np.float32)}
    tensors.update({f"map.{name}": m.astype(np.float32) for name, m in maps.items()})
    golden_io.save(f"{out}/baselines.safetensors", tensors, layout=golden_io.aligned(tensors))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--out", default="tests/golden")
    main(parser.parse_args().out)
