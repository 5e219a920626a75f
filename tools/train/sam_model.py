"""The tiny SAM as it is trained: the official architecture, computed faster.

The parameters carry the names and shapes of segment_anything's Sam.state_dict() and load into the official classes with
strict=True; `python sam_model.py --segment-anything PATH` proves that both give the same numbers. The
computation differs: bf16 matrix products, with the passes between them fused in C (sam_kernels.c), and window attention
without copies of padded windows. The decoder computes the part that all prompts of an image share only once.

Shapes: B images, N = grid*grid positions, C = out_chans, R prompts per image, P = B*R prompts, T tokens per prompt.
"""
import ctypes
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

from native import compiled

CONFIG = dict(image_size=160, patch_size=8, embed_dim=160, depth=6, n_heads=5, mlp_ratio=4, window_size=10,
              global_attn_indexes=(2, 5), out_chans=64, mask_in_chans=16, decoder_depth=2, decoder_mlp_dim=256,
              decoder_heads=4, attention_downsample_rate=2, num_multimask_outputs=3, iou_head_depth=3,
              iou_head_hidden_dim=64)
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


# ---------------------------------------------------------------- the C kernels

C_LIB = ctypes.CDLL(compiled("sam_kernels", ("sam_kernels.c",), ("-O3", "-march=native", "-ffast-math")))
C_LIB.planes_bytes.restype = ctypes.c_size_t
_PLANES = torch.empty(C_LIB.planes_bytes(), dtype=torch.uint8)


def call(name, *arguments):
    """Calls a kernel; tensors go as pointers (and must be contiguous), floats as float, whole numbers as long."""
    converted = []
    for a in arguments:
        if torch.is_tensor(a):
            assert a.is_contiguous(), name
            converted.append(ctypes.c_void_p(a.data_ptr()))
        elif isinstance(a, np.ndarray):
            converted.append(ctypes.c_void_p(a.ctypes.data))
        else:
            converted.append(ctypes.c_float(a) if isinstance(a, float) else ctypes.c_long(a))
    getattr(C_LIB, name)(*converted)


BF16 = torch.bfloat16


class LinearFunction(Function):
    """y = x w^T + b with x, y bf16 and w, b float32 parameters."""

    @staticmethod
    def forward(ctx, x, w, b):
        flat, wb = x.reshape(-1, x.shape[-1]), w.to(BF16)
        ctx.save_for_backward(flat, wb)
        ctx.has_bias = b is not None
        return F.linear(flat, wb, b.to(BF16) if b is not None else None).view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx, dy):
        flat, wb = ctx.saved_tensors
        g = dy.reshape(-1, dy.shape[-1])
        dx = (g @ wb).view(*dy.shape[:-1], wb.shape[1]) if ctx.needs_input_grad[0] else None
        db = None
        if ctx.has_bias:
            db = torch.zeros(g.shape[1])
            call("column_sums", *g.shape, g.contiguous(), db)
        return dx, (g.t() @ flat).float(), db


linear = LinearFunction.apply


class LayerNormFunction(Function):
    """[..., c] float32 -> bf16."""

    @staticmethod
    def forward(ctx, x, w, b, eps):
        x = x.contiguous()
        n, c = x.numel() // x.shape[-1], x.shape[-1]
        y, stats = torch.empty(x.shape, dtype=BF16), torch.empty(n, 2)
        call("layer_norm", n, c, eps, x, w, b, y, stats)
        ctx.save_for_backward(x, w, stats)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, stats = ctx.saved_tensors
        dx, dw, db = torch.empty_like(x), torch.zeros_like(w), torch.zeros_like(w)
        call("layer_norm_bwd", stats.shape[0], x.shape[-1], x, w, stats, dy.contiguous(), dx, dw, db)
        return dx, dw, db, None


