#!/usr/bin/env python3
"""Procedural training scenes: compiles scenes.c once and calls it through ctypes.

    scenes = Scenes()
    rgb, ids, damage, objects = scenes.render(seed=7, size=256)

See scenes.c for the arguments and arrays. `python scenes.py --sheet sheet.png` draws a contact
sheet.
"""
import argparse
import ctypes
import os

import numpy as np

from native import compiled

DRAW = os.path.join("..", "..", "eval", "draw")
FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=off")

MIXED, GENERAL, TRAY, GLYPHS = 0, 1, 2, 3
# Added to the kind: everything damaged, or the damage left out. kind + NO_DAMAGE is the same scene as kind, and
# kind + ALL_DAMAGED + NO_DAMAGE the same as kind + ALL_DAMAGED.
NO_DAMAGE, ALL_DAMAGED = 16, 32

OBJECT = np.dtype([
    ("parent", "<i4"), ("shape", "<i4"), ("texture", "<i4"), ("damage", "<i4"),
    ("color", "<f4", 3), ("color2", "<f4", 3),
    ("cx", "<f4"), ("cy", "<f4"), ("angle", "<f4"), ("scale", "<f4"), ("area", "<i4"),
])
MAX_OBJECTS = 256


class Scenes:
    """The generator. Safe to use from several threads and processes; ctypes releases the interpreter lock."""

    def __init__(self, lib=None):
        self.lib = ctypes.CDLL(lib or compiled("scenes", ("scenes.c", DRAW + ".c"), FLAGS, (DRAW + ".h",)))
        self.lib.scene_render.argtypes = [
            ctypes.c_uint64, ctypes.c_uint64, ctypes.c_float, ctypes.c_int, ctypes.c_int,
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        self.lib.scene_render.restype = ctypes.c_int

    def render(self, seed, jitter=0, difficulty=1.0, kind=MIXED, size=256):
        """-> rgb uint8 [size][size][3], ids uint16 [size][size] (0 background, i+1 object i),
        damage uint8 [size][size], objects (structured array OBJECT; area 0 = hidden)."""
        rgb = np.empty((size, size, 3), np.uint8)
        ids = np.empty((size, size), np.uint16)
        damage = np.empty((size, size), np.uint8)
        objects = np.zeros(MAX_OBJECTS, OBJECT)
        n = self.lib.scene_render(seed, jitter, difficulty, kind, size, rgb.ctypes.data, ids.ctypes.data,
                                  damage.ctypes.data, objects.ctypes.data, MAX_OBJECTS)
        if n < 0:
            raise ValueError(f"scene_render failed (size {size})")
        return rgb, ids, damage, objects[:n]


def colorize(ids):
    """Random but fixed colours for an id map (0 stays black)."""
    palette = np.random.RandomState(1).randint(60, 256, (65536, 3)).astype(np.uint8)
    palette[0] = 0
    return palette[ids]


def contact_sheet(scenes, columns, rows, size, first_seed, difficulty, kind, jitter):
    """Pairs of image and id map (damage in white); with jitter, the second view instead of the id map."""
    sheet = np.zeros((rows * size, columns * 2 * size, 3), np.uint8)
    for i in range(rows * columns):
        rgb, ids, damage, _ = scenes.render(first_seed + i, 0, difficulty, kind, size)
        other = colorize(ids)
        other[damage > 0] = 255
        if jitter:
            other = scenes.render(first_seed + i, jitter, difficulty, kind, size)[0]
        y, x = i // columns * size, i % columns * 2 * size
        sheet[y:y + size, x:x + size] = rgb
        sheet[y:y + size, x + size:x + 2 * size] = other
    return sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sheet", required=True, help="contact sheet to write (PNG)")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--difficulty", type=float, default=1.0)
    parser.add_argument("--kind", type=int, default=MIXED)
    parser.add_argument("--jitter", type=int, default=0, help="show the second view of this jitter seed")
    args = parser.parse_args()
    from PIL import Image
    sheet = contact_sheet(Scenes(), args.columns, args.rows, args.size, args.seed, args.difficulty, args.kind,
                          args.jitter)
    Image.fromarray(sheet).save(args.sheet)


if __name__ == "__main__":
    main()
