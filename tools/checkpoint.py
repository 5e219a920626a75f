"""checkpoint.py - open a PyTorch checkpoint (or a safetensors file) without PyTorch, and without trusting it.

Three containers: torch.save's zip archive, its older stream (before torch 1.6), and safetensors. All three are
mapped into memory and give dicts of Tensors. Several files with an index (shards) open as one. A Tensor only points into the mapping (dtype, shape, strides, offset).

Our own small stack machine runs the pickle inside. Python's unpickler calls every function that the file names.
Ours calls nothing. It knows dicts, lists, numbers, strings and torch's recipes for tensors. Everything else (a
callback, an optimiser, os.system) becomes an inert marker, which is never looked up or imported.

Every file may be hostile. Each length is compared with the file's size before it is used. The pickle machine has a
budget of steps. Only str keys are kept, because numbers or nested tuples could take forever to hash. Nothing is
followed recursively. A Refusal refuses a file in one sentence.

    checkpoint = open_checkpoint("sam_vit_b_01ec64.pth")    # or a folder, or an index of shards
    for path, tensors in dicts_with_tensors(checkpoint.root): ...
    for chunk in checkpoint.chunks(name, tensor): ...        # its bytes, row-major
"""

import hashlib
import json
import math
import mmap
import os
import pickletools
import struct
import zipfile

MAX_PICKLE_BYTES = 64 << 20   # the pickle of SAM ViT-H, without its storages, has about 100 KB
MAX_PICKLE_STEPS = 2_000_000  # and about 22,000 opcodes; training state adds a multiple of that
MAX_PICKLE_LINE = 4096        # names of modules and classes
MAX_STRING = 4096             # a longer one is no tensor's name, and not kept
MAX_INERT_NAME = 100          # so that names made of names cannot grow
MAX_ST_HEADER = 16 << 20      # about 70 KB for SAM ViT-H
MAX_INDEX = 64 << 20          # bytes of an index or a settings file
MAX_SHARDS = 1024
MAX_DIMS = 8
CHUNK_ELEMENTS = 1 << 16      # elements that are converted and written at a time; small enough for the cache



class Refusal(Exception):
    """The one sentence with the reason why a file is not converted."""


def shown(name):
    """A name out of a checkpoint, safe to print: without control characters, and cut to a sensible length."""
    text = ascii(name)[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


def shape_text(shape):
    return "[" + ", ".join(str(n) for n in shape) + "]"


# ---- tensors: pointers into the mapped file ----------------------------------------------------------------

ITEM_SIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
             "BOOL": 1,
             "U16": 2, "U32": 4, "U64": 8, "C64": 8, "C128": 16, "F8_E4M3": 1, "F8_E5M2": 1}
STORAGE_DTYPE = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16",
                 "BFloat16Storage": "BF16",
                 "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
                 "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
                 "ComplexDoubleStorage": "C128"}


class Storage:
    """n_elements of one dtype, somewhere in the file. `key` is the checkpoint's name for it; `first` is where
    a view of it begins, in elements. The container knows where the bytes are."""
    __slots__ = ("dtype", "key", "n_elements", "first")

    def __init__(self, dtype, key, n_elements, first=0):
        self.dtype, self.key, self.n_elements, self.first = dtype, key, n_elements, first


class Tensor:
    """A view of a storage, as in torch: element (i, j) is storage[offset + i*strides[0] + j*strides[1]]."""
    __slots__ = ("storage", "offset", "shape", "strides")

    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    dtype = property(lambda self: self.storage.dtype)
    n_elements = property(lambda self: math.prod(self.shape))

    def fits(self):
        """Does every element lie in the storage? (Several may be one element there: torch's expand.)"""
        if self.n_elements == 0:
            return True
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        return last < self.storage.n_elements

    def is_contiguous(self):
        expected = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides)):
            if n != 1 and stride != expected:
                return False
            expected *= n
        return True


def row_major(shape):
    strides, step = [], 1
    for n in reversed(shape):
        strides.insert(0, step)
        step *= n
    return tuple(strides)


# ---- the pickle machine ------------------------------------------------------------------------------------

