#!/usr/bin/env python3
"""Judge a ViT backbone by samlad's needs, without running samlad.

docs/METHOD.md 2 and 4 to 7 in a few lines of numpy. The masks are *oracle* masks, the
generator's own, so that only the features are judged. Two tables:

  objects   trays and collages: is an object's pooled feature nearest to the same object in another jittered
            view? Is a damaged object farther from its undamaged views than they are from each other (AUROC)?
  digits    DigitAnatomy (docs/METHOD.md 10) from MNIST, which no training has seen: the whole method,
            AUROC a kind of anomaly.

    eval_vit.py --weights weights/vit_tiny.safetensors [--mnist DIR]
    eval_vit.py --timm DIR/vit_tiny_patch16_224.safetensors --layer 9 [--mnist DIR]     (a yardstick)

Needs PyTorch and numpy. The seeds used here are >= 2^41; training uses seeds < 2^40.
"""
import argparse
import gzip
import hashlib
import json
import os
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import safetensors_io  # noqa: E402
from train_vit import VisionTransformer, load_vit  # noqa: E402

HELD_OUT = 2 ** 41


def channel_unit(x):
    """[n][C] -> [C] as dcga.c's channel_unit: deviations, 1 for channels that never change."""
    mean, std = x.mean(0), x.std(0)
    return np.where((std > 1e-6) & (std > np.abs(mean) / 1024), std, 1)


# ---------------------------------------------------------------------------------------------- backbones

class Backbone:
    """images [B][S][S][3] u8 -> features [B][h][w][C] f32 and class tokens [B][C]."""

    def __init__(self, model, mean, std, layer, affine_last=True):
        self.model, self.layer, self.size = model.eval(), layer, model.input_size
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)
        self.affine_last = affine_last

    @torch.no_grad()
    def __call__(self, rgb):
        x = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float() / 255
        x = (x - self.mean) / self.std
        m = self.model
        h, w = x.shape[2] // m.patch_size, x.shape[3] // m.patch_size
        t = m.tokens(x)
        for block in m.blocks[:self.layer]:
            t = block(t)
        if self.layer == len(m.blocks):
            t = m.norm(t)
        else:
            t = F.layer_norm(t, t.shape[-1:], eps=1e-6)
        return t[:, 1:].reshape(len(t), h, w, -1).numpy(), t[:, 0].numpy()


def load_timm(path, layer):
    """The plain timm ViT-Tiny/16 (no LayerScale): our module with the scales left at one."""
    t = {k: v.astype(np.float32) for k, v in safetensors_io.load(path)[0].items()}
    dim, depth = t['cls_token'].shape[-1], 1 + max(int(k.split('.')[1]) for k in t if k.startswith('blocks.'))
    m = VisionTransformer(224, 16, dim, depth, 3, layer_scale=1.0)
    state = {k: torch.from_numpy(v) for k, v in t.items() if not k.startswith('head.')}
    own = m.state_dict()
    for k in own:
        if k.endswith('gamma') or k == 'mask_token':
            state[k] = own[k]
    m.load_state_dict(state, strict=True)
    return Backbone(m, (.5, .5, .5), (.5, .5, .5), layer)


# ------------------------------------------------------------------------------- the method, oracle masks

def to_grid(f, g):
    """[h][w][C] -> [g][g][C], bilinear (align_corners=False)."""
    t = torch.from_numpy(f).permute(2, 0, 1)[None]
    return F.interpolate(t, (g, g), mode='bilinear', align_corners=False)[0].permute(1, 2, 0).numpy()


class Scene:
    """One image after the backbone: features on the grid, soft object weights, pooled features, centroids."""

    def __init__(self, f, ids, g=56):
        self.f = to_grid(f, g)
        self.labels = [i for i in np.unique(ids) if i > 0 and (ids == i).mean() > 5e-4]
        m = np.stack([(ids == i) for i in self.labels] + [~np.isin(ids, self.labels)]).astype(np.float32)
        s = ids.shape[0]
        self.w = F.interpolate(torch.from_numpy(m)[None], (g, g), mode='area')[0].numpy() if s % g else \
            m.reshape(len(m), g, s // g, g, s // g).mean((2, 4))
        self.area = self.w.mean((1, 2))
        keep = self.area > 0
        self.w, self.area = self.w[keep], self.area[keep]
        self.labels = [l for l, k in zip(self.labels + [0], keep) if k]
        self.a = np.einsum('nhw,hwc->nc', self.w, self.f) / self.w.sum((1, 2))[:, None]
        yy, xx = np.mgrid[0:g, 0:g]
        p = np.stack([(xx + .5) / g, (yy + .5) / g], -1)
        self.c = np.einsum('nhw,hwk->nk', self.w, p) / self.w.sum((1, 2))[:, None]
        self.token = f.reshape(-1, f.shape[-1]).mean(0)


def unit(x):
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-9)


