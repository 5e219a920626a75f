#!/usr/bin/env python3
"""Train the small ViT that ships as samlad's default backbone, on procedurally generated scenes only.

The network is the official DINOv2 `DinoVisionTransformer` (same parameter names and shapes: its weights
load there with strict=True) with small dimensions. The losses state directly what
samlad needs of its features. All heads are one linear layer, or none, and are dropped afterwards. So the
final-norm patch tokens carry these properties themselves:

  attributes   every patch tells its object's shape, texture, colours, axes, size, the patch's place in the
               object, its own mean colour, object borders inside it, the damaged fraction of it, and which
               digit it belongs to on handwritten pages                         (dense supervision)
  places       two views of a scene, drawn with jitter: the same place of the same object is a positive, all
               other objects are negatives                        (InfoNCE, one linear layer)
  objects      mean patch token of an object: the same object of the other view against all other objects,
               among them its own mirror image and rotations when the shape shows the difference; on
               handwritten pages the other view is another hand's               (InfoNCE, no head)
  damage       the standardised distance between the patches of the same place, which is what amm.c measures,
               must be small where nothing changed and large where one view is damaged  (logistic, no head);
               and the worst places of an object must tell whether it is damaged at all (the same)
  scene        the class token finds the other view of its scene                (InfoNCE, one linear layer)

Training looks at windows of the scenes (--window pixels, with a random cut of the position embedding, so that
position says little), and in the last part at whole images. Some scenes are drawn small and enlarged, as small
pictures are for the network. The learning rate follows the clock.

    train_vit.py --out DIR --minutes 90 [--init weights/vit_tiny.safetensors | --resume DIR/checkpoint.pt]

On a CPU, MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set to 8589934592 double the speed.
Training uses scene seeds in [2^39, 2^40), evaluation seeds from 2^41 on.
"""
import argparse
import math
import os
import signal
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import safetensors_io  # noqa: E402
import scenes as scenes_module  # noqa: E402
from run import parse, save_atomically  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIRST_SEED = 2 ** 39


# ---------------------------------------------------------------------------------------------- the network

class Attention(nn.Module):
    def __init__(self, dim, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        h, d = self.n_heads, c // self.n_heads
        q, k, v = self.qkv(x).view(b, n, 3, h, d).permute(2, 0, 3, 1, 4).reshape(3, b * h, n, d).unbind(0)
        a = torch.bmm(q * d ** -0.5, k.transpose(1, 2)).softmax(-1)
        return self.proj(torch.bmm(a, v).view(b, h, n, d).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, dim, value):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim, n_heads, mlp_ratio, layer_scale):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, 1e-6), Attention(dim, n_heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2, self.mlp = nn.LayerNorm(dim, 1e-6), Mlp(dim, mlp_ratio * dim)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """The official strided convolution, computed as a matrix product over cut-out patches."""

    def __init__(self, patch_size, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x):
        b, c, h, w = x.shape
        p = self.proj.kernel_size[0]
        x = x.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """DinoVisionTransformer without registers, in the official names."""

    def __init__(self, image_size, patch_size, dim, depth, n_heads, mlp_ratio=4, layer_scale=1.0):
        super().__init__()
        self.patch_size, self.grid = patch_size, image_size // patch_size
        self.image_size, self.n_heads, self.mlp_ratio = image_size, n_heads, mlp_ratio
        self.input_size = image_size  # of whole pictures; for another the position embedding is stretched
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid ** 2, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.blocks = nn.ModuleList([Block(dim, n_heads, mlp_ratio, layer_scale) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, 1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=.02)
                nn.init.zeros_(m.bias)

    def positions(self, side):
        """The position embedding of side x side patches [side][side][C], stretched as the official class does."""
        pos = self.pos_embed[:, 1:].view(1, self.grid, self.grid, -1)
        if side == self.grid:
            return pos[0]
        scale = (side + .1) / self.grid
        pos = F.interpolate(pos.permute(0, 3, 1, 2), scale_factor=(scale, scale), mode='bicubic')
        assert pos.shape[-2:] == (side, side)
        return pos[0].permute(1, 2, 0)

    def tokens(self, x, cuts=None):
        """x [B][3][H][W] normalised -> tokens [B][1 + n][C]; cuts: row and column of the position grid's cut,
        one a picture, where H and W are less than input_size."""
        b, _, height, width = x.shape
        h, w, g = height // self.patch_size, width // self.patch_size, self.input_size // self.patch_size
        pos = self.positions(g)
        if (h, w) == (g, g):
            pos = pos.reshape(1, g * g, -1)
        else:
            pos = torch.stack([pos[r:r + h, c:c + w].reshape(h * w, -1) for r, c in cuts])
        x = self.patch_embed(x) + pos
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
        return torch.cat([cls, x], 1)

    def forward(self, x, cuts=None):
        x = self.tokens(x, cuts)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


OFFSETS = ((0, 1), (0, -1), (1, 0), (-1, 0), (0, 2), (0, -2), (2, 0), (-2, 0), (1, 1), (-1, -1), (1, -1),
           (-1, 1))


@torch.no_grad()
def know_neighbours(model, images, strength=6.0, share=0.35):
    """Gives the network a sense of place to start with. From small random position embeddings it takes
    thousands of steps to find out which patches are neighbours. Waves of eight lengths along both axes go
    into the embedding, in 32 directions of its space; each head of the first blocks gets queries and keys,
    added to its own, that compare these waves, shifted by a small offset: it looks at one neighbour. Adds
    to what is there, so it also helps a trained network. `images` (normalised, of the training size) tell how
    strong the waves are in a block's input; `share` is the length of the waves beside that of the patches."""
    g, dim = model.grid, model.norm.weight.numel()
    omega = 2 * math.pi / torch.logspace(math.log10(5), math.log10(2.2 * g), 8)
    directions = torch.linalg.qr(torch.randn(dim, 32, generator=torch.Generator().manual_seed(7)))[0].T
    r = torch.arange(g, dtype=torch.float32)
    wave = torch.cat([(r[:, None] * omega).cos(), (r[:, None] * omega).sin()], 1)  # [g][16]
    waves = torch.cat([wave[:, None].expand(g, g, 16), wave[None].expand(g, g, 16)], -1)  # rows, columns
    length = share * model.patch_embed(images).norm(dim=-1).mean()  # that of sixteen unit waves is 4
    model.pos_embed[0, 1:] += length / 4 * (waves.reshape(g * g, 32) @ directions)
    x, offsets = model.tokens(images), iter(OFFSETS)
    for block in model.blocks[:4]:
        seen = block.norm1(x)[:, 1:].mean(0) @ directions.T
        power = (seen - seen.mean(0)).square().sum(-1).mean().item()
        d = dim // model.n_heads
        gain = (strength * d ** .5 / power) ** .5
        for h in range(model.n_heads):
            turn = torch.eye(32)
            for axis, shift in enumerate(next(offsets)):
                for k in range(8):
                    c, s = math.cos(omega[k] * shift), math.sin(omega[k] * shift)
                    i, j = 16 * axis + k, 16 * axis + 8 + k
                    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
            n = min(32, d)
            block.attn.qkv.weight[h * d:h * d + n] += gain * (turn @ directions)[:n]
            block.attn.qkv.weight[dim + h * d:dim + h * d + n] += gain * directions[:n]
        x = block(x)


# -------------------------------------------------------------------------------------------------- weights

def metadata(model, carried, extra):
    """The metadata that samlad reads; `carried`: the other entries of the first weights' file (method.grid, ...)."""
    meta = {
        'samlad.model': 'vit', 'samlad.name': 'vit_tiny', 'vit.family': 'dinov2',
        'vit.image_size': model.image_size, 'vit.patch_size': model.patch_size,
        'vit.dim': model.norm.weight.numel(), 'vit.depth': len(model.blocks), 'vit.n_heads': model.n_heads,
        'vit.mlp_ratio': model.mlp_ratio, 'vit.ffn': 'mlp', 'vit.n_registers': 0, 'vit.layer_scale': 1,
        'vit.interpolate_offset': 0.1, 'vit.interpolate_antialias': 0, 'vit.eps': '1e-6',
        'vit.mean': ','.join(map(str, MEAN)), 'vit.std': ','.join(map(str, STD)),
        'method.layer': len(model.blocks),
    }
    meta = {**meta, **carried, 'method.size': model.input_size, **extra}
    return {k: str(v) for k, v in meta.items()}


def carried_of(meta):
    """The entries of a file's metadata that the network itself does not determine."""
    return {k: v for k, v in meta.items() if not k.startswith(('samlad.', 'vit.')) and k != 'method.size'}


def export(path, state, meta):
    safetensors_io.save(path, {name: value.detach().float().numpy().astype('<f2') for name, value in state.items()}, meta)


def vit_of(meta):
    """The untrained network of a weights file's metadata."""
    names = ('image_size', 'patch_size', 'dim', 'depth', 'n_heads', 'mlp_ratio')
    model = VisionTransformer(**{name: int(meta['vit.' + name]) for name in names})
    model.input_size = int(meta['method.size'])
    return model


def load_vit(path):
    """A shipped safetensors file -> (VisionTransformer, metadata)."""
    tensors, meta = safetensors_io.load(path)
    model = vit_of(meta)
    model.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items()}, strict=True)
    return model, meta