class Inert:
    """Stands for a class, a function, or an object made by one, of which we keep only the name."""
    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


class PickleWindow:
    """The part of the mapping that one pickle may read, with the methods that pickletools asks of a file."""

    def __init__(self, data, begin, end):
        self.data, self.position, self.end = data, begin, min(end, begin + MAX_PICKLE_BYTES)

    def tell(self):
        return self.position

    def read(self, n):
        begin, self.position = self.position, min(self.position + n, self.end)
        return self.data[begin:self.position]

    def readline(self):
        found = self.data.find(b"\n", self.position, min(self.end, self.position + MAX_PICKLE_LINE))
        return self.read(found + 1 - self.position) if found >= 0 else b""


class PickleMachine:
    """Runs the opcodes that torch.save writes (pickle protocols 2 to 5); pickletools reads them, we act.

    A pickle is a program for a stack machine: push a string, push an int, make a dict of the items above the
    mark. The dangerous opcodes are GLOBAL (fetch any function by name), REDUCE (call it) and BUILD (set an
    object's state). Here GLOBAL makes an Inert of that name, REDUCE looks the name up in RECIPES, and BUILD
    does nothing."""

    ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
                 "BINUNICODE8",
                 "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
    CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
    NOTHING = {"PROTO", "FRAME"}

    def __init__(self, data, begin, end, path):
        self.window = PickleWindow(data, begin, end)
        self.path = path
        self.stack, self.marks, self.memo = [], [], {}
        self.storages = {}  # key -> Storage, as the pickle declared it
        self.steps = 0

    def run(self):
        """The object that the pickle describes. self.window.position is then just behind it."""
        try:
            for opcode, argument, _ in pickletools.genops(self.window):
                self.spend(1)
                name = opcode.name
                if name in self.ARGUMENTS:
                    is_long = type(argument) in (str, bytes) and len(argument) > MAX_STRING
                    self.stack.append(Inert("a long string") if is_long else argument)
                elif name in self.CONSTANTS:
                    self.stack.append(self.CONSTANTS[name])
                elif name == "STOP":
                    return self.stack.pop()
                elif name not in self.NOTHING:
                    act = getattr(self, "op_" + name.lower(), None)
                    if act is None:
                        self.refuse("uses opcode %s, which torch.save does not write (in protocols 2 to 5)" % name)
                    act(argument)
        except (IndexError, KeyError, ValueError, TypeError, OverflowError, struct.error, RecursionError):
            if self.window.position >= self.window.end:
                self.refuse("is truncated or too long (more than %d bytes)" % MAX_PICKLE_BYTES)
            self.refuse("is damaged")
        return self.refuse("has no end")

    def refuse(self, why):
        raise Refusal("%s: the pickle in it %s, near byte %d of the file"
                      % (self.path, why, self.window.position))

    def spend(self, n):
        self.steps += n
        if self.steps > MAX_PICKLE_STEPS:
            self.refuse("is longer than any state dict (%d steps)" % MAX_PICKLE_STEPS)

    # -- containers. Only str keys are kept: state dicts have no others, and a hostile file could choose
    #    numbers or nested tuples whose hashing takes forever.
    def op_empty_dict(self, _):
        self.stack.append({})

    def op_empty_list(self, _):
        self.stack.append([])

    def op_empty_set(self, _):
        self.stack.append(Inert("set"))

    def op_mark(self, _):
        self.marks.append(self.stack)
        self.stack = []

    def above_mark(self):
        items, self.stack = self.stack, self.marks.pop()
        return items

    def op_tuple(self, _):
        items = self.above_mark()
        self.stack.append(tuple(items))

    def op_tuple1(self, _):
        self.stack[-1:] = [(self.stack[-1],)]

    def op_tuple2(self, _):
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def op_tuple3(self, _):
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def op_append(self, _):
        item = self.stack.pop()
        if type(self.stack[-1]) is list:
            self.stack[-1].append(item)

    def op_appends(self, _):
        items = self.above_mark()
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def op_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [key, value])

    def op_setitems(self, _):
        items = self.above_mark()
        self.set_items(self.stack[-1], items)

    @staticmethod
    def set_items(target, items):
        if type(target) is dict:
            for key, value in zip(items[0::2], items[1::2]):
                if type(key) is str:
                    target[key] = value

    def op_additems(self, _):
        self.above_mark()

    def op_frozenset(self, _):
        self.above_mark()
        self.stack.append(Inert("frozenset"))

    def op_pop(self, _):
        self.stack.pop()

    def op_dup(self, _):
        self.stack.append(self.stack[-1])

    # -- the memo, by which a pickle says "the same object again"
    def op_binput(self, index):
        self.memo[index] = self.stack[-1]

    op_long_binput = op_binput

    def op_memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def op_binget(self, index):
        self.stack.append(self.memo[index])

    op_long_binget = op_binget

    # -- names, calls, states: inert
    def op_global(self, module_and_name):
        self.stack.append(Inert(module_and_name.replace(" ", ".")))

    def op_stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        known = type(name) is type(module) is str
        self.stack.append(Inert("%s.%s" % (module[:MAX_INERT_NAME], name[:MAX_INERT_NAME]) if known else "?"))

    def op_build(self, _):
        self.stack.pop()

    def op_newobj(self, _):
        arguments, made_by = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(made_by, arguments))

    op_reduce = op_newobj

    def op_newobj_ex(self, _):
        self.stack.pop()
        self.op_newobj(None)

    def call(self, function, arguments):
        name = function.name if type(function) is Inert else "?"
        if name == "torch._tensor._rebuild_from_type_v2":  # of subclasses: (recipe, type, arguments, state)
            name, arguments = getattr(arguments[0], "name", "?"), arguments[2]
        recipe = self.RECIPES.get(name)
        if recipe is None or type(arguments) is not tuple:
            return Inert("an object of " + name[:MAX_INERT_NAME])
        return recipe(self, arguments)

    # -- torch's recipes
    def op_binpersid(self, _):
        """A persistent id, ('storage', type, key, device, n_elements[, view]): bytes outside the pickle."""
        pid = self.stack.pop()
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage" or type(pid[1]) is not Inert:
            self.stack.append(Inert("a persistent object"))
            return
        key, n_elements = pid[2], pid[4]
        module, _, type_name = pid[1].name.rpartition(".")  # torch, torch.cuda
        dtype = STORAGE_DTYPE.get(type_name)
        if dtype is None or not (module + ".").startswith("torch."):
            self.stack.append(Inert("a storage of " + pid[1].name))
            return
        if type(key) is not str or not is_count(n_elements):
            self.refuse("declares a storage without a name or a size")
        storage = self.storages.setdefault(key, Storage(dtype, key, n_elements))
        if storage.dtype != dtype or storage.n_elements != n_elements:
            self.refuse("declares storage %s twice and differently" % shown(key))
        if len(pid) > 5 and pid[5] is not None:  # very old files: a part of the storage
            _, first, n_viewed = pid[5]
            if not is_count(first) or not is_count(n_viewed) or first + n_viewed > n_elements:
                self.refuse("declares a view outside storage %s" % shown(key))
            storage = Storage(dtype, key, n_viewed, first)
        self.stack.append(storage)

    def rebuild_tensor(self, arguments):
        storage, offset, shape, strides = arguments[:4]
        if type(storage) is not Storage:
            return Inert("a tensor of an unknown type")
        if not (is_count(offset) and is_shape(shape) and is_shape(strides) and len(shape) == len(strides)):
            self.refuse("declares a tensor with an impossible shape")
        tensor = Tensor(storage, offset, shape, strides)
        if not tensor.fits():
            self.refuse("declares a tensor of shape %s outside its storage of %d elements"
                        % (shape_text(shape), storage.n_elements))
        return tensor

    def ordered_dict(self, arguments):
        result = {}
        pairs = arguments[0] if arguments else []  # Python 2 wrote the items here, Python 3 by SETITEMS
        if type(pairs) is list:
            self.spend(len(pairs))
            for pair in pairs:
                if type(pair) in (list, tuple) and len(pair) == 2:
                    self.set_items(result, pair)
        return result

    RECIPES = {
        "collections.OrderedDict": ordered_dict,
        "collections.defaultdict": lambda self, arguments: {},
        "builtins.dict": lambda self, arguments: {},
        "torch.Size": lambda self, arguments: arguments[0],
        "torch._utils._rebuild_tensor": rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": lambda self, arguments: arguments[0],
        "torch._utils._rebuild_parameter_with_state": lambda self, arguments: arguments[0],
    }


