"""test_convert.py - tools/convert.py on checkpoints made here, byte by byte, without torch.

save_zip and save_legacy write what torch.save writes (pickle's own Pickler, with stand-ins for torch's
classes, so every pickle protocol can be had). Where a python3 with torch is found, torch.save itself writes
the same and torch says what the numbers are. With SAMLAD_DATA set, the real FeatUp, MobileSAM and ViT-Tiny
files are converted or refused.

Run by tests/test_convert.sh; the last line is "N passed, N failed, N skipped".
"""

import collections
import contextlib
import io
import json
import math
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import types
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOOL = os.path.join(HERE, "..", "tools", "convert.py")
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(TOOL))
import cases  # noqa: E402
import checkpoint as container  # noqa: E402
import convert as tool  # noqa: E402
from cases import Skip  # noqa: E402

DATA = os.environ.get("SAMLAD_DATA")
FORMAT = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}
STORAGE = {"F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage",
           "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage", "I8": "CharStorage",
           "U8": "ByteStorage"}


# ---- a torch.save without torch ----------------------------------------------------------------------------

def stand_in(module, name):
    """Something that pickle writes as GLOBAL module.name."""
    for i, letter in enumerate(module + "."):  # pickle imports the parents too
        if letter == "." and module[:i] not in sys.modules:
            sys.modules[module[:i]] = types.ModuleType(module[:i])
            sys.modules[module[:i]].__stand_in__ = True
    thing = type(name, (), {"__module__": module, "__qualname__": name})
    setattr(sys.modules[module], name, thing)
    return thing


REBUILD = stand_in("torch._utils", "_rebuild_tensor_v2")
REBUILD_PARAMETER = stand_in("torch._utils", "_rebuild_parameter")
TYPES = {dtype: stand_in("torch", name) for dtype, name in STORAGE.items()}
for fake in ("torch", "torch._utils"):
    assert hasattr(sys.modules[fake], "__stand_in__"), "torch must not be imported here"


def raw_of(values, dtype):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)  # only used with values that bf16 holds
    return struct.pack("<%d%s" % (len(values), FORMAT[dtype]), *values)


class Bytes:
    """A storage."""

    def __init__(self, values, dtype="F32"):
        self.dtype, self.n, self.raw = dtype, len(values), raw_of(values, dtype)


class T:
    """A tensor; by default contiguous and alone in its storage."""

    def __init__(self, values, shape, dtype="F32", storage=None, offset=0, strides=None, parameter=False):
        self.storage = storage or Bytes(values, dtype)
        self.shape, self.offset, self.parameter = tuple(shape), offset, parameter
        self.strides = tuple(strides) if strides is not None else tool_row_major(shape)

    def __reduce__(self):
        arguments = (self.storage, self.offset, self.shape, self.strides, False, collections.OrderedDict())
        plain = Call(REBUILD, arguments)
        if self.parameter:
            return REBUILD_PARAMETER, (plain, True, collections.OrderedDict())
        return REBUILD, arguments


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def tool_row_major(shape):
    return tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))


def dump(obj, protocol, legacy, location="cpu"):
    """(pickle, {key: Bytes}) with storages as persistent ids."""
    keys, out = {}, io.BytesIO()

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            if type(thing) is not Bytes:
                return None
            key = keys.setdefault(id(thing), (str(len(keys) + (94000000 if legacy else 0)), thing))[0]
            pid = ("storage", TYPES[thing.dtype], key, location, thing.n)
            return pid + (None,) if legacy else pid

    Pickler(out, protocol).dump(obj)
    return out.getvalue(), dict(keys.values())


def save_zip(path, obj, protocol=2, spoil=None, compression=zipfile.ZIP_STORED, location="cpu"):
    """spoil(name, bytes) -> bytes or None changes or drops a member."""
    data, storages = dump(obj, protocol, False, location)
    members = [("archive/data.pkl", data), ("archive/byteorder", b"little")]
    members += [("archive/data/" + key, thing.raw) for key,
                thing in storages.items()] + [("archive/version", b"3\n")]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in members:
            raw = spoil(name, raw) if spoil else raw
            if raw is not None:
                archive.writestr(zipfile.ZipInfo(name), raw, compression)
    return path


def save_legacy(path, obj, protocol=2, little_endian=True):
    data, storages = dump(obj, protocol, True)
    system = {"protocol_version": 1001, "little_endian": little_endian,
              "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with open(path, "wb") as f:
        for part in (0x1950A86A20F9469CFC6C, 1001, system):
            f.write(pickle.dumps(part, protocol))
        f.write(data)
        f.write(pickle.dumps(sorted(storages), protocol))
        for key in sorted(storages):
            f.write(struct.pack("<q", storages[key].n) + storages[key].raw)
    return path


def save_safetensors(path, tensors, metadata=None):
    header, body = ({"__metadata__": metadata} if metadata else {}), b""
    for name, t in tensors.items():
        header[name] = {"dtype": t.storage.dtype, "shape": list(t.shape),
                        "data_offsets": [len(body), len(body) + len(t.storage.raw)]}
        body += t.storage.raw
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)
    return path


# ---- small models ------------------------------------------------------------------------------------------

rng = random.Random(20240601)


def numbers(n):
    return [struct.unpack("<f", struct.pack("<f", rng.gauss(0, 1)))[0] for _ in range(n)]


def make(shapes, dtype="F32", **more):
    return collections.OrderedDict((name, T(numbers(math.prod(shape)), shape, dtype, **more))
                                   for name, shape in shapes.items())


