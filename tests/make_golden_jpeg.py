#!/usr/bin/env python3
"""Make tests/golden/jpeg.safetensors: small JPEG files and the RGB pixels that PIL (libjpeg-turbo) reads from them.

Tensors NAME.file (bytes) and NAME.rgb ([height][width][3]). PIL itself writes the usual kinds. The encoder below
writes the rest: any sampling factors, scans of single components, restart intervals, RGB and CMYK with and without Adobe's
marker. Its coefficients are random, because a decoder needs no motif. "damaged" files have some bytes overwritten.

    make_golden_jpeg.py tests/golden/jpeg.safetensors
"""
import io
import struct
import sys

import numpy as np
from PIL import Image

from golden_io import save


# One code for DC (sizes 0..11, four bits each) and one for AC: 15 symbols of five bits.
DC_SYMBOLS = list(range(12))
AC_SYMBOLS = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x11, 0x12, 0x13, 0x21, 0x22, 0x31, 0x41, 0x71, 0xF0]


class Bits:
    def __init__(self):
        self.text = ""

    def put(self, value, n):
        if n:
            self.text += format(value, "0%db" % n)

    def signed(self, value, size):
        self.put(value if value > 0 else value + (1 << size) - 1, size)

    def bytes(self):
        text = self.text + "1" * (-len(self.text) % 8)
        self.text = ""
        return bytes(int(text[i:i + 8], 2) for i in range(0, len(text), 8)).replace(b"\xff", b"\xff\x00")


def random_block(rng, bits):
    size = int(rng.integers(0, 8))
    bits.put(DC_SYMBOLS.index(size), 4)
    bits.signed(int(rng.integers(1 << size >> 1, 1 << size)) * int(rng.choice([-1, 1])), size)
    k = 1
    while k < 64 and rng.random() < .8:
        symbol = int(rng.choice(AC_SYMBOLS[1:]))
        run, size = symbol >> 4, symbol & 15
        if k + run > 62:
            break
        bits.put(AC_SYMBOLS.index(symbol), 5)
        bits.signed(int(rng.integers(1 << size >> 1, 1 << size)) * int(rng.choice([-1, 1])), size)
        k += run + 1
    if k < 64:
        bits.put(0, 5)


def segment(marker, body):
    return struct.pack(">HH", 0xFF00 | marker, len(body) + 2) + body