def mutual(s):
    """Pairs (i, j) that are each other's best in s [n][m]."""
    r, c = s.argmax(1), s.argmax(0)
    return [(i, r[i]) for i in range(len(r)) if c[r[i]] == i]


class Channels:
    """docs/METHOD.md 5: standardise, then the within-object covariance filter, two rounds."""

    def __init__(self, bank, whiten=True):
        x = np.concatenate([s.a for s in bank])
        self.mu, self.sd, self.filter = x.mean(0), channel_unit(x), None
        for _ in range(2 if whiten else 0):
            h = [self(s) for s in bank]
            d = []
            for i, s in enumerate(bank):
                for j in range(1, 5):
                    k = (i + j) % len(bank)
                    if k == i:
                        continue
                    o = bank[k]
                    sim = h[i] @ h[k].T - ((s.c[:, None] - o.c[None]) ** 2).sum(-1)
                    d += [(s.a[p] - o.a[q]) / self.sd for p, q in mutual(sim)]
            d = np.array(d)
            cov = d.T @ d / (2 * len(d))
            cov += 0.3 * np.trace(cov) / len(cov) * np.eye(len(cov))
            v, u = np.linalg.eigh(cov)
            self.filter = (u / np.sqrt(v)) @ u.T

    def __call__(self, s):
        x = (s.a - self.mu) / self.sd
        return unit(x if self.filter is None else x @ self.filter)


def sinkhorn(s, alpha, tau=0.02, iters=30):
    """Log-domain Sinkhorn with a dustbin row and column; returns the plan [n+1][m+1]."""
    n, m = s.shape
    z = np.full((n + 1, m + 1), alpha)
    z[:n, :m] = s
    z /= tau
    a, b = np.zeros(n + 1), np.zeros(m + 1)
    a[n], b[m] = np.log(m), np.log(n)
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    lse = lambda t, ax: np.log(np.exp(t - t.max(ax, keepdims=True)).sum(ax)) + t.max(ax)  # noqa: E731
    for _ in range(iters):
        u = a - lse(z + v[None], 1)
        v = b - lse(z + u[:, None], 0)
    return np.exp(z + u[:, None] + v[None])