class AddNormFunction(Function):
    """layer_norm(a + b): a [I][N][C] is shared by the prompts of an image, b [I*R][N][C]; bf16."""

    @staticmethod
    def forward(ctx, a, b, w, bias, eps):
        a, b = a.contiguous(), b.contiguous()
        y, stats = torch.empty_like(b), torch.empty(b.shape[0] * b.shape[1], 2)
        call("add_norm", a.shape[0], b.shape[0] // a.shape[0], *b.shape[1:], eps, a, b, w, bias, y, stats)
        ctx.save_for_backward(a, b, w, stats)
        return y

    @staticmethod
    def backward(ctx, dy):
        a, b, w, stats = ctx.saved_tensors
        da, db, dw, dbias = torch.zeros(a.shape), torch.empty_like(b), torch.zeros_like(w), torch.zeros_like(w)
        call("add_norm_bwd", a.shape[0], b.shape[0] // a.shape[0], *b.shape[1:], a, b, w, stats, dy.contiguous(),
             da, db, dw, dbias)
        return da.to(BF16), db, dw, dbias, None


class GeluFunction(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.empty_like(x)
        call("gelu", x.numel(), x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        call("gelu_bwd", x.numel(), x, dy.contiguous(), dx)
        return dx


class AttentionFunction(Function):
    """Windowed self-attention with decomposed relative positions.

    qkv [B][H][W][3*heads*d] bf16, rel_h and rel_w [2s-1][d] float32, s = window side (the grid's for a global block)."""

    @staticmethod
    def forward(ctx, qkv, rel_h, rel_w, heads, s):
        B, H, W, _ = qkv.shape
        d = qkv.shape[-1] // (3 * heads)
        maps = B * (H // s) * (W // s) * heads
        q, k, v = (torch.empty(maps, s * s, d, dtype=BF16) for _ in range(3))
        call("split_heads", B, H, W, s, heads, d, qkv.contiguous(), q, k, v, 3, 1)
        rel = torch.cat([rel_h, rel_w]).to(BF16)
        probs = torch.bmm(q, k.transpose(1, 2))
        offsets = (q.view(-1, d) @ rel.t()).contiguous()
        call("softmax_rel", maps, s, float(d ** -0.5), probs, offsets)
        out = torch.bmm(probs, v)
        y = torch.empty(B, H, W, heads * d, dtype=BF16)
        call("split_heads", B, H, W, s, heads, d, y, out.contiguous(), k, v, 1, 0)
        ctx.save_for_backward(q, k, v, probs, rel)
        ctx.sizes = B, H, W, s, heads, d
        return y

    @staticmethod
    def backward(ctx, dy):
        q, k, v, probs, rel = ctx.saved_tensors
        B, H, W, s, heads, d = ctx.sizes
        dout = torch.empty_like(q)
        call("split_heads", B, H, W, s, heads, d, dy.contiguous(), dout, k, v, 1, 1)
        dv = torch.bmm(probs.transpose(1, 2), dout)
        dscores = torch.bmm(dout, v.transpose(1, 2))
        doffsets = torch.empty(q.shape[0] * s * s, rel.shape[0], dtype=BF16)
        call("softmax_rel_bwd", q.shape[0], s, float(d ** -0.5), probs, dscores, doffsets)
        dq = torch.bmm(dscores, k) + (doffsets @ rel).view_as(q)
        dk = torch.bmm(dscores.transpose(1, 2), q)
        drel = (doffsets.t() @ q.view(-1, d)).float()
        dqkv = torch.empty(B, H, W, 3 * heads * d, dtype=BF16)
        call("split_heads", B, H, W, s, heads, d, dqkv, dq, dk.contiguous(), dv.contiguous(), 3, 0)
        return dqkv, drel[: 2 * s - 1], drel[2 * s - 1:], None, None


class TokenToGridFunction(Function):
    """q [P][T][c] float32 asks k, v [I][N][c] bf16 -> [P][T][c] float32."""

    @staticmethod
    def forward(ctx, q, k, v, heads):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        sizes = k.shape[0], q.shape[0] // k.shape[0], k.shape[1], q.shape[1], heads, q.shape[2] // heads, q.shape[2]
        out = torch.empty_like(q)
        call("token_to_grid", _PLANES, *sizes, q, k, v, out)
        ctx.save_for_backward(q, k, v, out)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, out = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        call("token_to_grid_bwd", _PLANES, *ctx.sizes, q, k, v, out, dout.contiguous(), dq, dk, dv)
        return dq, dk, dv, None


class GridToTokenFunction(Function):
    """q [I][N][c] bf16 asks k, v [P][T][c] float32 -> [P][N][c] bf16."""

    @staticmethod
    def forward(ctx, q, k, v, heads):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        sizes = q.shape[0], k.shape[0] // q.shape[0], q.shape[1], k.shape[1], heads, k.shape[2] // heads, k.shape[2]
        out = torch.empty(k.shape[0], q.shape[1], k.shape[2], dtype=BF16)
        call("grid_to_token", _PLANES, *sizes, q, k, v, out)
        ctx.save_for_backward(q, k, v)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        call("grid_to_token_bwd", _PLANES, *ctx.sizes, q, k, v, dout.contiguous(), dq, dk, dv)
        return dq, dk, dv, None


class MaskHeadFunction(Function):
    """x [P][N][4*c1] bf16 (after the first transposed convolution), hyper [P][M][c2] -> masks [P][M][16*N] float32."""

    @staticmethod
    def forward(ctx, x, ln_w, ln_b, w2, b2, hyper):
        x, hyper, w2 = x.contiguous(), hyper.contiguous(), w2.contiguous()
        sizes = x.shape[0], x.shape[1], x.shape[2] // 4, hyper.shape[2], hyper.shape[1]
        masks = torch.empty(x.shape[0], hyper.shape[1], 16 * x.shape[1])
        call("mask_head", *sizes, x, ln_w, ln_b, w2, b2, hyper, masks)
        ctx.save_for_backward(x, ln_w, ln_b, w2, b2, hyper)
        ctx.sizes = sizes
        return masks

    @staticmethod
    def backward(ctx, dmasks):
        saved = ctx.saved_tensors
        dx, dhyper = torch.empty_like(saved[0]), torch.empty_like(saved[5])
        others = [torch.zeros_like(t) for t in saved[1:5]]
        call("mask_head_bwd", *ctx.sizes, *saved, dmasks.contiguous(), dx, *others, dhyper)
        return (dx, *others, dhyper)


class MaskSumsFunction(Function):
    """The sums that the mask losses are made of: x [P][M][n], targets u8 [P][K][n], weights u8 [P][n] -> [P][M][K][6]."""

    @staticmethod
    def forward(ctx, x, targets, weights):
        x, targets, weights = x.contiguous(), targets.contiguous(), weights.contiguous()
        sums = torch.empty(x.shape[0], x.shape[1], targets.shape[1], 6)
        call("mask_sums", *sums.shape[:3], x.shape[2], x, targets, weights, sums)
        ctx.save_for_backward(x, targets, weights)
        return sums

    @staticmethod
    def backward(ctx, dsums):
        x, targets, weights = ctx.saved_tensors
        dx = torch.empty_like(x)
        call("mask_sums_bwd", *dsums.shape[:3], x.shape[2], x, targets, weights, dsums[..., :4].contiguous(), dx)
        return dx, None, None


def fold_masks(masks, grid):
    """[..., 4*grid, 4*grid] -> [..., 16*grid*grid] in the order in which mask_head writes."""
    lead = masks.shape[:-2]
    m = masks.reshape(-1, grid, 2, 2, grid, 2, 2).permute(0, 2, 5, 3, 6, 1, 4)
    return m.reshape(*lead, 16 * grid * grid)


def unfold_masks(masks, grid):
    lead = masks.shape[:-1]
    m = masks.reshape(-1, 2, 2, 2, 2, grid, grid).permute(0, 5, 1, 3, 6, 2, 4)
    return m.reshape(*lead, 4 * grid, 4 * grid)


# ---------------------------------------------------------------- the model

def parameter_shapes(c):
    """{official name: shape} of Sam.state_dict() for configuration c."""
    D, C, p, g = c["embed_dim"], c["out_chans"], c["patch_size"], c["image_size"] // c["patch_size"]
    shapes = {"image_encoder.pos_embed": (1, g, g, D)}

    def affine(name, *shape, bias=True):
        shapes[name + ".weight"] = shape
        if bias:
            shapes[name + ".bias"] = (shape[0],)

    def norm(name, n):
        shapes[name + ".weight"], shapes[name + ".bias"] = (n,), (n,)

    affine("image_encoder.patch_embed.proj", D, 3, p, p)
    for i in range(c["depth"]):
        b = f"image_encoder.blocks.{i}."
        side = g if i in c["global_attn_indexes"] else c["window_size"]
        norm(b + "norm1", D), norm(b + "norm2", D)
        affine(b + "attn.qkv", 3 * D, D), affine(b + "attn.proj", D, D)
        shapes[b + "attn.rel_pos_h"] = shapes[b + "attn.rel_pos_w"] = (2 * side - 1, D // c["n_heads"])
        affine(b + "mlp.lin1", int(D * c["mlp_ratio"]), D), affine(b + "mlp.lin2", D, int(D * c["mlp_ratio"]))
    affine("image_encoder.neck.0", C, D, 1, 1, bias=False), norm("image_encoder.neck.1", C)
    affine("image_encoder.neck.2", C, C, 3, 3, bias=False), norm("image_encoder.neck.3", C)

    shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, C // 2)
    for name in ["point_embeddings.0", "point_embeddings.1", "point_embeddings.2", "point_embeddings.3", "not_a_point_embed",
                 "no_mask_embed"]:
        shapes[f"prompt_encoder.{name}.weight"] = (1, C)
    m = c["mask_in_chans"]
    affine("prompt_encoder.mask_downscaling.0", m // 4, 1, 2, 2), norm("prompt_encoder.mask_downscaling.1", m // 4)
    affine("prompt_encoder.mask_downscaling.3", m, m // 4, 2, 2), norm("prompt_encoder.mask_downscaling.4", m)
    affine("prompt_encoder.mask_downscaling.6", C, m, 1, 1)

    def attention(name, inner):
        for part in "qkv":
            affine(f"{name}.{part}_proj", inner, C)
        affine(f"{name}.out_proj", C, inner)

    t, low = "mask_decoder.transformer.", C // c["attention_downsample_rate"]
    for i in range(c["decoder_depth"]):
        layer = f"{t}layers.{i}."
        attention(layer + "self_attn", C), attention(layer + "cross_attn_token_to_image", low)
        attention(layer + "cross_attn_image_to_token", low)
        for k in range(1, 5):
            norm(f"{layer}norm{k}", C)
        affine(layer + "mlp.lin1", c["decoder_mlp_dim"], C), affine(layer + "mlp.lin2", C, c["decoder_mlp_dim"])
    attention(t + "final_attn_token_to_image", low), norm(t + "norm_final_attn", C)

    M = c["num_multimask_outputs"] + 1
    shapes["mask_decoder.iou_token.weight"], shapes["mask_decoder.mask_tokens.weight"] = (1, C), (M, C)
    shapes["mask_decoder.output_upscaling.0.weight"] = (C, C // 4, 2, 2)
    shapes["mask_decoder.output_upscaling.0.bias"] = (C // 4,)
    norm("mask_decoder.output_upscaling.1", C // 4)
    shapes["mask_decoder.output_upscaling.3.weight"] = (C // 4, C // 8, 2, 2)
    shapes["mask_decoder.output_upscaling.3.bias"] = (C // 8,)
    for i in range(M):
        for k, (a, b) in enumerate([(C, C), (C, C), (C, C // 8)]):
            affine(f"mask_decoder.output_hypernetworks_mlps.{i}.layers.{k}", b, a)
    h = c["iou_head_hidden_dim"]
    widths = [C] + [h] * (c["iou_head_depth"] - 1) + [M]
    for k in range(c["iou_head_depth"]):
        affine(f"mask_decoder.iou_prediction_head.layers.{k}", widths[k + 1], widths[k])
    return shapes


def initial_parameters(c, seed):
    """Seeded: weights uniform as torch's Linear, residual outputs small, embeddings of small variance, norms at identity."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for name, shape in sorted(parameter_shapes(c).items()):
        x = torch.randn(shape, generator=generator)
        if "norm" in name or ".neck.1." in name or ".neck.3." in name or "upscaling.1." in name or \
                "mask_downscaling.1." in name or "mask_downscaling.4." in name:
            x = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        elif name.endswith("bias"):
            x = torch.zeros(shape)
        elif "gaussian_matrix" in name:
            pass
        elif "rel_pos" in name:
            x = torch.zeros(shape)
        elif "pos_embed" in name or "no_mask" in name:
            x = 0.02 * x
        elif "_embed" in name or "token" in name and name.endswith("tokens.weight") or "iou_token" in name:
            x = 0.5 * x
        else:
            fan_in = shape[0] if "upscaling" in name else int(np.prod(shape[1:]))
            x = x / math.sqrt(fan_in)
            if name.endswith(("attn.proj.weight", "mlp.lin2.weight")) and name.startswith("image_encoder"):
                x = 0.3 * x
        out[name] = x
    return out


class TinySam(nn.Module):
    """Parameters under their official names (self.p), buffers: the random frequencies of the position encoding."""

    def __init__(self, config=None, seed=0):
        super().__init__()
        self.c = dict(config or CONFIG)
        self.grid = self.c["image_size"] // self.c["patch_size"]
        self.p = {}
        for name, value in initial_parameters(self.c, seed).items():
            if "gaussian_matrix" in name:
                self.register_buffer(name.replace(".", "/"), value)
                self.p[name] = value
            else:
                self.p[name] = nn.Parameter(value)
                self.register_parameter(name.replace(".", "/"), self.p[name])

    def official_state(self):
        return {name: value.detach().clone() for name, value in self.p.items()}

    def load_official(self, state):
        assert set(state) == set(self.p), set(state) ^ set(self.p)
        with torch.no_grad():
            for name, value in state.items():
                assert self.p[name].shape == value.shape, name
                self.p[name].copy_(value)

    # -------- image encoder

    def encode(self, images):
        """images [B][3][S][S] float32, normalised and padded -> [B][N][C] bf16."""
        c, p, g = self.c, self.p, self.grid
        B, s, D = images.shape[0], c["patch_size"], c["embed_dim"]
        patches = images.view(B, 3, g, s, g, s).permute(0, 2, 4, 1, 3, 5).reshape(B, g, g, 3 * s * s).to(BF16)
        x = linear(patches, p["image_encoder.patch_embed.proj.weight"].view(D, -1), p["image_encoder.patch_embed.proj.bias"])
        x = x + p["image_encoder.pos_embed"]
        for i in range(c["depth"]):
            side = g if i in c["global_attn_indexes"] else c["window_size"]
            x = self._block(f"image_encoder.blocks.{i}.", x, side)
        x = linear(x.to(BF16), p["image_encoder.neck.0.weight"].view(-1, D), None)
        x = LayerNormFunction.apply(x.float(), p["image_encoder.neck.1.weight"], p["image_encoder.neck.1.bias"], 1e-6)
        x = F.conv2d(x.permute(0, 3, 1, 2), p["image_encoder.neck.2.weight"].to(BF16), padding=1)
        x = x.permute(0, 2, 3, 1).float()
        x = LayerNormFunction.apply(x, p["image_encoder.neck.3.weight"], p["image_encoder.neck.3.bias"], 1e-6)
        return x.view(B, g * g, -1)

    def _block(self, b, x, side):
        p = self.p
        h = LayerNormFunction.apply(x, p[b + "norm1.weight"], p[b + "norm1.bias"], 1e-6)
        h = linear(h, p[b + "attn.qkv.weight"], p[b + "attn.qkv.bias"])
        h = AttentionFunction.apply(h, p[b + "attn.rel_pos_h"], p[b + "attn.rel_pos_w"], self.c["n_heads"], side)
        x = x + linear(h, p[b + "attn.proj.weight"], p[b + "attn.proj.bias"])
        h = LayerNormFunction.apply(x, p[b + "norm2.weight"], p[b + "norm2.bias"], 1e-6)
        h = GeluFunction.apply(linear(h, p[b + "mlp.lin1.weight"], p[b + "mlp.lin1.bias"]))
        return x + linear(h, p[b + "mlp.lin2.weight"], p[b + "mlp.lin2.bias"])

    # -------- prompt encoder

    def _position(self, xy):
        """xy in [0,1] -> [..., C]"""
        a = 2 * math.pi * ((2 * xy - 1) @ self.p["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
        return torch.cat([a.sin(), a.cos()], -1)

    def grid_position(self):
        axis = (torch.arange(self.grid) + 0.5) / self.grid
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        return self._position(torch.stack([x, y], -1)).view(-1, self.c["out_chans"])

    def embed_prompts(self, xy, labels):
        """xy [P][S][2] pixels, labels [P][S]: -1 padding, 0 outside, 1 inside, 2 and 3 box corners -> [P][S][C]."""
        e = self.p
        table = torch.cat([e["prompt_encoder.not_a_point_embed.weight"]] +
                          [e[f"prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)])
        position = self._position((xy + 0.5) / self.c["image_size"]) * (labels >= 0).unsqueeze(-1)
        return position + table[labels + 1]

    def embed_masks(self, masks):
        """Low-resolution logits [P][1][4g][4g] -> [P][N][C]."""
        m = lambda k: (self.p[f"prompt_encoder.mask_downscaling.{k}.weight"], self.p[f"prompt_encoder.mask_downscaling.{k}.bias"])
        norm = lambda x, k: F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), *m(k), 1e-6).permute(0, 3, 1, 2)
        x = F.gelu(norm(F.conv2d(masks, *m(0), stride=2), 1))
        x = F.gelu(norm(F.conv2d(x, *m(3), stride=2), 4))
        return F.conv2d(x, *m(6)).flatten(2).transpose(1, 2)

    # -------- mask decoder

    def _lin(self, name, x):
        return F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def _blin(self, name, x):
        return linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def _norm(self, name, x):
        return F.layer_norm(x, (x.shape[-1],), self.p[name + ".weight"], self.p[name + ".bias"])

    def _self_attention(self, name, qk, v):
        P, T, C = v.shape
        heads = self.c["decoder_heads"]
        q, k, v = (self._lin(f"{name}.{part}_proj", x).view(P, T, heads, -1).transpose(1, 2)
                   for part, x in (("q", qk), ("k", qk), ("v", v)))
        # T is about 7: products and sums are faster than thousands of tiny matrix products
        a = ((q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) / math.sqrt(C // heads)).softmax(-1)
        out = (a.unsqueeze(-1) * v.unsqueeze(2)).sum(3)
        return self._lin(name + ".out_proj", out.transpose(1, 2).reshape(P, T, C))

    def _ask_grid(self, name, tokens, keys, keys_pe):
        q = self._lin(name + ".q_proj", tokens)
        k, v = self._blin(name + ".k_proj", keys_pe), self._blin(name + ".v_proj", keys)
        return self._lin(name + ".out_proj", TokenToGridFunction.apply(q, k, v, self.c["decoder_heads"]))

    def decode(self, image, dense, sparse):
        """image [I][N][C] bf16; dense [I][N][C] or [C] (no mask); sparse [I*R][S][C] ->
        logits [P][M][16N] in folded order (see fold_masks), predicted IoU [P][M]."""
        p, t = self.p, "mask_decoder.transformer."
        pe = self.grid_position().to(BF16)
        keys = (image + dense).to(BF16)
        output_tokens = torch.cat([p["mask_decoder.iou_token.weight"], p["mask_decoder.mask_tokens.weight"]])
        tokens = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], 1)
        x = tokens
        for i in range(self.c["decoder_depth"]):
            layer, keys_pe = f"{t}layers.{i}.", keys + pe
            if i == 0:
                x = self._self_attention(layer + "self_attn", x, x)
            else:
                x = x + self._self_attention(layer + "self_attn", x + tokens, x)
            x = self._norm(layer + "norm1", x)
            x = self._norm(layer + "norm2", x + self._ask_grid(layer + "cross_attn_token_to_image", x + tokens, keys, keys_pe))
            x = self._norm(layer + "norm3", x + self._lin(layer + "mlp.lin2", F.relu(self._lin(layer + "mlp.lin1", x))))
            name = layer + "cross_attn_image_to_token"
            k, v = self._lin(name + ".k_proj", x + tokens), self._lin(name + ".v_proj", x)
            back = GridToTokenFunction.apply(self._blin(name + ".q_proj", keys_pe), k, v, self.c["decoder_heads"])
            keys = AddNormFunction.apply(keys, self._blin(name + ".out_proj", back),
                                         p[layer + "norm4.weight"], p[layer + "norm4.bias"], 1e-5)
        x = self._norm(t + "norm_final_attn",
                       x + self._ask_grid(t + "final_attn_token_to_image", x + tokens, keys, keys + pe))
        return self._masks(keys, x[:, 1:-sparse.shape[1]]), self._iou(x[:, 0])

    def _masks(self, keys, mask_tokens):
        """keys [P][N][C] bf16, mask_tokens [P][M][C] -> logits [P][M][16N]."""
        p, u = self.p, "mask_decoder.output_upscaling."
        C = self.c["out_chans"]
        hyper = []
        for m in range(mask_tokens.shape[1]):
            h, name = mask_tokens[:, m], f"mask_decoder.output_hypernetworks_mlps.{m}.layers."
            hyper.append(self._lin(name + "2", F.relu(self._lin(name + "1", F.relu(self._lin(name + "0", h))))))
        first = linear(keys, p[u + "0.weight"].view(C, -1).t(), p[u + "0.bias"].repeat_interleave(4))
        return MaskHeadFunction.apply(first, p[u + "1.weight"], p[u + "1.bias"], p[u + "3.weight"].view(C // 4, -1),
                                      p[u + "3.bias"], torch.stack(hyper, 1))

    def _iou(self, token):
        depth, name = self.c["iou_head_depth"], "mask_decoder.iou_prediction_head.layers."
        for k in range(depth):
            token = self._lin(name + str(k), token)
            if k < depth - 1:
                token = F.relu(token)
        return token


# ---------------------------------------------------------------- files and the official classes

def metadata(c, extra=None):
    out = {"samlad.model": "sam", "samlad.name": "sam_tiny"}
    for key, value in c.items():
        out["sam." + key] = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    out["sam.pixel_mean"], out["sam.pixel_std"] = ",".join(map(str, PIXEL_MEAN)), ",".join(map(str, PIXEL_STD))
    out.update({k: str(v) for k, v in (extra or {}).items()})
    return out


def config_from_metadata(meta):
    c = {}
    for key, default in CONFIG.items():
        text = meta["sam." + key]
        c[key] = tuple(int(v) for v in text.split(",") if v) if isinstance(default, tuple) else \
            (float(text) if key == "mlp_ratio" else int(text))
    return c


def official_sam(path, c, state=None):
    """The official Sam with configuration c; path: a checkout of facebookresearch/segment-anything."""
    import sys
    from functools import partial
    if path and path not in sys.path:
        sys.path.insert(0, path)
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
    g = c["image_size"] // c["patch_size"]
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=c["image_size"], patch_size=c["patch_size"], embed_dim=c["embed_dim"], depth=c["depth"],
            num_heads=c["n_heads"], mlp_ratio=c["mlp_ratio"], out_chans=c["out_chans"], qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=c["window_size"],
            global_attn_indexes=c["global_attn_indexes"]),
        prompt_encoder=PromptEncoder(embed_dim=c["out_chans"], image_embedding_size=(g, g),
                                     input_image_size=(c["image_size"], c["image_size"]), mask_in_chans=c["mask_in_chans"]),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=c["num_multimask_outputs"], transformer_dim=c["out_chans"],
            transformer=TwoWayTransformer(depth=c["decoder_depth"], embedding_dim=c["out_chans"],
                                          mlp_dim=c["decoder_mlp_dim"], num_heads=c["decoder_heads"],
                                          attention_downsample_rate=c["attention_downsample_rate"]),
            iou_head_depth=c["iou_head_depth"], iou_head_hidden_dim=c["iou_head_hidden_dim"]),
        pixel_mean=list(PIXEL_MEAN), pixel_std=list(PIXEL_STD))
    if state is not None:
        sam.load_state_dict({k: torch.as_tensor(v).float() for k, v in state.items()}, strict=True)
    return sam.eval()


def check_against_official(path):
    """Outputs and gradients of TinySam and of the official classes on random weights and inputs; raises when they differ."""
    torch.manual_seed(1)
    model = TinySam(seed=3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.02 * torch.randn_like(value))
    c, g = model.c, model.grid
    sam = official_sam(path, c, model.official_state())
    images = torch.randn(2, 3, c["image_size"], c["image_size"])
    xy, labels = torch.rand(6, 2, 2) * 159, torch.tensor([[1, -1], [2, 3], [1, -1]]).repeat(2, 1)
    ours = model.encode(images)
    theirs = sam.image_encoder(images)
    _compare("image embedding", ours.float().transpose(1, 2).reshape_as(theirs), theirs)
    masks_in = torch.randn(6, 1, 4 * g, 4 * g)
    for with_mask in (False, True):
        if with_mask:
            logits, iou = model.decode(ours.repeat_interleave(3, 0), model.embed_masks(masks_in), model.embed_prompts(xy, labels))
        else:
            logits, iou = model.decode(ours, model.p["prompt_encoder.no_mask_embed.weight"], model.embed_prompts(xy, labels))
        lo, io = [], []
        for k in range(6):
            sl = slice(k, k + 1)
            box = labels[k, 0] == 2
            points = None if box else (xy[sl, :1], labels[sl, :1])
            sparse, dense = sam.prompt_encoder(points=points, boxes=xy[sl].reshape(1, 4) if box else None,
                                               masks=masks_in[sl] if with_mask else None)
            m, i = sam.mask_decoder.predict_masks(theirs[k // 3: k // 3 + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense)
            lo.append(m), io.append(i)
        lo, io = torch.cat(lo), torch.cat(io)
        _compare("logits", unfold_masks(logits, g), lo)
        _compare("iou", iou, io)
        pick = torch.randn_like(lo)
        model.zero_grad(), sam.zero_grad()
        ((unfold_masks(logits, g) * pick).sum() + iou.sum()).backward(retain_graph=True)
        ((lo * pick).sum() + io.sum()).backward(retain_graph=True)
        for name, value in sam.named_parameters():
            mine = model.p[name].grad
            if value.grad is None or value.grad.norm() == 0 or name.endswith("k_proj.bias"):  # softmax ignores k's bias
                continue
            _compare("gradient of " + name, mine, value.grad, 0.15)
    print("TinySam equals the official classes up to bf16")


def _compare(what, ours, theirs, bound=0.03):
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error < bound:
        raise SystemExit(f"{what} differs from the official classes: relative error {error:.4f}")


if __name__ == "__main__":
    import argparse
    parser = argparse.ArgumentParser(description=check_against_official.__doc__)
    parser.add_argument("--segment-anything", required=True)
    torch.set_num_threads(1)
    check_against_official(parser.parse_args().segment_anything)
