#!/usr/bin/env python3
"""Goldens for the method's tests: test_dcga.c, test_omm.c, test_raster.c, test_amm.c, test_bank.c, test_metrics.c.

    python3 tests/make_golden_method.py [-o tests/golden]

This is docs/METHOD.md 2 and 4 to 7 in float64 and as literally as possible. It is written from that text, not from the C
code. It has the symmetric square root where the C code has a Cholesky factor, the C×C inverse where that has a low-rank
identity, and SuperGlue's log_optimal_transport by its published formula. The text leaves a few choices open, such as the
four partners, or the precision of a bank. There the choice is the C code's, and a comment says so. A function has the
name of the C function that does the same, in dcga.c, omm.c, raster.c, amm.c, samlad.c. Defaults are the method's. verdict.c has no
goldens: test_bank.c tests it. The files keep a bank's words: `coverage` is "weights" there, `units` is "scale". Needs
numpy, scipy, torch.
"""
import argparse

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import erfc

import golden_io

torch.set_num_threads(1)
KEPT = ("float16", "float32", "uint8", "int32")


FILE_NAMES = {"coverage": "weights", "units": "scale"}


def named(prefix, values):
    """Tensors of a golden under the bank file's words."""
    return {f"{prefix}.{FILE_NAMES.get(key, key)}": value for key, value in values.items()}


def save(path, tensors):
    """float64 becomes float32, other integers than uint8 int32."""
    arrays = {}
    for name, value in tensors.items():
        a = np.atleast_1d(value)
        arrays[name] = a.astype(np.float32) if a.dtype == np.float64 else a if a.dtype.name in KEPT else a.astype(np.int32)
    golden_io.save(path, arrays, layout=golden_io.aligned(arrays))


def f32(x):
    """The numbers that the C code will read, in float64."""
    return np.asarray(x, np.float32).astype(np.float64)


def l2_normalise(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


# ---- 4. objects ------------------------------------------------------------------------------------------------------


def objects_labels(masks, max_area=0.9, min_area=0.0005, min_kept=0.5):
    """Masks [n][H][W] -> labels [H][W], kept. Of two masks of one area the later keeps the pixel (the C code's choice)."""
    n, height, width = masks.shape
    total = height * width
    area = masks.reshape(n, -1).sum(1) if n else np.zeros(0)
    candidates = [i for i in range(n) if 0 < area[i] and area[i] <= max_area * total and area[i] >= min_area * total]
    order = sorted(candidates, key=lambda i: (area[i], -i))  # the first in this order keeps the pixel

    def owners(order):
        label = np.full((height, width), -1)
        for i in reversed(order):
            label[masks[i] > 0] = i
        return label

    label = owners(order)
    kept = sorted(i for i in order if (label == i).sum() >= min_kept * area[i])
    label = owners([i for i in order if i in kept])
    out = np.full((height, width), -1)
    for rank, i in enumerate(kept):
        out[label == i] = rank
    return out, kept


def overlap(i, n, c, m):
    """The part of cell c (of m) that pixel i (of n) covers."""
    return max(0.0, min((i + 1) * m / n, c + 1) - max(i * m / n, c))


def objects_coverage(labels, n, background, grid_h, grid_w):
    def overlaps(n, m):
        return np.array([[overlap(i, n, c, m) for i in range(n)] for c in range(m)])
    rows, cols = overlaps(labels.shape[0], grid_h), overlaps(labels.shape[1], grid_w)
    ids = list(range(n)) + ([-1] if background else [])
    return np.array([rows @ (labels == i).astype(float) @ cols.T for i in ids]).reshape(len(ids), grid_h, grid_w)


def pool(coverage, features):
    """coverage [n][h][w], features [h][w][C] -> pooled [n][C]."""
    flat, total = coverage.reshape(len(coverage), -1), coverage.reshape(len(coverage), -1).sum(1)
    return flat @ features.reshape(flat.shape[1], -1) / np.where(total > 0, total, 1)[:, None]


def locate(coverage):
    """coverage [n][h][w] -> centroids [n][2], areas [n]."""
    n, h, w = coverage.shape
    flat, total = coverage.reshape(n, -1), coverage.reshape(n, -1).sum(1)
    x, y = np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h)
    centroids = np.stack([flat @ x.ravel(), flat @ y.ravel()], 1) / np.where(total > 0, total, 1)[:, None]
    centroids[total <= 0] = 0.5
    return centroids, total / (h * w)


# ---- 5. DCGA ---------------------------------------------------------------------------------------------------------


def channel_deviation(x):
    """Standard deviations; 1 for a channel that varies by no more than float16's rounding of its mean."""
    mean, std = x.mean(0), x.std(0)
    return np.where((std > 1e-6) & (std > np.abs(mean) / 1024), std, 1)


def moments(pooled):
    return pooled.mean(0), channel_deviation(pooled)


def mutual_pairs(score):
    pairs = []
    for i in range(score.shape[0]):
        j = int(np.argmax(score[i])) if score.shape[1] else -1
        if j >= 0 and int(np.argmax(score[:, j])) == i:
            pairs.append((i, j))
    return pairs


def distance_cost(a, b, position_weight=0.7):
    """a [n][2], b [m][2] -> w_p·‖a_i - b_j‖² [n][m]."""
    return position_weight * ((a[:, None] - b[None]) ** 2).sum(-1)