class Method:
    """Bank, retrieval, matching, Mahalanobis map, fusion: an early form of docs/METHOD.md, by which backbones were compared."""

    def __init__(self, bank, k=5, wp=0.7, whiten=True):
        self.bank, self.k, self.wp = bank, min(k, len(bank) - 1), wp
        self.channels = Channels(bank, whiten)
        self.h = [self.channels(s) for s in bank]
        self.sd = channel_unit(np.concatenate([s.f.reshape(-1, s.f.shape[-1])[::7] for s in bank]))
        pairs = []
        for i, s in enumerate(bank):
            for r in self.nearest(s, i)[:self.k]:
                sim = self.similarity(self.h[i], s, r)
                pairs += [sim[p, q] for p, q in mutual(sim)]
        self.alpha = np.quantile(pairs, 0.001)
        self.q95 = {}
        loo = np.array([self.raw(s, i) for i, s in enumerate(bank)])
        self.med = np.median(loo, 0)
        self.hi = np.quantile(loo, .95, axis=0)

    def nearest(self, s, skip=-1):
        c = [unit(s.token) @ unit(b.token) if i != skip else -9 for i, b in enumerate(self.bank)]
        return list(np.argsort(c)[::-1])

    def similarity(self, h, s, r):
        o = self.bank[r]
        return h @ self.h[r].T - self.wp * ((s.c[:, None] - o.c[None]) ** 2).sum(-1)

    def matches(self, h, s, refs):
        """Per reference: pairs, dustbin mass of the query's objects and of the reference's."""
        out = []
        for r in refs:
            p = sinkhorn(self.similarity(h, s, r), self.alpha)
            out.append((dict((i, j) for i, j in mutual(p[:-1, :-1]) if p[i, j] > .2), p[:-1, -1], p[-1, :-1]))
        return out

    def object_map(self, s, i, refs, pairs):
        """Mahalanobis distances of the object's cells from the references it matched; [h][w], 0 elsewhere."""
        g = s.f.shape[0]
        yy, xx = np.nonzero(s.w[i] > .25)
        samples = []
        for r, (match, _, _) in zip(refs, pairs):
            if i not in match:
                continue
            o, j = self.bank[r], match[i]
            if s.area[i] > .15:
                py, px = yy.astype(float), xx.astype(float)
            else:
                k = np.sqrt(s.area[i] / o.area[j])
                px = o.c[j, 0] * g - .5 + (xx + .5 - s.c[i, 0] * g) / k
                py = o.c[j, 1] * g - .5 + (yy + .5 - s.c[i, 1] * g) / k
            samples.append(sample(o.f, px, py))
        if not samples or not len(yy):
            return None
        x = np.stack(samples, 1) / self.sd
        q = s.f[yy, xx] / self.sd
        d2 = mahalanobis(q, x)
        out = np.zeros((g, g), np.float32)
        out[yy, xx] = np.sqrt(d2)
        return out

    def structural(self, s, refs, pairs, reference_scale=True):
        best = 0.
        for i in range(len(s.a)):
            m = self.object_map(s, i, refs, pairs)
            if m is None:
                continue
            if reference_scale:
                qs = [self.quantile(r, p[0][i]) for r, p in zip(refs, pairs) if i in p[0]]
                m = m / (np.mean(qs) + 1e-6)
            best = max(best, blur(m).max())
        return best

    def quantile(self, r, j):
        """95 % quantile of reference r's own leave-one-out map of its object j."""
        if r not in self.q95:
            s = self.bank[r]
            refs = self.nearest(s, r)[:self.k]
            pairs = self.matches(self.h[r], s, refs)
            self.q95[r] = {}
            for i in range(len(s.a)):
                m = self.object_map(s, i, refs, pairs)
                some = m is not None and (m > 0).any()
                self.q95[r][i] = np.quantile(m[m > 0], .95) if some else np.nan
            values = [v for v in self.q95[r].values() if v == v]
            for i in self.q95[r]:
                if self.q95[r][i] != self.q95[r][i]:
                    self.q95[r][i] = np.mean(values) if values else 1.
        return self.q95[r][j]

    def raw(self, s, skip=-1):
        """(A, L) of an image; skip: its own index when it stands in the bank."""
        refs = self.nearest(s, skip)[:self.k]
        h = self.h[skip] if skip >= 0 else self.channels(s)
        pairs = self.matches(h, s, refs)
        logical = max(np.mean([u for _, u, _ in pairs], 0).max(), np.mean([v.max() for _, _, v in pairs]))
        return self.structural(s, refs, pairs), logical

    def score(self, s):
        """(z_A, z_L, fused)."""
        v = np.array(self.raw(s))
        delta = np.array([.05 * abs(self.med[0]), .05])
        z = (v - self.med) / (self.hi - self.med + delta)
        return z[0], z[1], max(z[0], -1) + max(z[1], -1)


def sample(f, px, py):
    """Bilinear samples of f [h][w][C] at the (clamped) positions."""
    g = f.shape[0]
    px, py = np.clip(px, 0, g - 1), np.clip(py, 0, g - 1)
    x0, y0 = np.minimum(px.astype(int), g - 2), np.minimum(py.astype(int), g - 2)
    fx, fy = (px - x0)[:, None], (py - y0)[:, None]
    return (f[y0, x0] * (1 - fx) * (1 - fy) + f[y0, x0 + 1] * fx * (1 - fy)
            + f[y0 + 1, x0] * (1 - fx) * fy + f[y0 + 1, x0 + 1] * fx * fy)


def mahalanobis(q, x, eps=0.01):
    """M^2 of q [n][C] under samples x [n][m][C], by the low-rank identity of docs/METHOD.md 7."""
    m = x.shape[1]
    mu = x.mean(1)
    d = q - mu
    if m == 1:
        return (d * d).sum(1) / eps
    xc = x - mu[:, None]
    xd = np.einsum('nmc,nc->nm', xc, d)
    gram = np.einsum('nmc,nkc->nmk', xc, xc) + eps * (m - 1) * np.eye(m)
    explained = np.einsum('nm,nm->n', xd, np.linalg.solve(gram, xd[..., None])[..., 0])
    return np.maximum(((d * d).sum(1) - explained) / eps, 0)


