#!/usr/bin/env python3
"""Make tests/golden/pngsuite.txt from the PngSuite folder (needs numpy and PIL).

One line a valid file: name, width, height, bits, sha256 of the decoded RGBA samples (8-bit, or 16-bit little-endian).
The decoder below follows the PNG specification; zlib does the compression. If PIL decodes a file without loss (8 bits or
fewer) the two must agree. For 16 bits their high bytes must.

    make_golden_pngsuite.py PNGSUITE_DIR > tests/golden/pngsuite.txt
"""
import hashlib
import os
import struct
import sys
import zlib

import numpy as np
from PIL import Image

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunks(data):
    at = 8
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        yield kind, data[at + 8:at + 8 + n]
        at += n + 12


def unfilter(rows, n, height, step):
    out = np.zeros((height + 1, n + step), np.int64)
    for y in range(height):
        kind, line = rows[y * (n + 1)], rows[y * (n + 1) + 1:(y + 1) * (n + 1)]
        for i in range(n):
            a, b, c = out[y + 1, i], out[y, i + step], out[y, i]
            p = a + b - c
            near = sorted([(abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c)])[0][2]
            out[y + 1, i + step] = (line[i] + [0, a, b, (a + b) // 2, near][kind]) & 255
    return out[1:, step:].astype(np.uint8)


def samples(rows, depth, n):
    if depth == 16:
        return rows.reshape(len(rows), -1, 2).astype(np.int64) @ [256, 1]
    bits = np.unpackbits(rows, axis=1)
    bits = bits[:, :bits.shape[1] // depth * depth].reshape(len(rows), -1, depth).astype(np.int64)
    return (bits @ (1 << np.arange(depth)[::-1]))[:, :n]


def decode(data):
    idat, palette, trns = b"", None, None
    for kind, body in chunks(data):
        if kind == b"IHDR":
            width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", body)
        elif kind == b"PLTE":
            palette = np.frombuffer(body, np.uint8).reshape(-1, 3)
        elif kind == b"tRNS":
            trns = body
        elif kind == b"IDAT":
            idat += body
    raw, at, n = zlib.decompress(idat), 0, CHANNELS[color]
    pixels = np.zeros((height, width, n), np.int64)
    for x0, y0, dx, dy in PASSES if interlaced else [(0, 0, 1, 1)]:
        w, h = len(range(x0, width, dx)), len(range(y0, height, dy))
        if w and h:
            size = (w * n * depth + 7) // 8
            rows = unfilter(raw[at:at + (size + 1) * h], size, h, max(1, n * depth // 8))
            pixels[y0::dy, x0::dx] = samples(rows, depth, w * n).reshape(h, w, n)
            at += (size + 1) * h
    assert at == len(raw)
    full = 65535 if depth == 16 else 255
    alpha = np.full((height, width, 1), full)
    if color == 3:
        table = np.concatenate([palette, np.full((len(palette), 1), 255)], 1)
        if trns:
            table[:len(trns), 3] = list(trns)
        return width, height, 8, table[pixels[:, :, 0]]
    if trns:
        alpha[(pixels == struct.unpack(">%dH" % n, trns)).all(2)] = 0
    pixels = pixels * full // ((1 << depth) - 1)
    if color in (4, 6):
        alpha, pixels = pixels[:, :, -1:], pixels[:, :, :-1]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, 2)
    return width, height, max(depth, 8), np.concatenate([pixels, alpha], 2)


def check_with_pil(path, bits, rgba):
    image = Image.open(path)
    if image.mode == "L" and image.info.get("transparency"):  # PIL does not scale the key of low bit depths
        assert (np.asarray(image.convert("RGB")) == rgba[:, :, :3]).all(), path
    elif bits == 8:
        assert (np.asarray(image.convert("RGBA")) == rgba).all(), path
    elif image.mode in ("RGB", "RGBA"):
        assert (np.asarray(image) == (rgba >> 8)[:, :, :len(image.mode)]).all(), path
    elif image.mode.startswith("I"):
        assert (np.asarray(image) == rgba[:, :, 0]).all(), path


for name in sorted(os.listdir(sys.argv[1])):
    if name.endswith(".png") and not name.startswith("x"):
        path = os.path.join(sys.argv[1], name)
        w, h, bits, rgba = decode(open(path, "rb").read())
        check_with_pil(path, bits, rgba)
        digest = hashlib.sha256(rgba.astype("<u2" if bits == 16 else "u1").tobytes()).hexdigest()
        print(name, w, h, bits, digest)
