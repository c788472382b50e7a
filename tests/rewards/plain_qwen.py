"""Qwen2-VL's text model in plain torch, from a file's tensors under the released names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS, KEY_HEADS, THETA, EPS = 2, 1, 1e4, 1e-5  # as tests.rewards.tiny_qwen has them


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def turn(x: Tensor, places: Tensor) -> Tensor:
    """Rotary embedding of x (h, L, d) at positions (L,): pairs are (i, i + d / 2)."""
    half = x.shape[-1] // 2
    angles = places[:, None] * THETA ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat(
        [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1
    )


def last_states(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(L, D) of embeddings (L, D) at positions 0, 1, 2, ..., causal."""
    length, width = x.shape
    places = torch.arange(length, dtype=x.dtype)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers"))
    for n in range(layers):
        own = {k.removeprefix(f"model.layers.{n}."): v.to(x.dtype) for k, v in weights.items()}
        seen = rms(x, own["input_layernorm.weight"])

        def project(kind: str, heads: int, own=own, seen=seen) -> Tensor:
            out = seen @ own[f"self_attn.{kind}_proj.weight"].T + own[f"self_attn.{kind}_proj.bias"]
            return out.reshape(length, heads, -1).transpose(0, 1)

        q, k = turn(project("q", HEADS), places), turn(project("k", KEY_HEADS), places)
        v = project("v", KEY_HEADS)
        k, v = (part.repeat_interleave(HEADS // KEY_HEADS, 0) for part in (k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + mixed.transpose(0, 1).reshape(length, width) @ own["self_attn.o_proj.weight"].T
        seen = rms(x, own["post_attention_layernorm.weight"])
        gate = F.silu(seen @ own["mlp.gate_proj.weight"].T) * (seen @ own["mlp.up_proj.weight"].T)
        x = x + gate @ own["mlp.down_proj.weight"].T
    return rms(x, weights["model.norm.weight"].to(x.dtype))
