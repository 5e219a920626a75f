#!/usr/bin/env python3
"""How much does the choice of the normal images matter? Judge a data set with several draws of its bank.

    tools/draws.py DATA -o OUT                                  banks of 2, 4, 8 and 16 images, five draws of each
    tools/draws.py DATA -o OUT --sizes 4 8 --draws 3 -- --backbone vit.safetensors      options of samlad eval

DATA has train/good or normal, test and perhaps ground_truth (docs/OUTPUT.md). The test images stay the same. Each draw is
a folder of links and a run of samlad eval below OUT; a finished run is used again. The table gives the mean of the
draws and their standard deviation. OUT/draws.json has every draw. Needs nothing but Python.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def normal_folder(data):
    for name in ("train/good", "normal"):
        if os.path.isdir(os.path.join(data, name)):
            return name
    sys.exit(f"{data}: it has neither train/good nor normal")


def link(target, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.islink(path):
        os.symlink(os.path.abspath(target), path)


def make_draw(data, folder, size, seed):
    """A folder like DATA, with `size` of its normal images."""
    normal = normal_folder(data)
    names = sorted(os.listdir(os.path.join(data, normal)))
    if size > len(names):
        sys.exit(f"{data}/{normal}: a bank of {size} images was asked for, but there are {len(names)}")
    for name in random.Random(f"{size} {seed}").sample(names, size):
        link(os.path.join(data, normal, name), os.path.join(folder, normal, name))
    for name in os.listdir(data):
        if name not in ("train", "normal"):
            link(os.path.join(data, name), os.path.join(folder, name))


def figures(run):
    """-> {figure: value}: the means over the categories of image and pixel AUROC, and the shares that were called."""
    with open(os.path.join(run, "results.json")) as file:
        found = {k: v for k, v in json.load(file)["mean"]["figures"].items() if k.startswith("auroc.")}
    with open(os.path.join(run, "results.jsonl")) as file:
        records = [json.loads(line) for line in file]
    for name, good in (("good images called", True), ("anomalies called", False)):
        called = [r["anomalous"] is True for r in records if (r["image"].split("/")[2] == "good") == good]
        if called:
            found[name] = sum(called) / len(called)
    return found


def main():
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--samlad", default=os.path.join(HERE, "..", "samlad"))
    a = parser.parse_args(own)
    draws, rows = {}, {}
    for size in a.sizes:
        for seed in range(1, a.draws + 1):
            folder = os.path.join(a.out, f"{size}.{seed}")
            data, run = os.path.join(folder, "data"), os.path.join(folder, "run")
            make_draw(a.data, data, size, seed)
            command = [a.samlad, "eval", data, "-o", run, "--no-pictures", "--no-baselines", *options]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                sys.exit(f"this command failed: {' '.join(command)}")
            draws.setdefault(size, []).append(figures(run))
    for size, found in draws.items():
        rows[size] = {k: [statistics.mean(f[k] for f in found), statistics.pstdev(f[k] for f in found)] for k in found[0]}
    with open(os.path.join(a.out, "draws.json"), "w") as file:
        json.dump({"draws": draws, "mean and deviation": rows}, file, indent=1)
    names = list(next(iter(rows.values())))
    print("| normal images | " + " | ".join(n.replace("auroc.", "") for n in names) + " |")
    print("|---:|" + "---|" * len(names))
    for size, row in rows.items():
        print(f"| {size} | " + " | ".join("{:.3f} ± {:.3f}".format(*row[n]) for n in names) + " |")


if __name__ == "__main__":
    main()