def blur(m, sigma=1.0):
    r = np.arange(-4, 5)
    k = np.exp(-r * r / (2 * sigma * sigma))
    k = torch.tensor(k / k.sum(), dtype=torch.float32)
    t = torch.from_numpy(m)[None, None]
    t = F.conv2d(F.pad(t, (4, 4, 0, 0), mode='reflect'), k.view(1, 1, 1, 9))
    return F.conv2d(F.pad(t, (0, 0, 4, 4), mode='reflect'), k.view(1, 1, 9, 1))[0, 0].numpy()


def auroc(negative, positive):
    n, p = np.asarray(negative, float), np.asarray(positive, float)
    if not len(n) or not len(p):
        return float('nan')
    return float(((p[:, None] > n[None]).mean() + .5 * (p[:, None] == n[None]).mean()))


# --------------------------------------------------------------------------------------------------- digits

def read_idx(path):
    with gzip.open(path, 'rb') as f:
        data = f.read()
    n = data[3]
    shape = struct.unpack('>%dI' % n, data[4:4 + 4 * n])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * n).reshape(shape)


class Digits:
    """DigitAnatomy, docs/METHOD.md 10: a 3 x 3 grid of the digits 1..9, 96 x 96 grey, then `size`."""

    def __init__(self, folder, split, seed, size):
        self.size = size
        name = {'train': 'train', 'test': 't10k'}[split]
        images = read_idx(os.path.join(folder, name + '-images-idx3-ubyte.gz'))
        labels = read_idx(os.path.join(folder, name + '-labels-idx1-ubyte.gz'))
        self.of = [images[labels == d] for d in range(10)]
        self.rng = np.random.default_rng(seed)

    def cell(self, digit, mirror=0):
        """One digit, randomly resized-cropped to 32 x 32."""
        r = self.rng
        im = self.of[digit][r.integers(len(self.of[digit]))].astype(np.float32)
        im = {0: im, 1: im[:, ::-1], 2: im[::-1, ::-1]}[mirror]
        side = 28 * np.sqrt(r.uniform(.6, 1.3))
        x0, y0 = (r.uniform(min(0, 28 - side), max(0, 28 - side)) for _ in range(2))
        t = (np.arange(32) + .5) / 32 * side
        theta = torch.zeros(1, 32, 32, 2)
        gy, gx = np.meshgrid((t + y0) / 14 - 1, (t + x0) / 14 - 1, indexing='ij')
        theta[0] = torch.from_numpy(np.stack([gx, gy], -1).astype(np.float32))
        im = torch.from_numpy(im.copy())[None, None]
        return F.grid_sample(im, theta, align_corners=False)[0, 0].numpy()

    def make(self, kind):
        """kind: good, missing, disordered, flipped, zero -> rgb [size][size][3] u8, ids [size][size]."""
        r, order, flip = self.rng, list(range(1, 10)), {}
        if kind == 'missing':
            for i in r.choice(9, r.integers(1, 3), replace=False):
                order[i] = None
        elif kind == 'disordered':
            pick = r.choice(9, 2 if r.random() < .5 else r.integers(3, 6), replace=False)
            values = [order[i] for i in pick]
            for i, v in zip(pick, values[1:] + values[:1]):
                order[i] = v
        elif kind == 'flipped':
            i = r.integers(9)
            flip[i] = 2 if order[i] not in (1, 8, 5) and r.random() < .5 else 1
        elif kind == 'zero':
            order[r.integers(9)] = 0
        im = np.zeros((96, 96), np.float32)
        size = self.size
        ids = np.zeros((size, size), np.uint16)
        edge = [round(i * size / 3) for i in range(4)]
        for i, d in enumerate(order):
            y, x = divmod(i, 3)
            if d is not None:
                im[y * 32:y * 32 + 32, x * 32:x * 32 + 32] = self.cell(d, flip.get(i, 0))
                ids[edge[y]:edge[y + 1], edge[x]:edge[x + 1]] = i + 1
        t = torch.from_numpy(im)[None, None]
        t = F.interpolate(t, (size, size), mode='bilinear', align_corners=False)[0, 0]
        return np.repeat(t.round().clamp(0, 255).byte().numpy()[..., None], 3, 2), ids


