"""foreign.py - checkpoints under the names of Hugging Face transformers and timm.

The tables stand in load/foreign_names.h, which the C program compiles: this file parses them, so that there is
one list of names. The settings that no tensor tells (heads, eps, mean, std) come from the JSON files beside the
checkpoint, as in load/foreign_settings.c.
"""

import os
import re

from checkpoint import Joined, Refusal, read_json, shown

HEADER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "load", "foreign_names.h")


def read_tables(path=HEADER):
    """{table: rows}, a row a tuple of strings and numbers, from the C source; {} without it."""
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read()
    except OSError:
        return {}
    tables = {}
    for name, body in re.findall(r"static const \w+ (\w+)\[\] = \{\n(.*?)\n\};", text, re.S):
        rows = re.findall(r"^ *\{(.*)\},$", body, re.M)
        fields = [re.findall(r'"([^"]*)"|([-+.\w]+)', row) for row in rows]
        tables[name] = [tuple(text if not number else float(number) for text, number in row) for row in fields]
    return tables


TABLES = read_tables()
STRANGERS = TABLES.get("STRANGERS", [])
CLASSES = {row[0]: (int(row[1]), row[2]) for row in TABLES.get("HF_CLASSES", [])}
PROCESSORS = {row[0]: row[1:] for row in TABLES.get("HF_PROCESSORS", [])}


# ---- names -------------------------------------------------------------------------------------------------

class Names:
    """A family's table as regular expressions."""

    def __init__(self, rows):
        self.rows = [(re.compile(self.pattern(foreign)), official, int(piece)) for foreign, official, piece in rows]
        self.n_pieces = {}  # official pattern -> how many foreign tensors make it
        for _, official, piece in self.rows:
            self.n_pieces[official] = max(self.n_pieces.get(official, 0), piece)

    @staticmethod
    def pattern(text):
        """# + $ are a number, * the rest."""
        parts = [{"#": r"(?P<n>\d{1,4})", "+": r"(?P<n>\d{1,4})", "$": r"(?P<n>\d{1,4})",
                  "*": r"(?P<rest>.+)"}.get(c, re.escape(c)) for c in text]
        return "".join(parts) + r"\Z"

    def find(self, name):
        """(official pattern, its number, its rest, piece) of a foreign name, or None."""
        for regex, official, piece in self.rows:
            match = regex.match(name)
            if match:
                groups = match.groupdict()
                return official, int(groups.get("n") or 0), groups.get("rest") or "", piece
        return None

    def last(self, names):
        """What $ stands for: one more than the largest number that + gives."""
        found = (self.find(name) for name in names)
        return max([1] + [row[1] + 2 for row in found if row and "+" in row[0]])

    @staticmethod
    def fill(official, number, rest, last):
        return (official.replace("#", str(number)).replace("+", str(number + 1)).replace("$", str(last))
                .replace("*", rest))


def family_names(table, tensors):
    """The names of a table of load/foreign_names.h. A packed SwiGLU of timm has rows of its own."""
    rows = TABLES.get(table, [])
    if table == "TIMM_VIT":
        fc1, fc2 = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
        if fc1 is not None and fc2 is not None and len(fc1.shape) == len(fc2.shape) == 2 \
                and fc2.shape[1] and fc1.shape[0] == 2 * fc2.shape[1]:
            rows = TABLES["TIMM_SWIGLU"] + rows
    return Names(rows)


def join(path, official, pieces, n_pieces):
    """One tensor of {piece: (foreign name, tensor)}."""
    first = min(pieces.items())[1]
    for i in range(1, n_pieces + 1):
        if i not in pieces:
            raise Refusal("%s: tensor %s is there, but not piece %d of %d that make %s"
                          % (path, shown(first[0]), i, n_pieces, shown(official)))
    tensors = [pieces[i][1] for i in range(1, n_pieces + 1)]
    if any(t.dtype != tensors[0].dtype or t.shape[1:] != tensors[0].shape[1:] or not t.shape for t in tensors):
        raise Refusal("%s: the pieces of %s differ in their dtypes or in their rows" % (path, shown(official)))
    return Joined(tensors)