# ----------------------------------------------------------------------------------------------------- data

S = scenes_module
N_SHAPES, N_TEXTURES = 19, 12
WRITTEN = 99                                   # the kind of scene that write_page makes
SAME_TURNED = {0, 1, 8}                        # digits that a turn may leave as they are
SHOWS_MIRROR = {11, 13, 15, 16, 17}            # blob, letter, key, L, digit
SHOWS_TURN = SHOWS_MIRROR | {8, 12, 14}        # screw, crescent, arrow
BACKGROUND = N_SHAPES                          # the background's class among the shapes


# Handwriting: control points of smooth strokes in [-1,1]^2 (y down), a few ways to write each digit.
def _arc(cx, cy, rx, ry, start, end, n=9):
    t = np.linspace(start, end, n) * 2 * math.pi
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], -1)


STROKES = {
    0: [[_arc(0, 0, .62, .95, -.25, .75, 13)], [_arc(0, 0, .62, .95, -.2, .85, 13)]],
    1: [[np.array([[0, -.95], [0, 0], [0, .95]])],
        [np.array([[-.4, -.55], [.05, -.95], [.05, -.9], [.05, .95]])],
        [np.array([[-.35, -.6], [0, -.95], [0, -.9], [0, .95]]), np.array([[-.4, .95], [.4, .95]])]],
    2: [[np.concatenate([_arc(0, -.45, .55, .5, .55, 1.08, 7), [[-.55, .9], [-.5, .92], [.65, .88]]])],
        [np.concatenate([_arc(0, -.45, .55, .5, .55, 1.1, 7), _arc(-.3, .72, .25, .2, .3, 1.05, 6),
                         [[.65, .9]]])]],
    3: [[_arc(0, -.47, .5, .46, .55, 1.22, 8), _arc(0, .45, .6, .5, .78, 1.42, 9)],
        [np.concatenate([_arc(-.05, -.47, .5, .46, .58, 1.2, 7), _arc(0, .45, .58, .5, .78, 1.4, 8)])]],
    4: [[np.array([[.3, .95], [.3, -.95], [.28, -.95], [-.6, .3], [-.58, .32], [.7, .32]])],
        [np.array([[-.5, -.9], [-.55, .1], [-.5, .15], [.6, .1]]), np.array([[.4, -.85], [.35, .95]])]],
    5: [[np.array([[.55, -.92], [-.4, -.92], [-.42, -.9], [-.48, -.1]]), _arc(0, .38, .58, .55, .62, 1.4, 9)],
        [np.concatenate([[[.55, -.92], [-.4, -.9], [-.42, -.88], [-.48, -.12]],
                         _arc(-.02, .38, .58, .55, .68, 1.4, 8)])]],
    6: [[np.concatenate([[[.35, -.95], [-.3, -.4]], _arc(0, .42, .52, .5, .55, -.45, 11)])],
        [np.concatenate([[[.1, -.95], [-.4, -.2]], _arc(-.02, .45, .46, .45, .5, -.48, 11)])]],
    7: [[np.array([[-.6, -.9], [.6, -.9], [.6, -.88], [-.1, .95]])],
        [np.array([[-.6, -.9], [.6, -.9], [.6, -.88], [-.1, .95]]), np.array([[-.3, .05], [.5, .05]])],
        [np.array([[-.6, -.6], [-.55, -.9], [.6, -.9], [.6, -.88], [.1, .1], [0, .95]])]],
    8: [[_arc(0, -.48, .45, .45, .25, 1.25, 12), _arc(0, .46, .55, .48, -.25, .75, 12)],
        [np.array([[.45, -.75], [0, -.95], [-.45, -.6], [0, -.05], [.5, .5], [0, .95], [-.5, .5], [0, 0],
                   [.45, -.5], [.4, -.8]])]],
    9: [[np.concatenate([_arc(0, -.45, .5, .48, 0, -1, 11), [[.5, -.4], [.42, .95]]])],
        [np.concatenate([_arc(-.02, -.45, .48, .46, -.03, -1, 11), [[.46, .3], [.1, .9], [-.4, .8]]])]],
}