def digits_table(backbone, folder, n_bank=60, n_test=25, seed=HELD_OUT, g=56):
    def scenes(source, kind, n):
        made = [source.make(kind) for _ in range(n)]
        f = np.concatenate([backbone(np.stack([m[0] for m in made[i:i + 8]]))[0] for i in range(0, n, 8)])
        return [Scene(a, m[1], g) for a, m in zip(f, made)]

    test = Digits(folder, 'test', seed + 1, backbone.size)
    method = Method(scenes(Digits(folder, 'train', seed, backbone.size), 'good', n_bank))
    good = np.array([method.score(s) for s in scenes(test, 'good', n_test)])
    out = {}
    for kind in ('missing', 'disordered', 'flipped', 'zero'):
        bad = np.array([method.score(s) for s in scenes(test, kind, n_test)])
        out['digits_' + kind] = auroc(good[:, 2], bad[:, 2])
    return out


# -------------------------------------------------------------------------------------------------- objects

DAMAGES = ('none', 'scratch', 'stain', 'dent', 'broken')


def standing_in(s, refs, std):
    """Score of each of the scene's objects that all references show too: the largest blurred Mahalanobis
    distance from them, divided by the references' own (leave-one-out) 95 % quantile.
    Returns {label: (score, plain largest)}."""
    def distances(q, others):
        out = {}
        for i, label in enumerate(q.labels):
            if label == 0 or not all(label in o.labels for o in others):
                continue
            yy, xx = np.nonzero(q.w[i] > .25)
            if len(yy) < 3:
                continue
            g, at = q.f.shape[0], []
            for o in others:
                j = o.labels.index(label)
                k = np.sqrt(q.area[i] / o.area[j]) if q.area[i] < .15 else 1
                move = q.c[i] * g - o.c[j] * g * k if q.area[i] < .15 else np.zeros(2)
                at.append(sample(o.f, (xx + .5 - move[0]) / k - .5, (yy + .5 - move[1]) / k - .5))
            m = np.zeros((g, g), np.float32)
            m[yy, xx] = np.sqrt(mahalanobis(q.f[yy, xx] / std, np.stack(at, 1) / std))
            out[label] = m
        return out

    scale = {}
    for i, r in enumerate(refs):
        for label, m in distances(r, refs[:i] + refs[i + 1:]).items():
            scale.setdefault(label, []).append(np.quantile(m[m > 0], .95) if (m > 0).any() else 1.)
    return {label: (blur(m).max() / np.mean(scale[label]), blur(m).max())
            for label, m in distances(s, refs).items() if label in scale}


def objects_table(backbone, size, kind, n_scenes=24, seed=HELD_OUT, g=56):
    import scenes as S
    generator = S.Scenes()
    clean_kind, bad_kind = kind | S.ALL_DAMAGED | S.NO_DAMAGE, kind | S.ALL_DAMAGED
    found, whitened, n, clean, hurt, plain = 0, 0, 0, [], {k: [] for k in DAMAGES[1:]}, ([], [])
    views = []
    for s in range(n_scenes):
        drawn = [generator.render(seed + s, 1 + v, .8, clean_kind, size) for v in range(6)]
        bad = generator.render(seed + s, 7, .8, bad_kind, size)
        f, _ = backbone(np.stack([d[0] for d in drawn] + [bad[0]]))
        good = [Scene(a, d[1], g) for a, d in zip(f, drawn)]
        views.append((good, Scene(f[6], bad[1], g), drawn[0][3], bad))
    every = np.concatenate([v.f.reshape(-1, v.f.shape[-1])[::9] for vs in views for v in vs[0][:2]])
    std = channel_unit(every)
    for vs, bad_view, objects, bad in views:
        look = [(o['shape'], o['texture'], o['color'].tobytes(), o['color2'].tobytes()) for o in objects]
        for k, whiten in enumerate((False, True)):
            channels = Channels(vs[:5], whiten)
            sim = channels(vs[0]) @ channels(vs[5]).T
            for i, a in enumerate(vs[0].labels):
                b = vs[5].labels[int(sim[i].argmax())]
                hit = a == b or (a > 0 and b > 0 and look[a - 1] == look[b - 1])
                found, whitened, n = found + (hit and not k), whitened + (hit and k), n + (k == 0)
        for label, v in standing_in(vs[5], vs[:5], std).items():
            clean.append(v[0]), plain[0].append(v[1])
        for label, v in standing_in(bad_view, vs[:5], std).items():
            o = bad[3][label - 1]
            if o['damage'] and ((bad[2] > 0) & (bad[1] == label)).sum() >= 8 or o['damage'] == 4:
                hurt[DAMAGES[o['damage']]].append(v[0]), plain[1].append(v[1])
    out = {'found': found / n, 'found_whitened': whitened / n, 'damage': auroc(clean, sum(hurt.values(), [])),
           'damage_unscaled': auroc(*plain)}
    out.update({'damage_' + k: auroc(clean, v) for k, v in hurt.items()})
    out['objects'] = n
    return out