def is_count(n):
    return type(n) is int and 0 <= n < 1 << 48


def is_shape(shape):
    return type(shape) in (tuple, list) and len(shape) <= MAX_DIMS and all(is_count(n) for n in shape)


# ---- containers --------------------------------------------------------------------------------------------

class Checkpoint:
    """An open file: `root` is the object in it (dicts and Tensors), `place[key]` = (first byte, number of
    bytes) of each storage, `metadata` that of a safetensors file."""

    def __init__(self, path, official_size=0):
        self.path = path
        self.place, self.metadata, self.root, self.kind = {}, {}, {}, ""
        try:
            with open(path, "rb") as f:
                self.size = os.fstat(f.fileno()).st_size
                if self.size == 0:
                    raise Refusal("%s: the file is empty" % path)
                self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise Refusal("%s: cannot be read: %s" % (path, getattr(e, "strerror", None) or e))
        if self.size < official_size:
            raise Refusal("%s: is truncated: %d bytes, the official file has %d"
                          % (path, self.size, official_size))
        self.open_container()

    def open_container(self):
        start = self.data[:512]
        if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= self.size:  # may begin as a pickle does
            self.kind = "safetensors"
            self.open_safetensors()
        elif start.startswith(b"PK"):
            self.kind = "a zip archive of torch.save"
            self.open_zip()
        elif start.startswith(b"\x80"):
            self.kind = "a torch.save stream (before torch 1.6)"
            self.open_legacy()
        elif start[8:9] == b"{":
            self.kind = "safetensors"
            self.open_safetensors()
        else:
            hint = ""
            if start.startswith(b"version https://git-lfs"):
                hint = "; it is a Git LFS pointer, so fetch the file behind it"
            elif start.lstrip()[:1] == b"<":
                hint = "; it is a web page, probably an error message of the download"
            elif start[257:262] == b"ustar":
                hint = "; it is a tar archive, as PyTorch wrote before 0.2"
            elif start.startswith(b"GGUF"):
                hint = "; it is a GGUF file"
            elif start[:1] == b"\x08" and start[2:3] == b"\x12":
                hint = "; it is an ONNX file"
            raise Refusal("%s: is neither a PyTorch checkpoint nor safetensors%s" % (self.path, hint))

    def sha256(self):
        digest = hashlib.sha256()
        for begin in range(0, self.size, 1 << 24):
            digest.update(self.data[begin:begin + (1 << 24)])
        return digest.hexdigest()

    # -- zip: PREFIX/data.pkl and one member PREFIX/data/KEY a storage, stored without compression.
    #    So each is a range of the file, and no archive can expand beyond its size.
    def open_zip(self):
        try:
            with open(self.path, "rb") as f, zipfile.ZipFile(f) as archive:
                members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as e:
            raise Refusal("%s: is truncated or damaged: it begins as a zip archive of torch.save, but the "
                          "archive's directory at its end is missing or broken (%d bytes; %s)"
                          % (self.path, self.size, e))
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refusal("%s: is a zip archive with %d members named */data.pkl, expected one (torch.save)"
                          % (self.path, len(pickles)))
        prefix = pickles[0][:-len("data.pkl")]
        if prefix + "constants.pkl" in members:
            raise Refusal("%s: is a TorchScript program; save its state_dict() with torch.save" % self.path)
        order = members.get(prefix + "byteorder")
        if order and self.member(order, 16) == b"big":
            raise Refusal("%s: was saved on a big-endian machine, which is not supported" % self.path)
        begin, n_bytes = self.member_range(members[pickles[0]])
        machine = PickleMachine(self.data, begin, begin + n_bytes, self.path)
        self.root = machine.run()
        for key in machine.storages:
            info = members.get(prefix + "data/" + key)
            if info is not None:
                self.place[key] = self.member_range(info)

    def member_range(self, info):
        """Where a stored member's bytes lie: behind its local header, name and extra field."""
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise Refusal("%s: member %s is compressed or encrypted, which torch.save never does"
                          % (self.path, shown(info.filename)))
        if info.header_offset < 0:  # zipfile shifts offsets when the directory seems to be at the wrong place
            raise Refusal("%s: member %s begins %d bytes before the file; the archive is damaged"
                          % (self.path, shown(info.filename), -info.header_offset))
        header = self.data[info.header_offset:info.header_offset + 30]
        if len(header) != 30 or not header.startswith(b"PK\3\4"):
            raise Refusal("%s: member %s has no header at byte %d; the archive is damaged"
                          % (self.path, shown(info.filename), info.header_offset))
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if begin + info.file_size > self.size:
            raise Refusal("%s: is truncated: member %s ends at byte %d, the file at %d"
                          % (self.path, shown(info.filename), begin + info.file_size, self.size))
        return begin, info.file_size

    def member(self, info, max_bytes):
        begin, n_bytes = self.member_range(info)
        return self.data[begin:begin + min(n_bytes, max_bytes)]

    # -- legacy: five pickles (magic number, protocol, the writer's machine, the object, the storages' keys),
    #    then each storage as its number of elements and their bytes.
    def open_legacy(self):
        position, parts, machine = 0, [], None
        storages = {}
        for step in range(5):
            machine = PickleMachine(self.data, position, self.size, self.path)
            parts.append(machine.run())
            position = machine.window.position
            storages.update(machine.storages)
            if step == 0 and parts[0] != 0x1950A86A20F9469CFC6C:
                raise Refusal("%s: is a pickle, but not one of torch.save" % self.path)
        _, protocol, system, self.root, keys = parts
        if protocol != 1001 or type(system) is not dict or type(keys) is not list:
            raise Refusal("%s: is a torch.save stream of an unknown version" % self.path)
        if system.get("little_endian") is not True:
            raise Refusal("%s: was saved on a big-endian machine, which is not supported" % self.path)
        for key in keys:
            storage = storages.get(key) if type(key) is str else None
            if storage is None:
                raise Refusal("%s: lists a storage that no tensor uses; the file is damaged" % self.path)
            n_bytes = storage.n_elements * ITEM_SIZE[storage.dtype]
            if position + 8 + n_bytes > self.size:
                raise Refusal("%s: is truncated: storage %s needs %d bytes at byte %d, the file ends at %d"
                              % (self.path, shown(key), n_bytes, position + 8, self.size))
            if struct.unpack("<q", self.data[position:position + 8])[0] != storage.n_elements:
                raise Refusal("%s: storage %s at byte %d does not have %d elements; the file is damaged"
                              % (self.path, shown(key), position, storage.n_elements))
            self.place[key] = (position + 8, n_bytes)
            position += 8 + n_bytes

    # -- safetensors: u64 length, JSON, data
    def open_safetensors(self):
        n_header = struct.unpack("<Q", self.data[:8])[0]
        if n_header > min(MAX_ST_HEADER, self.size - 8):
            raise Refusal("%s: is truncated or damaged: its header should have %d bytes, the file has %d"
                          % (self.path, n_header, self.size))
        header = self.parse_json(self.data[8:8 + n_header])
        metadata = header.pop("__metadata__", {})
        if type(metadata) is dict:
            self.metadata = {k: v for k, v in metadata.items() if type(v) is str}
        for name, entry in header.items():
            entry = entry if type(entry) is dict else {}
            shape, dtype, offsets = entry.get("shape"), entry.get("dtype"), entry.get("data_offsets")
            if not is_shape(shape) or not is_shape(offsets) or len(offsets) != 2 or type(dtype) is not str \
                    or dtype not in ITEM_SIZE:
                raise Refusal("%s: the header's entry for tensor %s is malformed" % (self.path, shown(name)))
            begin, end = offsets
            if end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
                raise Refusal("%s: tensor %s has shape %s of %s but %d bytes"
                              % (self.path, shown(name), shape_text(shape), dtype, end - begin))
            if 8 + n_header + end > self.size:
                raise Refusal("%s: is truncated: tensor %s ends at byte %d, the file at %d"
                              % (self.path, shown(name), 8 + n_header + end, self.size))
            self.place[name] = (8 + n_header + begin, end - begin)
            self.root[name] = Tensor(Storage(dtype, name, math.prod(shape)), 0, shape, row_major(shape))

    def parse_json(self, raw):
        def number(digits):
            return int(digits) if len(digits) < 20 else -1

        def no_duplicates(pairs):
            if len(dict(pairs)) != len(pairs):
                raise ValueError("a name occurs twice")
            return dict(pairs)

        try:
            header = json.loads(raw.decode("utf-8"), parse_int=number, object_pairs_hook=no_duplicates)
            if type(header) is dict:
                return header
            why = "it is no object"
        except (ValueError, RecursionError) as e:
            why = str(e)[:120]
        raise Refusal("%s: the safetensors header is not valid JSON: %s" % (self.path, why))

    # -- the interface for the rest of the program
    def range_of(self, name, tensor):
        """First byte of the tensor's storage, checked against the container's size of it."""
        storage = tensor.storage
        n_bytes = (storage.first + storage.n_elements) * ITEM_SIZE[storage.dtype]
        begin, n_there = self.place.get(storage.key, (0, -1))
        if n_there < n_bytes:
            raise Refusal("%s: the data of tensor %s (storage %s, %d bytes) %s"
                          % (self.path, shown(name), shown(storage.key), n_bytes,
                             "is missing" if n_there < 0 else "is truncated to %d bytes" % n_there))
        return begin + storage.first * ITEM_SIZE[storage.dtype]

    def chunks(self, name, tensor):
        """The tensor's elements, row-major, as bytes of its own dtype, about CHUNK_ELEMENTS at a time."""
        size = ITEM_SIZE[tensor.dtype]
        begin = self.range_of(name, tensor) + tensor.offset * size
        if tensor.is_contiguous():
            n_bytes = tensor.n_elements * size
            for at in range(0, n_bytes, CHUNK_ELEMENTS * size):
                yield self.data[begin + at:begin + min(at + CHUNK_ELEMENTS * size, n_bytes)]
            return
        if tensor.n_elements == 0:
            return
        # A transposed or sliced view: gather one run along the last axis after the other.
        run, step = tensor.shape[-1], tensor.strides[-1]
        storage = memoryview(self.data)[begin:begin + (tensor.storage.n_elements - tensor.offset) * size]
        items = storage.cast({1: "B", 2: "H", 4: "I", 8: "Q"}[size])
        gathered = bytearray()
        for start in run_starts(tensor.shape[:-1], tensor.strides[:-1]):
            gathered += items[start:start + (run - 1) * step + 1:step].tobytes() if step else \
                items[start:start + 1].tobytes() * run
            if len(gathered) >= CHUNK_ELEMENTS * size:
                yield bytes(gathered)
                gathered.clear()
        yield bytes(gathered)


