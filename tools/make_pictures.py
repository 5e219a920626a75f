#!/usr/bin/env python3
"""The pictures of README.md and docs/, made again by the program itself.

    python3 tools/make_pictures.py [--samlad ./samlad] [--work FOLDER] [--out docs]

Draws the trays of `make demo`, makes a bank of the normal ones, judges one image with `detect --dump`, and draws what the dump
and the outputs hold. FOLDER keeps trays and bank, so that a second run takes seconds. Needs numpy and Pillow (10.1 or newer).

    input_overlay.jpg   an image beside its overlay
    legend.jpg          overlay and map of another one, with what the colours mean
    matching.jpg        its objects, those of the nearest normal image, and the assignment with its dustbins
    pipeline.svg        the steps, with the tensors of that image
"""
import argparse
import base64
import io
import json
import os
import subprocess
import tempfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGE, SECOND = "logical_anomalies/013", "structural_anomalies/010"
GREEN, RED, ORANGE, BLUE = (60, 200, 90), (235, 50, 50), (255, 150, 20), (70, 140, 255)  # report/overlay.c's
INK, GREY, PALE = (30, 30, 30), (120, 120, 120), (225, 225, 225)
HEAT = np.array([[0, 0, 8], [75, 12, 107], [165, 44, 96], [237, 105, 37], [251, 190, 35], [252, 255, 200]])  # heat_color's


def read_safetensors(path):
    """-> {name: array}, {key: text}"""
    types = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "U8": "u1"}
    data = open(path, "rb").read()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    meta = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[8 + length + first:8 + length + end], types[entry["dtype"]]).reshape(entry["shape"])
    return tensors, meta


def run(*command):
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)


def font(size):
    return ImageFont.load_default(size=size)


def write(draw, x, y, text, size=15, color=INK, anchor="la"):
    draw.text((x, y), text, fill=color, font=font(size), anchor=anchor)


def heat(values, low, high):
    t = np.clip((values - low) / (high - low), 0, 1) * 5
    i = np.minimum(t.astype(int), 4)
    return Image.fromarray((HEAT[i] + (t - i)[..., None] * (HEAT[i + 1] - HEAT[i])).round().astype(np.uint8))


def enlarged(image, side, smooth=True):
    return image.convert("RGB").resize((side, side), Image.LANCZOS if smooth else Image.NEAREST)


def save_jpeg(image, path):
    image.save(path, quality=80, optimize=True)


def input_overlay(files, out):
    side, gap = 380, 10
    canvas = Image.new("RGB", (2 * side + gap, side), "white")
    canvas.paste(enlarged(Image.open(files["input"]), side), (0, 0))
    canvas.paste(enlarged(Image.open(files["overlay"]), side), (side + gap, 0))
    save_jpeg(canvas, out)


