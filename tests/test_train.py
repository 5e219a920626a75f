#!/usr/bin/env python3
"""test_train.py - the trainings in tools/train on a few steps: scenes, crops, options that survive --resume, what exports say.

    python3 tests/test_train.py [TEST...]

Needs numpy, Pillow, PyTorch and a C compiler; when this python3 has them not, another one is looked for, and without any the
tests are skipped. The last line is "N passed, N failed".
"""
import contextlib
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
from unittest import mock

import cases
from cases import Skip

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
TRAIN = os.path.join(ROOT, "tools", "train")
NEEDED = ("numpy", "torch", "PIL")
SAM, VIT = (os.path.join(ROOT, "weights", name + "_tiny.safetensors") for name in ("sam", "vit"))


def go_elsewhere():
    """Runs this file by a python3 that has what is needed; ends the program when this one has not."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    compiler = os.environ.get("CC", "cc")
    if missing and "SAMLAD_TEST_TRAIN" not in os.environ:
        for python in ("python3", "/usr/bin/python3", "/usr/local/bin/python3"):
            with contextlib.suppress(OSError):
                if subprocess.run([python, "-c", "import " + ",".join(NEEDED)], capture_output=True).returncode == 0:
                    os.environ["SAMLAD_TEST_TRAIN"] = "found"
                    os.execvp(python, [python, *sys.argv])
    if missing or not shutil.which(compiler.split()[0]):
        what = f"a python3 with {', '.join(NEEDED)}" if missing else "the C compiler " + compiler
        print(f"skipped test_train: none of the trainings in tools/train was tested, for want of {what}")
        print("0 passed, 0 failed")
        sys.exit(0)


if __name__ == "__main__":
    go_elsewhere()
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.dont_write_bytecode = True
warnings.simplefilter("ignore", UserWarning)  # of numbers too small and samples too few for a statement
sys.path.insert(0, TRAIN)
import numpy as np  # noqa: E402
import torch  # noqa: E402

import safetensors_io  # noqa: E402
import train_featup  # noqa: E402
import train_sam  # noqa: E402
import train_sam_decoder  # noqa: E402
import train_vit  # noqa: E402
from scenes import MIXED, TRAY, Scenes  # noqa: E402

torch.set_num_threads(1)
train_featup.held_out = lambda *_: [0, 0, 0, 0]
for module in (train_sam, train_sam_decoder):
    module.held_out_average = lambda *_: "not measured"  # takes longer than all the rest here


class Fixed:
    """A generator that draws half, nought and three quarters."""

    def random(self):
        return 0.5

    def integers(self, low, high=None, size=None):
        return 0 if size is None else np.zeros(size, int)

    def uniform(self, low, high):
        return 0.75


def run(main, *arguments):
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(torch, "set_num_threads"):  # one thread whatever is asked
        main([str(a) for a in arguments])


def refused(main, *arguments):
    """What it says when it does not start."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            run(main, *arguments)
    except SystemExit as end:
        assert end.code == 2, end.code
        return said.getvalue()
    raise AssertionError(f"{arguments} was accepted")


def as_arguments(options):
    return [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]


def none_is_default(parser, options):
    """Every option of the parser is given (beside --resume), and none with its default."""
    for name, value in vars(parser.parse_args(["--out", "."])).items():
        if name not in ("out", "resume"):
            assert name in options and options[name] != value, f"the test does not give --{name} another value than its default"


def with_metadata(folder, path, **more):
    """A copy of a weights file that says more about itself."""
    tensors, meta = safetensors_io.load(path)
    copy = os.path.join(folder, os.path.basename(path))
    safetensors_io.save(copy, tensors, {**meta, **{k.replace("__", "."): v for k, v in more.items()}})
    return copy


def metadata_of(path):
    return safetensors_io.load(path)[1]


# ---- files