def smooth(p, n=5):
    """Catmull-Rom through the points."""
    q = np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    a, b, c, d = q[:-3, None], q[1:-2, None], q[2:-1, None], q[3:, None]
    r = .5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t ** 2 + (3 * b - a - 3 * c + d) * t ** 3)
    return np.concatenate([r.reshape(-1, 2), p[-1:]])


def write_digit(rng, digit, side):
    """One handwritten digit in a cell: ink [side][side] in 0..1, and the mask of ink and its surroundings."""
    ways = STROKES[digit]
    size, wide = side * rng.uniform(.28, .46), rng.uniform(.6, 1.1)
    slant, turn = rng.normal(0, .2), rng.normal(0, .12)
    m = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    m = m @ np.array([[wide, -slant], [0, 1]])
    centre = side / 2 + rng.normal(0, .05, 2) * side
    k = side // 3  # the distance to the pen's way is smooth: a third of the pixels will do
    y, x = (np.mgrid[0:k, 0:k] + .5) * side / k - .5
    p = np.stack([x, y], -1).reshape(-1, 1, 2).astype(np.float32)
    near = np.full(k * k, 1e9, np.float32)
    for stroke in ways[int(rng.integers(len(ways)))]:
        wobble = stroke + rng.normal(0, .05, stroke.shape) + rng.normal(0, .04, 2)
        q = (smooth(wobble, 3) @ m.T * size + centre).astype(np.float32)
        a, ab = q[None, :-1], (q[1:] - q[:-1])[None]
        t = (((p - a) * ab).sum(-1) / ((ab * ab).sum(-1) + 1e-6)).clip(0, 1)
        d = p - a - t[..., None] * ab
        near = np.minimum(near, (d * d).sum(-1).min(1))
    near = torch.from_numpy(np.sqrt(near).reshape(1, 1, k, k))
    near = F.interpolate(near, (side, side), mode='bilinear', align_corners=False)[0, 0].numpy()
    pen, soft = size * rng.uniform(.09, .22), side * rng.uniform(.01, .028)
    return (1 / (1 + np.exp(np.clip((near - pen) / soft, -30, 30)))).astype(np.float32), near < pen + 2


def write_page(rng, digits, side):
    """A grid of written digits (None: an empty cell) like scenes.py's views: rgb, ids, damage, objects. The
    field `parent` holds the digit."""
    rows, columns = len(digits), len(digits[0])
    size = side * max(rows, columns)
    ink, ids = np.zeros((size, size), np.float32), np.zeros((size, size), np.uint16)
    objects = np.zeros(rows * columns, S.OBJECT)
    shade = rng.uniform(.8, 1)
    for r in range(rows):
        for c in range(columns):
            i = r * columns + c
            o = objects[i]
            o['parent'], o['shape'], o['color'], o['color2'] = -1, 17, shade, shade
            o['cx'], o['cy'], o['scale'] = (c + .5) * side, (r + .5) * side, side * .4
            if digits[r][c] is None:
                continue
            o['parent'] = digits[r][c]
            d, m = write_digit(rng, digits[r][c], side)
            sl = np.s_[r * side:(r + 1) * side, c * side:(c + 1) * side]
            ink[sl] = d * rng.uniform(.85, 1)
            ids[sl][m] = i + 1
            o['area'] = int(m.sum())
    rgb = np.repeat((ink * shade * 255).astype(np.uint8)[..., None], 3, 2)
    return rgb, ids, np.zeros((size, size), np.uint8), objects


def enlarge(view, size):
    """rgb, ids, damage, objects of a drawn view, as if its picture had been smaller and then enlarged."""
    rgb, ids, damage, objects = view
    factor = size / len(rgb)
    picture = Image.fromarray(rgb).resize((size, size), Image.BICUBIC)
    at = ((np.arange(size) + .5) / factor).astype(int)
    objects = objects.copy()
    for name in ('cx', 'cy'):
        objects[name] = (objects[name] + .5) * factor - .5
    objects['scale'] *= factor
    objects['area'] = np.round(objects['area'] * factor ** 2)
    return np.asarray(picture), ids[np.ix_(at, at)], damage[np.ix_(at, at)], objects