def encode(seed, width, height, sampling, ids=None, restart=0, separate=False, adobe=None, jfif=False, wide_quant=False):
    rng, n = np.random.default_rng(seed), len(sampling)
    ids = ids or list(range(1, n + 1))
    max_h, max_v = max(h for h, v in sampling), max(v for h, v in sampling)
    out = b"\xff\xd8"
    if jfif:
        out += segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    if adobe is not None:
        out += segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([adobe]))
    quant = list(range(3, 67))
    out += segment(0xDB, b"\x10" + struct.pack(">64H", *quant) if wide_quant else bytes([0] + quant))
    frame = b"".join(bytes([i, h << 4 | v, 0]) for i, (h, v) in zip(ids, sampling))
    out += segment(0xC1, struct.pack(">BHHB", 8, height, width, n) + frame)
    out += segment(0xC4, bytes([0x00] + [0] * 3 + [12] + [0] * 12 + DC_SYMBOLS))
    out += segment(0xC4, bytes([0x10] + [0] * 4 + [15] + [0] * 11 + AC_SYMBOLS))
    if restart:
        out += segment(0xDD, struct.pack(">H", restart))
    for scan in [[i] for i in range(n)] if separate or n == 1 else [range(n)]:
        head = b"".join(bytes([ids[i], 0]) for i in scan)
        out += segment(0xDA, bytes([len(scan)]) + head + bytes([0, 63, 0]))
        if len(scan) == 1:
            h, v = sampling[scan[0]]
            n_mcus = -(-(-(-width * h // max_h)) // 8) * -(-(-(-height * v // max_v)) // 8)
            blocks = 1
        else:
            n_mcus = -(-width // (8 * max_h)) * -(-height // (8 * max_v))
            blocks = sum(sampling[i][0] * sampling[i][1] for i in scan)
        bits = Bits()
        for mcu in range(n_mcus):
            if restart and mcu and mcu % restart == 0:
                out += bits.bytes() + bytes([0xFF, 0xD0 + (mcu // restart - 1) % 8])
            for _ in range(blocks):
                random_block(rng, bits)
        out += bits.bytes()
    return out + b"\xff\xd9"


def by_pil(width, height, mode, **options):
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(width * 100 + height)
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    pixels = np.stack([(x * (5 + c) + y * (7 - c) + 60 * c + rng.integers(0, 60, x.shape)) % 256 for c in range(channels)], 2)
    f = io.BytesIO()
    Image.fromarray(np.squeeze(pixels.astype("u1"), 2) if mode == "L" else pixels.astype("u1"), mode).save(f, "JPEG", **options)
    return f.getvalue()


cases = {}
for size in [(1, 1), (2, 3), (3, 2), (5, 7), (8, 8), (16, 9), (17, 33), (35, 20)]:
    for subsampling in range(3):
        for progressive in (False, True):
            name = "pil_%dx%d_%d%s" % (*size, subsampling, "_progressive" * progressive)
            cases[name] = by_pil(*size, "RGB", quality=85, subsampling=subsampling, progressive=progressive)
cases["pil_grey"] = by_pil(21, 13, "L", quality=40)
cases["pil_grey_progressive"] = by_pil(21, 13, "L", quality=95, progressive=True)
cases["pil_cmyk"] = by_pil(21, 13, "CMYK", quality=90)
cases["pil_cmyk_progressive"] = by_pil(21, 13, "CMYK", quality=90, progressive=True)
cases["pil_coarse"] = by_pil(40, 24, "RGB", quality=2)
cases["pil_best"] = by_pil(24, 40, "RGB", quality=100, optimize=True)

ones = [(1, 1)] * 3
samplings = {
    "440": [(1, 2), (1, 1), (1, 1)], "411": [(4, 1), (1, 1), (1, 1)], "410": [(4, 2), (1, 1), (1, 1)],
    "14": [(1, 4), (1, 1), (1, 1)], "mixed": [(2, 2), (1, 2), (2, 1)], "chroma": [(1, 1), (2, 2), (1, 1)],
    "421": [(4, 2), (2, 1), (1, 1)], "31": [(3, 1), (1, 1), (1, 1)], "13": [(1, 3), (1, 3), (1, 1)], "22": [(2, 2)] * 3,
}
for i, (name, sampling) in enumerate(samplings.items()):
    for size in [(37, 29), (2, 2)]:
        separate = sum(h * v for h, v in sampling) > 10
        cases["sampling_%s_%dx%d" % (name, *size)] = encode(i, *size, sampling, separate=separate)
cases["separate"] = encode(20, 33, 20, [(2, 2), (1, 1), (1, 1)], separate=True)
cases["separate_restart"] = encode(21, 33, 20, [(2, 2), (1, 1), (1, 1)], separate=True, restart=2)
cases["restart"] = encode(22, 50, 40, [(2, 1), (1, 1), (1, 1)], restart=1)
cases["restart_3"] = encode(23, 50, 40, ones, restart=3)
cases["grey_2x2"] = encode(24, 18, 23, [(2, 2)])
cases["wide_quant"] = encode(25, 9, 9, ones, wide_quant=True)
cases["rgb_adobe"] = encode(26, 12, 10, ones, adobe=0)
cases["ycc_adobe"] = encode(27, 12, 10, ones, adobe=1)
cases["rgb_ids"] = encode(28, 12, 10, ones, ids=[82, 71, 66])
cases["jfif_rgb_ids"] = encode(29, 12, 10, ones, ids=[82, 71, 66], jfif=True)
cases["odd_ids"] = encode(30, 12, 10, ones, ids=[9, 4, 200])
for i, adobe in enumerate([None, 0, 2]):
    sampling = [(2, 2), (1, 1), (1, 1), (2, 2)]
    cases["four_%s" % adobe] = encode(31 + i, 21, 17, sampling, adobe=adobe)
for i in range(12):
    data = bytearray(encode(40 + i, 48, 40, [(2, 1), (1, 1), (1, 1)] if i % 2 else ones, restart=i % 4))
    rng = np.random.default_rng(i)
    start = data.index(b"\xff\xda") + 14
    for _ in range(3):
        data[rng.integers(start, len(data) - 2)] = rng.integers(0, 256)
    if i >= 8:  # a marker is lost, or another one
        at = data.index(bytes([0xFF, 0xD0 + i % 3])) if i % 4 else start + 50
        data[at + 1] = [0xD9 - 8, 0xD4, 0xD7, 0x00][i - 8]
    cases["damaged_%d" % i] = bytes(data)


tensors = {}
for name, data in cases.items():
    tensors[name + ".file"] = np.frombuffer(data, np.uint8)
    tensors[name + ".rgb"] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
save(sys.argv[1], tensors, spaced=True)