def official_tensors(checkpoint, tensors, table, title, strict):
    """{official name: tensor} of {foreign name: tensor}. strict: each tensor must have a place."""
    names, official, pieces = family_names(table, tensors), {}, {}
    last = names.last(tensors)
    for name, tensor in tensors.items():
        row = names.find(name)
        if row is None and strict and 0 not in tensor.shape:
            raise Refusal("%s: looks like %s, but tensor %s has no place in it" % (checkpoint.path, title, shown(name)))
        if row is None or not row[0]:
            official[name] = tensor  # convert.py tells what it leaves out
            continue
        if 0 in tensor.shape:
            continue
        target = names.fill(*row[:3], last)
        if row[3]:
            if pieces.setdefault(target, (names.n_pieces[row[0]], {}))[1].setdefault(row[3], (name, tensor))[1] is not tensor:
                raise Refusal("%s: tensor %s comes twice to make %s" % (checkpoint.path, shown(name), shown(target)))
        elif target not in official:
            official[target] = tensor
        elif not same_bytes(checkpoint, name, official[target], tensor):  # tied weights may be there twice
            raise Refusal("%s: two tensors are both %s" % (checkpoint.path, shown(target)))
    for target, (n_pieces, found) in pieces.items():
        if target in official:
            raise Refusal("%s: tensor %s comes twice to make %s"
                          % (checkpoint.path, shown(found[min(found)][0]), shown(target)))
        official[target] = join(checkpoint.path, target, found, n_pieces)
    return official


def same_bytes(checkpoint, name, a, b):
    return a.shape == b.shape and a.dtype == b.dtype \
        and all(x == y for x, y in zip(checkpoint.chunks(name, a), checkpoint.chunks(name, b)))


def refuse_strangers(path, names):
    """Models that samlad does not have, by a part of one tensor's name."""
    for part, what in STRANGERS:
        for name in names:
            if part in name:
                raise Refusal("%s: not supported: this is %s (it has a tensor %s)" % (path, what, shown(name)))


# ---- settings ----------------------------------------------------------------------------------------------

class Settings:
    """A JSON file beside the checkpoint; `root` is None when there is none."""

    def __init__(self, checkpoint, name):
        self.path = os.path.join(os.path.dirname(checkpoint.path), name)
        self.root = read_json(self.path) if os.path.isfile(self.path) else None

    def refuse(self, why):
        raise Refusal("%s: %s" % (self.path, why))

    def object(self, parent, key):
        value = parent.get(key) if type(parent) is dict else None
        return value if type(value) is dict else None

    def number(self, parent, key, low, high, otherwise):
        value = (parent or {}).get(key)
        if value is None:
            return otherwise
        if type(value) not in (int, float) or not low <= value <= high:
            self.refuse("%s is not a number from %g to %g" % (key, low, high))
        return value

    def whole(self, parent, key, low, high, otherwise):
        value = self.number(parent, key, low, high, otherwise)
        if value != int(value):
            self.refuse("%s is %g, expected a whole number" % (key, value))
        return int(value)

    def heads(self, parent, key, most, otherwise, n_channels):
        found = self.number(parent, key, 1, most, otherwise)
        if found != int(found) or n_channels % int(found):
            self.refuse("%s is %g%s, which does not divide the %d channels of the tensors"
                        % (key, found, "" if key in (parent or {}) else " by default", n_channels))
        return int(found)

    def size(self, parent, key, otherwise, ours):
        found = self.number(parent, key, 1, 1e6, otherwise)
        if found != ours:
            self.refuse("%s is %g, but the tensors have %d: these settings belong to another model" % (key, found, ours))

    def word(self, parent, key, expected):
        value = (parent or {}).get(key)
        if value is not None and value != expected:
            self.refuse("%s is %s, expected %s" % (key, shown(str(value)), expected))

    def colours(self, parent, key, otherwise):
        """Three numbers of a list, or one for all."""
        value = (parent or {}).get(key)
        if value is None:
            return otherwise
        value = [value] * 3 if type(value) is not list else value
        if len(value) != 3 or any(type(x) not in (int, float) or not abs(x) < 1e30 for x in value):
            self.refuse("%s is not a list of three numbers" % key)
        return list(value)

    def check_std(self, key, std):
        if not all(x > 0 for x in std):
            self.refuse("%s has a value that is not above 0" % key)


def numbers_text(values):
    return ",".join("%.9g" % value for value in values)


def triple(text):
    return [float(part) for part in text.split(",")]