def legend(files, out):
    side, gap, column = 300, 12, 250
    canvas = Image.new("RGB", (2 * side + 2 * gap + column, side), "white")
    canvas.paste(enlarged(Image.open(files["overlay2"]), side), (0, 0))
    canvas.paste(enlarged(Image.open(files["heat2"]), side), (side + gap, 0))
    draw, x, y = ImageDraw.Draw(canvas), 2 * (side + gap) + 6, 10
    for color, name, text in ((GREEN, "green", "normal"), (RED, "red", "extra: no counterpart"), (ORANGE, "orange", "damaged, a ring where"),
                              (BLUE, "dashed blue", "missing: expected here"), (None, "white ring", "doubt: suspected most")):
        if color is None:
            draw.ellipse((x + 4, y + 1, x + 22, y + 19), outline=INK, width=5)
            draw.ellipse((x + 6, y + 3, x + 20, y + 17), outline="white", width=2)
        else:
            for dash in range(0, 26, 10 if color == BLUE else 26):
                draw.line((x + dash, y + 10, x + dash + (5 if color == BLUE else 26), y + 10), fill=color, width=4)
        write(draw, x + 36, y, name, 15)
        write(draw, x + 36, y + 17, text, 13, GREY)
        y += 42
    bar = heat(np.linspace(0, 6, 200)[None].repeat(14, 0), 0, 6)
    canvas.paste(bar, (x, y + 20))
    write(draw, x, y, "the map: z of each place", 13, GREY)
    for value in (0, 3, 6):
        write(draw, x + value * 200 // 6, y + 37, str(value) if value < 6 else "6 and more", 13, GREY, "ma" if value == 3 else "la" if value == 0 else "ra")
    save_jpeg(canvas, out)


def outlines(draw, weights, side, at, color):
    """Borders of the cells [h][w] that are mostly the object."""
    inside = np.pad(weights >= 0.5 * max(weights.max(), 1e-6), 1)
    step = side / weights.shape[0]
    for y, x in np.argwhere(inside):
        for dy, dx, line in ((0, -1, (0, 0, 0, 1)), (0, 1, (1, 0, 1, 1)), (-1, 0, (0, 0, 1, 0)), (1, 0, (0, 1, 1, 1))):
            if not inside[y + dy, x + dx]:
                draw.line([at[k % 2] + step * ((x, y)[k % 2] - 1 + line[k]) for k in range(4)], fill=color, width=2)


def matching(files, out):
    dump, bank = files["dump"], files["bank"]
    reference = int(dump["references"][0])
    P, first = dump["omm.assignment.0"], bank["objects.first"]
    n, m = P.shape[0] - 1, P.shape[1] - 1
    weights = dump["objects.weights"], bank["objects.weights"][first[reference]:first[reference + 1]] / 255
    centroids = dump["objects.centroids"], bank["objects.centroids"][first[reference]:first[reference + 1]]
    match = [int(P[i, :m].argmax()) for i in range(n)]
    match = [j if P[i, j] > 0.2 and int(P[:n, j].argmax()) == i else -1 for i, j in enumerate(match)]
    side, top, gap, cell = 280, 26, 12, 14
    left, right = (0, top), (side + gap, top)
    canvas = Image.new("RGB", (2 * (side + gap) + 20 + (m + 1) * cell + 112, top + (n + 1) * cell + 46), "white")
    white = Image.new("RGB", (side, side), "white")
    canvas.paste(Image.blend(enlarged(Image.open(files["input"]), side), white, 0.35), left)
    canvas.paste(Image.blend(enlarged(Image.open(files["reference"]), side), white, 0.35), right)
    draw = ImageDraw.Draw(canvas)
    write(draw, left[0], 4, "query", 15)
    write(draw, right[0], 4, "the nearest normal image", 15)
    dark = (20, 130, 60)

    def spot(k, i):
        return [at + c * side for at, c in zip((left, right)[k], centroids[k][i])]

    for i in range(n):
        if match[i] >= 0 and weights[0][i].sum() < 0.05 * weights[0][i].size:
            draw.line((*spot(0, i), *spot(1, match[i])), fill=dark, width=1)
            for k, j in ((0, i), (1, match[i])):
                x, y = spot(k, j)
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=dark)
    for k, lost, color in ((0, [i for i in range(n) if P[i, m] > 0.9], RED), (1, [j for j in range(m) if P[n, j] > 0.9], BLUE)):
        for i in lost:
            outlines(draw, weights[k][i], side, (left, right)[k], color)
    y = top + side + 10
    for color, text in ((dark, "matched (lines: the small objects)"), (RED, "in the dustbin: the normal image has nothing like it"),
                        (BLUE, "the other image's, in the dustbin: the query lacks it")):
        draw.rectangle((0, y + 3, 12, y + 13), fill=color)
        write(draw, 20, y, text, 14)
        y += 20
    # the assignment, columns in the order of the rows that they match
    order = [j for j in match if j >= 0] + [j for j in range(m) if j not in match] + [m]
    rows = [i for i in range(n) if match[i] >= 0] + [i for i in range(n) if match[i] < 0] + [n]
    x0, y0 = 2 * (side + gap) + 20, top + 22
    write(draw, x0, 4, "assignment P", 15)
    for r, i in enumerate(rows):
        for c, j in enumerate(order):
            value = min(1.0, float(P[i, j]))
            color = RED if j == m and i < n else BLUE if i == n and j < m else GREY if i == n else dark
            shade = tuple(round(255 + (part - 255) * value ** 0.7) for part in color)
            box = (x0 + c * cell, y0 + r * cell, x0 + (c + 1) * cell - 2, y0 + (r + 1) * cell - 2)
            draw.rectangle(box, fill=shade, outline=PALE)
    write(draw, x0 + (m + 1) * cell + 4, y0 + (n + 0.5) * cell, "dustbin: missing", 13, BLUE, "lm")
    write(draw, x0 + (m + 0.5) * cell, y0 - 4, "dustbin: extra", 13, RED, "mb")
    write(draw, x0, y0 + (n + 1) * cell + 4, "rows: objects of the query; columns: of the other", 13, GREY)
    canvas.save(out, quality=72, subsampling=0, optimize=True)


def colours_of(features):
    """[h][w][C] -> the three strongest directions as red, green, blue."""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    three = flat @ vectors[:, -3:][:, ::-1]
    low, high = np.quantile(three, 0.02, 0), np.quantile(three, 0.98, 0)
    return Image.fromarray((np.clip((three - low) / (high - low), 0, 1) * 255).astype(np.uint8).reshape(*features.shape[:2], 3))


def mask_colours(weights):
    """[n][h][w] -> a colour for each object; the largest (the background) is pale."""
    colors = np.array([[(37 * i + 90) % 200 + 40, (91 * i + 20) % 200 + 40, (153 * i + 160) % 200 + 40] for i in range(len(weights))], float)
    colors[np.argmax(weights.sum((1, 2)))] = 225
    return Image.fromarray(np.clip(np.tensordot(weights, colors, ((0,), (0,))), 0, 255).astype(np.uint8))


