#!/usr/bin/env python3
"""Make tests/golden/pictures.safetensors: small BMP, TIFF and PNG files of each kind, and their pixels (needs numpy, PIL
with libtiff, OpenCV, and ImageMagick's convert).

Tensors KIND.WRITER.file (the file's bytes) and KIND.WRITER.pixels ([height][width][3], uint8 or uint16: RGB), or
KIND.WRITER.refused (the bytes of a file that samlad does not read; test_pictures.c has the sentences). The writer is pillow, opencv, magick, or hand for kinds that none of them writes. The pixels are what all three read; FOLLOWS lists
the files on which they do not agree, whom we follow, and why. Of RGB of 16 bits Pillow keeps the high bytes.

    make_golden_pictures.py tests/golden/pictures.safetensors
"""
import io
import os
import struct
import subprocess
import sys
import tempfile

import cv2
import numpy as np
from PIL import Image, ImageOps

from golden_io import save

CONVERT = "/usr/bin/convert-im6.q16" if os.path.exists("/usr/bin/convert-im6.q16") else "convert"

# ---- the three readers: bytes -> RGB of 8 or 16 bits, or None where they refuse ---------------------------------------


def by_pillow(data):
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.mode.startswith("I;16"):
            return np.repeat(np.asarray(image).astype("u2")[..., None], 3, 2)
        return np.asarray(image.convert("RGB"))  # RGB of 16 bits: Pillow keeps the high bytes
    except Exception:
        return None


def by_opencv(data):
    image = cv2.imdecode(np.frombuffer(data, "u1"), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    return None if image is None else image[..., ::-1]


def magick(arguments, data, output):
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "in"), os.path.join(folder, "out")
        with open(source, "wb") as f:
            f.write(data)
        run = subprocess.run([CONVERT] + [a.replace("IN", source) for a in arguments] + [output + ":" + target], capture_output=True)
        if run.returncode or not os.path.exists(target):
            return None
        with open(target, "rb") as f:
            return f.read()


def by_magick(data, kind, deep):
    out = magick([kind + ":IN[0]", "-auto-orient", "-alpha", "off", "-depth", "16" if deep else "8"], data, "rgb")
    if out is None:
        return None
    samples = np.frombuffer(out, "u2" if deep else "u1")
    return samples


# ---- pictures -----------------------------------------------------------------------------------------------------------