def covariance_filter(x, centroids, first, rounds=2, partners=4, shrinkage=0.3):
    """The symmetric Σ_w^{-1/2}. Partners of image a: a+1+floor(t(N-1)/partners), spread over the bank (the C code's choice)."""
    n_images, channels = len(first) - 1, x.shape[1]
    h, out = l2_normalise(x), None
    p = min(partners, n_images - 1)
    for _ in range(rounds):
        sigma, n = np.zeros((channels, channels)), 0
        for a in range(n_images):
            for t in range(p):
                b = (a + 1 + t * (n_images - 1) // p) % n_images
                A, B = slice(first[a], first[a + 1]), slice(first[b], first[b + 1])
                for i, j in mutual_pairs(h[A] @ h[B].T - distance_cost(centroids[A], centroids[B], 1)):
                    delta = x[A][i] - x[B][j]
                    sigma += np.outer(delta, delta)
                    n += 1
        if n == 0 or not np.trace(sigma) / (2 * n) > 1e-12:
            break
        sigma = sigma / (2 * n)
        sigma = sigma + shrinkage * np.trace(sigma) / channels * np.eye(channels)
        values, vectors = np.linalg.eigh(sigma)
        out = vectors @ np.diag(values ** -0.5) @ vectors.T
        h = l2_normalise(x @ out.T)
    return out


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def channel_softmax(x, features, coverage, mean, std, strength=0.1, tau=1.0):
    """x [n][C]; Z_i = the standardised features at the cells of which object i covers at least half (the C code's choice)."""
    out = x.copy()
    flat = (features.reshape(-1, x.shape[1]) - mean) / std
    for i in range(len(x)):
        z = flat[coverage[i].ravel() >= 0.5].T
        if z.shape[1]:
            out[i] = x[i] + strength * softmax(z @ z.T / (z.shape[1] * tau)) @ x[i]
    return out


def object_graph(h, strength, tau=0.1):
    return l2_normalise(h + strength * softmax(h @ h.T / tau) @ h)


def gat_v2(x, w_l, w_r, a, b):
    """Brody et al. 2022, equation 7, complete graph with self-loops, one head, as PyTorch Geometric's GATv2Conv."""
    x, w_l, w_r, a, b = (torch.from_numpy(np.asarray(t, np.float64)) for t in (x, w_l, w_r, a, b))
    left, right = x @ w_l.T, x @ w_r.T
    e = torch.nn.functional.leaky_relu(left[None] + right[:, None], 0.2) @ a  # e[i][j]
    return (torch.softmax(e, 1) @ left + b).numpy()


def channel_layout(features, coverage, mean, std, side):
    """Nodes [C][side²]: weighted means of a channel over a raster on the object's box; cells go to floor(side·k/size) (the C code's choice)."""
    ys, xs = np.nonzero(coverage > 0)
    out = np.zeros((features.shape[2], side * side))
    if len(ys) == 0:
        return out
    y0, y1, x0, x1 = ys.min(), ys.max(), xs.min(), xs.max()
    total = np.zeros(side * side)
    for y in range(y0, y1 + 1):
        for x in range(x0, x1 + 1):
            k = (y - y0) * side // (y1 - y0 + 1) * side + (x - x0) * side // (x1 - x0 + 1)
            total[k] += coverage[y, x]
            out[:, k] += coverage[y, x] * (features[y, x] - mean) / std
    return out / np.where(total > 0, total, 1)


# ---- 2. retrieval: larger is nearer ----------------------------------------------------------------------------------


def retrieval_mean(features):
    return l2_normalise(features.mean((0, 1)))


def retrieval_cosine(a, b):
    return a @ b


def retrieval_l2(a, b):
    return -((a - b) ** 2).sum()


# ---- 6. OMM ----------------------------------------------------------------------------------------------------------


def omm_scores(hq, cq, hr, cr, position_weight=0.7):
    return hq @ hr.T - distance_cost(cq, cr, position_weight)


def omm_sinkhorn(scores, dustbin, tau=0.02, iters=30):
    """SuperGlue (Sarlin et al. 2020): scores [n][m] -> the assignment [n+1][m+1]."""
    scores = torch.from_numpy(scores / tau)
    n, m = scores.shape
    z = torch.full((n + 1, m + 1), float(dustbin / tau), dtype=torch.float64)
    z[:n, :m] = scores
    norm = -np.log(n + m)
    log_mu = torch.full((n + 1,), norm, dtype=torch.float64)
    log_nu = torch.full((m + 1,), norm, dtype=torch.float64)
    log_mu[n] += np.log(m)
    log_nu[m] += np.log(n)
    u, v = torch.zeros_like(log_mu), torch.zeros_like(log_nu)
    for _ in range(iters):
        u = log_mu - torch.logsumexp(z + v[None], 1)
        v = log_nu - torch.logsumexp(z + u[:, None], 0)
    return np.exp((z + u[:, None] + v[None] - norm).numpy())


def omm_dustbin(alpha, n, m, unmatched=0.05, tau=0.02):
    """The dustbin at which one of min(n, m) matches of score alpha keeps U = unmatched: U²/(1-U) = min(n, m)·exp(-(alpha - bin)/τ)."""
    return alpha if unmatched == 0 else alpha - tau * np.log(min(n, m) * (1 - unmatched) / unmatched ** 2)


def omm_match(hq, cq, hr, cr, dustbin, position_weight=0.7, tau=0.02, iters=30, threshold=0.2):
    """-> S, P, match_q, U, V before verification."""
    scores = omm_scores(hq, cq, hr, cr, position_weight)
    n, m = scores.shape
    match_q = np.full(n, -1)
    if n == 0 or m == 0:
        p = np.zeros((n + 1, m + 1))
        p[:n, m] = 1
        p[n, :m] = 1
        return scores, p, match_q, p[:n, m].copy(), p[n, :m].copy()
    p = omm_sinkhorn(scores, dustbin, tau, iters)
    for i, j in mutual_pairs(p[:n, :m]):
        if p[i, j] > threshold:
            match_q[i] = j
    return scores, p, match_q, p[:n, m].copy(), p[n, :m].copy()


def omm_alike(a, i, b, alpha):
    """Which objects of image b are like object i of image a: S reaches alpha."""
    return omm_scores(a["h"][i], a["centroids"][i:i + 1], b["h"], b["centroids"])[0] >= alpha


def omm_pair_scores(a, b, position_weight=0.7):
    """S of the mutual nearest pairs of two normal images."""
    s = omm_scores(a["h"], a["centroids"], b["h"], b["centroids"], position_weight)
    return [s[p] for p in mutual_pairs(s)]


def omm_alpha(scores, quantile=0.001):
    return float(np.quantile(scores, quantile)) if scores else 0.0


# ---- 6. layout -------------------------------------------------------------------------------------------------------

SIDE, SAMPLES = 4, 3  # parts along a side of an object's box, samples along a side of a part


def box_of(coverage):
    """The cells of at least half of the heaviest coverage [h][w] -> centre and half sides in cells; a side is at least 0.6 of the other."""
    y, x = np.nonzero(coverage >= 0.5 * coverage.max())
    width, height = x.max() + 1 - x.min(), y.max() + 1 - y.min()
    half = 0.5 * np.maximum([width, height], 0.6 * max(width, height))
    return (x.min() + x.max() + 1) / 2, (y.min() + y.max() + 1) / 2, *half


def parts_of(features, coverage):
    """features [h][w][C], coverage [h][w] -> the means of 3x3 samples in each of 4x4 parts of the object's box, [16][C]."""
    x, y, half_w, half_h = box_of(coverage)
    at = (2 * np.arange(SIDE * SAMPLES) + 1) / (SIDE * SAMPLES) - 1
    samples = np.array([[sample_half(features, x + half_w * u, y + half_h * v) for u in at] for v in at])
    return samples.reshape(SIDE, SAMPLES, SIDE, SAMPLES, -1).mean((1, 3)).reshape(SIDE * SIDE, -1)


def orthonormalise(v):
    """Rows, the first one first; a row that depends on those before becomes 0."""
    for k in range(len(v)):
        before = v[k] @ v[k]
        for other in v[:k]:
            v[k] = v[k] - (v[k] @ other) * other
        norm = v[k] @ v[k]
        v[k] = v[k] / np.sqrt(norm) if norm > 1e-20 * before else 0
    return v


def raster_principal(parts, most=8):
    """parts [n][C] -> mean [C], basis [kept][C]: orthogonal iteration from single channels."""
    channels = parts.shape[1]
    kept, mean = min(channels, most), parts.mean(0)
    covariance = parts.T @ parts / len(parts) - np.outer(mean, mean)
    v = np.array([[float(c % kept == k) for c in range(channels)] for k in range(kept)])
    for _ in range(100):
        v = orthonormalise(v @ covariance)
    return mean, v


def raster_vector(features, coverage, mean, basis):
    return ((parts_of(features, coverage) - mean) @ basis.T).ravel()


def raster_n_neighbours(n, most=64):
    return min(max(int(0.7 * n), min(1, n)), most)


def raster_neighbours(mine, images, position_weight=0.7, most=64):
    """images: (number of the first object, image) of all that may give neighbours -> found [n][m], mutual [n]."""
    images = [(first, im) for first, im in images if len(im["h"])]
    n = len(mine["h"])
    mutual, best = np.zeros(n), [[] for _ in range(n)]
    for first, im in images:
        s = omm_scores(mine["h"], mine["centroids"], im["h"], im["centroids"], position_weight)
        for i in range(n):
            j = int(np.argmax(s[i]))
            best[i].append((-s[i, j], first + j))
            mutual[i] += (int(np.argmax(s[:, j])) == i) / len(images)
    m = raster_n_neighbours(len(images), most)
    return np.array([[j for _, j in sorted(b)[:m]] for b in best], int).reshape(n, m), mutual


def raster_mean(vectors, found):
    return vectors[found].mean(0) if len(found) else np.zeros(vectors.shape[1])


def raster_fit(vectors, deviations):
    """-> within [dim][dim], centre [dim], all [dim][dim]: symmetric square roots where the C code has Cholesky factors."""
    dim = vectors.shape[1]
    centre = vectors.mean(0)

    def invert(x, ridge):
        values, basis = np.linalg.eigh(x.T @ x / len(x) + ridge * np.eye(dim))
        return basis @ np.diag(values ** -0.5) @ basis.T
    trace = (deviations ** 2).sum() / len(deviations)
    ridge = trace / dim if trace > 0 else 1
    return invert(deviations, ridge), centre, invert(vectors - centre, ridge)


def raster_distance(fit, vector, neighbours):
    """neighbours [m][dim]: their rasters. q directly, with the dim×dim covariance."""
    within, centre, everything = fit
    m, dim = neighbours.shape
    x = neighbours @ within.T
    d = vector @ within.T - x.mean(0)
    x = x - x.mean(0)
    share = m / (m + 33)
    sigma = share * x.T @ x / m + (1 - share) * np.eye(dim)
    return d @ np.linalg.solve(sigma, d) - ((everything @ (vector - centre)) ** 2).sum()


def raster_unit(scores):
    median, q75, q95 = np.quantile(scores, [0.5, 0.75, 0.95])
    return max(q95 - median, 2.44 * (q75 - median))


# ---- 7. AMM ----------------------------------------------------------------------------------------------------------


def amm_mahalanobis(f, samples, epsilon=0.01):
    """Directly: Σ = XᵀX/(m-1) + εI, C×C (m = 1: Σ = εI)."""
    m, channels = samples.shape
    x = samples - samples.mean(0)
    sigma = x.T @ x / (m - 1) if m > 1 else np.zeros((channels, channels))
    d = f - samples.mean(0)
    return float(np.sqrt(max(d @ np.linalg.solve(sigma + epsilon * np.eye(channels), d), 0)))


def sample_half(features, x, y):
    """At (x, y) in cells, centres at .5, clamped."""
    h, w, _ = features.shape
    x, y = min(max(x - 0.5, 0), w - 1), min(max(y - 0.5, 0), h - 1)
    x0, y0 = int(x), int(y)
    x1, y1, fx, fy = min(x0 + 1, w - 1), min(y0 + 1, h - 1), x - int(x), y - int(y)
    return ((1 - fy) * ((1 - fx) * features[y0, x0] + fx * features[y0, x1])
            + fy * ((1 - fx) * features[y1, x0] + fx * features[y1, x1]))


def place_object(i, features, coverage, centroids, areas, r, pixel=False, large=0.15, reach=2, register_unmatched=True):
    """Query cells (x, y) lie at (x0 + x * zoom, y0 + y * zoom) in the reference: -> (x0, y0, zoom), or None."""
    n, h, w = coverage.shape
    j, candidates = r["match_q"][i], []
    if j < 0 and not register_unmatched:
        return None
    if j >= 0 and not pixel and not areas[i] > large:
        size = np.array([w, h])
        candidates = [(*(size * (r["centroids"][j] - centroids[i] * zoom)), zoom)
                      for zoom in (np.sqrt(r["areas"][j] / areas[i]), 1.0)]
    candidates.append((0.0, 0.0, 1.0))
    cells = np.argwhere(coverage[i] >= 0.5)
    if reach == 0 or pixel or len(cells) == 0:
        return candidates[0]
    take = min(len(cells), 64)
    cells = cells[[t * len(cells) // take for t in range(take)]]

    def misfit(at):
        x = np.clip(np.floor(at[0] + at[2] * (cells[:, 1] + 0.5) + 1 / 512), 0, w - 1).astype(int)
        y = np.clip(np.floor(at[1] + at[2] * (cells[:, 0] + 0.5) + 1 / 512), 0, h - 1).astype(int)
        return np.linalg.norm(features[cells[:, 0], cells[:, 1]] - r["features"][y, x], axis=1).mean()
    best = min(candidates, key=misfit)
    shifts = [(0, 0)] + [(dx, dy) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    return min(((best[0] + dx, best[1] + dy, best[2]) for dx, dy in shifts), key=misfit)


def amm_claims(coverage, areas, places, references):
    """places [n][k]. -> the coverage after claims: objects own the cells that the matched references' masks expect of them."""
    n, h, w = coverage.shape
    expected, out = np.zeros(coverage.shape), coverage.copy()
    for i in range(n):
        matched = [(r["coverage"][r["match_q"][i]], at) for r, at in zip(references, places[i]) if r["match_q"][i] >= 0]
        if not matched or 2 * len(matched) < len(references):
            continue
        for mask, (x0, y0, zoom) in matched:
            y, x = np.meshgrid(y0 + zoom * (np.arange(h) + 0.5) - 0.5, x0 + zoom * (np.arange(w) + 0.5) - 0.5, indexing="ij")
            expected[i] += map_coordinates(np.pad(mask, 1), [y + 1, x + 1], order=1, mode="constant") / len(matched)
    for y in range(h):
        for x in range(w):
            column = coverage[:, y, x]
            missing = [expected[i, y, x] - column[areas <= areas[i]].sum() for i in range(n)]
            i = int(np.argmax(missing))
            larger = areas > areas[i]
            rest = column[larger].sum()
            if missing[i] > 0 and rest > 0:
                claim = min(missing[i], rest)
                out[larger, y, x] *= (rest - claim) / rest
                out[i, y, x] += claim
    return out


def amm_places(features, coverage, centroids, areas, references, **options):
    """[n][k]: place_object of every object in every reference."""
    return [[place_object(i, features, coverage, centroids, areas, r, **options) for r in references] for i in range(len(coverage))]


def amm_structural(features, claimed, places, references, epsilon=0.01, blur=1.0):
    """claimed [n][h][w]: the coverage after claims. references: dicts of features, centroids, areas, match_q. -> the blurred map."""
    n, h, w = claimed.shape
    out = np.zeros((h, w))
    for i in range(n):
        for y in range(h):
            for x in range(w):
                if claimed[i, y, x] <= 0:
                    continue
                samples = []
                for r, at in zip(references, places[i]):
                    if at is not None:
                        samples.append(sample_half(r["features"], at[0] + at[2] * (x + 0.5), at[1] + at[2] * (y + 0.5)))
                if samples:
                    out[y, x] += claimed[i, y, x] * amm_mahalanobis(features[y, x], np.array(samples), epsilon)
    return gaussian_filter(out, blur, mode="reflect", truncate=4.0) if blur > 0 else out


def amm_in_units(out, claimed, references):
    """Divide every object's share of a cell by its unit: the mean unit of its matched objects, else of those at its place."""
    factor, covered = np.zeros(out.shape), np.zeros(out.shape)
    for i in range(len(claimed)):
        units = [r["units"][r["match_q"][i]] for r in references if r["match_q"][i] >= 0]
        if not units:
            for r in references:
                both = [(claimed[i] * other).sum() for other in r.get("coverage", [])]
                if sum(both) > 0:
                    units.append(np.dot(both, r["units"]) / sum(both))
        covered += claimed[i]
        if units and sum(units) > 0:
            factor += claimed[i] / np.mean(units)
    return np.where(covered > 0, out * factor / np.where(covered > 0, covered, 1), 0)


def block_means(x):
    """Means of 2x2 cells of x [h][w] or [h][w][C]; a block at the border of an odd grid has fewer cells."""
    h, w = x.shape[:2]
    return np.array([[x[top:top + 2, left:left + 2].mean((0, 1)) for left in range(0, w, 2)] for top in range(0, h, 2)])


def amm_nearest(features, references):
    """features [h][w][C], those of each reference -> [h][w]: the distance of a cell's block to the nearest one at most one block away."""
    blocks = block_means(features)
    least = np.full(blocks.shape[:2], np.inf if references else 0.0)
    for other in map(block_means, references):
        for y, x in np.ndindex(least.shape):
            near = other[max(y - 1, 0):y + 2, max(x - 1, 0):x + 2]
            least[y, x] = min(least[y, x], np.linalg.norm(near - blocks[y, x], axis=-1).min())
    return least.repeat(2, 0).repeat(2, 1)[:features.shape[0], :features.shape[1]]


def amm_logical(coverage, counted, missing, masks):
    """counted [k][n]: U of the query's objects; missing [k] of V [n_r] of each reference's, masks [k] their coverage. -> map, L, mean U."""
    k, lacks, worst = len(counted), np.zeros(coverage.shape[1:]), []
    extra = sum((u / k for u in counted), np.zeros(len(coverage)))
    for v, mask in zip(missing, masks):
        lacks += np.tensordot(v, mask, 1) / k if len(v) else 0
        worst.append(max(v, default=0))
    score = max(max(extra, default=0), float(np.mean(worst)) if worst else 0)
    return np.max([lacks] + [w * e for w, e in zip(coverage, extra)], axis=0), score, extra


def amm_object_quantile(out, coverage, q=0.99):
    """Over the cells of which the object covers at least half; a thin object: its largest value (the C code's choice)."""
    inside = out[coverage >= 0.5]
    return np.quantile(inside, q) if len(inside) else max([0.0] + list(out[coverage > 0]))


def largest_percent(out):
    """The mean of the largest 1 % of the cells, at least one: how far the nearest features of a normal image are."""
    return np.sort(out, axis=None)[-int(np.ceil(out.size / 100)):].mean()


def amm_score(out, score="power"):
    """The power mean, of exponent 7, of the largest 1 % of the means of 2x2 cells, at least one, or the largest cell."""
    if score == "max":
        return out.max()
    means = np.sort(np.maximum(block_means(out), 0).ravel())
    return (means[-int(np.ceil(len(means) / 100)):] ** 7).mean() ** (1 / 7)


def amm_spread(scores):
    """Median and 95 % quantile."""
    return np.median(scores), np.quantile(scores, 0.95)


def amm_z(v, median, width):
    return (v - median) / width


def amm_rank_z(normal, width, score):
    """-log10(2p), p = the part of the normal images whose score is as large, each a normal distribution of this width; without any the score itself."""
    if len(normal) == 0:
        return score
    as_large = sum(0.5 * erfc((score - l) / (width * np.sqrt(2))) for l in normal)
    return -np.log10(2 * (1 + as_large) / (len(normal) + 2))


def amm_logical_z(normal, width, score):
    """That of the rank, plus the distance beyond the largest normal score."""
    return amm_rank_z(normal, width, score) + (np.maximum(0, score - max(normal)) if len(normal) else 0)


def amm_fuse(za, zl):
    return 2 * (np.logaddexp(za / 2, zl / 2) - np.log(2))


def extended_threshold(scores):
    """The score that 5 % exceed if the excess over the median is exponential in the half of the images above it."""
    median = np.median(scores)
    above = scores[scores > median]
    return median + (above - median).mean() * np.log(0.5 / 0.05) if len(above) else median


def amm_threshold(scores, quantile=0.97):
    """The quantile; of fewer than 20 scores at least the extended threshold."""
    return max(np.quantile(scores, quantile), extended_threshold(scores) if len(scores) < 20 else -np.inf)


# ---- 2, 5-7 together: a bank, its calibration, one query --------------------------------------------------------------


def pool_moved(features, mask, dx, dy):
    """mask [h][w] moved by whole cells; cells beyond the grid are lost. -> pooled [1][C] of the features there, moved [1][h][w]."""
    moved = np.zeros_like(mask)
    h, w = mask.shape
    for y in range(h):
        for x in range(w):
            if 0 <= y + dy < h and 0 <= x + dx < w:
                moved[y + dy, x + dx] = mask[y, x]
    return pool(moved[None], features), moved[None]


class Bank:
    """Images as in a bank: features in float16, coverage in 8 bits (the C code's choice); everything else in float32."""

    def __init__(self, images, k=40, pixel=False, retrieval="mean", loo=60, channel_graph="covariance", channel_strength=0.1, object_strength=0.0,
                 alpha_unmatched=0.05, verify_shift=2, count=True, reach=2, register_unmatched=True, claims=True, object_quantile=0.99,
                 nearest_weight=0.5, score="power", delta_logical=0.05, position_weight=0.7, iters=30, verify=True,
                 raster_weight=4):
        self.k, self.retrieval, self.channel_graph, self.channel_strength = k, retrieval, channel_graph, channel_strength
        self.object_strength, self.alpha_unmatched, self.verify_shift, self.count = object_strength, alpha_unmatched, verify_shift, count
        self.places = {"pixel": pixel, "reach": reach, "register_unmatched": register_unmatched}
        self.claims, self.object_quantile, self.nearest_weight = claims, object_quantile, nearest_weight
        self.score, self.delta_logical, self.raster_weight = score, delta_logical, raster_weight
        self.position_weight, self.iters, self.verify = position_weight, iters, verify
        self.images = []
        for im in images:
            pooled, (centroids, areas) = f32(pool(im["coverage"], im["features"])), (f32(t) for t in locate(im["coverage"]))
            self.images.append({
                "features": np.asarray(im["features"], np.float16).astype(np.float64),
                "coverage": f32(np.rint(np.float32(im["coverage"]) * np.float32(255)) / 255),
                "pooled": pooled, "centroids": centroids, "areas": areas,
                "mean": f32(retrieval_mean(im["features"])), "cls": f32(l2_normalise(im["cls"]))})
        self.first = np.cumsum([0] + [len(im["areas"]) for im in self.images])
        pooled = np.concatenate([im["pooled"] for im in self.images])
        self.centroids = np.concatenate([im["centroids"] for im in self.images])
        self.mean, self.std = moments(pooled)
        self.filter = None
        if channel_graph == "covariance":
            self.filter = covariance_filter((pooled - self.mean) / self.std, self.centroids, self.first)
        cells = np.concatenate([im["features"].reshape(-1, pooled.shape[1]) for im in self.images])
        self.channel_std = channel_deviation(cells)
        for im in self.images:
            im["h"] = self.dcga_describe(im["pooled"], im["features"], im["coverage"])
        self.calibrate_alpha()
        self.units = np.ones(self.first[-1])
        self.nearest_unit = 0.0
        self.spread_a, self.loo_logical = (0.0, 1.0), np.zeros(0)
        self.raster, self.loo_raster = None, np.zeros(0)
        if raster_weight > 0 and len(images) > 1:
            self.bank_fit_rasters(loo)
        self.calibrate(loo)

    def dcga_describe_region(self, pooled, features, coverage):
        """Regions [n], each the only node of the object graph."""
        x = (pooled - self.mean) / self.std
        if self.channel_graph == "softmax":
            x = channel_softmax(x, features, coverage, self.mean, self.std, self.channel_strength)
        return l2_normalise(x @ self.filter.T if self.filter is not None else x)

    def dcga_describe(self, pooled, features, coverage):
        h = self.dcga_describe_region(pooled, features, coverage)
        return object_graph(h, self.object_strength) if self.object_strength > 0 else h

    def retrieve(self, query, exclude):
        if self.retrieval == "l2":
            near = [retrieval_l2(query["features"], im["features"]) for im in self.images]
        else:
            near = [retrieval_cosine(query[self.retrieval], im[self.retrieval]) for im in self.images]
        order = sorted((i for i in range(len(near)) if i != exclude), key=lambda i: (-near[i], i))
        return order[:self.k]

    def calibrate_alpha(self):
        scores = []
        for i, im in enumerate(self.images):
            for r in self.retrieve(im, i):
                scores += omm_pair_scores(im, self.images[r], self.position_weight)
        self.alpha = omm_alpha(scores)

    def bank_neighbours(self, mine, exclude):
        return raster_neighbours(mine, [(self.first[i], im) for i, im in enumerate(self.images) if i != exclude], self.position_weight)

    def bank_fit_rasters(self, loo, folds=4):
        """Rasters of all objects and their q. Each is measured by the statistics of the three folds without its image."""
        images, n = self.images, len(self.images)
        spread = np.arange(self.first[-1]) % (self.first[-1] // 500 + 1) == 0
        parts = [parts_of(im["features"], w) for im in images for w in im["coverage"]]
        self.raster = raster_principal(np.concatenate([p for p, taken in zip(parts, spread) if taken]))
        self.vectors = np.stack([raster_vector(im["features"], w, *self.raster) for im in images for w in im["coverage"]])
        found, mutual = (np.concatenate(x) for x in zip(*(self.bank_neighbours(im, i) for i, im in enumerate(images))))
        deviations = self.vectors - np.stack([raster_mean(self.vectors, f) for f in found])
        image_of = np.repeat(np.arange(n), np.diff(self.first))
        self.raster_scores = np.zeros(len(found))
        for fold in range(folds):
            others = image_of % folds != fold
            fit = raster_fit(self.vectors[others], deviations[others])
            for o in np.flatnonzero(~others):
                self.raster_scores[o] = raster_distance(fit, self.vectors[o], self.vectors[found[o]])
        self.raster_fit = raster_fit(self.vectors, deviations)
        unit = np.median([raster_unit(self.raster_scores[f]) for f in found])
        self.raster_unit = unit if unit > 1e-3 else 1.0
        unusual = [m * self.unusual_z(q, f) for q, f, m in zip(self.raster_scores, found, mutual)]
        count = min(n, loo)
        self.loo_raster = np.array([max([0.0] + [u for u, i in zip(unusual, image_of) if i == at * n // count]) for at in range(count)])

    def unusual_z(self, q, found):
        scores = self.raster_scores[found]
        return (q - np.median(scores)) / max(raster_unit(scores), self.raster_unit / 4, 1e-3)

    def bank_unusual(self, query, exclude):
        """query: described. -> z of every object's raster, times the part of the images that confirm its neighbours."""
        if self.raster is None:
            return np.zeros(len(query["h"]))
        found, mutual = self.bank_neighbours(query, exclude)
        vectors = [raster_vector(query["features"], w, *self.raster) for w in query["coverage"]]
        return np.array([m * self.unusual_z(raster_distance(self.raster_fit, v, self.vectors[f]), f)
                         for v, f, m in zip(vectors, found, mutual)])

    def omm_verify(self, u, h, coverage, features):
        for i in range(len(u) if self.verify else 0):
            if u[i] > 0.3 and self.shown_there(h[i], coverage[i], features):
                u[i] = 0

    def shown_there(self, h, mask, features):
        """Are the features under the mask, moved by up to verify_shift cells, as similar to h as normal matches are?"""
        steps = range(-self.verify_shift, self.verify_shift + 1)
        for pooled, moved in (pool_moved(features, mask, dx, dy) for dy in steps for dx in steps):
            if h @ self.dcga_describe_region(pooled, features, moved)[0] >= self.alpha:
                return True
        return False

    def omm_count(self, u, mine, other, match):
        """U of objects alike (S reaches alpha) together, at most their surplus of area over their kind in the other image. The
        kind there is every object alike, or matched with one of them (match: mine's index or -1)."""
        out = np.array(u, float)
        for i in range(len(u) if self.count else 0):
            like = [omm_alike(mine, i, side, self.alpha) for side in (mine, other)]
            like[0][i] = True
            left, there = u[like[0]].sum(), other["areas"][like[1] | np.array([j >= 0 and like[0][j] for j in match], bool)]
            if len(there):
                left = min(left, (mine["areas"][like[0]].sum() - there.sum()) / there.mean())
            out[i] = max(u[i], left)
        return out

    def detect_in_scene(self, query, exclude=-1):
        q = dict(query)
        q["centroids"], q["areas"] = locate(q["coverage"])
        q["h"] = self.dcga_describe(pool(q["coverage"], q["features"]), q["features"], q["coverage"])
        out = {"references": self.retrieve(query, exclude), "h": q["h"], "scores": [], "assignment": [], "match": []}
        n, k, refs, counted, missing = len(q["areas"]), len(out["references"]), [], [], []
        out["unmatched"] = np.zeros(n)
        for r in out["references"]:
            im = self.images[r]
            s, p, match_q, u, v = omm_match(q["h"], q["centroids"], im["h"], im["centroids"],
                                            omm_dustbin(self.alpha, n, len(im["areas"]), self.alpha_unmatched),
                                            self.position_weight, iters=self.iters)
            self.omm_verify(u, q["h"], q["coverage"], im["features"])
            self.omm_verify(v, im["h"], im["coverage"], q["features"])
            out["scores"].append(s)
            out["assignment"].append(p)
            out["match"].append(match_q)
            out["unmatched"] += u / k
            match_r = np.full(len(v), -1)
            match_r[match_q[match_q >= 0]] = np.flatnonzero(match_q >= 0)
            counted.append(self.omm_count(u, q, im, match_r))
            missing.append(self.omm_count(v, im, q, match_q))
            refs.append({"features": im["features"] / self.channel_std, "centroids": im["centroids"], "areas": im["areas"],
                         "match_q": match_q, "coverage": im["coverage"], "units": self.units[self.first[r]:self.first[r + 1]]})
        out["logical"], out["L"], out["counted"] = amm_logical(q["coverage"], counted, missing, [r["coverage"] for r in refs])
        features = q["features"] / self.channel_std
        places = amm_places(features, q["coverage"], q["centroids"], q["areas"], refs, **self.places)
        claimed = amm_claims(q["coverage"], q["areas"], places, refs) if self.claims else q["coverage"]
        out["distances"] = amm_structural(features, claimed, places, refs)  # the units are their quantiles
        out["structural"] = amm_in_units(out["distances"], claimed, refs)
        out["nearest"] = amm_nearest(q["features"], [self.images[r]["features"] for r in out["references"]])  # the unit is its score
        if self.nearest_unit > 0:
            out["structural"] = out["structural"] + self.nearest_weight * out["nearest"] / self.nearest_unit
        out["A"] = amm_score(out["structural"], self.score)
        out["unusual"] = self.bank_unusual(q, exclude)
        out["R"] = max([0.0] + list(out["unusual"]))
        out["score"] = amm_fuse(*self.z(out["A"], out["L"], out["R"]))
        out["map"] = np.maximum(amm_z(out["structural"], *self.spread_a), self.matching_z(out["logical"]))
        return out

    def z(self, a, l, r):
        return amm_z(a, *self.spread_a), self.matching_z(l) + self.layout_z(r)

    def matching_z(self, l):
        return amm_logical_z(self.loo_logical, self.delta_logical, l)

    def layout_z(self, r):
        m = raster_n_neighbours(len(self.images) - 1)
        return self.raster_weight * (m / (m + 33)) ** 2 * amm_rank_z(self.loo_raster, 0.2, r) if self.raster is not None else 0 * r

    def calibrate(self, loo):
        self.loo = np.zeros((0, 3))
        if len(self.images) > 1:
            self.settle_units(*self.first_pass())
            self.spread_scores(*self.second_pass(loo))
        self.threshold = amm_threshold(self.loo[:, 2]) if len(self.loo) else np.nan

    def first_pass(self):
        """A quantile of every object's own leave-one-out map, NaN where it was compared with nothing; every image's score of nearest features."""
        units, nearest = [], []
        for i, im in enumerate(self.images):
            c = self.detect_in_scene(im, i)
            for o, w in enumerate(im["coverage"]):
                compared = self.places["register_unmatched"] or any(m[o] >= 0 for m in c["match"])
                s = amm_object_quantile(c["distances"], w, self.object_quantile)
                units.append(s if compared and s > 0 else np.nan)
            nearest.append(largest_percent(c["nearest"]))
        return np.array(units), np.array(nearest)

    def settle_units(self, units, nearest):
        if self.object_quantile > 0:  # without objects' units they stay 1
            self.units = self.fill_units(units)
        if self.nearest_weight > 0:
            self.nearest_unit = np.median(nearest)

    def fill_units(self, units):
        return np.where(np.isnan(units), np.median(units[~np.isnan(units)]), units)

    def second_pass(self, loo):
        """Leave-one-out scores A and L with these units."""
        n = len(self.images)
        count = min(n, loo)
        results = [self.detect_in_scene(self.images[i * n // count], i * n // count) for i in range(count)]
        return np.array([r["A"] for r in results]), np.array([r["L"] for r in results])

    def spread_scores(self, a, l):
        """Median and width of A, all L, and with these the fused scores."""
        median, q95 = amm_spread(a)
        self.spread_a, self.loo_logical = (median, q95 - median + 0.1 * abs(median)), l
        self.loo = np.stack([a, l, amm_fuse(*self.z(a, l, self.loo_raster if self.raster is not None else 0 * l))], 1)


# ---- the files -------------------------------------------------------------------------------------------------------


def rectangles(r, n, height, width, largest=0.6):
    masks = np.zeros((n, height, width), np.uint8)
    for m in masks:
        h, w = r.randint(1, max(2, int(height * largest))), r.randint(1, max(2, int(width * largest)))
        y, x = r.randint(0, height - h + 1), r.randint(0, width - w + 1)
        m[y:y + h, x:x + w] = 1
    return masks


def make_objects(out):
    r, tensors = np.random.RandomState(1), {}
    channels = 5
    ninety = np.zeros((3, 10, 10), np.uint8)  # areas 90, 91 (more than 90 %), 50
    ninety[0, :9] = 1
    ninety[1].reshape(-1)[:91] = 1
    ninety[2, 5:] = 1
    ninety[0, 5:] = 0
    ninety[0].reshape(-1)[:90] = 1
    half = np.zeros((4, 12, 20), np.uint8)  # the smaller mask takes exactly 20 of 40 pixels, or 21
    half[0, 0:2, 0:20] = 1
    half[1, 1, 0:20] = 1
    half[2, 5:7, 0:20] = 1
    half[3].reshape(-1)[119:140] = 1
    cases = [  # masks, grid_h, grid_w, background
        (rectangles(r, 9, 60, 47), 7, 5, 1),
        (rectangles(r, 4, 5, 4), 9, 11, 1),
        (rectangles(r, 5, 1, 50), 3, 20, 1),
        (rectangles(r, 3, 50, 1), 20, 3, 0),
        (ninety, 5, 5, 1),
        (half, 6, 10, 1),
        (np.zeros((0, 6, 7), np.uint8), 3, 3, 1),
        (rectangles(r, 25, 33, 64), 8, 16, 0),
        (np.ones((1, 1, 1), np.uint8), 2, 3, 1),
        (rectangles(r, 60, 32, 32, 0.2), 8, 8, 1),
    ]
    for c, (masks, grid_h, grid_w, background) in enumerate(cases):
        labels, kept = objects_labels(masks)
        has = int(background and (labels < 0).any())
        coverage = objects_coverage(labels, len(kept), has, grid_h, grid_w)
        features = f32(r.randn(grid_h, grid_w, channels))
        pooled, (centroids, areas) = pool(coverage, features), locate(coverage)
        tensors.update({f"{c}.masks": masks, f"{c}.background": [background, has], f"{c}.labels": labels,
                        f"{c}.kept": np.array(kept, np.int32), f"{c}.weights": coverage, f"{c}.features": features,
                        f"{c}.pooled": pooled, f"{c}.centroids": centroids, f"{c}.areas": areas})
    tensors["cases"] = [len(cases)]
    save(f"{out}/method_objects.safetensors", tensors)


def make_dcga(out):
    r, C, n_images = np.random.RandomState(2), 12, 7
    kinds, sizes = r.randn(5, C), [5, 4, 0, 5, 6, 1, 5]
    mix = np.eye(C) + 0.5 * r.randn(C, C)
    places, first = r.rand(5, 2), np.cumsum([0] + sizes)
    pooled = f32(np.concatenate([(kinds[np.arange(s) % 5] + 0.35 * r.randn(s, C) @ mix) * np.linspace(0.5, 4, C) + 2
                                 for s in sizes]))
    pooled[:, 3] = 0.25  # a channel that never changes
    centroids = f32(np.concatenate([places[np.arange(s) % 5] + 0.05 * r.randn(s, 2) for s in sizes]))
    mean, std = moments(pooled)
    x = (pooled - mean) / std
    tensors = {"pooled": pooled, "centroids": centroids, "first": first, "mean": mean, "std": std}
    for rounds, partners, shrinkage in [(1, 4, 0.3), (2, 4, 0.3), (3, 100, 0.05)]:
        f = covariance_filter(x, centroids, first, rounds, partners, shrinkage)
        h = l2_normalise(x @ f.T)
        tensors[f"covariance.{rounds}.gram"] = h @ h.T
    tensors["off.h"] = l2_normalise(x)
    grid_h, grid_w, n = 6, 9, 4
    coverage = np.clip(r.rand(n, grid_h, grid_w) * 2 - 0.8, 0, 1)
    coverage[3] = np.clip(coverage[3], 0, 0.4)  # covers half of no cell
    features = r.randn(grid_h, grid_w, C) * std + mean
    coverage, features = f32(coverage), f32(features)
    a = f32(pool(coverage, features))
    x = (a - mean) / std
    tensors.update({"one.weights": coverage, "one.features": features, "one.pooled": a,
                    "softmax.h": l2_normalise(channel_softmax(x, features, coverage, mean, std)),
                    "softmax.strong": l2_normalise(channel_softmax(x, features, coverage, mean, std, 0.7, 2.5)),
                    "graph.h": object_graph(l2_normalise(x), 0.4), "graph.soft": object_graph(l2_normalise(x), 3.0, 1.0)})
    def gat(d_in, d_out):
        return [f32(r.randn(*s) * 0.5) for s in ((d_out, d_in), (d_out, d_in), (d_out,), (d_out,))]
    names, side = ("lin_l.weight", "lin_r.weight", "att", "bias"), 3
    g_object, g_channel = gat(C, C), gat(side * side, 7)
    save(f"{out}/method_gat_object.safetensors", {f"object.{k}": v for k, v in zip(names, g_object)})
    save(f"{out}/method_gat_channel.safetensors", {f"channel.{k}": v for k, v in zip(names, g_channel)})
    tensors["gat.object"] = l2_normalise(gat_v2(x, *g_object))
    tensors["gat.alone"] = l2_normalise(np.concatenate([gat_v2(x[i:i + 1], *g_object) for i in range(n)]))
    y = np.stack([gat_v2(channel_layout(features, coverage[i], mean, std, side), *g_channel).mean(1) for i in range(n)])
    tensors["gat.channel"] = l2_normalise(y)
    save(f"{out}/method_dcga.safetensors", tensors)




def make_omm(out):
    r, tensors = np.random.RandomState(3), {}
    dim = 8
    cases = [(5, 5, 0.3, 0.02, 30, 0.7), (3, 7, 0.5, 0.02, 30, 0.7), (7, 2, -0.2, 0.1, 100, 0.0), (1, 1, 0.9, 0.02, 30, 0.7),
             (40, 33, 0.4, 0.05, 1, 1.5), (6, 6, 0.2, 0.02, 0, 0.7), (4, 0, 0.2, 0.02, 30, 0.7), (0, 3, 0.2, 0.02, 30, 0.7),
             (20, 20, 0.6, 0.005, 500, 0.7)]
    for c, (n, m, alpha, tau, iters, w) in enumerate(cases):
        kinds = r.randn(max(n, m), dim)
        hq, hr = f32(l2_normalise(kinds[:n] + 0.3 * r.randn(n, dim))), f32(l2_normalise(kinds[:m] + 0.3 * r.randn(m, dim)))
        places = r.rand(max(n, m), 2)
        cq, cr = f32(places[:n] + 0.03 * r.randn(n, 2)), f32(places[:m] + 0.03 * r.randn(m, 2))
        s, p, match_q, u, v = omm_match(hq, cq, hr, cr, alpha, w, tau, iters)
        near = np.full(n, -1)
        for i, j in mutual_pairs(s) if n and m else []:
            if s[i, j] >= alpha:
                near[i] = j
        tensors.update({f"{c}.hq": hq, f"{c}.hr": hr, f"{c}.cq": cq, f"{c}.cr": cr, f"{c}.settings": np.array([alpha, tau, iters, w]),
                        f"{c}.scores": s, f"{c}.assignment": p, f"{c}.match": match_q, f"{c}.nearest": near, f"{c}.u": u, f"{c}.v": v})
    tensors["cases"] = [len(cases)]
    save(f"{out}/method_omm.safetensors", tensors)


def make_amm(out):
    r, tensors = np.random.RandomState(4), {}
    for c, (m, C, epsilon, spread) in enumerate([(1, 16, 0.01, 1), (2, 16, 0.01, 1), (5, 40, 0.01, 1), (5, 3, 0.5, 1),
                                                 (20, 16, 0.01, 1), (5, 64, 0.01, 0), (9, 200, 0.01, 2), (3, 1, 0.01, 1),
                                                 (5, 16, 1e-9, 1), (5, 16, 1e9, 1)]):
        samples = f32(r.randn(m, C) + 3)
        f = r.randn(C) + 3
        if spread == 0:  # inside the span of the samples: ‖d‖² and the subtracted term are nearly the same
            f = samples.mean(0) + 4 * r.randn(m) @ (samples - samples.mean(0)) / np.sqrt(m)
        if spread == 2:  # very near to one of the samples
            f = samples[0] + 1e-3 * r.randn(C)
        f = f32(f)
        tensors.update({f"m{c}.f": f, f"m{c}.samples": samples, f"m{c}.epsilon": np.array([epsilon]),
                        f"m{c}.distance": np.array([amm_mahalanobis(f, samples, float(np.float32(epsilon)))])})
    tensors["mahalanobis"] = [c + 1]
    h, w, C, n, k = 9, 11, 6, 4, 3
    labels = np.full((27, 31), -1)
    labels[2:9, 3:11], labels[12:25, 4:9], labels[5:20, 15:30] = 0, 1, 2  # the last one is large
    query = objects_coverage(labels, 3, 1, h, w)
    features = f32(r.randn(h, w, C))
    query = f32(query)
    centroids, areas = (f32(t) for t in locate(query))
    refs = []
    for i in range(k):
        moved = np.roll(labels, (r.randint(-2, 3), r.randint(-2, 3)), (0, 1))
        coverage = objects_coverage(moved, 3, 1, h, w)
        f = np.float16(features + 0.4 * r.randn(h, w, C))  # as in a bank
        c, a = (f32(t) for t in locate(coverage))
        match_q = np.array([[0, 1, 2, 3], [-1, 0, 2, 3], [0, -1, 1, 3]][i])
        if i == 1:
            match_q[2] = -1
        refs.append({"features": f.astype(np.float64), "centroids": c, "areas": a * [0.5, 1, 1.7, 1], "match_q": match_q, "units": f32(1 + 3 * r.rand(4))})
        refs[-1]["areas"], refs[-1]["coverage"] = f32(refs[-1]["areas"]), f32(coverage)
        tensors.update(named(f"r{i}", dict(refs[-1], features=f)))
    none = [dict(ref, match_q=np.where(np.arange(n) == 1, -1, ref["match_q"])) for ref in refs]
    tensors.update({"q.features": features, "q.weights": query, "q.centroids": centroids, "q.areas": areas})
    plain = {"reach": 0, "register_unmatched": False}

    def structural(references, coverage=query, epsilon=0.01, blur=1.0, **options):
        """Without claims."""
        places = amm_places(features, coverage, centroids, areas, references, **dict(plain, **options))
        return amm_structural(features, coverage, places, references, epsilon, blur)
    for name, kw in [("object", {}), ("pixel", {"pixel": True}), ("large", {"large": 1.0}), ("plain", {"blur": 0.0, "epsilon": 1.0}),
                     ("wide", {"blur": 2.5})]:
        tensors[f"map.{name}"] = structural(refs, **kw)
    for name, kw in [("registered", {"reach": 1}), ("searched", {"reach": 3, "register_unmatched": True}),
                     ("same", {"register_unmatched": True, "pixel": True})]:
        tensors[f"map.{name}"] = structural(none, **kw)
    broken = labels.copy()
    broken[2:6, 3:7] = -1  # a corner of object 0 broke off
    tensors["broken.weights"] = f32(objects_coverage(broken, 3, 1, h, w))
    places = amm_places(features, tensors["broken.weights"], centroids, areas, refs, **plain)
    claimed = amm_claims(tensors["broken.weights"], areas, places, refs)
    tensors["map.claims"] = amm_structural(features, claimed, places, refs)
    tensors["broken.claimed"] = claimed
    tensors["map.claims.normalised"] = amm_in_units(f32(tensors["map.claims"]), claimed, refs)
    unblurred = structural(none, blur=0.0)
    tensors["map.none"] = unblurred  # object 1 matches nowhere
    base = f32(tensors["map.object"])
    tensors["map.normalised"] = amm_in_units(base, query, refs)
    tensors["map.normalised.none"] = amm_in_units(base, query, none)
    tensors["quantiles"] = np.array([amm_object_quantile(base, wt, q) for wt in query for q in (0.95, 0.5, 1.0)])
    tensors["scores"] = np.array([amm_score(base, "max"), amm_score(base, "power")])
    for name, (rows, columns) in {"odd": (h, w), "even": (8, 10), "row": (1, w), "column": (h, 1), "cell": (1, 1)}.items():
        for count in (k, 1, 0):
            tensors[f"nearest.{name}.{count}"] = amm_nearest(features[:rows, :columns], [ref["features"][:rows, :columns] for ref in refs[:count]])
    values = f32(r.randn(37))
    tensors["values"] = values
    tensors["values.quantiles"] = np.array([np.quantile(values, q) for q in (0, 0.001, 0.05, 0.5, 0.95, 0.999, 1)])
    median, q95 = amm_spread(values)
    tensors["values.z"] = amm_z(values, median, q95 - median + 0.05)
    wide = f32(r.randn(23, 35))  # 216 blocks: the largest 3
    tensors["wide"], tensors["wide.scores"] = wide, np.array([amm_score(wide, "max"), amm_score(wide, "power")])
    asked = f32(np.concatenate([values, [-50, 0, 1, 50]]))
    for name, normal in {"37": values, "5": values[:5], "1": values[:1], "0": values[:0], "equal": np.repeat(values[:1], 5)}.items():
        for width in (0.05, 0.7):
            tensors[f"logical.{name}.{width}"] = amm_logical_z(normal, width, asked)
            tensors[f"rank.{name}.{width}"] = amm_rank_z(normal, width, asked)
    tensors["logical.asked"] = asked
    for n in (1, 2, 3, 19, 20, 37):
        tensors[f"threshold.{n}"] = np.array([extended_threshold(values[:n]), amm_threshold(values[:n])])
    save(f"{out}/method_amm.safetensors", tensors)


def make_raster(out):
    """Objects that touch the border, are thin, cover nothing; neighbours with ties; more neighbours than images are worth."""
    r, tensors = np.random.RandomState(11), {}
    h, w, C, n = 7, 9, 11, 5
    features, coverage = f32(r.randn(h, w, C)), np.zeros((n, h, w))
    coverage[0, 2:6, 3:7] = 1
    coverage[1, :, 0] = 0.7
    coverage[2, 6, 2:9] = [0.2, 0.5, 1, 1, 1, 0.6, 0.4]
    coverage[3, 0, 8] = 0.3
    coverage = f32(coverage)  # the last object covers nothing
    parts = np.concatenate([parts_of(features, c) for c in coverage])
    mean, basis = raster_principal(parts)
    vectors = np.stack([raster_vector(features, c, mean, basis) for c in coverage])
    tensors.update({"features": features, "weights": coverage, "mean": mean, "space": basis.T @ basis, "gram": vectors @ vectors.T})
    dim = SIDE * SIDE * 8
    for c, (m, spread) in enumerate([(1, 1), (4, 1), (64, 1), (5, 0)]):  # spread 0: neighbours that are alike
        bank = f32(r.randn(90, dim) * np.linspace(0.2, 3, dim) + 1)
        found = r.permutation(90)[:m]
        bank[found] = bank[found[:1]] + spread * (bank[found] - bank[found[:1]])
        bank, vector = f32(bank), f32(r.randn(dim) * 2)
        deviations = f32(0.4 * r.randn(90, dim))
        tensors.update({f"{c}.vectors": bank, f"{c}.deviations": deviations, f"{c}.found": found, f"{c}.vector": vector,
                        f"{c}.q": np.array([raster_distance(raster_fit(bank, deviations), vector, bank[found])])})
    scores = f32(r.randn(64))
    tensors["scores"], tensors["units"] = scores, np.array([raster_unit(scores[:m]) for m in (1, 2, 3, 10, 64)])
    save(f"{out}/method_raster.safetensors", tensors)


def scenes(r, n_images, h, w, C, height, width, kinds, places, background):
    """Normal images: an object of every kind at its place, some jitter; features of its kind plus texture."""
    images = []
    for _ in range(n_images):
        n = len(kinds)
        masks = np.zeros((n, height, width), np.uint8)
        for i, (px, py, s) in enumerate(places):
            y, x = int(py * height + r.randint(-2, 3)), int(px * width + r.randint(-2, 3))
            masks[i, max(y, 0):y + int(s * height), max(x, 0):x + int(s * width)] = 1
        images.append(scene_of(r, masks, kinds, background, h, w, C))
    return images


def scene_of(r, masks, kinds, background, h, w, C):
    labels, kept = objects_labels(masks)
    coverage = objects_coverage(labels, len(kept), (labels < 0).any(), h, w)
    y, x = np.mgrid[0:h, 0:w]
    texture = np.stack([np.sin((c + 1) * 0.7 * x + 0.4 * c * y) for c in range(C)], -1)
    means = np.array([kinds[i] for i in kept] + [background] * int((labels < 0).any()))
    features = f32(np.tensordot(coverage.transpose(1, 2, 0), means, 1) + 0.3 * texture + 0.15 * r.randn(h, w, C))
    coverage = f32(coverage)
    return {"features": features, "coverage": coverage, "cls": f32(features.mean((0, 1)) + 0.05 * r.randn(C)),
            "mean": f32(retrieval_mean(features))}


# The files' settings where these are not the method's: each part of the method has a variant that turns it on.
PLAIN = {"k": 3, "alpha_unmatched": 0, "verify_shift": 0, "count": False, "reach": 0, "register_unmatched": False, "claims": False,
         "object_quantile": 0.95, "nearest_weight": 0, "score": "max", "raster_weight": 0}
# The whole method under --method paper: docs/METHOD.md, "The paper's own, by one word".
PAPER = {"k": 40, "score": "power", "channel_graph": "softmax", "object_strength": 0.1, "iters": 100, "pixel": True, "position_weight": 0,
         "verify": False, "object_quantile": 0}


def write_bank(path, images, query, variants):
    tensors = {}
    for i, im in enumerate(images + [query]):
        tensors.update(named(i, im))
    for name, settings in variants.items():
        bank = Bank(images, **dict(PLAIN, **settings))
        prepared = dict(query, cls=l2_normalise(query["cls"]))
        c = bank.detect_in_scene(prepared)
        print(name, "alpha %.4f, A %.3f, L %.3f, score %.3f" % (bank.alpha, c["A"], c["L"], c["score"]),
              "loo", np.round(bank.loo, 3).tolist())
        tensors.update({f"{name}.alpha": np.array([bank.alpha]), f"{name}.scale": bank.units, f"{name}.loo": bank.loo,
                        f"{name}.spread": np.array([*bank.spread_a, bank.nearest_unit]), f"{name}.threshold": np.array([bank.threshold]),
                        f"{name}.channel_std": bank.channel_std, f"{name}.nearest": c["nearest"],
                        f"{name}.references": c["references"], f"{name}.unmatched": c["unmatched"], f"{name}.counted": c["counted"],
                        f"{name}.structural": c["structural"], f"{name}.logical": c["logical"], f"{name}.map": c["map"],
                        f"{name}.results": np.array([c["A"], c["L"], c["score"]])})
        if bank.raster:
            tensors.update({f"{name}.unusual": c["unusual"], f"{name}.raster": np.array([c["R"], bank.raster_unit]),
                            f"{name}.raster.q": bank.raster_scores, f"{name}.raster.loo": bank.loo_raster})
        for k, (s, p) in enumerate(zip(c["scores"], c["assignment"])):
            tensors[f"{name}.scores.{k}"], tensors[f"{name}.assignment.{k}"] = s, p
    tensors["n"] = [len(images)]
    one = Bank(images[:1], **PLAIN).detect_in_scene(dict(query, cls=l2_normalise(query["cls"])))
    tensors["one.results"] = np.array([one["A"], one["L"], one["score"]])
    save(path, tensors)


def make_bank(out):
    r = np.random.RandomState(5)
    h, w, C, height, width, n_images = 8, 9, 10, 40, 48, 7
    kinds, background = r.randn(5, C) * 1.5, r.randn(C)
    places = [(0.08, 0.1, 0.2), (0.4, 0.08, 0.25), (0.72, 0.12, 0.2), (0.15, 0.55, 0.3), (0.6, 0.55, 0.25)]
    images = scenes(r, n_images, h, w, C, height, width, kinds, places, background)
    masks = np.zeros((5, height, width), np.uint8)  # the query: one of a kind is missing, one of another kind is extra
    for i, (px, py, s) in enumerate(places):
        if i != 2:
            masks[i, int(py * height):int((py + s) * height), int(px * width):int((px + s) * width)] = 1
    masks[2, 18:22, 22:27] = 1
    query = scene_of(r, masks, [kinds[0], kinds[1], r.randn(C) * 2, kinds[3], kinds[4]], background, h, w, C)
    query["features"][5:7, 6:8] = f32(query["features"][5:7, 6:8] + 1.5)  # and one is damaged
    variants = {"default": {}, "pixel_l2": {"pixel": True, "retrieval": "l2", "k": 2},
                "softmax_cls": {"channel_graph": "softmax", "retrieval": "cls", "object_strength": 0.2}, "few_loo": {"loo": 3, "k": 100}, "dustbin": {"alpha_unmatched": 0.05},
                "shifted": {"verify_shift": 1}, "shifted_softmax": {"verify_shift": 2, "channel_graph": "softmax", "channel_strength": 3},
                "registered": {"reach": 2, "register_unmatched": True},
                "claims": {"reach": 2, "register_unmatched": True, "claims": True},
                "nearest": {"nearest_weight": 0.5, "score": "power"}, "nearest_alone": {"nearest_weight": 2, "object_quantile": 0, "delta_logical": 0.3},
                "rasters": {"raster_weight": 40}, "rasters_few": {"raster_weight": 20, "loo": 3, "k": 2, "position_weight": 0}}
    write_bank(f"{out}/method_bank.safetensors", images, query, variants)
    write_bank(f"{out}/method_paper.safetensors", images, query, {"paper": PAPER})


def make_count(out):
    """Three of four parts are of one kind; the query has one part of it too many, and the mask of another part fell apart."""
    r = np.random.RandomState(9)
    h, w, C, height, width = 12, 14, 10, 40, 48
    kinds, background = [r.randn(C) * 4] * 3 + [r.randn(C) * 4], r.randn(C)
    places = [(0.08, 0.1, 0.15), (0.31, 0.1, 0.15), (0.54, 0.1, 0.15), (0.3, 0.6, 0.3)]
    images = scenes(r, 7, h, w, C, height, width, kinds, places, background)
    masks = np.zeros((6, height, width), np.uint8)
    for i, (px, py, s) in enumerate([(0.08, 0.1, 0.15), (0.23, 0.14, 0.15), (0.54, 0.1, 0.15), places[3], (0.39, 0.1, 0.15)]):
        masks[i, int(py * height):int((py + s) * height), int(px * width):int((px + s) * width)] = 1
    masks[5, int(0.18 * height):] = masks[2, int(0.18 * height):]
    masks[2] -= masks[5]  # two halves of one
    query = scene_of(r, masks, kinds + kinds[:2], background, h, w, C)
    settings = {"alpha_unmatched": 0.05}
    write_bank(f"{out}/method_count.safetensors", images, query, {"apart": settings, "counted": dict(settings, count=True)})


def make_metrics(out):
    r = np.random.RandomState(6)
    negatives, positives = np.round(r.randn(31), 1), np.round(r.randn(17) + 0.7, 1)  # with ties
    wins = (positives[:, None] > negatives).sum() + 0.5 * (positives[:, None] == negatives).sum()
    pixels, truth = f32(np.round(r.randn(4000) * 8) / 8), (r.rand(4000) < 0.1).astype(np.uint8)
    pixels[truth > 0] += 0.5
    pixels[:50] = -0.0
    pixels[50:90] = 0.0
    a, b = pixels[truth > 0], pixels[truth == 0]
    pixel = ((a[:, None] > b).sum() + 0.5 * (a[:, None] == b).sum()) / (len(a) * len(b))
    save(f"{out}/method_metrics.safetensors", {"negatives": negatives, "positives": positives, "auroc": np.array([wins / (31 * 17)]),
                                               "pixels": pixels, "truth": truth, "pixel_auroc": np.array([pixel])})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--out", default="tests/golden")
    directory = parser.parse_args().out
    for make in (make_objects, make_dcga, make_omm, make_raster, make_amm, make_bank, make_count, make_metrics):
        make(directory)