class Pool:
    """Pairs of views, each drawn once and looked at through a few windows before it is replaced. `enlarged` of
    them are drawn smaller than they are looked at."""

    def __init__(self, size, rng, difficulty, enlarged):
        self.scenes, self.rng, self.difficulty, self.enlarged = S.Scenes(), rng, difficulty, enlarged
        self.seed = FIRST_SEED + int(rng.integers(2 ** 38))
        self.drawn = 0
        self.items = [None] * size

    def draw(self, low, high):
        r = self.rng
        self.seed += 1
        self.drawn += 2
        kind = int(r.choice([S.GENERAL, S.TRAY, S.GLYPHS, WRITTEN], p=[.38, .45, .05, .12]))
        size = int(r.integers(low, high + 1))
        if kind == WRITTEN:  # the second view is another hand's
            digits = [[None if r.random() < .06 else int(r.integers(10)) for _ in range(3)] for _ in range(3)]
            side = (size + 2) // 3
            return self.seed, kind, 3 * side, write_page(r, digits, side), write_page(r, digits, side)
        difficulty = float(self.difficulty * r.uniform(.6, 1))
        damaged = r.random() < .6
        clean, bad = kind | S.ALL_DAMAGED | S.NO_DAMAGE, kind | S.ALL_DAMAGED  # the same layout
        j = [int(r.integers(1, 2 ** 31)) for _ in range(2)]
        drawn = int(size * r.uniform(.6, .9)) if r.random() < self.enlarged else size
        a = self.scenes.render(self.seed, j[0], difficulty, clean, drawn)
        b = self.scenes.render(self.seed, j[1], difficulty, bad if damaged else clean, drawn)
        if drawn < size:
            a, b = enlarge(a, size), enlarge(b, size)
        return self.seed, kind, size, a, b

    def pick(self, low, high, reuse):
        i = int(self.rng.integers(len(self.items)))
        if self.items[i] is None or self.items[i][2] < low or self.rng.random() < 1 / reuse:
            self.items[i] = self.draw(low, high)
        return self.items[i]


def turn_arrays(code, *arrays):
    """One of the eight symmetries of the square, applied to the first two axes of each array."""
    out = []
    for a in arrays:
        a = np.rot90(a, code & 3)
        if code & 4:
            a = a[:, ::-1]
        out.append(a)
    return out


def recolour(rng, rgb_a, rgb_b, tables):
    """A change of colour for both views alike (the tables' colours too), and a small one for each alone."""
    m, b = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    u = rng.random()
    if u < .25:
        m = m[rng.permutation(3)]
    elif u < .35:
        m = np.full((3, 3), 1 / 3, np.float32)
    if rng.random() < .07:
        m, b = -m, b + 1
    out = []
    for x in (rgb_a, rgb_b):
        gain = 1 + rng.uniform(-.06, .06) + rng.uniform(-.015, .015, 3).astype(np.float32)
        x = (x.astype(np.float32) / 255) @ m.T + b
        x = (x * gain.astype(np.float32)).clip(0, 1)
        if rng.random() < .3:
            x = x + rng.normal(0, rng.uniform(0, .03), x.shape[:2] + (1,)).astype(np.float32)
        out.append(x)
    for t in tables:
        t['color'] = t['color'] @ m.T + b
        t['color2'] = t['color2'] @ m.T + b
    return out


