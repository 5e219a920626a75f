#!/usr/bin/env python3
"""Compare two runs of `samlad eval` on the same images: image AUROC of both, and the difference with its interval.

    tools/compare_runs.py OLD NEW                 two folders of samlad eval -o
    tools/compare_runs.py RUN --with position-nn  one run beside one of its baselines
    tools/compare_runs.py OLD1 NEW1 OLD2 NEW2     pairs of runs: the figures are means over the pairs

The interval is a paired bootstrap: the images of every kind are drawn again with repetition, the same images for
both runs. An interval that contains 0 means: these images do not tell the two apart. Verdicts stand below, as the
share of normal images and of anomalies that were called anomalous. The last line moves the new run's thresholds
together, until it calls no more normal images than the old one. --json prints the same as JSON. Needs numpy.
"""
import argparse
import json
import os
import sys

import numpy as np


def read_run(folder, baseline=None):
    """-> {category/kind: {image: (score, called, score above the threshold)}}"""
    kinds = {}
    with open(os.path.join(folder, "results.jsonl")) as lines:
        for line in lines:
            record = json.loads(line)
            category, _, kind = record["image"].split("/")[:3]
            score = record["baselines"][baseline] if baseline else record["score"]
            kinds.setdefault(f"{category}/{kind}", {})[record["image"]] = (
                score, record["anomalous"] is True, score - (record["threshold"] or 0))
    return kinds


def auroc(anomalies, normal):
    """[..., n], [..., m] -> [...]: the part of pairs in which the anomaly's score is larger; ties count one half."""
    a, b = anomalies[..., :, None], normal[..., None, :]
    return ((a > b) + 0.5 * (a == b)).mean((-2, -1))


class Pair:
    """The scores of two runs by kind, [2][images]."""

    def __init__(self, old, new, names):
        if {k: sorted(v) for k, v in old.items()} != {k: sorted(v) for k, v in new.items()}:
            sys.exit(f"{names[0]} and {names[1]}: these runs are of other images")
        self.scores, self.called, self.margins = {}, {}, {}
        for kind, images in old.items():
            both = np.array([[run[kind][i] for i in sorted(images)] for run in (old, new)])
            self.scores[kind], self.called[kind], self.margins[kind] = both[..., 0], both[..., 1], both[..., 2]
        self.anomalous = sorted(k for k in self.scores if not k.endswith("/good"))

    def drawn(self, rng, n_draws):
        """The same draws of images for both runs: {kind: [2][n_draws][images]}."""
        return {k: s[:, rng.integers(0, s.shape[1], (n_draws, s.shape[1]))] for k, s in self.scores.items()}

    def figures(self, scores):
        """(kind, [2] or [2][n_draws] AUROC against the good images of its category) of every anomalous kind."""
        for k in self.anomalous:
            category, kind = k.split("/")
            yield kind, auroc(scores[k], scores[category + "/good"])


def means(pairs, scores):
    """AUROC by kind over categories and pairs, and the mean over the kinds: {name: [2] or [2][n_draws]}."""
    found = {}
    for pair, s in zip(pairs, scores):
        for kind, value in pair.figures(s):
            found.setdefault(kind, []).append(value)
    found = {kind: np.mean(values, 0) for kind, values in found.items()}
    if len(found) > 1:
        found["mean"] = np.mean(list(found.values()), 0)
    return found


def compare(pairs, n_draws, seed):
    rng = np.random.default_rng(seed)
    once, draws = means(pairs, [p.scores for p in pairs]), means(pairs, [p.drawn(rng, n_draws) for p in pairs])
    rows = []
    for kind, (old, new) in once.items():
        low, high = np.quantile(draws[kind][1] - draws[kind][0], (0.025, 0.975))
        rows.append({"kind": kind, "old": old, "new": new, "difference": new - old, "low": low, "high": high})
    return {"auroc": rows, "calls": verdicts(pairs)}


def verdicts(pairs):
    def pooled(what, good):
        return np.concatenate([w[k] for w in what for k in w if k.endswith("/good") == good], 1)

    calls = {}
    for name, good in (("normal images called anomalous", True), ("anomalies called anomalous", False)):
        called = pooled([p.called for p in pairs], good)
        calls[name] = {"old": called[0].mean(), "new": called[1].mean(), "images": called.shape[1]}
    old, new = np.sort(pooled([p.margins for p in pairs], True))[:, ::-1]
    alarms = (old > 0).sum()
    anomalies = pooled([p.margins for p in pairs], False)
    limit = new[alarms] if alarms < len(new) else -np.inf
    calls["anomalies, at equal alarms"] = {"old": (anomalies[0] > 0).mean(), "new": (anomalies[1] > limit).mean(),
                                           "images": anomalies.shape[1]}
    return calls


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of samlad eval -o: OLD NEW, several pairs, or with --with any number")
    parser.add_argument("--with", dest="baseline", metavar="BASELINE", help="beside this baseline of the same runs: position-nn, patchcore-like, anomaly-dino")
    parser.add_argument("--draws", type=int, default=2000, help="draws of the bootstrap [2000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    if a.baseline:
        pairs = [Pair(read_run(r, a.baseline), read_run(r), (r, r)) for r in a.runs]
    elif len(a.runs) % 2:
        parser.error("an even number of runs, old before new; or --with")
    else:
        pairs = [Pair(read_run(old), read_run(new), (old, new)) for old, new in zip(a.runs[::2], a.runs[1::2])]
    result = compare(pairs, a.draws, a.seed)
    if a.baseline:  # it has no threshold
        del result["calls"]["anomalies, at equal alarms"]
    if a.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'image AUROC':32s} {a.baseline or 'old':>8s} {'new':>7s}  difference  95 % interval")
    for r in result["auroc"]:
        print(f"{r['kind']:32s} {r['old']:8.3f} {r['new']:7.3f}  {r['difference']:+10.3f}  {r['low']:+.3f} to {r['high']:+.3f}")
    for name, c in result["calls"].items():
        print(f"{name:32s} {c['old']:8.3f} {c['new']:7.3f}  of {c['images']}" if not a.baseline else f"{name:32s} {'':8s} {c['new']:7.3f}  of {c['images']}")


if __name__ == "__main__":
    main()