def vit_shapes(dim=64, depth=2, grid=3, patch=4, hidden=None, registers=0, layer_scale=True, swiglu=False,
               mask=False):
    hidden = hidden or 4 * dim
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, grid * grid + 1, dim)}
    if registers:
        shapes["register_tokens"] = (1, registers, dim)
    if mask:
        shapes["mask_token"] = (1, dim)
    shapes.update({"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)})
    for i in range(depth):
        b = "blocks.%d." % i
        shapes.update({b + "norm1.weight": (dim,), b + "norm1.bias": (dim,),
                       b + "attn.qkv.weight": (3 * dim, dim),
                       b + "attn.qkv.bias": (3 * dim,), b + "attn.proj.weight": (dim, dim),
                       b + "attn.proj.bias": (dim,)})
        if layer_scale:
            shapes.update({b + "ls1.gamma": (dim,), b + "ls2.gamma": (dim,)})
        shapes.update({b + "norm2.weight": (dim,), b + "norm2.bias": (dim,)})
        if swiglu:
            shapes.update({b + "mlp.w12.weight": (2 * hidden, dim), b + "mlp.w12.bias": (2 * hidden,),
                           b + "mlp.w3.weight": (dim, hidden), b + "mlp.w3.bias": (dim,)})
        else:
            shapes.update({b + "mlp.fc1.weight": (hidden, dim), b + "mlp.fc1.bias": (hidden,),
                           b + "mlp.fc2.weight": (dim, hidden), b + "mlp.fc2.bias": (dim,)})
    shapes.update({"norm.weight": (dim,), "norm.bias": (dim,)})
    return shapes


def sam_shapes(dim=24, heads=3, grid=5, window=2, blocks="wgwg", patch=4, c=32, mask_chans=8, mlp_dim=20,
               layers=2, masks=3):
    e, p, d, t = "image_encoder.", "prompt_encoder.", "mask_decoder.", "mask_decoder.transformer."
    s = {e + "pos_embed": (1, grid, grid, dim), e + "patch_embed.proj.weight": (dim, 3, patch, patch),
         e + "patch_embed.proj.bias": (dim,)}

    def linear(name, n_out, n_in):
        s[name + ".weight"], s[name + ".bias"] = (n_out, n_in), (n_out,)

    def norm(name, n):
        s[name + ".weight"], s[name + ".bias"] = (n,), (n,)

    def conv(name, n_out, n_in, k, bias=True):
        s[name + ".weight"] = (n_out, n_in, k, k)
        if bias:
            s[name + ".bias"] = (n_out,)

    for i, kind in enumerate(blocks):
        b, side = e + "blocks.%d." % i, grid if kind == "g" else window
        norm(b + "norm1", dim)
        s[b + "attn.rel_pos_h"] = s[b + "attn.rel_pos_w"] = (2 * side - 1, dim // heads)
        linear(b + "attn.qkv", 3 * dim, dim), linear(b + "attn.proj", dim, dim), norm(b + "norm2", dim)
        linear(b + "mlp.lin1", 3 * dim, dim), linear(b + "mlp.lin2", dim, 3 * dim)
    conv(e + "neck.0", c, dim, 1, False), norm(e + "neck.1", c)
    conv(e + "neck.2", c, c, 3, False), norm(e + "neck.3", c)
    s[p + "pe_layer.positional_encoding_gaussian_matrix"] = (2, c // 2)
    for name in ["point_embeddings.%d" % i for i in range(4)] + ["not_a_point_embed", "no_mask_embed"]:
        s[p + name + ".weight"] = (1, c)
    conv(p + "mask_downscaling.0", mask_chans // 4, 1, 2), norm(p + "mask_downscaling.1", mask_chans // 4)
    conv(p + "mask_downscaling.3", mask_chans, mask_chans // 4, 2), norm(p + "mask_downscaling.4", mask_chans)
    conv(p + "mask_downscaling.6", c, mask_chans, 1)
    attentions = [(t + "final_attn_token_to_image", c // 2)]
    for i in range(layers):
        layer = t + "layers.%d." % i
        attentions += [(layer + "self_attn", c), (layer + "cross_attn_token_to_image", c // 2),
                       (layer + "cross_attn_image_to_token", c // 2)]
        for k in range(1, 5):
            norm(layer + "norm%d" % k, c)
        linear(layer + "mlp.lin1", mlp_dim, c), linear(layer + "mlp.lin2", c, mlp_dim)
    for name, inner in attentions:
        for part in "qkv":
            linear(name + ".%s_proj" % part, inner, c)
        linear(name + ".out_proj", c, inner)
    norm(t + "norm_final_attn", c)
    s[d + "iou_token.weight"], s[d + "mask_tokens.weight"] = (1, c), (masks + 1, c)
    s[d + "output_upscaling.0.weight"], s[d + "output_upscaling.0.bias"] = (c, c // 4, 2, 2), (c // 4,)
    norm(d + "output_upscaling.1", c // 4)
    s[d + "output_upscaling.3.weight"], s[d + "output_upscaling.3.bias"] = (c // 4, c // 8, 2, 2), (c // 8,)
    for i in range(masks + 1):
        for k, n_out in enumerate((c, c, c // 8)):
            linear(d + "output_hypernetworks_mlps.%d.layers.%d" % (i, k), n_out, c)
    for k, (n_out, n_in) in enumerate(((16, c), (16, 16), (masks + 1, 16))):
        linear(d + "iou_prediction_head.layers.%d" % k, n_out, n_in)
    return s


def mobile_sam_shapes(dims=(8, 12, 16, 320), depths=(1, 2, 1, 1), c=32):
    """All that MobileSAM's state dict holds, its classifier and counts of batches too."""
    e = "image_encoder."
    s = {k: v for k, v in sam_shapes(c=c).items() if not k.startswith(e)}

    def conv_bn(name, n_out, n_in, k=1):
        s[name + ".c.weight"], s[name + ".bn.num_batches_tracked"] = (n_out, n_in, k, k), ()
        for part in ("weight", "bias", "running_mean", "running_var"):
            s[name + ".bn." + part] = (n_out,)

    def bottleneck(name, n_in, hidden, n_out):
        conv_bn(name + ".conv1", hidden, n_in), conv_bn(name + ".conv2", hidden, 1, 3)
        conv_bn(name + ".conv3", n_out, hidden)

    conv_bn(e + "patch_embed.seq.0", 4, 3, 3), conv_bn(e + "patch_embed.seq.2", dims[0], 4, 3)
    for i, dim in enumerate(dims):
        n_heads = dim // 4
        for block in (e + "layers.%d.blocks.%d" % (i, k) for k in range(depths[i])):
            if i == 0:
                bottleneck(block, dim, 4 * dim, dim)
                continue
            s[block + ".attn.attention_biases"] = (n_heads, (i + 1) ** 2)
            for name, n_out, n_in in (("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("mlp.fc1", 2 * dim, dim),
                                      ("mlp.fc2", dim, 2 * dim)):
                s["%s.%s.weight" % (block, name)], s["%s.%s.bias" % (block, name)] = (n_out, n_in), (n_out,)
            for name in ("attn.norm", "mlp.norm"):
                s["%s.%s.weight" % (block, name)] = s["%s.%s.bias" % (block, name)] = (dim,)
            conv_bn(block + ".local_conv", dim, 1, 3)
        if i < 3:
            bottleneck(e + "layers.%d.downsample" % i, dim, dims[i + 1], dims[i + 1])
    s[e + "norm_head.weight"] = s[e + "norm_head.bias"] = (dims[3],)
    s[e + "head.weight"], s[e + "head.bias"] = (5, dims[3]), (5,)
    s[e + "neck.0.weight"], s[e + "neck.2.weight"] = (c, dims[3], 1, 1), (c, c, 3, 3)
    for name in ("neck.1", "neck.3"):
        s[e + name + ".weight"] = s[e + name + ".bias"] = (c,)
    return s


def featup_shapes(stages=4, channels=6, prefix="upsampler.", radius=3, key=5):
    area, s = (2 * radius + 1) ** 2, {}
    for stage in range(1, stages + 1):
        u = prefix + "up%d." % stage
        s[u + "range_temp"] = s[u + "sigma_spatial"] = ()
        for name, n_out, n_in in (("range_proj.0", key, 3), ("range_proj.3", key, key),
                                  ("fixup_proj.0", area, area + 3), ("fixup_proj.3", area, area)):
            s[u + name + ".weight"], s[u + name + ".bias"] = (n_out, n_in, 1, 1), (n_out,)
    if channels:
        s[prefix + "fixup_proj.1.weight"] = (channels, channels, 1, 1)
        s[prefix + "fixup_proj.1.bias"] = (channels,)
    return s


# ---- running the tool and reading its answer ---------------------------------------------------------------

def run(*arguments):
    """(exit status, stdout, stderr), in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = tool.main(list(arguments))
        except SystemExit as e:
            status = e.code
    out.flush()
    return status, out.buffer.getvalue().decode(), err.getvalue()


def read(path):
    """({name: (dtype, shape, raw)}, metadata), checking the format's rules on the way."""
    with open(path, "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    assert n % 8 == 0, "the data is not aligned"
    header, body = json.loads(data[8:8 + n]), data[8 + n:]
    metadata = header.pop("__metadata__")
    assert all(type(v) is str for v in metadata.values()), "metadata must be strings"
    end, tensors, seen_small = 0, {}, False
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end, "a hole before %s" % name
        assert not (seen_small and entry["dtype"] == "F32"), "F32 comes first"
        seen_small |= entry["dtype"] != "F32"
        tensors[name], end = (entry["dtype"], tuple(entry["shape"]), body[begin:stop]), stop
    assert end == len(body)
    return tensors, metadata


def converted(path, *more):
    out = path + ".safetensors"
    status, _, err = run(path, "-o", out, *more)
    assert status == 0, err
    return read(out)


def refused(path, *parts, arguments=()):
    """The tool exits 1 with one sentence that has all the parts, and leaves nothing behind."""
    folder = tempfile.mkdtemp(dir=os.path.dirname(path))
    status, _, err = run(path, "-o", os.path.join(folder, "out.safetensors"), *arguments)
    assert status == 1, "status %s: %s" % (status, err)
    assert os.listdir(folder) == [], os.listdir(folder)
    assert err.startswith("convert.py: ") and err.count("\n") == 1 and len(err) < 700, err
    for part in (os.path.basename(path),) + parts:
        assert part in err, "%r is not in: %s" % (part, err)
    return err


def expect_equal(tensors, model, prefix="", rename=lambda name: name):
    expected = {rename(name): t for name, t in model.items()}
    assert set(tensors) == set(expected), sorted(set(tensors) ^ set(expected))[:5]
    for name, t in expected.items():
        dtype, shape, raw = tensors[name]
        assert shape == (t.shape or (1,)) and raw == t.storage.raw and dtype == t.storage.dtype, name


def expect_metadata(metadata, **wanted):
    for key, value in wanted.items():
        key = key.replace("__", ".")
        assert metadata.get(key) == value, "%s is %r, expected %r" % (key, metadata.get(key), value)


# ---- tests: containers -------------------------------------------------------------------------------------

def test_zip_and_legacy_in_every_protocol(tmp):
    model = make(vit_shapes(mask=True))
    for protocol in (2, 3, 4, 5):
        for save in (save_zip, save_legacy):
            tensors, metadata = converted(save(tmp + "/%s%d.pth" % (save.__name__, protocol), model,
                                               protocol))
            expect_equal(tensors, model)
            assert metadata["samlad.source"] == "%s%d.pth" % (save.__name__, protocol)


def test_source_is_recorded(tmp):
    import hashlib
    path = save_zip(tmp + "/a.pth", make(vit_shapes()))
    _, metadata = converted(path)
    with open(path, "rb") as f:
        assert metadata["samlad.source_sha256"] == hashlib.sha256(f.read()).hexdigest()
    assert metadata["samlad.source"] == "a.pth"


def test_views_are_made_contiguous(tmp):
    shapes = vit_shapes()
    model = make(shapes)
    plain = dict(model)
    big = Bytes(numbers(5000))
    values = struct.unpack("<5000f", big.raw)
    # transposed; every third element from an offset; channels-last patches; two tensors in one storage
    model["blocks.0.attn.proj.weight"] = T(None, (64, 64), storage=big, offset=7, strides=(1, 64))
    plain["blocks.0.attn.proj.weight"] = T([values[7 + i + 64 * j] for i in range(64) for j in range(64)],
                                           (64, 64))
    model["norm.weight"] = T(None, (64,), storage=big, offset=11, strides=(3,))
    plain["norm.weight"] = T([values[11 + 3 * i] for i in range(64)], (64,))
    model["patch_embed.proj.weight"] = T(None, (64, 3, 4, 4), storage=big, strides=(48, 1, 12, 3))
    plain["patch_embed.proj.weight"] = T([values[48 * o + c + 12 * y + 3 * x] for o in range(64)
                                          for c in range(3)
                                          for y in range(4) for x in range(4)], (64, 3, 4, 4))
    model["norm.bias"] = T(None, (64,), storage=big, offset=4936)
    plain["norm.bias"] = T(values[4936:], (64,))
    for save in (save_zip, save_legacy):
        expect_equal(converted(save(tmp + "/" + save.__name__, model))[0], plain)
    # torch's expand: nobody's business beside the model, and refused in it
    repeated = T(None, (5000, 2), storage=big, strides=(1, 0))
    expect_equal(converted(save_zip(tmp + "/beside.pth", {"state_dict": plain, "class_weight": repeated}))[0], plain)
    model["norm.bias"] = T(None, (64,), storage=Bytes(numbers(1)), strides=(0,))
    refused(save_zip(tmp + "/inside.pth", model), "norm.bias repeats the 1 elements")


def test_parameters_wrappers_and_prefixes(tmp):
    model = make(vit_shapes(), parameter=True)
    junk = make({"weight": (3,)})["weight"]
    namespace = Call(stand_in("argparse", "Namespace2"), ())
    callback = stand_in("pytorch_lightning.callbacks", "ModelCheckpoint")
    checkpoints = {
        "lightning": {"epoch": 3, "state_dict": {"model." + k: v for k, v in model.items()},
                      "callbacks": {callback: 1.5},
                      "optimizer_states": [{"state": {0: {"exp_avg": junk}}, "param_groups": [{"lr": 1e-3}]}],
                      "hyper_parameters": namespace},
        "model": {"model": model, "optimizer": {"state": {}}, "args": namespace, "big": 1 << 900},
        "ddp": {"module." + k: v for k, v in model.items()},
        "teacher": {"student": {"backbone." + k: junk for k in model}, "set": {1, 2},
                    "frozen": frozenset([3]),
                    "teacher": {"backbone." + k: v for k, v in model.items()}},
        "fsdp": {"model": {**{"student.backbone." + k: junk for k in model},
                           **{"teacher.backbone." + k: v for k, v in model.items()}}},
        "ema": {"state_dict": {k: junk for k in model}, "state_dict_ema": model},
        "nested": {"a": {"b": {"c": model}}},
    }
    for name, checkpoint in checkpoints.items():
        for protocol in (2, 4):
            tensors, _ = converted(save_zip(tmp + "/%s%d.ckpt" % (name, protocol), checkpoint, protocol))
            expect_equal(tensors, model)


def test_cuda_storages_and_block_chunks(tmp):
    model = make(vit_shapes(depth=4))
    chunked = {re.sub(r"^blocks\.(\d)", lambda m: "blocks.%d.%s" % (int(m.group(1)) // 2, m.group(1)), k): v
               for k, v in model.items()}
    assert "blocks.1.2.norm1.bias" in chunked
    expect_equal(converted(save_zip(tmp + "/chunks.pth", {"teacher": chunked}, location="cuda:0"))[0], model)


def test_safetensors_in(tmp):
    model = make(vit_shapes(layer_scale=False))
    expect_equal(converted(save_safetensors(tmp + "/a.safetensors", model))[0], model)
    path = save_safetensors(tmp + "/b.safetensors", model)
    with open(path, "rb") as f:
        whole = f.read()
    for cut in (4, 100, len(whole) - 1):
        with open(path, "wb") as f:
            f.write(whole[:cut])
        refused(path)
    n = struct.unpack("<Q", whole[:8])[0]
    for bad in (b"{" + b"[" * 100000, b'{"a": 1, "a": 2}',
                b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' %
                (b"9" * 50000), b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}', b'[]', b'{"\xff'):
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", len(bad)) + bad + whole[8 + n:])
        refused(path)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", 1 << 62) + whole[8:])
    refused(path, "header")


def test_other_files_are_refused(tmp):
    for content, part in ((b"", "empty"), (b"x", "neither"), (b"<!DOCTYPE html><html>", "web page"),
                          (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
                          (b"\0" * 257 + b"ustar" + b"\0" * 300, "tar"), (b"\x80", "pickle"),
                          (b"PK\3\4", "truncated"),
                          (pickle.dumps({"a": 1}, 2), "not one of torch.save")):
        path = tmp + "/other.pth"
        with open(path, "wb") as f:
            f.write(content)
        refused(path, part)
    refused(tmp + "/absent.pth", "cannot be read")
    refused(tmp, "cannot be read")
    with zipfile.ZipFile(tmp + "/photos.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    refused(tmp + "/photos.zip", "data.pkl")


def test_damaged_archives_are_refused(tmp):
    model = make(vit_shapes())
    refused(save_zip(tmp + "/a.pth", model, spoil=lambda n, raw: None if n.endswith("data/3") else raw),
            "missing")
    refused(save_zip(tmp + "/b.pth", model, spoil=lambda n, raw: raw[:-4] if n.endswith("data/3") else raw),
            "truncated")
    refused(save_zip(tmp + "/c.pth", model, spoil=lambda n,
                     raw: raw[:len(raw) // 2] if n.endswith("pkl") else raw), "pickle")
    refused(save_zip(tmp + "/d.pth", model, spoil=lambda n, raw: b"big" if n.endswith("order") else raw),
            "big-endian")
    refused(save_legacy(tmp + "/e.pth", model, little_endian=False), "big-endian")
    refused(save_zip(tmp + "/f.pth", model, compression=zipfile.ZIP_DEFLATED),
            "compressed")  # nor can it be a bomb
    for save in (save_zip, save_legacy):
        path = save(tmp + "/whole.pth", model)
        with open(path, "rb") as f:
            whole = f.read()
        for cut in list(range(1, 400, 7)) + list(range(400, len(whole), len(whole) // 60)) + [len(whole) - 1]:
            path = tmp + "/cut.pth"
            with open(path, "wb") as f:
                f.write(whole[:cut])
            refused(path)


def move_before_the_file(path, suffix, tail):
    """The directory lies: the member whose name ends so begins as many bytes before the file as the archive's comment
    has, which is a header, the member's bytes and `tail`: where a negative index reads."""
    with zipfile.ZipFile(path) as archive:
        moved = next(info for info in archive.infolist() if info.filename.endswith(suffix))
        body = b"PK\3\4" + bytes(26) + archive.read(moved) + tail
    with open(path, "rb") as f:
        whole = bytearray(f.read())
    end = len(whole) - 22  # the end of central directory, without a comment
    n_entries, _, at = struct.unpack("<HII", whole[end + 10:end + 20])
    struct.pack_into("<I", whole, end + 16, at + len(body))
    struct.pack_into("<H", whole, end + 20, len(body))
    for _ in range(n_entries):
        n_name, n_extra, n_comment = struct.unpack("<HHH", whole[at + 28:at + 34])
        begin = struct.unpack("<I", whole[at + 42:at + 46])[0]
        is_moved = whole[at + 46:at + 46 + n_name] == moved.filename.encode()
        struct.pack_into("<I", whole, at + 42, 0 if is_moved else begin + len(body))
        at += 46 + n_name + n_extra + n_comment
    with open(path, "wb") as f:
        f.write(whole + body)
    return path


def test_a_member_before_the_file_is_refused(tmp):
    model = make(vit_shapes())
    for suffix in ("data/0", "data/1", "data.pkl"):
        for tail in (b"", b"\0" * 9):
            refused(move_before_the_file(save_zip(tmp + "/lie.pth", model), suffix, tail), "damaged")


def test_a_tensor_that_comes_out_short_or_long_is_refused(tmp):
    class Container:
        path = "container.pth"

        def __init__(self, *parts):
            self.chunks = lambda name, tensor: parts

    tensor = container.Tensor(container.Storage("F32", "0", 6), 0, (2, 3), (3, 1))
    for dtype in ("F32", "F16", "BF16"):
        assert tool.write_tensor(io.BytesIO(), Container(bytes(16), bytes(8)), "t", tensor, dtype) == 0
        for parts in ((), (bytes(20),), (bytes(24), bytes(4))):
            try:
                tool.write_tensor(io.BytesIO(), Container(*parts), "t", tensor, dtype)
            except tool.Refusal as why:
                assert "container.pth: tensor t " in str(why) and "bytes instead of" in str(why), why
            else:
                raise AssertionError("%s as %s was written" % (parts, dtype))


def test_truncation_of_an_official_file_names_both_sizes(tmp):
    path = save_zip(tmp + "/sam_vit_b_01ec64.pth", make(vit_shapes()))
    refused(path, "truncated", "375042383")


def test_mutated_files_never_crash(tmp):
    model = make(vit_shapes(depth=1, grid=2))
    for save in (save_zip, save_legacy):
        with open(save(tmp + "/seed.pth", model, 2), "rb") as f:
            whole = f.read()
        pickle_at = whole.find(b"cls_token")
        for round_ in range(400):
            spoiled = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                in_pickle = rng.randrange(max(pickle_at - 100, 0), pickle_at + 4000)
                at = in_pickle if round_ % 4 else rng.randrange(len(whole))
                spoiled[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256),
                                          spoiled[at] ^ 1 << rng.randrange(8)))
            with open(tmp + "/mutant.pth", "wb") as f:
                f.write(spoiled)
            status, _, err = run(tmp + "/mutant.pth", "-o", tmp + "/mutant.out")
            assert status in (0, 1), err
            assert status == 0 or err.startswith("convert.py: "), err


# ---- tests: hostile pickles --------------------------------------------------------------------------------

class Execute:
    """What an attacker pickles."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def test_nothing_in_a_checkpoint_is_executed(tmp):
    proof = tmp + "/executed"
    with open(tmp + "/evil_module.py", "w") as f:
        f.write("open(%r, 'w').close()\nclass Thing: pass\n" % proof)
    evil_module = b"\x80\x02cevil_module\nThing\n)\x81."
    attacks = [Execute(os.system, "touch " + proof), Execute(eval, "open(%r,'w')" % proof),
               Execute(exec, "open(%r,'w')" % proof), Execute(open, proof, "w"),
               Execute(subprocess.call, ["touch", proof])]
    model = make(vit_shapes())
    environment = dict(os.environ, PYTHONPATH=tmp)
    for i, attack in enumerate(attacks):
        for where, obj in (("instead", attack), ("beside", {"state_dict": model, "callbacks": [attack]}),
                           ("inside", {**model, "head.weight": attack}),
                           ("key", {"state_dict": model, "b": {Key(): attack}})):
            for save in (save_zip, save_legacy):
                path = save(tmp + "/%s%d.pth" % (where, i), obj)
                status, _, err = run(path, "-o", path + ".out")
                assert not os.path.exists(proof), "%s was executed" % where
                assert status == (1 if where == "instead" else 0), err
    for raw in (evil_module, b"\x80\x04\x8c\x0bevil_module\x8c\x05Thing\x93)R."):
        path = save_zip(tmp + "/module.pth", model, spoil=lambda n, old: raw if n.endswith("pkl") else old)
        result = subprocess.run([sys.executable, TOOL, path, "-o", path + ".out"], env=environment, cwd=tmp,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert result.returncode == 1 and not os.path.exists(proof), "a module was imported"
    # and the proof would show: the same pickle, run by Python's own unpickler, does touch the file
    pickle.loads(pickle.dumps(attacks[3]))
    assert os.path.exists(proof)


class Key:
    pass


def pickle_program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def memory_programs():
    """Small pickles that ask for much memory by putting names together."""
    long_name = b"\x8d" + struct.pack("<Q", 1 << 23) + b"n" * (1 << 23) + b"q\0"
    some_name = b"X" + struct.pack("<I", 4096) + b"n" * 4096 + b"q\0"
    return {"long names": b"\x80\x04]" + long_name + b"h\0h\0\x93" * 1000 + b"0" * 1001 + b".",
            "many names": b"\x80\x04]" + some_name + b"h\0h\0\x93" * 300000 + b"0" * 300001 + b".",
            "names of names": b"\x80\x02]cos\nsystem\n" + b")R2" * 60000 + b"0" * 60001 + b"."}


def program_of_long_names(n_dicts):
    """So many dicts of one tensor, whose long name ends as a model's would; name and tensor come from the memo."""
    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s

    tensor = (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0")
              + text(b"cpu") + b"K\1tQK\0K\1\x85K\1\x85\x89}tRq\1")
    name = text(b"x" * 4000 + b".up1.range_temp") + b"q\2"
    dicts = b"".join(text(b"%x" % i) + b"}h\2h\1s" for i in range(n_dicts))
    return pickle_program(b"}(", text(b"a"), tensor, text(b"b"), name, dicts, b"u")


def test_pickle_bombs_end_quickly(tmp):
    model = make(vit_shapes(depth=1, grid=2))
    nested = b")" + b"\x85" * 300000  # ((((...),),),)
    doubling = b")q\0" + b"h\0h\0\x86q\0" * 200  # 2^200 leaves; hashing it never ends
    programs = {
        "memo index": pickle_program(b"}", b"r\xff\xff\xff\x7f"),
        # an array of 2^31 slots in C's unpickler
        "huge string": pickle_program(b"\x8d" + struct.pack("<Q", 1 << 60)),
        "huge bytes": pickle_program(b"\x8e" + struct.pack("<Q", (1 << 64) - 1)),
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",
        "deep tuple as key": pickle_program(b"}", nested, b"N", b"s"),
        "doubling tuple as key": pickle_program(b"}", doubling, b"N", b"s"),
        "deep tuple": pickle_program(nested),
        "colliding keys": pickle_program(b"}("
                                         + b"".join(b"\x8a\x0a" + ((2**61 - 1) * i).to_bytes(10, "little")
                                                    + b"N"
                                                            for i in range(60000)) + b"u"),
        "many steps": pickle_program(b"]" * 2100000),
        "stack underflow": pickle_program(b"0" * 10),
        "no stop": b"\x80\x02}" + b"N" * 50,
        "long number": pickle_program(b"I" + b"9" * 2000000 + b"\n"),
        "old opcodes": pickle_program(b"(ios\nsystem\n"),
    }
    for name, program in programs.items():
        start = time.time()
        refused(save_zip(tmp + "/bomb.pth", model, spoil=lambda n,
                         raw: program if n.endswith("pkl") else raw))
        assert time.time() - start < 60, "%s took %.0f s" % (name, time.time() - start)
    for name, program in memory_programs().items():  # in 1.5 GB of address space
        save_zip(tmp + "/memory.pth", model, spoil=lambda n, raw: program if n.endswith("pkl") else raw)
        result = subprocess.run(["sh", "-c", 'ulimit -v 1500000; exec "$@"', "sh", sys.executable, TOOL,
                                 tmp + "/memory.pth", "-o", tmp + "/x"], stderr=subprocess.PIPE)
        assert result.returncode == 1 and b"holds no dict of tensors" in result.stderr, (name, result.stderr)
    long_names = program_of_long_names(380000)
    save_zip(tmp + "/names.pth", model, spoil=lambda n, raw: long_names if n.endswith("pkl") else raw)
    result = subprocess.run(["sh", "-c", 'ulimit -v 1500000; exec "$@"', "sh", sys.executable, TOOL,
                             tmp + "/names.pth", "-o", tmp + "/x"], stderr=subprocess.PIPE)
    assert result.returncode == 1 and b"no model that samlad knows" in result.stderr, result.stderr
    twice = [["k", None]] * 700000
    refused(save_zip(tmp + "/list.pth", [Call(collections.OrderedDict, (twice,)) for _ in range(3)]),
            "longer")


def test_lying_shapes_are_refused(tmp):
    model = make(vit_shapes())
    small = Bytes(numbers(64))
    for t in (T(None, (1 << 40,), storage=small, strides=(0,)), T(None, (64,), storage=small, offset=1),
              T(None, (64,), storage=small, strides=(-1,)), T(None, (64,), storage=small, offset=-3),
              T(None, (1 << 60, 0), storage=small), T(None, (1 << 40,), storage=small),
              T(None, (64,), storage=small, strides=(1, 1)), T(None, (64,), storage=small, strides=(1.0,))):
        for save in (save_zip, save_legacy):
            refused(save(tmp + "/lie.pth", {**model, "norm.weight": t}))
    lying = Bytes(numbers(64))
    lying.n = 1 << 40  # declares more than it has
    refused(save_zip(tmp + "/lie2.pth", {**model, "norm.weight": T(None, (64,), storage=lying)}),
            "norm.weight", "truncated")
    refused(save_legacy(tmp + "/lie3.pth", {**model, "norm.weight": T(None, (64,), storage=lying)}),
            "truncated")


# ---- tests: models -----------------------------------------------------------------------------------------

def test_dinov2_configurations(tmp):
    _, m = converted(save_zip(tmp + "/s.pth",
                              make(vit_shapes(dim=128, depth=3, grid=5, patch=14, mask=True))))
    expect_metadata(m, samlad__model="vit", vit__family="dinov2", vit__image_size="70", vit__patch_size="14",
                    vit__dim="128",
                    vit__depth="3", vit__n_heads="2", vit__mlp_ratio="4", vit__ffn="mlp",
                    vit__n_registers="0",
                    vit__layer_scale="1", vit__interpolate_offset="0.1", vit__interpolate_antialias="0",
                    vit__eps="1e-6",
                    vit__mean="0.485,0.456,0.406", vit__std="0.229,0.224,0.225")
    _, m = converted(save_zip(tmp + "/r.pth", make(vit_shapes(registers=4))))
    expect_metadata(m, vit__n_registers="4", vit__interpolate_offset="0.0", vit__interpolate_antialias="1")
    hidden = (64 * 4 * 2 // 3 + 7) // 8 * 8  # SwiGLUFFNFused
    _, m = converted(save_zip(tmp + "/g.pth", make(vit_shapes(swiglu=True, hidden=hidden))))
    expect_metadata(m, vit__ffn="swiglu", vit__mlp_ratio="4")


def test_mlp_ratio_gives_the_hidden_width_back(tmp):
    for dim, hidden in ((64, 100), (1408, 6144), (1664, 8192), (192, 577), (64, 8)):
        assert int(dim * float(tool.ratio_text(dim, hidden))) == hidden
    for hidden in (8, 24, 168, 176, 4096):
        class Shapes:
            tensors = {"blocks.0.mlp.w12.weight": 0}

            def shape(self, name, n):
                return (64, hidden)
        _, got, ratio = tool.vit_ffn(Shapes(), 64)
        assert got == hidden and (int(int(64 * float(ratio)) * 2 / 3) + 7) // 8 * 8 == hidden


def test_plain_vit_configuration(tmp):
    shapes = dict(vit_shapes(dim=192, layer_scale=False), **{"head.weight": (10, 192), "head.bias": (10,)})
    path = save_zip(tmp + "/t.pth", make(shapes))
    tensors, m = converted(path)
    assert "head.weight" not in tensors and "norm.bias" in tensors
    expect_metadata(m, samlad__model="vit", vit__family="timm", vit__layer_scale="0", vit__n_heads="3",
                    vit__mean="0.5,0.5,0.5", vit__std="0.5,0.5,0.5", vit__interpolate_offset="0.0",
                    vit__interpolate_antialias="1", vit__eps="1e-6", vit__image_size="12")
    assert "head.bias, head.weight" in run(path, "-o", tmp + "/x")[1]
    _, m = converted(path, "--mean", "0.1,0.2,0.3", "--std", "1,2,3", "--heads", "6")
    expect_metadata(m, vit__mean="0.1,0.2,0.3", vit__std="1,2,3", vit__n_heads="6")
    path = save_zip(tmp + "/odd.pth", make(vit_shapes(dim=48, layer_scale=False)))
    refused(path, "--heads")
    expect_metadata(converted(path, "--heads", "4")[1], vit__n_heads="4")
    refused(path, "5 heads", arguments=("--heads", "5"))
    shapes = vit_shapes(layer_scale=False)
    shapes["pos_embed"] = (1, 9, 64)  # timm's no_embed_class: no position for the class token
    expect_metadata(converted(save_zip(tmp + "/nc.pth", make(shapes)))[1], vit__image_size="12")


def test_vit_variants_are_refused(tmp):
    def variant(name, shape, **more):
        return save_zip(tmp + "/v.pth", make({**vit_shapes(**more), name: shape}))
    refused(variant("blocks.0.attn.q_norm.weight", (64,)), "blocks.0.attn.q_norm.weight")
    refused(variant("dist_token", (1, 1, 64), layer_scale=False), "dist_token")
    refused(variant("pos_embed", (1, 8, 64)), "square grid")
    refused(variant("blocks.1.norm1.weight", (63,)), "blocks.1.norm1.weight", "[63]", "[64]")
    refused(variant("patch_embed.proj.weight", (64, 3, 4, 5)), "square")
    refused(variant("norm.weight", (64, 0)), "norm.weight")
    for name in ("norm.bias", "blocks.0.ls2.gamma", "blocks.1.mlp.fc2.weight", "cls_token", "pos_embed"):
        shapes = vit_shapes()
        del shapes[name]
        refused(save_zip(tmp + "/missing.pth", make(shapes)), name, "missing")
    gone = {k: v for k, v in vit_shapes(depth=3).items() if not k.startswith("blocks.1.")}
    refused(save_zip(tmp + "/gap.pth", make(gone)), "blocks.1.norm1.weight", "missing")
    refused(save_zip(tmp + "/int.pth", {**make(vit_shapes()), "norm.bias": T([1] * 64, (64,), "I32")}),
            "norm.bias", "I32")


def test_sam_configuration(tmp):
    for prefix in ("", "module.", "sam."):
        model = make(sam_shapes())
        tensors, m = converted(save_zip(tmp + "/sam.pth",
                                        {"model": {prefix + k: v for k, v in model.items()}}))
        expect_equal(tensors, model)
    expect_metadata(m, samlad__model="sam", sam__image_size="20", sam__patch_size="4", sam__embed_dim="24",
                    sam__depth="4",
                    sam__n_heads="3", sam__mlp_ratio="3", sam__window_size="2",
                    sam__global_attn_indexes="1,3",
                    sam__out_chans="32", sam__mask_in_chans="8", sam__decoder_depth="2",
                    sam__decoder_mlp_dim="20",
                    sam__decoder_heads="8", sam__attention_downsample_rate="2",
                    sam__num_multimask_outputs="3",
                    sam__iou_head_depth="3", sam__iou_head_hidden_dim="16",
                    sam__pixel_mean="123.675,116.28,103.53",
                    sam__pixel_std="58.395,57.12,57.375")
    _, m = converted(save_legacy(tmp + "/one.pth", make(sam_shapes(masks=1, layers=1, blocks="wwww"))))
    expect_metadata(m, sam__global_attn_indexes="", sam__num_multimask_outputs="1", sam__decoder_depth="1")
    _, m = converted(save_legacy(tmp + "/g.pth", make(sam_shapes(blocks="g"))), "--mean", "1,2,3")
    expect_metadata(m, sam__global_attn_indexes="0", sam__window_size="0", sam__pixel_mean="1,2,3")


def test_sam_variants_are_refused(tmp):
    def variant(**shapes):
        return save_zip(tmp + "/v.pth",
                        make({**sam_shapes(), **{k.replace("__", "."): v for k, v in shapes.items()}}))
    refused(variant(mask_decoder__hf_token__weight=(1, 32)), "mask_decoder.hf_token.weight")  # HQ-SAM
    refused(variant(image_encoder__blocks__2__attn__rel_pos_h=(7, 8)),
            "image_encoder.blocks.2.attn.rel_pos_h", "[7, 8]")
    refused(variant(image_encoder__pos_embed=(1, 5, 4, 24)), "expected squares")
    for name in ("image_encoder.neck.2.weight", "prompt_encoder.no_mask_embed.weight",
                 "image_encoder.pos_embed",
                 "mask_decoder.transformer.layers.1.norm4.bias", "mask_decoder.iou_token.weight"):
        shapes = sam_shapes()
        del shapes[name]
        refused(save_zip(tmp + "/missing.pth", make(shapes)), name, "missing")


def unused_of_mobile_sam(name):
    return name.startswith(("image_encoder.head.", "image_encoder.norm_head.")) or name.endswith(".num_batches_tracked")


def test_mobile_sam_configuration(tmp):
    model = make(mobile_sam_shapes())
    for name in model:
        if name.endswith(".num_batches_tracked"):
            model[name] = T([7], (), "I64")
    tensors, m = converted(save_zip(tmp + "/mobile.pt", model))
    expect_equal(tensors, {k: t for k, t in model.items() if not unused_of_mobile_sam(k)})
    expect_metadata(m, samlad__model="sam", sam__encoder="tiny_vit", sam__image_size="1024", sam__embed_dim="320",
                    sam__out_chans="32", sam__mask_in_chans="8", sam__decoder_heads="8",
                    sam__pixel_mean="123.675,116.28,103.53")
    assert "sam.depth" not in m and "sam.patch_size" not in m


def test_mobile_sam_variants_are_refused(tmp):
    def variant(**shapes):
        return save_zip(tmp + "/v.pt",
                        make({**mobile_sam_shapes(), **{k.replace("__", "."): v for k, v in shapes.items()}}))
    refused(save_zip(tmp + "/v.pt", make(mobile_sam_shapes(dims=(8, 12, 16, 24)))), "8, 12, 16, 24 channels", "320")
    refused(save_zip(tmp + "/v.pt", make(mobile_sam_shapes(dims=(8, 320, 16, 320)))), "8, 320, 16, 320 channels")
    refused(variant(image_encoder__layers__4__blocks__0__conv1__c__weight=(4, 4, 1, 1)), "more than 4 stages")
    refused(variant(image_encoder__layers__1__blocks__0__attn__attention_biases=(3, 5)), "5 biases a head")
    refused(variant(image_encoder__layers__1__blocks__1__attn__attention_biases=(3, 9)), "[3, 9]", "[3, 4]")
    refused(variant(image_encoder__layers__2__blocks__0__attn__extra=(3,)), "attn.extra", "no place")
    for name in ("layers.1.blocks.0.local_conv.bn.running_var", "layers.0.downsample.conv2.c.weight", "neck.3.bias",
                 "patch_embed.seq.2.c.weight", "layers.3.blocks.0.mlp.fc1.weight"):
        shapes = mobile_sam_shapes()
        del shapes["image_encoder." + name]
        refused(save_zip(tmp + "/v.pt", make(shapes)), "image_encoder." + name, "missing")


# ---- tests: names of Hugging Face and timm --------------------------------------------------------------------

HF_BLOCK = {"norm1": "norm1", "norm2": "norm2", "attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}


def hf_dinov2(official, in_memory=False, prefix="dinov2."):
    """transformers' Dinov2Model with the numbers of an official model: as version 4 names them, or version 5 in memory."""
    model, places = {}, {v: k for k, v in HF_BLOCK.items()}
    outside = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
               "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
               "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
               "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias"}
    for name, t in official.items():
        if name in outside:
            model[prefix + outside[name]] = t
            continue
        block, rest = re.match(r"blocks\.(\d+)\.(.*)", name).groups()
        layer = prefix + "encoder.layer.%s." % block
        if rest.startswith("attn.qkv"):
            n, values = t.shape[0] // 3, struct.unpack("<%df" % math.prod(t.shape), t.storage.raw)
            row = math.prod(t.shape[1:])
            for i, (old, new) in enumerate((("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))):
                part = "attention." + new if in_memory else "attention.attention." + old
                model[layer + part + rest[8:]] = T(values[i * n * row:(i + 1) * n * row], (n,) + t.shape[1:])
            continue
        stem, dot, end = rest.rpartition(".")
        place = places[rest] if rest in places else places[stem] + dot + end
        model[layer + (place.replace("output.dense", "o_proj") if in_memory else place)] = t
    return model


def beside(tmp, **files):
    for name, value in files.items():
        with open(os.path.join(tmp, name + ".json"), "w") as f:
            json.dump(value, f)


def test_hugging_face_names(tmp):
    official = make(vit_shapes(dim=48, depth=3))
    config = {"model_type": "dinov2", "hidden_size": 48, "num_attention_heads": 4, "layer_norm_eps": 1e-5}
    beside(tmp, config=config, preprocessor_config={"image_mean": [0.25, 0.5, 0.75], "image_std": [1, 2, 4]})
    for in_memory in (False, True):
        foreign = {**hf_dinov2(official, in_memory), "classifier.weight": make({"a": (2, 48)})["a"]}
        for save in (save_zip, save_legacy, save_safetensors):
            tensors, m = converted(save(tmp + "/pytorch_model.bin", foreign))
            expect_equal(tensors, official)
            expect_metadata(m, vit__family="dinov2", vit__n_heads="4", vit__eps="1e-05", vit__mean="0.25,0.5,0.75",
                            vit__std="1,2,4", vit__depth="3", vit__interpolate_offset="0.1")
    path = save_zip(tmp + "/pytorch_model.bin", foreign)
    expect_metadata(converted(path, "--heads", "6", "--mean", "0,0,0", "--std", "1,1,1")[1], vit__n_heads="6",
                    vit__mean="0,0,0", vit__std="1,1,1")
    for bad, word in (({"hidden_size": 64}, "another model"), ({"hidden_size": 48, "num_attention_heads": []}, "heads"),
                      ({"hidden_size": 48, "num_attention_heads": 1.5}, "does not divide"), ({"hidden_size": 48, "num_attention_heads": 5}, "is 5, which does not divide"), ([1], "not an object"),
                      ({"hidden_size": 48, "hidden_act": "silu"}, "silu")):
        beside(tmp, config=bad)
        status, _, err = run(path, "-o", tmp + "/no")
        assert status == 1 and word in err and "config.json" in err and err.count("\n") == 1, err
    os.unlink(tmp + "/config.json")
    beside(tmp, preprocessor_config={"image_mean": [1, 1, 1]})
    status, _, err = run(path, "-o", tmp + "/no")
    assert status == 1 and "preprocessor_config.json: image_mean is there, but not image_std" in err, err
    os.unlink(tmp + "/preprocessor_config.json")
    outside = {k[len("dinov2."):] if ".layer." in k else k: t for k, t in foreign.items()}
    assert outside.keys() != foreign.keys()
    expect_equal(converted(save_zip(tmp + "/outside.bin", outside), "--heads", "4")[0], official)
    refused(path, "--heads")
    missing = {k: v for k, v in foreign.items() if "layer.1.attention.k_proj.weight" not in k}
    refused(save_zip(tmp + "/piece.bin", missing), "piece 2 of 3", "blocks.1.attn.qkv.weight")
    refused(save_zip(tmp + "/more.bin", {**foreign, "dinov2.encoder.layer.0.q_norm": official["norm.bias"]}), "no place")


def test_timm_names(tmp):
    shapes = {k: v for k, v in vit_shapes(registers=2).items() if "qkv.bias" not in k and ".mlp." not in k}
    shapes["pos_embed"] = (1, 9, 64)
    for i in range(2):  # packed SwiGLU of 5 channels
        shapes.update({"blocks.%d.mlp.w12.weight" % i: (10, 64), "blocks.%d.mlp.w12.bias" % i: (10,),
                       "blocks.%d.mlp.w3.weight" % i: (64, 5), "blocks.%d.mlp.w3.bias" % i: (64,)})
    official = make(shapes)
    foreign = {k.replace("register_tokens", "reg_token").replace("w12", "fc1").replace("w3", "fc2"): t
               for k, t in official.items()}
    beside(tmp, config={"architecture": "x", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}})
    tensors, m = converted(save_zip(tmp + "/timm.pth", [foreign]))
    expect_equal(tensors, official)
    expect_metadata(m, vit__family="dinov2", vit__layer_scale="1", vit__ffn="swiglu", vit__hidden_dim="5",
                    vit__n_registers="2", vit__mean="0.1,0.2,0.3", vit__std="0.229,0.224,0.225",
                    vit__interpolate_antialias="1")


def test_state_dicts_inside_lists_and_deep_dicts(tmp):
    model = make(vit_shapes())
    for name, checkpoint in {"list": [model], "tuple": (model, 3), "deep": {"a": {"b": {"c": {"d": model}}}},
                             "mixed": ({"state_dict": [{"model": model}]}, 1)}.items():
        expect_equal(converted(save_zip(tmp + "/%s.pth" % name, checkpoint))[0], model)
    refused(save_zip(tmp + "/deeper.pth", {"a": {"b": {"c": {"d": {"e": model}}}}}), "no dict of tensors")


def test_shards_and_folders(tmp):
    model = make(vit_shapes())
    names = sorted(model)
    halves = {"pytorch_model-1.bin": names[:9], "pytorch_model-2.bin": names[9:]}
    for file, part in halves.items():
        save_zip(os.path.join(tmp, file), {name: model[name] for name in part})
    weight_map = {name: file for file, part in halves.items() for name in part}
    beside(tmp, **{"pytorch_model.bin.index": {"weight_map": weight_map}})
    index = tmp + "/pytorch_model.bin.index.json"
    expect_equal(converted(index)[0], model)
    os.unlink(index + ".safetensors")
    out = tmp + "/out"
    assert run(tmp, "-o", out)[0] == 0  # the folder
    expect_equal(read(out)[0], model)
    for bad, word in (({}, "no weight_map"), ({"weight_map": {"a": "../x.bin"}}, "beside the index"),
                      ({"weight_map": {"a": 3}}, "beside the index"), ({"weight_map": {"a": "gone.bin"}}, "missing"),
                      ({"weight_map": {**weight_map, "more": "pytorch_model-1.bin"}}, "more"),
                      ({"weight_map": {name: weight_map[name] for name in names[1:]}}, names[0])):
        beside(tmp, **{"bad.index": bad})
        refused(tmp + "/bad.index.json", word)


def hf_decoder_name(name):
    """transformers' name of a tensor of the official mask decoder, whose heads have three layers."""
    for official, foreign in ((r"(layers\.\d+\.)norm(\d)", r"\1layer_norm\2"), ("norm_final_attn", "layer_norm_final_attn"),
                              (r"output_upscaling\.0", "upscale_conv1"), (r"output_upscaling\.1", "upscale_layer_norm"),
                              (r"output_upscaling\.3", "upscale_conv2"), (r"(mlps\.\d+|head)\.layers\.0", r"\1.proj_in"),
                              (r"(mlps\.\d+|head)\.layers\.2", r"\1.proj_out"), (r"(mlps\.\d+|head)\.layers\.1", r"\1.layers.0")):
        name, n = re.subn(official, foreign, name)
        if n:
            break
    return name


def test_a_part_of_sam_on_its_base(tmp):
    base = make(sam_shapes())
    path = save_zip(tmp + "/sam_base.pth", base)
    decoder = {k: t for k, t in make(sam_shapes()).items() if k.startswith("mask_decoder.")}
    expected = {**base, **decoder}
    for name, part in (("plain", decoder), ("bare", {k[len("mask_decoder."):]: t for k, t in decoder.items()}),
                       ("ddp", {"state_dict": {"module.sam." + k: t for k, t in decoder.items()}, "epoch": 3})):
        tensors, m = converted(save_zip(tmp + "/%s.pth" % name, part), "--base", path)
        expect_equal(tensors, expected)
        expect_metadata(m, samlad__model="sam", samlad__source=name + ".pth", samlad__base="sam_base.pth",
                        sam__decoder_heads="8")
    encoder = {k: t for k, t in make(sam_shapes()).items() if k.startswith("image_encoder.")}
    expect_equal(converted(save_zip(tmp + "/encoder.pth", encoder), "--base", path)[0], {**base, **encoder})
    hf = {hf_decoder_name(k): t for k, t in decoder.items()}
    assert len(hf) == len(decoder) and sum(name not in decoder for name in hf) > 10
    for name, part in (("hf", hf), ("hf_bare", {k[len("mask_decoder."):]: t for k, t in hf.items()})):
        tensors, m = converted(save_zip(tmp + "/%s.pth" % name, part), "--base", path)
        expect_equal(tensors, expected)
        expect_metadata(m, sam__decoder_eps="1e-06")
    # a part must be whole, in both namings, and hold no more
    for part in (decoder, hf):
        lacks = dict(part)
        lacks.pop("mask_decoder.mask_tokens.weight")
        refused(save_zip(tmp + "/half.pth", lacks), "mask_decoder.mask_tokens.weight is missing", arguments=("--base", path))
        more = {**part, "mask_decoder.depth_token.weight": make({"a": (1, 32)})["a"]}
        refused(save_zip(tmp + "/more.pth", more), "mask_decoder.depth_token.weight has no place", arguments=("--base", path))
    for part in (decoder, hf, {k[len("mask_decoder."):]: t for k, t in decoder.items()}):
        refused(save_zip(tmp + "/alone.pth", part), "a part of a SAM alone: give a whole SAM with --base")
    refused(save_zip(tmp + "/other.pth", make({"a": (3,)})), "no tensor in common", arguments=("--base", path))
    wrong = {**decoder, "mask_decoder.iou_token.weight": make({"a": (1, 3)})["a"]}
    refused(save_zip(tmp + "/wrong.pth", wrong), "iou_token", "[1, 32]", arguments=("--base", path))


def test_converted_models_equal_the_libraries(tmp):
    """The models of tests/golden/names and of SAMLAD_DATA's names/, through this tool and then through the C program."""
    test_names = os.path.join(os.path.dirname(os.environ.get("SAMLAD_BIN", "/")), "tests", "test_names")
    if not os.access(test_names, os.X_OK):
        raise Skip("SAMLAD_BIN has no tests/test_names beside it")
    roots = [os.path.join(HERE, "golden", "names")] + ([os.path.join(DATA, "names")] if DATA else [])
    for root in filter(os.path.isdir, roots):
        for name in sorted(os.listdir(root)):
            folder = os.path.join(root, name)
            if os.path.isdir(folder):
                os.makedirs(os.path.join(tmp, name))
                with open(folder + "/io.safetensors", "rb") as f, open(os.path.join(tmp, name, "io.safetensors"), "wb") as g:
                    g.write(f.read())
                assert run(folder, "-o", os.path.join(tmp, name, "model.safetensors"))[0] == 0, name
    result = subprocess.run([test_names, "models"], env={**os.environ, "SAMLAD_NAMES": tmp}, stdout=subprocess.PIPE)
    assert result.returncode == 0 and b"1 passed" in result.stdout, result.stdout.decode()


def test_strangers_are_named(tmp):
    for name, part in (("image_encoder.trunk.patch_embed.proj.weight", "SAM 2"),
                       ("conv1.weight", "conv1.weight"),
                       ("vision_encoder.patch_embed.projection.weight", "the image encoder of a SAM alone"),
                       ("encoder.stages.0.layers.0.dwconv.weight", "ConvNeXt"),
                       ("dinov2.embeddings.patch_embeddings.projection.weight", "Hugging Face"),
                       ("visual.transformer.resblocks.0.attn.in_proj_weight", "CLIP")):
        refused(save_zip(tmp + "/stranger.pth", make({name: (2, 3, 1, 1)})), part)
    refused(save_zip(tmp + "/none.pth", {"epoch": 3}), "no dict of tensors")


def test_featup_configuration(tmp):
    for prefix in ("upsampler.", "", "net.upsampler."):
        model = make(featup_shapes(prefix=prefix))
        model["model.0.patch_embed.proj.weight"] = make({"a": (4, 3, 2,
                                                               2)})["a"]  # the frozen backbone beside it
        if not prefix:
            del model["model.0.patch_embed.proj.weight"]
        tensors, m = converted(save_zip(tmp + "/f.ckpt", {"state_dict": model, "global_step": 1}))
        expected = {k: t for k, t in model.items() if not k.startswith("model.")}
        expect_equal(tensors, expected, rename=lambda k: "upsampler." + k[len(prefix):])
        expect_metadata(m, samlad__model="featup", featup__stages="4", featup__radius="3",
                        featup__channels="6")
    _, m = converted(save_zip(tmp + "/2.ckpt", make(featup_shapes(stages=2, channels=0, radius=2))))
    expect_metadata(m, featup__stages="2", featup__radius="2", featup__channels="0")
    shapes = featup_shapes()
    del shapes["upsampler.up3.range_temp"]
    refused(save_zip(tmp + "/gap.ckpt", make(shapes)), "up3")


def test_one_of_several_models_can_be_chosen(tmp):
    featup, vit = make(featup_shapes()), make(vit_shapes())
    path = save_zip(tmp + "/both.ckpt",
                    {"state_dict": {**featup, **{"model.0." + k: v for k, v in vit.items()}}})
    expect_equal(converted(path)[0], featup)
    expect_equal(converted(path, "--model", "vit")[0], vit)
    refused(path, "no model", arguments=("--model", "sam"))


# ---- tests: numbers, options, files ------------------------------------------------------------------------

EDGES = [0.0, -0.0, 1.0, -1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 2.0**-24, 2.0**-25,
         3 * 2.0**-25, 65504.0,
         -65519.0, 2.0**-133, 2.0**-149, 3.0e38, 3.3895e38, 1e-40, 0.1, -0.3]


def bf16_nearest(v):
    """The slow and plain way: of the two neighbours the nearer, of two equally near the even one."""
    low = struct.unpack("<I", struct.pack("<f", abs(v)))[0] >> 16

    def distance(b):  # infinity stands where the next number would be
        return abs(abs(v) - (math.ldexp(1.0, 128) if b == 0x7F80 else unpack_bf16(b)))

    nearest = min((low, low + 1), key=lambda b: (distance(b), b & 1))
    return struct.pack("<H", nearest | (0x8000 if math.copysign(1, v) < 0 else 0))


def unpack_bf16(b):
    return struct.unpack("<f", struct.pack("<I", b << 16))[0]


def test_dtypes(tmp):
    values = ([struct.unpack("<f", struct.pack("<f", v))[0] for v in EDGES] + numbers(64 - len(EDGES)))
    model = make(vit_shapes())
    model["norm.weight"] = T(values, (64,))
    path = save_zip(tmp + "/a.pth", model)
    raw = converted(path, "--dtype", "bf16")[0]["norm.weight"][2]
    assert raw == b"".join(map(bf16_nearest, values))
    refused(path, "norm.weight", "65504", arguments=("--dtype", "f16"))
    small = [v if abs(v) < 65520 else 1.5 for v in values]
    model["norm.weight"] = T(small, (64,))
    tensors, _ = converted(save_zip(tmp + "/b.pth", model), "--dtype", "f16")
    assert tensors["norm.weight"][2] == struct.pack("<64e", *small)
    assert {t[0] for t in tensors.values()} == {"F16"}
    # from every type: half and bfloat16 are exact in f32, double is rounded
    halves, exact = [math.ldexp(i - 32, -3) for i in range(64)], [unpack_bf16(0x3F80 + i) for i in range(64)]
    doubles = [v * (1 + 1e-12) for v in values[:-2]] + [1e300, -1e39]
    model["norm.weight"], model["norm.bias"] = T(halves, (64,), "F16"), T(exact, (64,), "BF16")
    model["blocks.0.norm1.bias"] = T(doubles, (64,), "F64")
    path = save_legacy(tmp + "/c.pth", model)
    tensors, _ = converted(path)
    assert tensors["norm.weight"][0] == "F16" and tensors["norm.bias"][0] == "BF16"
    tensors, _ = converted(path, "--dtype", "f32")
    assert tensors["norm.weight"][2] == struct.pack("<64f", *halves)
    assert tensors["norm.bias"][2] == struct.pack("<64f", *exact)
    expected = [struct.unpack("<f", struct.pack("<f", v))[0] if abs(v) < 3.5e38
                else math.copysign(math.inf, v) for v in doubles]
    assert tensors["blocks.0.norm1.bias"][2] == struct.pack("<64f", *expected)


def test_nan_and_inf_are_kept_and_reported(tmp):
    model = make(vit_shapes())
    worst = struct.unpack("<f", b"\xff\xff\xff\xff")[0]
    model["norm.weight"] = T([math.nan, worst, math.inf, -math.inf] + [1.0] * 60, (64,))
    path = save_zip(tmp + "/a.pth", model)
    for dtype in ("f32", "f16", "bf16"):
        status, _, err = run(path, "-o", tmp + "/o", "--dtype", dtype)
        assert status == 0 and "norm.weight has 4 values that are NaN or infinite" in err, err
        _, _, raw = read(tmp + "/o")[0]["norm.weight"]
        got = struct.unpack("<64" + {"f32": "f", "f16": "e"}[dtype], raw) if dtype != "bf16" else \
            [unpack_bf16(b) for b in struct.unpack("<64H", raw)]
        assert got[0] != got[0] and got[1] != got[1] and list(got[2:5]) == [math.inf, -math.inf, 1.0]


def test_large_tensors_go_in_chunks(tmp):
    n = 1200000  # many chunks, the last one not full
    dim = 64
    shapes = vit_shapes(dim=dim, depth=1, hidden=n // dim)
    values = [float((i * 2654435761 >> 7) % 4096 - 2048) / 64 for i in range(n)]
    model = make(shapes)
    model["blocks.0.mlp.fc1.weight"] = T(values, (n // dim, dim))
    model["blocks.0.mlp.fc2.weight"] = T(None, (dim, n // dim),
                                         storage=model["blocks.0.mlp.fc1.weight"].storage,
                                         strides=(1, dim))
    tensors, _ = converted(save_zip(tmp + "/big.pth", model), "--dtype", "f16")
    assert tensors["blocks.0.mlp.fc1.weight"][2] == struct.pack("<%de" % n, *values)
    transposed = [v for i in range(dim) for v in values[i::dim]]
    assert tensors["blocks.0.mlp.fc2.weight"][2] == struct.pack("<%de" % n, *transposed)


def test_our_own_files_convert_again(tmp):
    path = save_zip(tmp + "/odd.pth", make(vit_shapes(dim=48, layer_scale=False)))
    converted(path, "--heads", "4", "--mean", "0.1,0.2,0.3", "--std", "1,1,1")
    _, m = converted(path + ".safetensors", "--dtype", "f16")
    expect_metadata(m, vit__n_heads="4", vit__mean="0.1,0.2,0.3", samlad__source="odd.pth.safetensors")


def test_output_is_all_or_nothing(tmp):
    model = make(vit_shapes())
    good, bad = save_zip(tmp + "/good.pth", model), save_zip(tmp + "/bad.pth",
                                                             {k: v for k,
                                                              v in model.items() if k != "norm.bias"})
    out = tmp + "/out.safetensors"
    assert run(good, "-o", out)[0] == 0
    with open(out, "rb") as f:
        before = f.read()
    model["norm.weight"] = T([1e30] * 64, (64,))
    late = save_zip(tmp + "/late.pth", model)  # fails while the last tensors are written
    for path, more in ((bad, ()), (late, ("--dtype", "f16"))):
        assert run(path, "-o", out, *more)[0] == 1
        with open(out, "rb") as f:
            assert f.read() == before
    assert sorted(os.listdir(tmp)) == ["bad.pth", "good.pth", "late.pth", "out.safetensors"]
    refused_same = run(good, "-o", good)
    assert refused_same[0] == 1 and "itself" in refused_same[2]
    status, _, err = run(good, "-o", tmp + "/no/such/folder/x")
    assert status == 1 and "cannot be written" in err


def test_list_and_usage(tmp):
    path = save_zip(tmp + "/a.ckpt",
                    {"state_dict": {**make(vit_shapes()), "e\x1b[31m\u00fc": T([1], (1,), "I64")}})
    status, out, _ = run(path, "--list")
    assert status == 0 and "state_dict: " in out and "recognised at state_dict" in out and "DINOv2" in out
    assert "\x1b" not in out and "I64" in out and "\\x1b" in out
    assert os.listdir(tmp) == ["a.ckpt"]
    status, out, _ = run(save_zip(tmp + "/b.pth", make({"x": (1,)})), "--list")
    assert status == 0 and "not convertible" in out
    assert run(path)[0] == 2 and run()[0] == 2 and run(path, "-o", "x", "--dtype", "f8")[0] == 2
    assert run(path, "-o", "x", "--mean", "1,2")[0] == 2 and run(path, "-o", "x", "--heads", "0")[0] == 2
    status, out, _ = run("--help")
    assert status == 0 and "examples:" in out and "sam_vit_h" in out


# ---- tests: torch itself, where there is one ---------------------------------------------------------------

TORCH_SCRIPT = r"""
import json, struct, sys, torch
folder, shapes = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(1)
torch.set_num_threads(1)
model = {name: torch.randn(shape) for name, shape in shapes.items()}
big = torch.randn(90, 64)
model["blocks.0.attn.proj.weight"] = big[3:67].t()
model["norm.weight"] = big.flatten()[5:197:3]
model["norm.bias"] = torch.nn.Parameter(big[80])
model["patch_embed.proj.weight"] = model["patch_embed.proj.weight"].to(memory_format=torch.channels_last)
model["blocks.0.norm1.weight"] = torch.randn(64).half()
model["blocks.0.norm1.bias"] = torch.randn(64).bfloat16()
model["blocks.0.norm2.weight"] = torch.randn(64).double()
net = torch.nn.Linear(3, 3)
optimizer = torch.optim.AdamW(net.parameters())
net(torch.randn(2, 3)).sum().backward()
optimizer.step()
whole = {"state_dict": model, "optimizer_states": [optimizer.state_dict()], "n": torch.tensor(3),
         "rng": torch.get_rng_state()}
torch.save(whole, folder + "/zip.ckpt")
torch.save(whole, folder + "/zip4.ckpt", pickle_protocol=4)
torch.save(whole, folder + "/legacy.ckpt", _use_new_zipfile_serialization=False)
def raw(t):
    v = t.detach().contiguous().flatten().tolist()
    return struct.pack("<%df" % len(v), *v)
with open(folder + "/expected", "wb") as f:
    for name in sorted(model):
        t = model[name].float()
        f.write(raw(t) + raw(t.half().float()) + raw(t.bfloat16().float()))
"""


def test_against_torch(tmp):
    for python in (sys.executable, "python3", "/usr/bin/python3"):
        try:
            if subprocess.run([python, "-c", "import torch"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE).returncode == 0:
                break
        except OSError:
            pass
    else:
        raise Skip("no python3 with torch")
    shapes = vit_shapes()
    result = subprocess.run([python, "-c", TORCH_SCRIPT, tmp, json.dumps(shapes)], stderr=subprocess.PIPE,
                            env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert result.returncode == 0, result.stderr.decode()
    with open(tmp + "/expected", "rb") as f:
        expected = f.read()
    for name in ("zip.ckpt", "zip4.ckpt", "legacy.ckpt"):
        f32, _ = converted(tmp + "/" + name, "--dtype", "f32")
        f16, _ = converted(tmp + "/" + name, "--dtype", "f16")
        bf16, _ = converted(tmp + "/" + name, "--dtype", "bf16")
        at = 0
        for tensor in sorted(shapes):
            for _, _, raw in (f32[tensor], f16[tensor], bf16[tensor]):
                n = math.prod(shapes[tensor])
                values = raw if len(raw) == 4 * n else None
                if values is None and raw is f16[tensor][2]:
                    values = struct.pack("<%df" % n, *struct.unpack("<%de" % n, raw))
                elif values is None:
                    values = b"".join(b"\0\0" + raw[i:i + 2] for i in range(0, 2 * n, 2))
                assert values == expected[at:at + 4 * n], "%s: %s differs from torch" % (name, tensor)
                at += 4 * n
        assert at == len(expected)


# ---- tests: real files -------------------------------------------------------------------------------------

def data(*path):
    if not DATA:
        raise Skip("SAMLAD_DATA is not set")
    return os.path.join(DATA, *path)


def test_real_featup_checkpoint(tmp):
    out = tmp + "/featup.safetensors"
    status, _, err = run(data("featup", "clip_jbu_stack_cocostuff.ckpt"), "-o", out)
    assert status == 0, err
    tensors, metadata = read(out)
    truth, _ = read_any(data("featup", "clip_jbu_stack.safetensors"))
    assert len(truth) == 42 and tensors == truth
    expect_metadata(metadata, samlad__model="featup", featup__stages="4", featup__channels="512",
                    featup__radius="3")
    run(data("featup", "clip_jbu_stack.safetensors"), "-o", tmp + "/again.safetensors")
    assert read(tmp + "/again.safetensors")[0] == truth


def read_any(path):
    """A safetensors file of anyone's."""
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    metadata = header.pop("__metadata__", {})
    return {k: (e["dtype"], tuple(e["shape"]), raw[8 + n + e["data_offsets"][0]:8 + n + e["data_offsets"][1]])
            for k, e in header.items()}, metadata


def test_real_mobile_sam(tmp):
    """The beginning of the real file is refused; a file with its tensors' names and shapes is converted."""
    link = tmp + "/mobile_sam_truncated.pt"
    os.symlink(data("mobile_sam", "mobile_sam_truncated.pt"), link)
    refused(link, "truncated")
    shapes = {}
    with open(data("mobile_sam", "mobile_sam_keys.txt")) as f:
        for line in f:
            name, _, rest = line.partition(" ")
            if rest.startswith("("):
                shapes[name] = tuple(int(n) for n in rest[1:rest.index(")")].split(",") if n.strip())
    assert len(shapes) == 439
    zeros = {name: T([0] * math.prod(shape), shape, "F32" if shape else "I64") for name, shape in shapes.items()}
    tensors, m = converted(save_zip(tmp + "/mobile.pt", zeros))
    assert {name: t[1] for name, t in tensors.items()} == {name: shape for name, shape in shapes.items()
                                                           if not unused_of_mobile_sam(name)}
    expect_metadata(m, sam__encoder="tiny_vit", sam__image_size="1024", sam__embed_dim="320", sam__out_chans="256",
                    sam__decoder_mlp_dim="2048", sam__iou_head_hidden_dim="256")


def test_real_vit_tiny(tmp):
    out = tmp + "/vit.safetensors"
    path = data("vit_tiny", "vit_tiny_patch16_224.safetensors")
    status, text, err = run(path, "-o", out)
    assert status == 0 and "head.bias, head.weight" in text, err
    tensors, metadata = read(out)
    truth, _ = read_any(path)
    assert tensors == {k: v for k, v in truth.items() if not k.startswith("head.")}
    expect_metadata(metadata, samlad__model="vit", vit__family="timm", vit__image_size="224",
                    vit__patch_size="16",
                    vit__dim="192", vit__depth="12", vit__n_heads="3", vit__mlp_ratio="4",
                    vit__mean="0.5,0.5,0.5")


# ---- running them ------------------------------------------------------------------------------------------

if __name__ == "__main__":
    n_passed, n_failed, n_skipped = cases.run(globals(), sys.argv[1:])
    print(f"{n_passed} passed, {n_failed} failed, {n_skipped} skipped")
    sys.exit(1 if n_failed else 0)