def svg_image(image, x, y, side):
    data = io.BytesIO()
    image.convert("RGB").resize((2 * side, 2 * side), Image.LANCZOS).save(data, "JPEG", quality=78, optimize=True)
    code = base64.b64encode(data.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{side}" height="{side}" href="data:image/jpeg;base64,{code}"/>'


def pipeline(files, out):
    dump = files["dump"]
    side, W, H = 88, 900, 306
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" width="{W}" height="{H}" font-family="sans-serif" font-size="12">',
             '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
             f'<rect width="{W}" height="{H}" fill="#fff"/>']

    def arrow(*points):
        parts.append('<path d="M' + " L".join(f"{x} {y}" for x, y in points) + '" fill="none" stroke="#555" stroke-width="1.5" marker-end="url(#a)"/>')

    def text(x, y, words, color="#222", weight="normal", anchor="middle"):
        parts.append(f'<text x="{x}" y="{y}" fill="{color}" font-weight="{weight}" text-anchor="{anchor}">{words}</text>')

    def step(x, y, image, title, below):
        parts.append(svg_image(image, x, y, side))
        parts.append(f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" stroke="#999"/>')
        text(x + side / 2, y - 7, title, weight="bold")
        for i, line in enumerate(below):
            text(x + side / 2, y + side + 14 + 14 * i, line, "#666")

    def box(x, y, w, h, title, lines):
        parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="#f3f6fa" stroke="#7a8ba5"/>')
        text(x + w / 2, y + 20, title, weight="bold")
        for i, line in enumerate(lines):
            text(x + w / 2, y + 37 + 15 * i, line, "#555")

    top, low, mid = 24, 178, 101
    step(12, mid, Image.open(files["input"]), "image", ["[H][W][3]"])
    step(160, top, colours_of(dump["featup.features"]), "ViT, FeatUp", ["features [h][w][C]"])
    step(160, low, mask_colours(dump["objects.weights"]), "SAM", ["objects [n][h][w]"])
    box(290, mid + 8, 108, 78, "DCGA", ["a descriptor", "for each object"])
    box(436, mid + 8, 108, 78, "OMM", ["matches and", "dustbins"])
    box(582, mid + 8, 108, 78, "AMM", ["structural and", "logical map, z"])
    step(744, top, heat(dump["amm.map"], 0, 6), "map", ["z of each place"])
    step(744, low, Image.open(files["overlay"]), "verdicts", ["missing, extra, damaged"])
    box(436, low + 26, 254, 84, "bank of normal images", ["features, objects, descriptors;", "k nearest; what normal images score", "when each is left out"])
    centre = mid + side / 2
    arrow((102, centre), (130, centre), (130, top + 44), (156, top + 44))
    arrow((130, centre), (130, low + 44), (156, low + 44))
    arrow((250, top + 44), (270, top + 44), (270, centre - 14), (286, centre - 14))
    arrow((250, low + 44), (270, low + 44), (270, centre + 14), (286, centre + 14))
    arrow((398, centre), (432, centre))
    arrow((544, centre), (578, centre))
    arrow((690, centre), (716, centre), (716, top + 44), (740, top + 44))
    arrow((716, centre), (716, low + 44), (740, low + 44))
    arrow((490, low + 26), (490, mid + 90))
    arrow((636, low + 26), (636, mid + 90))
    parts.append("</svg>")
    open(out, "w").write("\n".join(parts) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samlad", default="./samlad")
    parser.add_argument("--work", help="a folder for trays and bank, kept; default: a temporary one")
    parser.add_argument("--out", default="docs")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or temporary
        tray, bank, found = f"{work}/tray", f"{work}/tray.bank", f"{work}/found"
        if not os.path.exists(tray):
            run(args.samlad, "synth", "tray", tray, "--seed", 1)
        if not os.path.exists(bank):
            run(args.samlad, "bank", f"{tray}/train/good", "-o", bank)
        dump_file, name, second = f"{work}/dump.safetensors", os.path.basename(IMAGE), os.path.basename(SECOND)
        run(args.samlad, "detect", "--bank", bank, f"{tray}/test/{IMAGE}.png", "--dump", dump_file)
        run(args.samlad, "detect", "--bank", bank, f"{tray}/test/{IMAGE}.png", f"{tray}/test/{SECOND}.png", "-o", found)
        dump, _ = read_safetensors(dump_file)
        of_bank, meta = read_safetensors(bank)
        reference = meta[f"image.{int(dump['references'][0])}"]
        files = {"input": f"{tray}/test/{IMAGE}.png", "overlay": f"{found}/{name}_overlay.png", "dump": dump, "bank": of_bank,
                 "overlay2": f"{found}/{second}_overlay.png", "heat2": f"{found}/{second}_heat.png",
                 "reference": f"{tray}/train/good/{os.path.basename(reference)}"}
        for file, make in (("input_overlay.jpg", input_overlay), ("legend.jpg", legend), ("matching.jpg", matching), ("pipeline.svg", pipeline)):
            make(files, f"{args.out}/{file}")
            print(f"{args.out}/{file}", os.path.getsize(f"{args.out}/{file}"), "bytes")


if __name__ == "__main__":
    main()
