"""CLIP's forward pass in plain torch, in float64, from its paper and a dict of weights.

An independent computation to hold transformers and open_clip against. Letters: B pictures or
prompts, L tokens, W width, A heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def cosines(weights: Weights, pixels: Tensor, tokens: Tensor, *, heads: int, end: int) -> Tensor:
    """(B,) cosines of pixels (B, 3, s, s) and token ids (B, L)."""
    exact = {name: value.double() for name, value in weights.items()}
    image = picture_features(exact, pixels.double(), heads=heads)
    text = text_features(exact, tokens, heads=heads, end=end)
    return (image * text).sum(1) / (image.norm(dim=1) * text.norm(dim=1))


def picture_features(weights: Weights, pixels: Tensor, *, heads: int) -> Tensor:
    """Patches and a class token, pre-norm blocks, the class token's projection."""
    kernel = weights["vision_model.embeddings.patch_embedding.weight"]
    size = kernel.shape[-1]
    patches = pixels.unfold(2, size, size).unfold(3, size, size)  # (B, 3, h, w, size, size)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, hw, 3 size^2)
    x = patches @ kernel.flatten(1).T
    first = weights["vision_model.embeddings.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + weights["vision_model.embeddings.position_embedding.weight"]
    x = norm(x, weights, "vision_model.pre_layrnorm")
    x = blocks(x, weights, "vision_model", heads, mask=None)
    pooled = norm(x[:, 0], weights, "vision_model.post_layernorm")
    return pooled @ weights["visual_projection.weight"].T


def text_features(weights: Weights, tokens: Tensor, *, heads: int, end: int) -> Tensor:
    """Causal blocks, the projection of the first end-of-text token."""
    x = weights["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + weights["text_model.embeddings.position_embedding.weight"][: tokens.shape[1]]
    length = tokens.shape[1]
    mask = torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
    x = norm(blocks(x, weights, "text_model", heads, mask), weights, "text_model.final_layer_norm")
    last = (tokens == end).int().argmax(1)
    return x[torch.arange(len(x)), last] @ weights["text_projection.weight"].T


def blocks(x: Tensor, weights: Weights, tower: str, heads: int, mask: Tensor | None) -> Tensor:
    layer = 0
    while f"{tower}.encoder.layers.{layer}.layer_norm1.weight" in weights:
        at = f"{tower}.encoder.layers.{layer}"
        x = x + attention(norm(x, weights, f"{at}.layer_norm1"), weights, at, heads, mask)
        hidden = linear(norm(x, weights, f"{at}.layer_norm2"), weights, f"{at}.mlp.fc1")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), weights, f"{at}.mlp.fc2")
        layer += 1
    return x


def attention(x: Tensor, weights: Weights, at: str, heads: int, mask: Tensor | None) -> Tensor:
    q, k, v = (
        linear(x, weights, f"{at}.self_attn.{name}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
        for name in "qkv"
    )  # (B, A, L, W / A)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    shares = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return linear((shares @ v).transpose(1, 2).flatten(2), weights, f"{at}.self_attn.out_proj")


def linear(x: Tensor, weights: Weights, at: str) -> Tensor:
    return x @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]


def norm(x: Tensor, weights: Weights, at: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{at}.weight"] + weights[f"{at}.bias"]