HEIGHT, WIDTH = 7, 9
rng = np.random.default_rng(28)
y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
rgb = np.stack([x * 19 % 256, y * 23 % 256, (x * y * 7 + 40) % 256], 2).astype("u1")
grey = ((x * 17 + y * 5) % 256).astype("u1")
alpha = (255 - x * 9 - y * 3).astype("u1")
deep = (rng.integers(0, 65536, (HEIGHT, WIDTH, 3))).astype("u2")
mono = (((x + y * 3) % 5 == 0) * 255).astype("u1")
few = np.stack([(x // 3 * 60) % 256, (y // 3 * 80) % 256, 0 * x + 128], 2).astype("u1")  # 16 colours
noise = rng.integers(0, 256, (40, 36, 3)).astype("u1")  # it fills LZW's table
small_noise = noise[:18, :20]
assert len(np.unique(few.reshape(-1, 3), axis=0)) <= 20

files = {}  # KIND.WRITER -> bytes


def pillow(name, image, form, **options):
    f = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(f, form, **options)
    files[name + ".pillow"] = f.getvalue()


def opencv(name, array, ending, *parameters):
    array = array[..., ::-1] if array.ndim == 3 and array.shape[2] == 3 else array[..., [2, 1, 0, 3]] if array.ndim == 3 else array
    ok, data = cv2.imencode(ending, np.ascontiguousarray(array), parameters)
    assert ok, name
    files[name + ".opencv"] = data.tobytes()


def png(array):
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 and array.shape[2] == 3 else array[..., [2, 1, 0, 3]] if array.ndim == 3 else array)[1].tobytes()


def by_convert(name, array, output, *arguments):
    data = magick(["png:IN", *arguments], png(array), output)
    assert data, name
    files[name + ".magick"] = data


rgba = np.dstack([rgb, alpha])
bw, palette16 = Image.fromarray(mono).convert("1"), Image.fromarray(few).quantize(16)
palette256 = Image.fromarray(rgb).quantize(200)

# ---- BMP ----------------------------------------------------------------------------------------------------------------

pillow("bmp-1", bw, "BMP")
pillow("bmp-8-grey", grey, "BMP")
pillow("bmp-8", palette256, "BMP")
pillow("bmp-24", rgb, "BMP")
pillow("bmp-32", Image.fromarray(rgba), "BMP")
pillow("dib-24", rgb, "DIB")
pillow("dib-8", palette16, "DIB")
opencv("bmp-8-grey", grey, ".bmp")
opencv("bmp-24", rgb, ".bmp")
opencv("bmp-32-v5", rgba, ".bmp")
by_convert("bmp-1", mono, "BMP3", "-type", "bilevel")
by_convert("bmp-4", few, "BMP3", "-colors", "12", "-type", "palette")
by_convert("bmp-8-rle", rgb, "BMP3", "-colors", "100", "-type", "palette")
by_convert("bmp-8-rle-whole", np.tile(few, (1, 2, 1))[:, :16], "BMP3", "-colors", "12", "-type", "palette", "-compress", "RLE")
by_convert("bmp-8-v5", rgb, "BMP", "-colors", "100", "-type", "palette", "-compress", "none")
by_convert("bmp-24", rgb, "BMP3")
by_convert("bmp-24-core", rgb, "BMP2", "-alpha", "off")
by_convert("bmp-8-core", rgb, "BMP2", "-colors", "100", "-type", "palette")
by_convert("bmp-4-core", few, "BMP2", "-colors", "12", "-type", "palette")
by_convert("bmp-1-core", mono, "BMP2", "-type", "bilevel")
by_convert("bmp-32-v5", rgba, "BMP")
for subtype in "RGB565", "RGB555":
    by_convert("bmp-16-" + subtype.lower(), rgb, "BMP", "-define", "bmp:subtype=" + subtype)
for subtype in "ARGB4444", "ARGB1555":
    by_convert("bmp-16-" + subtype.lower(), rgba, "BMP", "-define", "bmp:subtype=" + subtype)


def bmp(body, bits, size=(WIDTH, HEIGHT), compression=0, colors=(), declared=0, masks=b"", header=40):
    """body: the pixels as the file holds them; colors: the palette as RGB."""
    table = b"".join(bytes((b, g, r, 0)) for r, g, b in colors)
    info = struct.pack("<IiiHHIIiiII", header, size[0], size[1], 1, bits, compression, len(body), 2835, 2835, declared, 0)
    info = (info + masks).ljust(header, b"\0") + table
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + len(body), 0, 0, 14 + len(info)) + info + body


def rows(array, bits, upwards=True):
    """Pack [h][w] numbers of `bits` into rows of whole 4 bytes."""
    out = b""
    for row in array[::-1] if upwards else array:
        if bits > 8:
            line = row.astype("<u%d" % (bits // 8)).tobytes() if bits != 24 else row.astype("<u4").view("u1").reshape(-1, 4)[:, :3].tobytes()
        else:
            line = np.packbits(np.unpackbits(row.astype("u1")[:, None], axis=1)[:, 8 - bits:].ravel()).tobytes()
        out += line + bytes(-len(line) % 4)
    return out


def hand(name, data):
    files[name + ".hand"] = data


index16 = (x // 2 + y) % 16
colors16 = [(i * 16, 255 - i * 13, i * i) for i in range(16)]
packed24 = (rgb.astype("u4") * [1 << 16, 1 << 8, 1]).sum(2)
packed15 = ((rgb >> 3).astype("u4") * [1 << 10, 1 << 5, 1]).sum(2)
packed16 = ((rgb >> [3, 2, 3]).astype("u4") * [1 << 11, 1 << 5, 1]).sum(2)
hand("bmp-24-top-down", bmp(rows(packed24, 24, False), 24, (WIDTH, -HEIGHT)))
hand("bmp-8-top-down", bmp(rows(index16, 8, False), 8, (WIDTH, -HEIGHT), colors=colors16, declared=16))
hand("bmp-16", bmp(rows(packed15, 16), 16))
hand("bmp-16-masks-565", bmp(rows(packed16, 16), 16, compression=3, masks=struct.pack("<3I", 0xf800, 0x7e0, 0x1f), header=40 + 12))
hand("bmp-16-masks-555", bmp(rows(packed15, 16), 16, compression=3, masks=struct.pack("<3I", 0x7c00, 0x3e0, 0x1f), header=40 + 12))
hand("bmp-32-masks", bmp(rows((rgb.astype("u4") * [1, 1 << 8, 1 << 16]).sum(2), 32), 32, compression=3, masks=struct.pack("<3I", 0xff, 0xff00, 0xff0000), header=52))
hand("bmp-32-ten-bits", bmp(rows((rgb.astype("u8") * 4 * [1 << 20, 1 << 10, 1]).sum(2), 32), 32, compression=3, masks=struct.pack("<3I", 0x3ff00000, 0xffc00, 0x3ff), header=52))
hand("bmp-1-white-first", bmp(rows(mono // 255, 1), 1, colors=[(255, 255, 255), (0, 0, 0)]))
hand("bmp-1-colors", bmp(rows(mono // 255, 1), 1, colors=[(10, 200, 30), (250, 0, 99)]))
hand("bmp-4-short-palette", bmp(rows(index16 % 5, 4), 4, colors=colors16[:5], declared=5))
hand("bmp-8-short-palette", bmp(rows(index16, 8), 8, colors=colors16[:9], declared=9))
hand("bmp-8-no-palette", bmp(rows(grey, 8), 8))
hand("bmp-24-with-palette", bmp(rows(packed24, 24), 24, colors=colors16[:4], declared=4))
hand("bmp-64-header", bmp(rows(index16, 8), 8, colors=colors16, declared=16, header=64))


def runs(array, bits, end=True):
    """Run lengths: runs, pixels as they are, and moves in turn."""
    out = b""
    for n, row in enumerate(array[::-1]):
        at = 0
        while at < len(row):
            length = 1
            while at + length < len(row) and row[at + length] == row[at]:
                length += 1
            if length == 1 and len(row) - at >= 3:
                length = min(3 + n % 4, len(row) - at)
                part = row[at:at + length].astype("u1")
                body = part.tobytes() if bits == 8 else np.packbits(np.unpackbits(part[:, None], axis=1)[:, 4:].ravel()).tobytes()
                out += bytes((0, length)) + body + bytes(len(body) % 2)
            elif row[at] == 0 and n % 2 and at + length < len(row):
                out += bytes((0, 2, length, 0))
            else:
                out += bytes((length, row[at] * 17 if bits == 4 else row[at]))
            at += length
        out += b"\0\0" if n < len(array) - 1 else b""
    return out + (b"\0\1" if end else b"")


index_runs = np.where(y % 3 == 1, 0, x // 4 * (1 + y % 2) + (x == 7) * 3 + (y == 5) * x) % 16
for bits in 4, 8:
    hand("bmp-%d-runs" % bits, bmp(runs(index_runs, bits), bits, compression=1 if bits == 8 else 2, colors=colors16, declared=16))
# 3 pixels, 2 right and 3 up, 4 pixels, the next row, 5 right and 1 up, 2 pixels, 1 up, a run to the last pixel
for bits, compression, scale in (8, 1, 1), (4, 2, 17):
    hand("bmp-%d-moves" % bits, bmp(bytes((3, 5 * scale, 0, 2, 2, 3, 4, 7 * scale, 0, 0, 0, 2, 5, 1, 2, 9 * scale, 0, 2, 0, 1, 2, 3 * scale, 0, 1)),
                                    bits, compression=compression, colors=colors16, declared=16))
hand("bmp-8-early-end", bmp(bytes((3, 5, 0, 0, 6, 7, 0, 1)), 8, compression=1, colors=colors16, declared=16))

# ---- TIFF ---------------------------------------------------------------------------------------------------------------

grey16 = deep[..., 0]
compressions = {"raw": "plain", "tiff_lzw": "lzw", "tiff_adobe_deflate": "deflate", "tiff_deflate": "old-deflate", "packbits": "packbits"}
for compression, word in compressions.items():
    options = {} if compression == "raw" else {"compression": compression}
    pillow("tiff-1-" + word, bw, "TIFF", **options)
    pillow("tiff-8-grey-" + word, grey, "TIFF", **options)
    pillow("tiff-8-palette-" + word, palette16, "TIFF", **options)
    pillow("tiff-8-rgb-" + word, rgb, "TIFF", **options)
    pillow("tiff-16-grey-" + word, Image.fromarray(grey16), "TIFF", **options)
for word, number in ("plain", 1), ("lzw", 5), ("deflate", 8), ("old-deflate", 32946), ("packbits", 32773):
    chosen = cv2.IMWRITE_TIFF_COMPRESSION, number
    opencv("tiff-8-grey-" + word, grey, ".tiff", *chosen)
    opencv("tiff-8-rgb-" + word, rgb, ".tiff", *chosen)
    opencv("tiff-16-grey-" + word, grey16, ".tiff", *chosen)
    opencv("tiff-16-rgb-" + word, deep, ".tiff", *chosen)
opencv("tiff-8-rgba-lzw", rgba, ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5)
opencv("tiff-16-rgba-lzw", np.dstack([deep, grey16]), ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5)
opencv("tiff-8-rgb-lzw-plain-differences", rgb, ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_PREDICTOR, 1)
pillow("tiff-8-rgb-lzw-table", noise, "TIFF", compression="tiff_lzw")
pillow("tiff-8-rgb-lzw-differences", rgb, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
pillow("tiff-16-grey-deflate-differences", Image.fromarray(grey16), "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 2})
pillow("tiff-8-rgba", Image.fromarray(rgba), "TIFF")
pillow("tiff-8-grey-alpha", Image.fromarray(np.dstack([grey, alpha])), "TIFF")
pillow("tiff-8-rgb-big", rgb, "TIFF", big_tiff=True)
pillow("tiff-8-rgb-strips", small_noise, "TIFF", compression="packbits", strip_size=400)
for orientation in 2, 6, 7:
    pillow("tiff-8-rgb-turned-%d" % orientation, rgb, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation})
pillow("tiff-8-rgb-two-pages", rgb, "TIFF", save_all=True, append_images=[Image.fromarray(small_noise)])
pillow("tiff-8-cmyk", Image.fromarray(rgb).convert("CMYK"), "TIFF")
pillow("tiff-8-ycbcr", Image.fromarray(rgb).convert("YCbCr"), "TIFF")
pillow("tiff-8-rgb-jpeg", rgb, "TIFF", compression="jpeg")
pillow("tiff-1-fax", bw, "TIFF", compression="group4")
pillow("tiff-1-fax3", bw, "TIFF", compression="group3")
pillow("tiff-8-rgb-zstd", rgb, "TIFF", compression="zstd")
pillow("tiff-float", Image.fromarray(grey.astype("f4")), "TIFF")
pillow("tiff-32", Image.fromarray(grey.astype("i4")), "TIFF")

LITTLE, BIG = ("-define", "tiff:endian=lsb"), ("-define", "tiff:endian=msb")
TILES = ("-define", "tiff:tile-geometry=16x16")
by_convert("tiff-1-plain", mono, "TIFF", "-type", "bilevel", "-compress", "none")
by_convert("tiff-1-white-is-zero", mono, "TIFF", "-type", "bilevel", "-compress", "none", "-define", "quantum:polarity=min-is-white")
by_convert("tiff-8-grey-white-is-zero", grey, "TIFF", "-compress", "lzw", "-define", "quantum:polarity=min-is-white")
by_convert("tiff-16-grey-white-is-zero", grey16, "TIFF", "-compress", "lzw", "-define", "quantum:polarity=min-is-white")
by_convert("tiff-8-grey-packbits", grey, "TIFF", "-compress", "RLE")
by_convert("tiff-8-palette-lzw", few, "TIFF", "-colors", "12", "-type", "palette", "-compress", "lzw")
by_convert("tiff-4-palette", few, "TIFF", "-colors", "12", "-type", "palette", "-compress", "none", "-depth", "4")
by_convert("tiff-4-grey", grey // 16 * 17, "TIFF", "-compress", "none", "-depth", "4")
by_convert("tiff-2-grey", grey // 64 * 85, "TIFF", "-compress", "none", "-depth", "2")
by_convert("tiff-8-rgb-lzw", rgb, "TIFF", "-compress", "lzw")
by_convert("tiff-8-rgb-deflate", rgb, "TIFF", "-compress", "zip")
by_convert("tiff-8-rgb-msb", rgb, "TIFF", "-compress", "none", *BIG)
by_convert("tiff-8-rgb-planes", rgb, "TIFF", "-interlace", "plane", "-compress", "lzw")
by_convert("tiff-16-rgb-planes-msb", deep, "TIFF", "-interlace", "plane", "-compress", "zip", *BIG)
by_convert("tiff-16-rgb-msb", deep, "TIFF", "-compress", "lzw", *BIG)
by_convert("tiff-16-rgb-lzw", deep, "TIFF", "-compress", "lzw", *LITTLE)
by_convert("tiff-16-grey-lzw", grey16, "TIFF", "-compress", "lzw")
by_convert("tiff-8-rgb-tiles", small_noise, "TIFF", "-compress", "lzw", *TILES)
by_convert("tiff-16-grey-tiles-msb", grey16, "TIFF", "-compress", "zip", *TILES, *BIG)
by_convert("tiff-8-rgb-tiles-planes", small_noise, "TIFF", "-compress", "none", "-interlace", "plane", *TILES)
by_convert("tiff-8-rgba-lzw", rgba, "TIFF", "-compress", "lzw")
by_convert("tiff-8-rgba-premultiplied", rgba, "TIFF", "-compress", "lzw", "-define", "tiff:alpha=associated")
by_convert("tiff-16-rgba-lzw", np.dstack([deep, grey16]), "TIFF", "-compress", "lzw")
by_convert("tiff-8-rgb-big", rgb, "TIFF64", "-compress", "lzw")
by_convert("tiff-8-rgb-big-msb", rgb, "TIFF64", "-compress", "lzw", *BIG)

# ---- PNG, JPEG, PNM: the same table for those that other goldens hold in breadth --------------------------------------

for ending in "png", "jpeg", "pnm":
    pillow(ending + "-8-rgb", rgb, "PPM" if ending == "pnm" else ending.upper())
    pillow(ending + "-8-grey", grey, "PPM" if ending == "pnm" else ending.upper())
    opencv(ending + "-8-rgb", rgb, {"pnm": ".ppm", "png": ".png", "jpeg": ".jpg"}[ending])
    opencv(ending + "-8-grey", grey, {"pnm": ".pgm", "png": ".png", "jpeg": ".jpg"}[ending])
    by_convert(ending + "-8-rgb", rgb, "PPM" if ending == "pnm" else ending.upper())
    by_convert(ending + "-8-grey", grey, "PGM" if ending == "pnm" else ending.upper())
opencv("png-16-rgb", deep, ".png")
opencv("png-8-rgba", rgba, ".png")
by_convert("png-16-grey", grey16, "PNG", "-depth", "16")
by_convert("png-8-palette", few, "PNG8")
hand("png-8-rgb-no-end", files["png-8-rgb.pillow"][:-12])
hand("png-8-rgb-end-cut", files["png-8-rgb.pillow"][:-5])

# ---- the end ------------------------------------------------------------------------------------------------------------

# Files that the three read differently, or that only some read: whom we follow. "us": the pixels are computed here.
DEEPER = "channels of 5 and 6 bits: Pillow scales by 255/31 rounded down, magick rounds, OpenCV shifts or refuses"
FOLLOWS = {
    "bmp-16.hand": ("pillow", DEEPER),
    "bmp-16-masks-555.hand": ("pillow", DEEPER),
    "bmp-16-masks-565.hand": ("pillow", DEEPER),
    "bmp-16-argb1555.magick": ("pillow", DEEPER),
    "bmp-16-rgb555.magick": ("pillow", DEEPER),
    "bmp-16-rgb565.magick": ("pillow", DEEPER),
    "bmp-16-argb4444.magick": ("us", "magick takes 15 for 240; the others refuse it"),
    "bmp-32-masks.hand": ("magick", "OpenCV takes red for blue; Pillow refuses it"),
    "bmp-32-ten-bits.hand": ("us", "Pillow refuses it; OpenCV reads other bits"),
    "bmp-64-header.hand": ("pillow", "magick reads no palette behind this header"),
    "bmp-8-rle.magick": ("pillow", "magick fills rows to 4 bytes; OpenCV continues these runs in the next row"),
    "bmp-8-early-end.hand": ("opencv", "the others refuse it"),
    "bmp-8-no-palette.hand": ("us", "all refuse it"),
    "png-8-rgb-no-end.hand": ("pillow", "OpenCV refuses it"),
    "png-8-rgb-end-cut.hand": ("pillow", "OpenCV refuses it"),
    "tiff-16-grey-white-is-zero.magick": ("magick", "Pillow and OpenCV do not invert 16 bits"),
    "tiff-16-rgb-planes-msb.magick": ("magick", "OpenCV mixes the planes"),
    "tiff-8-rgba.pillow": ("pillow", "OpenCV multiplies the colours by alpha"),
    "tiff-8-rgba-lzw.magick": ("pillow", "OpenCV multiplies the colours by alpha"),
    "tiff-8-rgba-premultiplied.magick": ("pillow", "OpenCV does not divide by alpha"),
}
for word in compressions.values():
    FOLLOWS["tiff-8-palette-%s.pillow" % word] = ("pillow", "a palette of 8 bits times 256: magick rounds it")
REFUSED = ["tiff-8-cmyk.pillow", "tiff-8-ycbcr.pillow", "tiff-8-rgb-jpeg.pillow", "tiff-1-fax.pillow", "tiff-1-fax3.pillow",
           "tiff-8-rgb-zstd.pillow", "tiff-float.pillow", "tiff-32.pillow"]


def four_bits(data):
    words = np.frombuffer(data[14 + 124:], "<u2")[:HEIGHT * 10].reshape(HEIGHT, 10)[::-1, :WIDTH]
    return (np.stack([words >> 8, words >> 4, words], 2) % 16 * 17).astype("u1")


COMPUTED = {"bmp-32-ten-bits.hand": ((rgb.astype("u8") * 4) * 255 // 1023).astype("u1"),
            "bmp-16-argb4444.magick": four_bits(files["bmp-16-argb4444.magick"]),
            "bmp-8-no-palette.hand": np.repeat(grey[..., None], 3, 2)}

tensors = {}
for name in REFUSED:
    tensors[name + ".refused"] = np.frombuffer(files.pop(name), np.uint8)
for name, data in sorted(files.items()):
    pixels = {"pillow": by_pillow(data), "opencv": by_opencv(data), "us": COMPUTED.get(name)}
    shape = next((p.shape for p in pixels.values() if p is not None), (HEIGHT, WIDTH, 3))
    deep_file = any(p is not None and p.dtype == np.uint16 for p in pixels.values())
    seen = by_magick(data, name.split("-")[0], deep_file)
    pixels["magick"] = seen.reshape(shape) if seen is not None and seen.size == np.prod(shape) else None
    if deep_file and pixels["pillow"] is not None and pixels["pillow"].dtype == np.uint8:
        assert np.array_equal(pixels["pillow"], pixels["magick"] >> 8), name
        pixels["pillow"] = pixels["magick"]
    read = {who: p for who, p in pixels.items() if p is not None}
    if name in FOLLOWS:
        expected = read[FOLLOWS[name][0]]
        assert not all(np.array_equal(p, expected) for p in read.values()) or len(read) < 3, name + " is read alike"
    else:
        expected = read[min(read)]
        assert all(np.array_equal(p, expected) for p in read.values()), name
    tensors[name + ".file"] = np.frombuffer(data, np.uint8)
    tensors[name + ".pixels"] = np.ascontiguousarray(expected)
    print("%-28s %-28s %s" % (name, "read by " + ", ".join(sorted(set(read) - {"us"})), FOLLOWS.get(name, ("", ""))[1]))
save(sys.argv[1], {name: t for name, t in sorted(tensors.items(), key=lambda item: -item[1].itemsize)})
