#!/usr/bin/env python3
"""make_golden_names.py - two tiny random models as transformers and timm save them, for test_names.

    tests/make_golden_names.py        # torch, transformers 5.24, timm 1.0.31, safetensors; any recent ones will do

golden/names/hf: Dinov2WithRegistersForImageClassification in shards. golden/names/timm: a float16 ViT with packed
SwiGLU of an odd width, registers, and positions without the class token. Each folder has io.safetensors: pixels
[1][3][H][W], already normalised, and what the library computes from them.
"""
import json
import os

import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "names")
torch.manual_seed(28)
torch.set_grad_enabled(False)


def randomise(model):
    """Weights that a wrong place changes much."""
    for name, p in model.named_parameters():
        is_scale = "lambda" in name or "gamma" in name or ("norm" in name and name.endswith("weight"))
        p.copy_(torch.randn_like(p) * 0.3 + (1.0 if is_scale else 0.0))
    return model.eval()


def keep(folder, **tensors):
    save_file({k: v.contiguous().float() for k, v in tensors.items()}, os.path.join(OUT, folder, "io.safetensors"))


os.makedirs(OUT, exist_ok=True)
config = transformers.Dinov2WithRegistersConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=3,
                                                image_size=15, patch_size=5, num_register_tokens=2, num_labels=3)
model = randomise(transformers.Dinov2WithRegistersForImageClassification(config))
model.save_pretrained(os.path.join(OUT, "hf"), max_shard_size="15KB")
pixels = torch.randn(1, 3, 15, 15)
keep("hf", pixels=pixels, last_hidden_state=model.dinov2_with_registers(pixels).last_hidden_state)

model = randomise(VisionTransformer(embed_dim=64, depth=1, num_heads=1, num_classes=0, global_pool="token", img_size=12,
                                    patch_size=4, init_values=1.0, reg_tokens=2, no_embed_class=True,
                                    mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=10.5 / 64))
model.half().float()  # the numbers that the file can hold
model.pretrained_cfg = {"architecture": "tiny", "mean": [0.5, 0.25, 0.125], "std": [0.25, 0.5, 1.0], "num_classes": 0,
                        "input_size": [3, 12, 12]}
timm.models.save_for_hf(model, os.path.join(OUT, "timm"), safe_serialization=True)
path = os.path.join(OUT, "timm", "model.safetensors")
save_file({k: v.half().contiguous() for k, v in load_file(path).items()}, path)
pixels = torch.randn(1, 3, 12, 12)
keep("timm", pixels=pixels, forward_features=model.forward_features(pixels))
for root, _, files in os.walk(OUT):
    for name in files:
        print(os.path.join(root, name), os.path.getsize(os.path.join(root, name)))
