#!/usr/bin/env python3
"""Make tests/golden/tiff.safetensors: small grey TIFF files and their values (needs numpy and PIL with libtiff).

Tensors NAME.file (the file's bytes) and NAME.values (float32 [height][width]). libtiff writes the LZW, PackBits and some
deflate files, through PIL. The writer below writes tiles, the floating-point predictor, float16/64 and big-endian files, after
TIFF 6.0 and Adobe's Technical Note 3.

    make_golden_tiff.py tests/golden/tiff.safetensors
"""
import io
import struct
import sys
import zlib

import numpy as np
from PIL import Image

from golden_io import save


def predict(rows, predictor, order):
    """rows [n][width] in their dtype -> the bytes of a strip or tile in the file's byte order."""
    size = rows.dtype.itemsize
    if predictor == 2:
        u = rows.view("u%d" % size)
        u = np.concatenate([u[:, :1], u[:, 1:] - u[:, :-1]], 1)
        return u.astype(u.dtype.newbyteorder(order)).tobytes()
    if predictor == 3:
        planes = rows.astype(rows.dtype.newbyteorder(">")).view("u1").reshape(len(rows), -1, size)
        planes = planes.transpose(0, 2, 1).reshape(len(rows), -1)
        return np.concatenate([planes[:, :1], planes[:, 1:] - planes[:, :-1]], 1).tobytes()
    return rows.astype(rows.dtype.newbyteorder(order)).tobytes()


def write_tiff(values, order="<", predictor=1, deflate=False, tile=None, rows=None, photometric=1):
    height, width = values.shape
    ph, pw = tile or (rows or height, width)
    parts = []
    for y in range(0, height, ph):
        for x in range(0, width, pw):
            part = values[y:y + ph, x:x + pw]
            if tile:
                part = np.pad(part, ((0, ph - part.shape[0]), (0, pw - part.shape[1])), mode="edge")
            body = predict(np.ascontiguousarray(part), predictor, order)
            parts.append(zlib.compress(body) if deflate else body)
    fields = {256: [width], 257: [height], 258: [8 * values.dtype.itemsize], 259: [8 if deflate else 1], 262: [photometric],
              277: [1], 317: [predictor], 339: [3 if values.dtype.kind == "f" else 1]}
    offset = 8 + sum(len(p) for p in parts)
    offsets = [8 + sum(len(p) for p in parts[:i]) for i in range(len(parts))]
    counts = [len(p) for p in parts]
    if tile:
        fields.update({322: [pw], 323: [ph], 324: offsets, 325: counts})
    else:
        fields.update({273: offsets, 278: [ph], 279: counts})
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, offset) + b"".join(parts)
    extra_at, extra, entries = offset + 2 + 12 * len(fields) + 4, b"", b""
    for tag, v in sorted(fields.items()):
        short = tag in (258, 259, 262, 277, 317, 322, 323, 339)
        body = struct.pack(order + "%d%s" % (len(v), "H" if short else "I"), *v)
        if len(body) > 4:
            body, extra = struct.pack(order + "I", extra_at + len(extra)), extra + body
        entries += struct.pack(order + "HHI", tag, 3 if short else 4, len(v)) + body.ljust(4, b"\0")
    return out + struct.pack(order + "H", len(fields)) + entries + bytes(4) + extra


def libtiff(values, compression, predictor=1, rows=None):
    f, info = io.BytesIO(), {317: predictor}
    if rows:
        info[278] = rows
    Image.fromarray(values).save(f, "TIFF", compression=compression, tiffinfo=info)
    return f.getvalue()


rng = np.random.default_rng(5)
y, x = np.mgrid[0:23, 0:37]
smooth = (np.sin(x / 9) * np.cos(y / 7) * 3 + rng.normal(0, .01, x.shape)).astype("f4")
smooth[3, 4] = np.inf
grey8 = ((x * 5 + y * 3) % 256).astype("u1")
grey16 = (x * 1200 + y * 31).astype("u2")
noise8 = rng.integers(0, 256, (60, 80)).astype("u1")  # fills the table of LZW
flat8 = np.repeat(np.arange(7, dtype="u1"), 40).reshape(14, 20)

cases = {
    "float": (smooth, write_tiff(smooth)),
    "float_big": (smooth, write_tiff(smooth, ">", rows=5)),
    "float_deflate_3": (smooth, write_tiff(smooth, "<", 3, True, rows=8)),
    "float_big_deflate_3": (smooth, write_tiff(smooth, ">", 3, True, rows=23)),
    "float_tiles": (smooth, write_tiff(smooth, "<", 1, False, (16, 32))),
    "float_tiles_3": (smooth, write_tiff(smooth, "<", 3, True, (16, 16))),
    "float_2": (smooth, write_tiff(smooth, "<", 2, True)),
    "half": (smooth.astype("f2"), write_tiff(smooth.astype("f2"))),
    "half_big_3": (smooth.astype("f2"), write_tiff(smooth.astype("f2"), ">", 3, True)),
    "double_3": (smooth.astype("f8"), write_tiff(smooth.astype("f8"), "<", 3, True)),
    "double_big": (smooth.astype("f8"), write_tiff(smooth.astype("f8"), ">")),
    "grey8": (grey8, write_tiff(grey8)),
    "grey8_inverted": (255 - grey8, write_tiff(grey8, photometric=0)),
    "grey16_big_2": (grey16, write_tiff(grey16, ">", 2, True, rows=10)),
    "grey16_inverted": (65535 - grey16, write_tiff(grey16, photometric=0)),
    "libtiff_lzw": (grey8, libtiff(grey8, "tiff_lzw")),
    "libtiff_lzw_2": (grey8, libtiff(grey8, "tiff_lzw", 2)),
    "libtiff_lzw_noise": (noise8, libtiff(noise8, "tiff_lzw")),
    "libtiff_lzw_flat": (flat8, libtiff(flat8, "tiff_lzw")),
    "libtiff_lzw_float_3": (smooth, libtiff(smooth, "tiff_lzw", 3)),
    "libtiff_lzw_16_2": (grey16, libtiff(grey16, "tiff_lzw", 2)),
    "libtiff_packbits": (flat8, libtiff(flat8, "packbits")),
    "libtiff_packbits_noise": (noise8, libtiff(noise8, "packbits")),
    "libtiff_deflate_float_3": (smooth, libtiff(smooth, "tiff_adobe_deflate", 3)),
    "libtiff_deflate_2": (grey8, libtiff(grey8, "tiff_adobe_deflate", 2)),
}
tensors = {}
for name, (values, data) in cases.items():
    if values.dtype != np.float16 and values.dtype != np.float64:  # PIL reads neither
        with Image.open(io.BytesIO(data)) as image:
            seen = np.asarray(image)
        if name == "float_big_deflate_3":  # PIL swaps the bytes of compressed big-endian floats once too often
            seen = seen.copy().byteswap()
        if name != "grey16_inverted":  # which PIL does not invert
            assert np.array_equal(seen, values), name
    tensors[name + ".file"] = np.frombuffer(data, np.uint8)
    tensors[name + ".values"] = values.astype("<f4")
save(sys.argv[1], tensors, spaced=True)