def processor_colours(s):
    """(mean, std) of pixels in [0, 1], or None. The processor computes (x * rescale_factor - mean) / std of x in 0..255."""
    p = s.object(s.root, "image_processor") or s.root
    kind = p.get("image_processor_type") or p.get("feature_extractor_type")
    known = [row for name, row in PROCESSORS.items() if type(kind) is str and kind.startswith(name)]
    mean, std = (triple(known[0][0]), triple(known[0][1])) if known else (None, None)
    if p.get("do_normalize") is False:
        mean, std = [0, 0, 0], [1, 1, 1]
    else:
        mean, std = s.colours(p, "image_mean", mean), s.colours(p, "image_std", std)
    if (mean is None) != (std is None):
        s.refuse("%s is there, but not %s" % (("image_std", "image_mean") if mean is None else ("image_mean", "image_std")))
    if mean is None:
        return None
    factor = s.number(p, "rescale_factor", 1e-6, 1e3, 1 / 255)
    s.check_std("image_std", std)
    scale = 255 if p.get("do_rescale") is False else 255 * factor
    if abs(scale - 1) > 1e-6:
        mean, std = [x / scale for x in mean], [x / scale for x in std]
    return mean, std


def hf_processor(checkpoint, keys, scale):
    for name in ("preprocessor_config.json", "processor_config.json"):
        s = Settings(checkpoint, name)
        found = s.root is not None and processor_colours(s)
        if found:
            return {key: numbers_text(x * scale for x in values) for key, values in zip(keys, found)}
    return {}


def hf_vit_settings(checkpoint, tensors):
    s = Settings(checkpoint, "config.json")
    config = s.object(s.root, "backbone_config") or s.root
    guess = "dinov2" if "blocks.0.ls1.gamma" in tensors else "vit"
    n_heads, eps = CLASSES.get((config or {}).get("model_type") if type((config or {}).get("model_type")) is str else guess,
                               CLASSES[guess])
    settings = {}
    if config is not None:
        s.size(config, "hidden_size", 768, tensors["patch_embed.proj.weight"].shape[0])
        if "blocks.0.mlp.w12.weight" not in tensors:
            s.word(config, "hidden_act", "gelu")
        settings["vit.n_heads"] = "%d" % s.heads(config, "num_attention_heads", 8192, n_heads,
                                                 tensors["patch_embed.proj.weight"].shape[0])
        eps = s.number(config, "layer_norm_eps", 0, 1, eps)
    settings["vit.eps"] = "%.9g" % eps
    settings.update(hf_processor(checkpoint, ("vit.mean", "vit.std"), 1))
    return settings


def timm_settings(checkpoint, tensors):
    s = Settings(checkpoint, "config.json")
    config = s.object(s.root, "pretrained_cfg")
    if s.root is None or (config is None and "architecture" not in s.root):
        return {}  # not timm's
    config = config or s.root
    mean = s.colours(config, "mean", [0.485, 0.456, 0.406])
    std = s.colours(config, "std", [0.229, 0.224, 0.225])
    s.check_std("std", std)
    settings = {"vit.mean": numbers_text(mean), "vit.std": numbers_text(std)}
    args = s.object(s.root, "model_args") or {}
    if args.get("num_heads") is not None:
        settings["vit.n_heads"] = "%d" % s.heads(args, "num_heads", 8192, 0, tensors["patch_embed.proj.weight"].shape[0])
    return settings


def hf_sam_settings(checkpoint, tensors):
    s = Settings(checkpoint, "config.json")
    vision, decoder, prompts = (s.object(s.root, part + "_config") for part in
                                ("vision", "mask_decoder", "prompt_encoder"))
    if s.root is not None:
        s.size(vision, "hidden_size", 768, tensors["image_encoder.patch_embed.proj.weight"].shape[0])
        for parent, act in ((vision, "gelu"), (decoder, "relu"), (prompts, "gelu")):
            s.word(parent, "hidden_act", act)
    if s.number(prompts, "layer_norm_eps", 0, 1, 1e-6) != 1e-6:
        s.refuse("prompt_encoder_config.layer_norm_eps is %g, expected 1e-06" % prompts["layer_norm_eps"])
    attention = tensors["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"]
    settings = {"sam.decoder_heads": "%d" % s.heads(decoder, "num_attention_heads", 64, 8, attention.shape[0]),
                "sam.encoder_eps": "%.9g" % s.number(vision, "layer_norm_eps", 0, 1, 1e-6),
                "sam.decoder_eps": "%.9g" % s.number(decoder, "layer_norm_eps", 0, 1, 1e-6)}
    settings.update(hf_processor(checkpoint, ("sam.pixel_mean", "sam.pixel_std"), 255))
    return settings


SETTINGS = {"HF_VIT": hf_vit_settings, "TIMM_VIT": timm_settings, "HF_SAM": hf_sam_settings}


def settings_beside(checkpoint, table, tensors):
    """{metadata key: value} from the files beside the checkpoint; tensors have their official names."""
    return SETTINGS[table](checkpoint, tensors) if table in SETTINGS else {}
