#!/usr/bin/env python3
"""Make tests/golden/exif.safetensors: small JPEG and PNG files with Exif orientations, and PIL's turned images of them
(ImageOps.exif_transpose).

Tensors NAME.file (bytes) and NAME.samples (as in the file: uint8 or uint16 [height][width] or [height][width][channels], a
palette's colours as RGB). Files with a palette also have NAME.indices ([height][width]).

    make_golden_exif.py tests/golden/exif.safetensors
"""
import io
import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageOps

from golden_io import aligned, save

SHORT, LONG = 3, 4
WIDTH, HEIGHT = 13, 6


def exif(turn, big=True, directory=8):
    """A TIFF file with the tag, in either byte order, its directory at this place. turn None: without the tag."""
    order = "<>"[big]
    entries = [(0x0100, LONG, 7)] + [(0x0112, SHORT, turn)] * (turn is not None) + [(0x0213, SHORT, 1)]
    out = [b"II*\0", b"MM\0*"][big] + struct.pack(order + "I", directory) + bytes(directory - 8)
    out += struct.pack(order + "H", len(entries))
    for tag, kind, value in entries:
        out += struct.pack(order + "HHI", tag, kind, 1)
        out += struct.pack(order + "H2x", value) if kind == SHORT else struct.pack(order + "I", value)
    return out + bytes(4)


def picture(mode):
    rng = np.random.default_rng(7)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16))
    n = len(Image.new(mode, (1, 1)).getbands())
    image = Image.frombytes(mode, (WIDTH, HEIGHT), rng.integers(0, 10 if mode == "P" else 256, HEIGHT * WIDTH * n).astype("u1").tobytes())
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 30).astype("u1").tobytes())
    return image


def jpeg(mode, data):
    f = io.BytesIO()
    picture(mode).save(f, "JPEG", quality=90, exif=b"Exif\0\0" + data)
    return f.getvalue()


def png(mode, data, before=b"IDAT"):
    """PIL's PNG file with these Exif data as a chunk of their own ahead of the first chunk of the given kind."""
    f = io.BytesIO()
    picture(mode).save(f, "PNG")
    at = f.getvalue().index(before) - 4
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    return f.getvalue()[:at] + chunk + f.getvalue()[at:]


cases = {}
for turn in range(10):  # 0 and 9 say nothing
    for big in (False, True):
        cases["jpeg_%d_%s" % (turn, "MM" if big else "II")] = jpeg("RGB", exif(turn, big, 8 + 6 * big))
        cases["png_%d_%s" % (turn, "MM" if big else "II")] = png("RGB", exif(turn, big, 8 + 6 * big))
cases["jpeg_grey"] = jpeg("L", exif(6))
cases["jpeg_nothing"] = jpeg("RGB", exif(None))
for mode in ("L", "LA", "RGBA", "I;16", "P"):
    cases["png_" + mode] = png(mode, exif(6))
cases["png_nothing"] = png("RGB", exif(None))
cases["png_ahead"] = png("P", exif(8), b"PLTE")
cases["png_behind"] = png("RGB", exif(5), b"IEND")
cases["png_segment"] = png("RGB", b"Exif\0\0" + exif(7))  # as some programs copy it; PIL 9.4 takes it only without the prefix

tensors = {}
for name, data in cases.items():
    told = data if name != "png_segment" else png("RGB", exif(7))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(told)))
    tensors[name + ".file"] = np.frombuffer(data, np.uint8)
    samples = np.asarray(turned.convert("RGB") if turned.mode == "P" else turned)
    tensors[name + ".samples"] = samples.astype(np.uint16) if turned.mode == "I" else samples
    if turned.mode == "P":
        tensors[name + ".indices"] = np.asarray(turned)
save(sys.argv[1], aligned(tensors))
