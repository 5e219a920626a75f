"""The safetensors files in tests/golden, as the scripts make_golden_*.py write and read them."""
import json
import os
import struct

import numpy as np

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint32": "U32", "uint16": "U16", "uint8": "U8"}


def aligned(tensors):
    """Larger item types first, so that every tensor is aligned to its type."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))


def save(path, tensors, metadata=None, layout=None, spaced=False):
    """{name: array} in this order; `layout`: the order of the data by name; `spaced`: the header has blanks, as in some
    of the files."""
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in tensors.items()}
    begin, offset = {}, 0
    for name in layout or arrays:
        begin[name], offset = offset, offset + arrays[name].nbytes
    header = {"__metadata__": {key: str(value) for key, value in metadata.items()}} if metadata else {}
    for name, a in arrays.items():
        header[name] = {"dtype": DTYPES[a.dtype.name], "shape": list(a.shape),
                        "data_offsets": [begin[name], begin[name] + a.nbytes]}
    text = json.dumps(header, separators=None if spaced else (",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in begin:
            f.write(arrays[name].tobytes())
    print(f"{path}: {len(arrays)} tensors, {os.path.getsize(path)} bytes")


def load(path):
    """-> ({name: array}, metadata)"""
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    metadata, tensors = header.pop("__metadata__", {}), {}
    types = {name: np.dtype(dtype) for dtype, name in DTYPES.items()}
    for name, t in header.items():
        begin, end = t["data_offsets"]
        tensors[name] = np.frombuffer(raw[8 + n + begin:8 + n + end], types[t["dtype"]]).reshape(t["shape"])
    return tensors, metadata


def load_torch(path):
    """-> ({name: float32 tensor of torch}, metadata)"""
    import torch
    tensors, metadata = load(path)
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in tensors.items()}, metadata