def run_starts(shape, strides):
    """Offsets of all (i, j, ...) in row-major order."""
    if not shape:
        yield 0
        return
    for i in range(shape[0]):
        for rest in run_starts(shape[1:], strides[1:]):
            yield i * strides[0] + rest


def dicts_with_tensors(root):
    """(path, tensors) of the object and the dicts, lists and tuples in it, four levels down: {"model": {"weight": ...}}."""
    queue, seen, found = [((), root)], set(), []
    for path, value in queue:  # grows while it is read
        if type(value) not in (dict, list, tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        items = value.items() if type(value) is dict else ((str(i), inner) for i, inner in enumerate(value))
        inner_ones = []
        tensors = {}
        for name, inner in items:
            if type(inner) is Tensor:
                tensors[name] = inner
            elif type(inner) in (dict, list, tuple):
                inner_ones.append((path + (name,), inner))
        if tensors and type(value) is dict:
            found.append((path, tensors))
        if len(path) < 4:
            queue.extend(inner_ones)
    return found


# ---- several files as one ----------------------------------------------------------------------------------

class Joined:
    """Tensors whose rows make one, one below the other: query, key and value make qkv."""
    __slots__ = ("pieces",)

    def __init__(self, pieces):
        self.pieces = pieces

    dtype = property(lambda self: self.pieces[0].dtype)
    n_elements = property(lambda self: sum(piece.n_elements for piece in self.pieces))

    @property
    def shape(self):
        return (sum(piece.shape[0] for piece in self.pieces),) + self.pieces[0].shape[1:]


class Several:
    """Checkpoints as one, with the interface of Checkpoint: `root` is the dict of the tensors."""

    def __init__(self, path, kind):
        self.path, self.kind = path, kind
        self.parts, self.root, self.metadata, self.size, self.part_of = [], {}, {}, 0, {}

    def add(self, part, tensors):
        """Add tensors {name: Tensor} of a part."""
        self.parts.append(part)
        self.size += part.size
        self.root.update(tensors)
        self.metadata = self.metadata or part.metadata
        for tensor in tensors.values():
            for piece in getattr(tensor, "pieces", (tensor,)):
                self.part_of[id(piece.storage)] = part

    def sha256(self):
        return hashlib.sha256("".join(part.sha256() for part in self.parts).encode()).hexdigest()

    def range_of(self, name, tensor):
        return self.part_of[id(tensor.storage)].range_of(name, tensor)

    def chunks(self, name, tensor):
        return self.part_of[id(tensor.storage)].chunks(name, tensor)


def read_json(path):
    """The object in a JSON file beside a checkpoint."""
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_INDEX + 1)
        if len(raw) > MAX_INDEX:
            raise Refusal("%s: has more than %d bytes" % (path, MAX_INDEX))
        value = json.loads(raw.decode("utf-8"))
    except OSError as e:
        raise Refusal("%s: cannot be read: %s" % (path, e.strerror))
    except (ValueError, RecursionError) as e:
        raise Refusal("%s: is not valid JSON: %s" % (path, str(e)[:120]))
    if type(value) is not dict:
        raise Refusal("%s: is not an object" % path)
    return value