class Batch:
    """Windows of `n` scenes, two views each, with everything that the losses ask for, as tensors.

    Tokens are indexed [2 n views][T]; view v of scene s is row v * n + s. Objects of both views share one
    table of rows (scene s, object i), the scene's background being its row 0."""

    def __init__(self, pool, rng, n, window, patch, low, high, reuse):
        g = window // patch
        self.n, self.g = n, g
        rgb, ids, dmg, coord, key, digit, row0 = [], [], [], [], [], [], []
        tables, exact, n_rows, previous = [], [], 0, None
        for s in range(n):
            code = int(rng.integers(8)) if rng.random() < .5 else 0
            if previous is not None and rng.random() < .3:  # the same scene, turned: hard negatives
                item, code = previous[0], int((previous[1] + rng.integers(1, 8)) % 8)
                previous = None
            else:
                item = pool.pick(low, high, reuse)
                previous = (item, code)
            seed, kind, size, a, b = item
            exact.append(kind != WRITTEN)
            x, y = (int(rng.integers(0, size - window + 1)) for _ in range(2))
            shift = min(16, size - window)
            table = [v[3].copy() for v in (a, b)]
            va, vb = recolour(rng, a[0], b[0], table)
            for image, view in ((va, a), (vb, b)):
                x1 = int(np.clip(x + rng.integers(-shift, shift + 1), 0, size - window))
                y1 = int(np.clip(y + rng.integers(-shift, shift + 1), 0, size - window))
                cut = np.s_[y1:y1 + window, x1:x1 + window]
                yy, xx = np.mgrid[0:g, 0:g].astype(np.float32) * patch + (patch - 1) / 2
                c = np.stack([xx + x1, yy + y1], -1)
                t = turn_arrays(code, image[cut], view[1][cut].astype(np.int32), view[2][cut], c)
                rgb.append(t[0]), ids.append(np.ascontiguousarray(t[1]) + n_rows)
                dmg.append(np.ascontiguousarray(t[2])), coord.append(np.ascontiguousarray(t[3]))
            tables.append(table)
            row0.append(n_rows)
            for i in range(len(table[0]) + 1):
                o = table[0][i - 1] if i > 0 else None  # a scene may be background alone
                digit.append(int(o['parent']) if i > 0 and kind == WRITTEN else -1)
                key.append((seed, code, i, -1 if i == 0 else int(o['shape']),
                            (int(o['texture']), o['color'].tobytes(), float(o['scale'])) if i else 0))
            n_rows += len(table[0]) + 1
        order = list(range(0, 2 * n, 2)) + list(range(1, 2 * n, 2))  # view-major
        self.rgb = torch.from_numpy(np.stack([rgb[i] for i in order]).transpose(0, 3, 1, 2).copy())
        self.ids = torch.from_numpy(np.stack([ids[i] for i in order]))
        self.dmg = torch.from_numpy(np.stack([dmg[i] for i in order])).float()
        self.coord = torch.from_numpy(np.stack([coord[i] for i in order]))
        self.key, self.n_rows, self.digit = key, n_rows, torch.tensor(digit)
        self.exact = torch.tensor(exact)[:, None]  # whether the same place of both views shows the same thing
        self.rows = torch.tensor(row0)
        self.fill_table(tables)
        self.fill_tokens(patch)

    def fill_table(self, tables):
        """Object properties by [view][row]; background rows sit still at the scene's origin."""
        t = {k: torch.zeros(2, self.n_rows, d) for k, d in
             (('place', 2), ('frame', 2), ('scale', 1), ('color', 3), ('color2', 3), ('kind', 2))}
        t['frame'][..., 0], t['scale'][:], t['kind'][..., 0], t['kind'][..., 1] = 1, 1, BACKGROUND, -1
        for s, pair in enumerate(tables):
            at = int(self.rows[s]) + 1
            for v, o in enumerate(pair):
                sl = slice(at, at + len(o))
                a = torch.from_numpy(o['angle'].copy()) * 2 * math.pi
                t['place'][v, sl] = torch.from_numpy(np.stack([o['cx'], o['cy']], -1))
                t['frame'][v, sl] = torch.stack([a.cos(), a.sin()], -1)
                t['scale'][v, sl, 0] = torch.from_numpy(o['scale'].copy())
                t['color'][v, sl] = torch.from_numpy(o['color'].copy())
                t['color2'][v, sl] = torch.from_numpy(o['color2'].copy())
                shape = np.where(o['shape'] < N_SHAPES, o['shape'], 2)  # a panel is a rounded rectangle
                t['kind'][v, sl] = torch.from_numpy(np.stack([shape, o['texture']], -1).astype(np.float32))
        self.table = t

    def fill_tokens(self, p):
        """Per token: its object's row, purity, damaged fraction, borders in its 2 x 2 quarters, mean colour,
        its place in the object's frame, and the object's axes in the picture."""
        b, g = len(self.ids), self.g
        cells = self.ids.view(b, g, p, g, p).transpose(2, 3).reshape(b, g * g, p * p)
        self.row = cells.mode(-1).values.long()
        same = (cells == self.row[..., None])
        self.purity = same.float().mean(-1)
        self.damage = self.dmg.view(b, g, p, g, p).mean((2, 4)).view(b, -1)
        edge = torch.zeros_like(self.dmg)
        edge[:, :, :-1] += (self.ids[:, :, 1:] != self.ids[:, :, :-1])
        edge[:, :-1] += (self.ids[:, 1:] != self.ids[:, :-1])
        q = p // 2
        edge = (edge.view(b, 2 * g, q, 2 * g, q).amax((2, 4)) > 0).float()
        self.border = edge.view(b, g, 2, g, 2).transpose(2, 3).reshape(b, g * g, 4)
        tiles = self.rgb.view(b, 3, g, p, g, p)
        mean = tiles.mean((3, 5))
        std = (tiles.pow(2).mean((3, 5)) - mean ** 2).clamp(min=0).add(1e-6).sqrt().mean(1, keepdim=True)
        self.local = torch.cat([mean, 4 * std], 1).flatten(2).transpose(1, 2)
        view = torch.arange(b)[:, None].div(self.n, rounding_mode='floor').expand_as(self.row)
        at = {k: v[view, self.row] for k, v in self.table.items()}
        self.at = at
        self.xy = self.coord.view(b, -1, 2)
        d = (self.xy - at['place'])
        c, s = at['frame'][..., 0], at['frame'][..., 1]
        self.inside = torch.stack([c * d[..., 0] + s * d[..., 1], c * d[..., 1] - s * d[..., 0]], -1)
        # the steps in x and y in scene coordinates; with them, the axes as the picture has them
        step_x = (self.coord[:, 0, 1] - self.coord[:, 0, 0]) / p
        step_y = (self.coord[:, 1, 0] - self.coord[:, 0, 0]) / p
        self.step = torch.stack([step_x, step_y], 1)  # [B][2][2]
        self.offset = torch.einsum('bij,btj->bti', self.step, d)  # from the object's centre
        ax, ay = torch.stack([c, s], -1), torch.stack([-s, c], -1)
        self.axes = torch.cat([torch.einsum('bij,btj->bti', self.step, a) for a in (ax, ay)], -1)

    def correspondence(self):
        """For every token of the first views: where its place of its object lies in the second view, in patch
        units of that window; whether that is inside it and still the same object; whether it is inside."""
        n, g = self.n, self.g
        row, inside = self.row[:n], self.inside[:n]
        to = {k: self.table[k][1][row] for k in ('place', 'frame', 'scale')}
        ratio = to['scale'] / self.table['scale'][0][row]
        c, s = to['frame'][..., 0], to['frame'][..., 1]
        i = inside * ratio
        scene = to['place'] + torch.stack([c * i[..., 0] - s * i[..., 1], s * i[..., 0] + c * i[..., 1]], -1)
        p = self.ids.shape[1] // g
        first = self.coord[n:, 0, 0][:, None]
        uv = torch.einsum('bij,btj->bti', self.step[n:], scene - first) / p  # 0 = centre of the first patch
        pixel = (uv * p + (p - 1) / 2).round().long()
        ok = ((uv >= 0) & (uv <= g - 1)).all(-1)
        pixel = pixel.clamp(0, self.ids.shape[1] - 1)
        there = self.ids[n:][torch.arange(n)[:, None], pixel[..., 1], pixel[..., 0]]
        ok = ok & self.exact
        return uv.clamp(0, g - 1), ok & (there == row), ok