def test_safetensors_round_trip(tmp):
    rng = np.random.default_rng(1)
    tensors = {dtype: rng.integers(0, 2, (2, 3)).astype(dtype) for dtype in
               ("f8", "f4", "f2", "i8", "i4", "u2", "u1", "bool")}
    tensors.update(scalar=np.array(1.5, np.float32), empty=np.zeros((0, 4), np.float16), turned=rng.random((3, 4)).T)
    path = os.path.join(tmp, "file")
    safetensors_io.save(path, tensors, {"number": 7, "text": "ä"})
    assert os.listdir(tmp) == ["file"], os.listdir(tmp)
    found, meta = safetensors_io.load(path)
    assert meta == {"number": "7", "text": "ä"}
    assert list(found) == sorted(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert np.array_equal(found[name], value), name
    safetensors_io.save(path + "2", found, meta)
    with open(path, "rb") as a, open(path + "2", "rb") as b:
        assert a.read() == b.read()


def test_bf16_is_widened(tmp):
    values = np.array([1, -2.5, 3e38, 0], np.float32)
    text = json.dumps({"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    path = os.path.join(tmp, "file")
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + (values.view(np.uint32) >> 16).astype("<u2").tobytes())
    found, meta = safetensors_io.load(path)
    assert meta == {} and found["x"].dtype == np.float32 and np.allclose(found["x"].ravel(), values, rtol=0.01), found


# ---- scenes

def test_a_tray_is_drawn_when_one_is_asked(_):
    scenes, different = Scenes(), 0
    for seed in range(1, 9):
        for trays, kind in ((1.0, TRAY), (0.0, MIXED)):
            rgb, ids, objects = train_sam.load_scene(scenes, seed, 0.75, 96, Fixed(), trays=trays)
            want = scenes.render(seed, difficulty=0.75, kind=kind, size=96)
            assert np.array_equal(rgb, want[0]) and np.array_equal(ids, want[1]), (seed, kind)
            assert objects.tobytes() == want[3].tobytes(), (seed, kind)
        different += not np.array_equal(want[0], scenes.render(seed, difficulty=0.75, kind=TRAY, size=96)[0])
    assert different > 2, "seeds that draw a tray anyway show nothing"
    for trays, kind in ((1.0, TRAY), (0.0, MIXED)):
        objects = train_sam_decoder.load_view(scenes, train_sam.crop_boxes(256), 96, trays, Fixed())[2]
        assert objects.tobytes() == scenes.render(0, 0, 0.75, kind, 256)[3].tobytes(), kind


def test_crops_are_the_generators(_):
    assert train_sam.crop_boxes(256, 2)[5] == (54, 54, 151, 151)
    assert train_sam.crop_boxes(256) == [(0, 0, 172, 172), (0, 85, 172, 256), (85, 0, 256, 172), (85, 85, 256, 256)]
    rgb, ids, _ = train_sam.load_scene(Scenes(), 3, 0.75, 256, Fixed(), crops=1.0)
    whole = Scenes().render(3, difficulty=0.75, size=256)[1]
    rows = ((np.arange(256) + 0.5) * 172 / 256).astype(int)
    assert rgb.shape == (256, 256, 3) and np.array_equal(ids, whole[rows[:, None], rows])


def test_crops_against_the_official_package(_):
    try:
        from segment_anything.utils.amg import generate_crop_boxes
    except ImportError:
        raise Skip("segment_anything is not installed (PYTHONPATH may name a checkout)")
    for side in range(16, 1200):
        boxes = generate_crop_boxes((side, side), 2, 512 / 1500)[0][1:]
        assert [tuple(box) for box in boxes] == train_sam.crop_boxes(side) + train_sam.crop_boxes(side, 2), side


# ---- runs

SAM_OPTIONS = {"minutes": 0.02, "seed": 3, "images": 1, "points": 6, "decoded": 4, "muon_lr": 0.02, "adam_lr": 0.001,
               "decay": 0.125, "lr_scale": 0.5, "trays": 0.25, "crops": 0.375, "iou_weight": 2.0, "image_size": 64,
               "curriculum": 0.2}


def test_sam_options_survive_a_resume(tmp):
    options = {**SAM_OPTIONS, "init": with_metadata(tmp, SAM, method__note="kept")}
    none_is_default(train_sam.make_parser(), options)
    first, second, third = (os.path.join(tmp, name) for name in ("first", "second", "third"))
    run(train_sam.main, "--out", first, *as_arguments(options))
    begun = torch.load(first + "/last.pt")
    assert begun["step"] > 0 and {k: begun["args"][k] for k in options} == options

    with mock.patch.object(train_sam, "Batch", side_effect=AssertionError("its minutes are over: it should only write")):
        run(train_sam.main, "--out", second, "--resume", first + "/last.pt")
    resumed = torch.load(second + "/last.pt")
    assert {k: resumed["args"][k] for k in options} == options
    assert resumed["step"] == begun["step"] and resumed["images"] == begun["images"]
    assert resumed["seconds"] >= begun["seconds"] and resumed["config"] == begun["config"]
    for part in ("model", "ema", "dense"):
        assert all(torch.equal(resumed[part][k], v) for k, v in begun[part].items()), part

    asked = []

    class Asking(train_sam.Batch):
        def __init__(self, scenes, model, images, points, difficulty, seeds, rng, trays, crops):
            asked.append((images, points, difficulty.tolist(), trays, crops, model.c["image_size"]))
            super().__init__(scenes, model, images, points, difficulty, seeds, rng, trays, crops)

    minutes = resumed["seconds"] / 60 + 0.03
    with mock.patch.object(train_sam, "Batch", Asking):
        run(train_sam.main, "--out", third, "--resume", second + "/last.pt", "--minutes", minutes, "--lr-scale", 0.25)
    resumed = torch.load(third + "/last.pt")
    assert {k: resumed["args"][k] for k in options} == {**options, "minutes": minutes, "lr_scale": 0.25}
    assert resumed["step"] == begun["step"] + len(asked) and asked
    assert all(a == (1, 6, [1.0], 0.25, 0.375, 64) for a in asked), asked  # after --init no curriculum: all scenes are hard

    for out, state in ((first, begun), (third, resumed)):
        meta, shipped = metadata_of(out + "/export/sam_tiny.safetensors"), metadata_of(SAM)
        assert meta["method.note"] == "kept" and meta["sam.image_size"] == "64", meta
        assert meta["training.steps"] == str(state["step"]) and meta["training.seed"] == "3", meta
        for key in shipped:
            assert key in meta, key
            assert meta[key] == shipped[key] or key.startswith("training.") or key in ("sam.image_size", "sam.window_size"), key

    checkpoint = first + "/last.pt"
    said = refused(train_sam.main, "--out", second, "--resume", checkpoint, "--image-size", 96)
    assert "--image-size 96" in said and "64" in said, said
    said = refused(train_sam.main, "--out", second, "--resume", checkpoint, "--init", SAM)
    assert "--init" in said and options["init"] in said, said
    run(train_sam.main, "--out", second, "--resume", checkpoint, "--image-size", 64)


def test_sam_from_nothing_has_a_curriculum_after_a_resume(tmp):
    asked = []

    class Asking:
        def __init__(self, scenes, model, images, points, difficulty, *_):
            asked.extend(difficulty)
            raise KeyboardInterrupt

    first = os.path.join(tmp, "first")
    run(train_sam.main, "--out", first, "--minutes", 1e-6, "--images", 9, "--curriculum", 0.5)
    with mock.patch.object(train_sam, "Batch", Asking), contextlib.suppress(KeyboardInterrupt):
        run(train_sam.main, "--out", first, "--resume", first + "/last.pt", "--minutes", 100)
    assert len(asked) == 9 and max(asked) < 0.3, asked
    said = refused(train_sam.main, "--out", first, "--resume", first + "/last.pt", "--init", SAM)
    assert "none was given" in said, said


def test_decoder_carries_the_metadata_on(tmp):
    begun = os.path.join(tmp, "begun")
    options = {**SAM_OPTIONS, "minutes": 1e-6, "init": with_metadata(tmp, SAM, method__note="kept")}
    run(train_sam.main, "--out", begun, *as_arguments(options))
    path, out = begun + "/export/sam_tiny.safetensors", os.path.join(tmp, "out")
    run(train_sam_decoder.main, "--out", out, "--init", path, "--minutes", 0.02, "--images", 1, "--points", 6)
    (before, old), (after, new) = (safetensors_io.load(p) for p in (path, out + "/export/sam_tiny.safetensors"))
    assert int(new.pop("training.decoder_steps")) > 0 and new.pop("training.decoder_seed") == "1"
    assert new == old and new["method.note"] == "kept", (new, old)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and all(name.startswith("mask_decoder.") for name in changed), changed


VIT_OPTIONS = {"minutes": 50.0, "whole": 0.4, "image_size": 160, "window": 96, "enlarged": 0.25, "scenes": 2, "lr": 0.001,
               "seed": 5, "dim": 48, "depth": 2, "heads": 2, "patch": 16, "threads": 2, "steps": 1, "save_every": 7.0}


def test_vit_options_and_metadata_survive_a_resume(tmp):
    options = {**VIT_OPTIONS, "init": with_metadata(tmp, VIT, method__note="kept")}
    none_is_default(train_vit.make_parser(), options)
    assert metadata_of(VIT)["method.grid"] == "64"
    first, second = os.path.join(tmp, "first"), os.path.join(tmp, "second")
    run(train_vit.main, "--out", first, *as_arguments(options))
    run(train_vit.main, "--out", second, "--resume", first + "/checkpoint.pt", "--steps", 2, "--lr", 0.002)
    state = torch.load(second + "/checkpoint.pt")
    assert state["step"] == 2
    assert {k: state["args"][k] for k in options} == {**options, "steps": 2, "lr": 0.002}
    for out, steps in ((first, "1"), (second, "2")):
        meta, shipped = metadata_of(out + "/export/vit_tiny.safetensors"), metadata_of(VIT)
        assert meta["method.size"] == "160" and meta["method.note"] == "kept" and meta["train.steps"] == steps, meta
        for key in shipped:
            assert meta[key] == shipped[key] or key.startswith("train.") or key == "method.size", key
    said = refused(train_vit.main, "--out", second, "--resume", first + "/checkpoint.pt", "--dim", 192)
    assert "--dim 192" in said and "144" in said, said


def test_vit_from_nothing_keeps_its_size(tmp):
    options = {**VIT_OPTIONS, "patch": 8}
    first, second = os.path.join(tmp, "first"), os.path.join(tmp, "second")
    run(train_vit.main, "--out", first, *as_arguments(options))
    state = torch.load(first + "/checkpoint.pt")
    state["args"]["image_size"] = 0  # as when --init had recommended it
    torch.save(state, first + "/checkpoint.pt")
    run(train_vit.main, "--out", second, "--resume", first + "/checkpoint.pt", "--steps", 2)
    assert torch.load(second + "/checkpoint.pt")["args"]["dim"] == 48
    meta = metadata_of(second + "/export/vit_tiny.safetensors")
    assert meta["method.size"] == "160" and meta["vit.dim"] == "48" and meta["train.steps"] == "2", meta


# ---- FeatUp

def test_featup_stages_are_the_official_ones(_):
    golden = safetensors_io.load(os.path.join(ROOT, "tests", "golden", "featup_golden.safetensors"))[0]
    stack = train_featup.load_stack(os.path.join(ROOT, "tests", "golden", "featup_model.safetensors"))
    for case, every in (("5x6x7", (1, 2, 4)), ("3x4x83", (2, 5)), ("2x35x3", (1, 2))):
        features, guidance = (torch.from_numpy(golden[f"{case}.{name}"].astype(np.float32)) for name in ("features", "guidance"))
        with torch.no_grad():
            results = stack(features[None], guidance.permute(1, 2, 0)[None])
        for stage, rows in enumerate(every):
            want = golden[f"{case}.stage{stage + 1}"]
            error = np.abs(results[stage][0, ::rows].numpy() - want).max() / np.abs(want).max()
            assert error < 1e-5, (case, stage + 1, error)


def test_featup_gradients_are_torchs(_):
    torch.manual_seed(1)
    kernel, b, wanted = torch.randn(1, 6, 7, 49), torch.randn(1, 6, 7, 4), torch.randn(1, 6, 7, 4)

    def unfolded(x):
        x = torch.nn.functional.pad(x.permute(0, 3, 1, 2), [3] * 4, mode="reflect")
        return torch.nn.Unfold(7)(x).view(1, 4, 49, 6, 7)

    def plain(kernel, b):
        kernel = kernel + torch.einsum("bcphw,bhwc->bhwp", unfolded(b), b)
        return torch.einsum("bcphw,bhwp->bhwc", unfolded(b), kernel)

    def own(kernel, b):
        return train_featup.NeighbourSum.apply(kernel + train_featup.NeighbourDot.apply(b), b)

    results = []
    for form in (plain, own):
        inputs = kernel.clone().requires_grad_(), b.clone().requires_grad_()
        out = form(*inputs)
        results.append([out, *torch.autograd.grad((out * wanted).sum(), inputs)])
    for one, other in zip(*results):
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


FEATUP_OPTIONS = {"minutes": 0.02, "stages": 2, "window": 48, "view": 32, "views": 1, "windows": 1, "lr": 0.001, "seed": 3}


def test_featup_options_survive_a_resume(tmp):
    photos, first, second = (os.path.join(tmp, name) for name in ("photos", "first", "second"))
    os.mkdir(photos)
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    train_featup.Image.fromarray(noise).save(os.path.join(photos, "noise.png"))
    options = {**FEATUP_OPTIONS, "photos": photos, "backbone": with_metadata(tmp, VIT, method__note="kept")}
    none_is_default(train_featup.make_parser(), options)
    run(train_featup.main, "--out", first, *as_arguments(options))
    begun = torch.load(first + "/checkpoint.pt")
    assert begun["step"] > 0 and {k: begun["args"][k] for k in options} == options
    run(train_featup.main, "--out", second, "--resume", first + "/checkpoint.pt", "--minutes", begun["seconds"] / 60 + 0.02)
    resumed = torch.load(second + "/checkpoint.pt")
    assert resumed["step"] > begun["step"] and resumed["args"]["window"] == 48
    tensors, meta = safetensors_io.load(second + "/export/featup_tiny.safetensors")
    assert meta["samlad.model"] == "featup" and meta["training.steps"] == str(resumed["step"]), meta
    stack = train_featup.load_stack(second + "/export/featup_tiny.safetensors")
    assert len(list(stack.children())) == 2 and tensors["up2.fixup_proj.0.weight"].shape == (49, 52, 1, 1)
    assert all(torch.equal(v, resumed["ema"][n]) for n, v in stack.state_dict().items())
    said = refused(train_featup.main, "--out", second, "--resume", first + "/checkpoint.pt", "--stages", 3)
    assert "--stages 3" in said and "2" in said, said


if __name__ == "__main__":
    passed, failed, _ = cases.run(globals(), sys.argv[1:])
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