def open_index(path):
    """The shards of an index, {"weight_map": {tensor: file beside the index}}, which names all their tensors."""
    weight_map = read_json(path).get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise Refusal("%s: has no weight_map, so it is no index of shards" % path)
    by_file = {}
    for name, file in weight_map.items():
        if type(file) is not str or not file or file[0] == "." or os.path.basename(file) != file or "\\" in file \
                or not file.isprintable():
            raise Refusal("%s: weight_map: tensor %s is in %s, expected a file beside the index"
                          % (path, shown(name), shown(str(file))))
        by_file.setdefault(file, set()).add(name)
    if len(by_file) > MAX_SHARDS:
        raise Refusal("%s: weight_map names more than %d files" % (path, MAX_SHARDS))
    several = Several(path, "shards")
    for file, names in sorted(by_file.items()):
        shard_path = os.path.join(os.path.dirname(path), file)
        if not os.path.isfile(shard_path):
            raise Refusal("%s: the shard %s, which weight_map names, is missing" % (path, shown(file)))
        part = Checkpoint(shard_path)
        found = dict(dicts_with_tensors(part.root)).get((), {})
        if set(found) != names:
            name = sorted(set(found) ^ names)[0]
            raise Refusal("%s: weight_map and %s disagree about tensor %s" % (path, shown(file), shown(name)))
        several.add(part, found)
    return several


def choose_in_folder(path):
    names = sorted(os.listdir(path))
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                 "pytorch_model.bin.index.json"):
        if name in names:
            return os.path.join(path, name)
    for ending in (".safetensors.index.json", ".safetensors"):
        fitting = [name for name in names if name.endswith(ending)]
        if len(fitting) == 1:
            return os.path.join(path, fitting[0])
    raise Refusal("%s: cannot be read: a folder without model.safetensors, pytorch_model.bin or their index" % path)


def open_checkpoint(path, official_size=0):
    """A file, an index of shards, or the folder that holds either."""
    if os.path.isdir(path):
        path = choose_in_folder(path)
    return open_index(path) if path.endswith(".json") else Checkpoint(path, official_size)