# --------------------------------------------------------------------------------------------------- losses

HEADS = (('shape', N_SHAPES + 1), ('texture', N_TEXTURES), ('color', 6), ('offset', 2), ('axes', 4),
         ('scale', 1), ('local', 4), ('border', 4), ('damage', 1), ('purity', 1))


class Heads(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.token = nn.Linear(dim, sum(d for _, d in HEADS))
        self.place = nn.Linear(dim, 64)
        self.scene = nn.Linear(dim, 64)
        self.digit = nn.Linear(dim, 10)
        self.threshold = nn.Parameter(torch.tensor([.7, 1.]))  # of a patch, of an object


def bilinear(f, uv):
    """f [B][g][g][C] sampled at uv [B][T][2] (patch units, inside the grid) -> [B][T][C]."""
    b, g = f.shape[:2]
    i = uv.floor().clamp(max=g - 2).long()
    w = uv - i
    flat, at = f.reshape(b, g * g, -1), i[..., 1] * g + i[..., 0]
    take = lambda o: flat.gather(1, (at + o)[..., None].expand(-1, -1, flat.shape[-1]))  # noqa: E731
    wx, wy = w[..., :1], w[..., 1:]
    return (1 - wy) * ((1 - wx) * take(0) + wx * take(1)) + wy * ((1 - wx) * take(g) + wx * take(g + 1))


def attribute_losses(batch, heads, x):
    out = dict(zip([k for k, _ in HEADS], heads.token(x[:, 1:]).split([d for _, d in HEADS], -1)))
    at, pure = batch.at, (batch.purity > .55).float()
    thing = pure * (at['kind'][..., 0] != BACKGROUND)
    mean = lambda v, w: (v * w).sum() / (w.sum() + 1)  # noqa: E731
    huber = lambda a, b: F.smooth_l1_loss(a, b, reduction='none', beta=.2).mean(-1)  # noqa: E731
    loss = {}
    for k, name, weight in ((0, 'shape', pure), (1, 'texture', thing)):
        target = at['kind'][..., k].long().clamp(min=0).flatten()
        wrong = F.cross_entropy(out[name].flatten(0, 1), target, reduction='none')
        loss[name] = mean(wrong.view_as(weight), weight)
    loss['color'] = 2 * mean(huber(out['color'], torch.cat([at['color'], at['color2']], -1)), thing)
    loss['offset'] = 2 * mean(huber(out['offset'], batch.offset / (at['scale'] + 2)), thing)
    loss['axes'] = .5 * mean(huber(out['axes'], batch.axes), thing)
    loss['scale'] = .5 * mean(huber(out['scale'], (at['scale'] / 16 + .05).log()), thing)
    loss['local'] = 2 * huber(out['local'], batch.local).mean()
    loss['border'] = F.binary_cross_entropy_with_logits(out['border'], batch.border)
    hurt = batch.damage.clamp(max=.5) * 2
    weight = 1 + 3 * hurt
    loss['damage'] = 2 * F.binary_cross_entropy_with_logits(out['damage'][..., 0], hurt, weight)
    digit = batch.digit[batch.row]
    written = (digit >= 0) & (batch.purity > .3)
    if written.any():
        loss['digit'] = .3 * F.cross_entropy(heads.digit(x[:, 1:][written]), digit[written])
    loss['purity'] = .5 * F.binary_cross_entropy_with_logits(out['purity'][..., 0], batch.purity)
    return loss


def whole_objects(batch, d, damage, seen, threshold, t=.1):
    """An image is judged by its worst place: an object's mean of its two largest distances must tell whether
    it is damaged. d, damage, seen [n][T] of the first views' patches -> loss, AUROC (None without both)."""
    n, row = batch.n, torch.arange(batch.n_rows)
    scene = torch.searchsorted(batch.rows, row, right=True) - 1
    inside = (batch.row[:n][scene] == row[:, None]) & seen[scene]
    amount = (damage[scene] * inside).sum(1)  # in patches
    score = d[scene].masked_fill(~inside, 0).topk(2, 1).values.mean(1)
    thing = (inside.sum(1) >= 2) & (row != batch.rows[scene])
    hurt, clean = thing & (amount > .2), thing & (amount < .01)
    if not hurt.any() or not clean.any():
        return d.sum() * 0, None
    loss = F.softplus((score - threshold) / t)[clean].mean() + F.softplus((threshold - score) / t)[hurt].mean()
    return t * loss, (score[hurt][:, None] > score[clean][None]).float().mean().item()


def pair_losses(batch, heads, x, rng):
    """The losses between the two views: places, damage, objects."""
    n, g = batch.n, batch.g
    uv, ok, lies = batch.correspondence()
    f = x[:, 1:]
    there = bilinear(f[n:].view(n, g, g, -1), uv)
    d_there = bilinear(batch.damage[n:].view(n, g, g, 1), uv)[..., 0]
    pure = batch.purity[:n] > .3
    clean = ok & pure & (d_there < .01)
    hurt = lies & pure & (d_there > .06)
    loss = {}

    # damage: the distance between the features of the same place, in units of the scene's own deviations, as the
    # method measures it in those of its bank
    var = f.view(2, n, g * g, -1).var((0, 2))
    std = (var + .05 * var.mean(0)).add(1e-4).sqrt().detach()[:, None]
    d = (((f[:n] - there) / std) ** 2).mean(-1).add(1e-4).sqrt()
    t = .08
    th = heads.threshold[0]
    pull = F.softplus((d - th) / t)[clean]
    push = (F.softplus((th - d) / t) * (d_there * 4).clamp(max=1))[hurt]
    loss['damage_pull'] = t * 4 * pull.mean()
    loss['damage_push'] = t * 4 * (push.mean() if len(push) else push.sum())
    loss['worst'], worst = whole_objects(batch, d, d_there, clean | hurt, heads.threshold[1])
    stats = {'d_clean': d[clean].mean().item(), 'd_hurt': d[hurt].mean().item()}
    if hurt.any() and clean.any():
        a, b = d[hurt].detach(), d[clean].detach()
        a, b = a[:512], b[torch.randperm(len(b))[:2048]]
        stats['auc'] = (a[:, None] > b[None]).float().mean().item()
    if worst is not None:
        stats['worst_auc'] = worst

    # places: InfoNCE over sampled tokens; tokens of the same object are left out, except the very same place
    at = clean.flatten().nonzero()[:, 0]
    at = at[torch.from_numpy(rng.permutation(len(at))[:768])]
    z0 = F.normalize(heads.place(f[:n]).flatten(0, 1)[at], dim=-1)
    z1 = F.normalize(heads.place(there).flatten(0, 1)[at], dim=-1)
    row = batch.row[:n].flatten()[at]
    group = batch.same_thing[row][:, row] & ~torch.eye(len(at), dtype=torch.bool)
    logits = (z0 @ z1.T / .1).masked_fill(group, -1e4)
    target = torch.arange(len(at))
    loss['places'] = .25 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    # objects: mean tokens, standardised
    pooled, rows = [], []
    for v in range(2):
        sl = slice(v * n, v * n + n)
        r = batch.row[sl].flatten()
        w = (batch.purity[sl].flatten() > torch.where(batch.digit[r] >= 0, .3, .5)).float()[:, None]
        count = torch.zeros(batch.n_rows, 1).index_add_(0, r, w)
        total = torch.zeros(batch.n_rows, f.shape[-1]).index_add(0, r, f[sl].flatten(0, 1) * w)
        pooled.append(total / count.clamp(min=1)), rows.append(count[:, 0])
    less, more = torch.minimum(rows[0], rows[1]), torch.maximum(rows[0], rows[1])
    both = ((less >= 2) & ((less > .6 * more) | (batch.digit >= 0))).nonzero()[:, 0]
    a, b = pooled[0][both], pooled[1][both]
    mu, sd = torch.cat([a, b]).mean(0).detach(), torch.cat([a, b]).std(0).detach() + 1e-4
    a, b = F.normalize((a - mu) / sd, dim=-1), F.normalize((b - mu) / sd, dim=-1)
    ignore = batch.same_thing[both][:, both] & ~torch.eye(len(both), dtype=torch.bool)
    logits = (a @ b.T / .1).masked_fill(ignore, -1e4)
    target = torch.arange(len(both))
    loss['objects'] = .5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    stats['match'] = (logits.argmax(1) == target).float().mean().item()

    c = F.normalize(heads.scene(x[:, 0]), dim=-1)
    logits = c[:n] @ c[n:].T / .1
    target = torch.arange(n)
    loss['scene'] = .2 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
    return loss, stats


def same_thing(batch):
    """[rows][rows]: True where two rows must not be each other's negatives: the same thing, equal parts of
    one scene, equal digits, and the same thing in a turned copy of its scene if the shape hides it."""
    key = batch.key
    look = {}
    n = len(key)
    seed = np.array([hash(k[0]) for k in key])
    code = np.array([k[1] for k in key])
    index = np.array([k[2] for k in key])
    shape = np.array([k[3] for k in key])
    kind = np.array([look.setdefault((k[0], k[3], k[4]), len(look)) for k in key])
    same_scene = seed[:, None] == seed[None]
    equal = same_scene & ((index[:, None] == index[None]) | (kind[:, None] == kind[None]))
    turned = code[:, None] != code[None]
    digit = batch.digit.numpy()
    twins = (digit[:, None] == digit[None]) & (digit[:, None] >= 0)
    equal |= twins & (~turned | np.isin(digit, list(SAME_TURNED))[:, None])
    mirrored = ((code[:, None] ^ code[None]) & 4) > 0
    shows = [np.isin(shape, list(s))[:, None] for s in (SHOWS_MIRROR, SHOWS_TURN)]
    shows = np.where(mirrored, *shows)
    negative = turned & shows & (index[:, None] == index[None]) & ~np.isin(digit, list(SAME_TURNED))[:, None]
    assert equal.shape == (n, n)
    return torch.from_numpy(equal & ~negative)


# ------------------------------------------------------------------------------------------------- training

def make_parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--out', required=True, help='folder for checkpoint.pt, log.txt and export/')
    p.add_argument('--minutes', type=float, default=90, help='wall time of the whole schedule')
    p.add_argument('--whole', type=float, default=.3, help='last fraction of the time, with whole images')
    p.add_argument('--init', help='safetensors weights to start from (the heads start anew)')
    p.add_argument('--resume', help="checkpoint.pt to go on with; options that are not given are the checkpoint's")
    p.add_argument('--image-size', type=int, default=0, help='of whole images (0: 224, or the recommendation of --init)')
    p.add_argument('--window', type=int, default=112, help="side of the window on a scene at first, pixels")
    p.add_argument('--enlarged', type=float, default=.5, help='share of the scenes drawn smaller, then enlarged')
    p.add_argument('--scenes', type=int, default=16, help='scenes a step (of whole images a quarter)')
    p.add_argument('--lr', type=float, default=1.5e-3)
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--dim', type=int, default=144)
    p.add_argument('--depth', type=int, default=6)
    p.add_argument('--heads', type=int, default=3)
    p.add_argument('--patch', type=int, default=8)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--steps', type=int, default=0, help='stop after this many steps (0: by the clock)')
    p.add_argument('--save-every', type=float, default=5, help='minutes')
    return p


def fixed(saved):
    """The options that a resumed run cannot change."""
    if 'metadata' not in saved:  # an older checkpoint may need --init
        return {k: saved['args'][k] for k in ('patch', 'dim', 'depth', 'heads') if not saved['args']['init']}
    network = {k: int(saved['metadata']['vit.' + name]) for k, name in
               (('patch', 'patch_size'), ('dim', 'dim'), ('depth', 'depth'), ('heads', 'n_heads'))}
    return {**network, 'init': saved['args']['init']}


def learning_rate(peak, progress, warmup=.03):
    if progress < warmup:
        return peak * (progress + 1e-4) / warmup
    return peak * (.01 + .99 * .5 * (1 + math.cos(math.pi * min(1, (progress - warmup) / (1 - warmup)))))


def main(arguments=None):
    a, saved = parse(make_parser(), arguments, fixed)
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(a.seed)
    os.makedirs(os.path.join(a.out, 'export'), exist_ok=True)
    carried = {}
    if saved and 'metadata' in saved:
        model, carried = vit_of(saved['metadata']), carried_of(saved['metadata'])
    elif a.init:
        model, meta = load_vit(a.init)
        carried = carried_of(meta)
    else:
        model = VisionTransformer(224, a.patch, a.dim, a.depth, a.heads)
    size = model.input_size = a.image_size or model.input_size
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    if not a.init and not a.resume:
        drawn = [S.Scenes().render(FIRST_SEED - 1 - i, size=size)[0] for i in range(16)]
        drawn = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) / 255
        know_neighbours(model, (drawn - mean) / std)
    heads = Heads(model.norm.weight.numel())
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    named = list(model.named_parameters()) + [('head.' + k, v) for k, v in heads.named_parameters()]
    decay = [v for k, v in named if v.ndim > 1 and 'token' not in k.split('.')[0] and 'pos' not in k]
    rest = [v for k, v in named if not any(v is d for d in decay)]
    groups = [{'params': decay, 'weight_decay': .05}, {'params': rest, 'weight_decay': 0}]
    optimiser = torch.optim.AdamW(groups, lr=a.lr, betas=(.9, .98))
    step, spent, images = 0, 0., 0
    if saved:
        model.load_state_dict(saved['model'])
        heads.load_state_dict(saved['heads'])
        optimiser.load_state_dict(saved['optimiser'])
        ema, step, spent, images = saved['ema'], saved['step'], saved['spent'], saved['images']
        rng = np.random.default_rng([a.seed, step])
    pool = Pool(160, rng, 1.0, a.enlarged)
    log = open(os.path.join(a.out, 'log.txt'), 'a', buffering=1)
    began, last_save, total, shown = time.time() - spent * 60, time.time(), {}, 0
    drawing = 0.

    def save(spent):
        model_state = {k: v.clone() for k, v in model.state_dict().items()}
        meta = metadata(model, carried, {'train.steps': step, 'train.images': images, 'train.minutes': '%.1f' % spent,
                                         'train.seed': a.seed})
        save_atomically(os.path.join(a.out, 'checkpoint.pt'), {
            'model': model_state, 'heads': heads.state_dict(), 'optimiser': optimiser.state_dict(), 'ema': ema,
            'step': step, 'spent': spent, 'images': images, 'args': vars(a), 'metadata': meta})
        export(os.path.join(a.out, 'export', 'vit_tiny.safetensors'), ema, meta)

    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))  # a kill saves first
    while not ended:
        spent = (time.time() - began) / 60
        progress = spent / a.minutes
        if progress >= 1 or (a.steps and step >= a.steps):
            break
        for group in optimiser.param_groups:
            group['lr'] = learning_rate(a.lr, progress)
        t0 = time.time()
        whole = progress > 1 - a.whole
        if whole:
            batch = Batch(pool, rng, max(2, a.scenes // 4), size, model.patch_size, size, size * 8 // 7, 1.5)
        else:
            batch = Batch(pool, rng, a.scenes, a.window, model.patch_size, size * 9 // 14, size * 9 // 7, 2.5)
        batch.same_thing = same_thing(batch)
        x = (batch.rgb - mean) / std
        cuts = rng.integers(0, size // model.patch_size - batch.g + 1, (len(x), 2))
        t1 = time.time()
        drawing += t1 - t0
        with torch.autocast('cpu', torch.bfloat16):
            tokens = model(x, cuts)
        tokens = tokens.float()
        losses = attribute_losses(batch, heads, tokens)
        pair, stats = pair_losses(batch, heads, tokens, rng)
        losses.update(pair)
        loss = sum(losses.values())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([v for _, v in named], 2.0)
        if math.isfinite(norm.item()):
            optimiser.step()
        step += 1
        images += len(x)
        keep = min(.9985, (1 + step) / (20 + step))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                ema[k].lerp_(v, 1 - keep)
        for k, v in list(losses.items()) + list(stats.items()) + [('norm', norm)]:
            v = float(v)
            if v == v:
                total.setdefault(k, []).append(v)
        if step % 50 == 0 or step <= 3:
            dt = (time.time() - began) / 60 - shown
            shown += dt
            log.write('%6d %6.1f min %5.2f s/step (data %.2f) ' % (step, spent, dt * 60 / 50, drawing / 50)
                      + ' '.join('%s %.3f' % (k, np.mean(v)) for k, v in total.items()) + '\n')
            total, drawing = {}, 0.
        if time.time() - last_save > a.save_every * 60:
            save(spent)
            last_save = time.time()
    save(spent)


if __name__ == '__main__':
    main()
