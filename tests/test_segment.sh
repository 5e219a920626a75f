#!/bin/sh
# test_segment.sh - samlad segment on several images and folders, and its forms of masks. Tiny images and small random
# weights (as in test_cli.sh, which has its prompts).

. "$(dirname "$0")/shell.sh"
bin=${SAMLAD_BIN:-$here/../build/samlad}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
cd "$dir" || exit 1
some="--sam $here/golden/sam_resampled_model.safetensors --points 3 --pred-iou-thresh -10 --stability-score-thresh 0"

# expect STATUS NAME COMMAND...: the status; each line on stderr begins with "samlad: "
expect() {
    want=$1 name=$2
    shift 2
    "$@" >out 2>err </dev/null
    got=$?
    if [ $got -ne "$want" ]; then
        bad "$name: status $got, expected $want"
    elif { [ "$want" -eq 0 ] && [ -s err ]; } || grep -qv '^samlad: .' err; then
        bad "$name: stderr is not lines 'samlad: ...'"
    else
        ok
    fi
}
says() { if grep -q -- "$1" err out; then ok; else bad "'$1' is not said"; fi; }
picture() { # SHIFT
    awk -v s="$1" 'BEGIN {
        print "P3\n56 48\n255"
        for (y = 0; y < 48; y++) for (x = 0; x < 56; x++) {
            v = (x * 3 + y * 2) % 90
            if (x > 8 + s && x < 20 + s && y > 6 && y < 18) print 230, v, 40
            else print v, v, v + 30
        }
    }'
}

# ---- folders and several images ------------------------------------------------------------------------
mkdir -p in/good in/bad
picture 0 >in/good/000.ppm
picture 9 >in/bad/000.ppm
picture 4 >in/001.ppm
expect 0 "a folder" "$bin" segment in -o out.folder $some
[ "$(wc -l <out)" -eq 3 ] && ok || bad "not a line an image"
for f in good/000 bad/000 001; do there out.folder/${f}_masks.json out.folder/${f}_masks.png out.folder/${f}_masks_overlay.png; done
expect 0 "one image" "$bin" segment in/bad/000.ppm -o out.one $some
for end in .json .png _overlay.png; do
    if cmp -s out.one/000_masks$end out.folder/bad/000_masks$end; then ok; else bad "one and many differ: _masks$end"; fi
done
# images of one name in different folders, given as files; one of them twice
expect 0 "two of one name" "$bin" segment in/good/000.ppm in/good/../bad/000.ppm in/bad/000.ppm -o out.two $some
[ "$(wc -l <out)" -eq 2 ] && ok || bad "the same image twice"
for f in good bad; do cmp -s out.two/$f/000_masks.json out.folder/$f/000_masks.json && ok || bad "another $f/000"; done
(cd in/good && expect 0 "two of one name from below" "$bin" segment 000.ppm ../bad/000.ppm -o ../../out.below $some)
rm in/good/out in/good/err
there out.below/good/000_masks.json out.below/bad/000_masks.json
picture 2 >in/001.pnm
expect 0 "two of one stem" "$bin" segment in/001.pnm in/001.ppm -o out.stem $some
there out.stem/001.pnm_masks.json out.stem/001.ppm_masks.json
rm in/001.pnm
# beside the images, and again: the pictures are no images
expect 0 "beside the images" "$bin" segment in $some
there in/good/000_masks.json in/bad/000_masks_overlay.png in/001_masks.png
expect 0 "and again" "$bin" segment in $some
[ "$(wc -l <out)" -eq 3 ] && ok || bad "masks became images"
rm in/*_masks* in/*/*_masks*
# an image that cannot be read, or lies outside the prompt, does not end the others
: >in/bad/999.png
expect 1 "an unreadable image" "$bin" segment in -o out.unreadable $some
says "^samlad: in/bad/999.png: "
[ "$(wc -l <err)" -eq 1 ] && [ "$(wc -l <out)" -eq 3 ] && ok || bad "the others do not go on"
rm in/bad/999.png
echo P2 9 9 1 >in/tiny.ppm
awk 'BEGIN { for (i = 0; i < 81; i++) print i % 2 }' >>in/tiny.ppm
expect 1 "a point outside one of them" "$bin" segment in -o out.outside --sam "$here/golden/sam_resampled_model.safetensors" --point 30,20
says "^samlad: in/tiny.ppm: --point 30,20 lies outside the image of 9x9 pixels"
[ "$(wc -l <out)" -eq 3 ] && ok || bad "the others have no masks"
rm in/tiny.ppm
expect 1 "results among the images" "$bin" segment in -o in/masks $some
expect 2 "a dump of two" "$bin" segment in -o out.dump $some --dump x.safetensors
gone in/masks out.dump

