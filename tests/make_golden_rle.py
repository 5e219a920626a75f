"""Compressed run lengths and areas by pycocotools, for test_rle.c.

    python3 tests/make_golden_rle.py > tests/golden/rle.txt

A line a mask: height, width, area, the counts between commas, the string. Needs numpy and pycocotools (2.0.11 was used).
"""

import numpy as np
from pycocotools import mask as coco


def counts_of(mask):
    """mask_to_rle_pytorch of segment_anything/utils/amg.py."""
    flat = mask.flatten(order="F").astype(np.int8)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])
    lengths = [int(n) for n in np.diff(starts)]
    return lengths if flat[0] == 0 else [0] + lengths


def show(height, width, counts):
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    print(height, width, int(coco.area(rle)), ",".join(map(str, counts)), rle["counts"].decode())


rng = np.random.default_rng(28)
for height, width in ((1, 1), (1, 40), (40, 1), (3, 5), (37, 64), (200, 300)):
    y, x = np.mgrid[:height, :width]
    for mask in (np.zeros((height, width), bool), np.ones((height, width), bool), (y + x) % 2 == 1,
                 rng.random((height, width)) < 0.02, (y - height / 2) ** 2 + (x - width / 2) ** 2 < min(height, width) ** 2 / 6):
        if mask.sum() > 500 and mask[1:].any() and ((mask[1:] != mask[:-1]).sum() > 5000):
            continue  # a long line says no more than a short one
        counts = counts_of(mask)
        show(height, width, counts)
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert coco.frPyObjects({"size": [height, width], "counts": counts}, height, width) == rle
for counts in ([0, 31, 32, 15, 16, 1023, 1024, 1, 0xFFFF], [200000000, 1, 2, 60000000, 3, 1, 8435449],
               [1, 268435450, 1, 1, 1, 2], [0, 1 << 28]):  # every length, both signs, up to the largest picture
    show(1 << 14, 1 << 14, counts)