def write_card(path, weights, meta, figures, yardstick, note=None):
    """The model card: the weights, their training, the measurements."""
    with open(weights, 'rb') as f:
        blob = f.read()
    card = {
        'file': os.path.basename(weights), 'bytes': len(blob), 'sha256': hashlib.sha256(blob).hexdigest(),
        'architecture': {k[4:]: v for k, v in sorted(meta.items()) if k.startswith('vit.')},
        'recommended': {k[7:]: v for k, v in sorted(meta.items()) if k.startswith('method.')},
        'training': {'data': 'only procedural scenes (tools/train/scenes.c) and handwritten pages '
                             '(tools/train/train_vit.py): no photographs, no other weights',
                     'script': 'tools/train/train_vit.py', 'seeds': 'scenes from [2^39, 2^40)',
                     **{k[6:]: v for k, v in sorted(meta.items()) if k.startswith('train.')}},
        'evaluation': {'script': 'tools/train/eval_vit.py', 'seeds': 'scenes from 2^41 on',
                       'note': 'oracle masks; *_found: the same object of another view is the nearest one; '
                               '*_damage*: AUROC an object, subtle damages too; digits_*: AUROC an image; '
                               'MNIST is never trained on',
                       'figures': {k: round(v, 4) for k, v in figures.items()}},
    }
    if yardstick:
        with open(yardstick) as f:
            other = json.load(f)
        card['evaluation']['imagenet_vit_tiny_layer_9'] = {k: round(v, 4) for k, v in other.items()}
    if note:
        card['training']['note'] = note
    with open(path + '.part', 'w') as f:
        json.dump(card, f, indent=1)
        f.write('\n')
    os.replace(path + '.part', path)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--weights', help='a shipped ViT (safetensors)')
    p.add_argument('--timm', help='a timm ViT-Tiny/16 (safetensors) as a yardstick')
    p.add_argument('--layer', type=int, default=0, help='blocks to run (0: all; the yardstick is best at 9)')
    p.add_argument('--size', type=int, default=0, help='pixels a side of the scenes (0: as the position embedding)')
    p.add_argument('--mnist', help='folder of the MNIST idx files, for the digits table')
    p.add_argument('--scenes', type=int, default=24)
    p.add_argument('--bank', type=int, default=60)
    p.add_argument('--tests', type=int, default=25)
    p.add_argument('--seed', type=int, default=0, help='added to 2^41')
    p.add_argument('--json', help='write the figures there')
    p.add_argument('--card', help='write the model card (JSON) of --weights there')
    p.add_argument('--note', help='a note on the training for the card')
    p.add_argument('--yardstick', help="another backbone's --json, to stand beside in the card")
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.timm:
        backbone = load_timm(a.timm, a.layer or 9)
    else:
        model, meta = load_vit(a.weights)
        model.input_size = a.size or model.image_size
        mean, std = ([float(v) for v in meta['vit.' + k].split(',')] for k in ('mean', 'std'))
        backbone = Backbone(model, mean, std, a.layer or len(model.blocks))
    import scenes as S
    table = {}
    if a.scenes:
        for name, kind in (('tray', S.TRAY), ('general', S.GENERAL)):
            for k, v in objects_table(backbone, backbone.size, kind, a.scenes, HELD_OUT + a.seed).items():
                table['%s_%s' % (name, k)] = v
    if a.mnist:
        table.update(digits_table(backbone, a.mnist, a.bank, a.tests, HELD_OUT + a.seed))
    for k, v in table.items():
        print('%-28s %.3f' % (k, v))
    if a.json:
        with open(a.json, 'w') as f:
            json.dump(table, f, indent=1)
    if a.card:
        write_card(a.card, a.weights, meta, table, a.yardstick, a.note)


if __name__ == '__main__':
    main()