# ---- forms of masks ------------------------------------------------------------------------------------
expect 0 "compressed run lengths" "$bin" segment in -o out.coco $some --output-mode coco_rle
expect 0 "pictures of masks" "$bin" segment in -o out.binary $some --output-mode binary_mask
says "001.ppm: [0-9]* masks* in out.binary/001/, _masks.png, _masks_overlay.png$"
there out.binary/good/000/0.png out.binary/good/000/metadata.csv out.binary/good/000_masks.png
gone out.binary/good/000_masks.json
expect 1 "a folder with outputs" "$bin" segment in -o out.binary $some --output-mode binary_mask
says "^samlad: out.binary: this folder has outputs of an earlier run"
expect 0 "--force clears it" "$bin" segment in/001.ppm -o out.binary $some --force
there out.binary/001_masks.json out.binary/written.list
gone out.binary/001 out.binary/good
expect 0 "and again" "$bin" segment in -o out.binary $some --force --output-mode binary_mask
expect 2 "--force beside the images" "$bin" segment in $some --force
mkdir -p out.mine/001
expect 1 "a folder that is there" "$bin" segment in -o out.mine $some --output-mode binary_mask
says "out.mine/001: this folder exists"
zeros=$(printf '%0250d' 0)
mkdir long
for i in 1 2; do cp in/001.ppm "long/$zeros$i.ppm"; done
expect 0 "names of 255 bytes" "$bin" segment long -o out.long $some
[ "$(ls out.long/*_masks.json | wc -l)" -eq 2 ] && ok || bad "outputs of long names"
for f in 001 good/000 bad/000; do
    for end in .png _overlay.png; do
        cmp -s out.coco/${f}_masks$end out.folder/${f}_masks$end && cmp -s out.binary/${f}_masks$end out.folder/${f}_masks$end &&
            ok || bad "the pictures of $f differ"
    done
done
if command -v python3 >/dev/null 2>&1; then
    python3 - >err 2>&1 <<'PYTHON' && ok || bad "the forms differ"
import csv, json, os, struct, zlib

def counts_of(text):  # rleFrString of pycocotools' maskApi.c
    counts, at = [], 0
    while at < len(text):
        x, k, more = 0, 0, True
        while more:
            c = ord(text[at]) - 48
            x, more = x | (c & 31) << 5 * k, bool(c & 32)
            at, k = at + 1, k + 1
            if not more and c & 16:
                x |= -1 << 5 * k
        counts.append(x + (counts[-2] if len(counts) > 2 else 0))
    return counts

def pixels_of(path):  # a grey PNG of 8 bits
    data, at, packed = open(path, "rb").read(), 8, b""
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height, *form = struct.unpack(">IIBBBBB", data[at + 8:at + 8 + n])
            assert form == [8, 0, 0, 0, 0], form
        packed += data[at + 8:at + 8 + n] if kind == b"IDAT" else b""
        at += 12 + n
    raw, rows, above = zlib.decompress(packed), [], bytes(width)
    for y in range(height):
        kind, row = raw[y * (width + 1)], bytearray(raw[y * (width + 1) + 1:(y + 1) * (width + 1)])
        for x in range(width):
            a, b, c = row[x - 1] if x else 0, above[x], above[x - 1] if x else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row[x] = row[x] + (0, a, b, (a + b) // 2, paeth)[kind] & 255
        rows.append(bytes(row))
        above = row
    return rows

for name in ("001", "good/000", "bad/000"):
    plain, coco = (json.load(open(f"out.{form}/{name}_masks.json")) for form in ("folder", "coco"))
    table = list(csv.DictReader(open(f"out.binary/{name}/metadata.csv")))
    assert len(plain) == len(coco) == len(table) > 0
    assert len(os.listdir(f"out.binary/{name}")) == len(plain) + 1
    for i, (p, c, t) in enumerate(zip(plain, coco, table)):
        assert list(c["segmentation"]) == ["size", "counts"] and c["segmentation"]["size"] == [48, 56]
        counts = p["segmentation"].pop("counts")
        assert counts_of(c["segmentation"].pop("counts")) == counts
        assert p == c
        rows = pixels_of(f"out.binary/{name}/{i}.png")
        flat = [rows[y][x] for x in range(56) for y in range(48)]
        assert flat == [255 * (k & 1) for k, n in enumerate(counts) for _ in range(n)]
        values = [float(t[key]) for key in ("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y",
                                            "predicted_iou", "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h")]
        record = [i, p["area"], *p["bbox"], *p["point_coords"][0], p["predicted_iou"], p["stability_score"], *p["crop_box"]]
        assert all(abs(a - b) <= 1e-6 * max(1, abs(b)) for a, b in zip(values, record)), (values, record)
PYTHON
else
    echo "  skipped: the forms of masks are not compared without python3"
    skipped=$((skipped + 1))
fi

summary
