"""A random BLIP with ImageReward's head under the released names, and its mathematics in plain
torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

WIDTH, TEXT_WIDTH, INNER, PATCH, SIDE, DEPTH = 128, 64, 96, 8, 32, 2
HEAD_PLACES = (0, 2, 4, 6, 7)
HEAD_WIDTHS = (TEXT_WIDTH, 32, 16, 8, 4, 1)
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "and",
    "on",
    "white",
    "some",
    "quite",
    "other",
    "thing",
]


def write_tokenizer(folder: Path) -> Path:
    """Words in lower case between [CLS] and [SEP], as BERT's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    level = Tokenizer(models.WordLevel(vocab=words, unk_token="[UNK]"))
    level.normalizer = normalizers.Lowercase()
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    level.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    return folder


def released_tensors() -> dict[str, Tensor]:
    """All of ImageReward.pt's names, those that no score reads among them."""
    shapes: dict[str, tuple[int, ...]] = {}
    eye, text = "blip.visual_encoder", "blip.text_encoder"
    shapes[f"{eye}.cls_token"] = (1, 1, WIDTH)
    shapes[f"{eye}.pos_embed"] = (1, (SIDE // PATCH) ** 2 + 1, WIDTH)

    def linear(name: str, out: int, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, width), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    shapes[f"{eye}.patch_embed.proj.weight"] = (WIDTH, 3, PATCH, PATCH)
    shapes[f"{eye}.patch_embed.proj.bias"] = (WIDTH,)
    norm(f"{eye}.norm", WIDTH)
    shapes[f"{text}.embeddings.word_embeddings.weight"] = (len(WORDS) + 6, TEXT_WIDTH)
    shapes[f"{text}.embeddings.position_embeddings.weight"] = (40, TEXT_WIDTH)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for n in range(DEPTH):
        block, layer = f"{eye}.blocks.{n}", f"{text}.encoder.layer.{n}"
        for name in ("norm1", "norm2"):
            norm(f"{block}.{name}", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", INNER, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, INNER)
        for kind, width in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            linear(f"{layer}.{kind}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{layer}.{kind}.self.key", TEXT_WIDTH, width)
            linear(f"{layer}.{kind}.self.value", TEXT_WIDTH, width)
            linear(f"{layer}.{kind}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{layer}.{kind}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{layer}.intermediate.dense", INNER, TEXT_WIDTH)
        linear(f"{layer}.output.dense", TEXT_WIDTH, INNER)
        norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    linear("blip.vision_proj", 4, WIDTH)
    linear("blip.text_proj", 4, TEXT_WIDTH)
    for place, (width, out) in zip(HEAD_PLACES, pairwise(HEAD_WIDTHS), strict=True):
        linear(f"mlp.layers.{place}", out, width)
    generator = torch.Generator().manual_seed(4)
    tensors = {n: 0.3 * torch.randn(*s, generator=generator) for n, s in shapes.items()}
    for name in tensors:
        if "norm" in name.lower() and name.endswith("weight"):
            tensors[name] += 1.0
    tensors[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    return tensors


def write_image_reward(path: Path) -> Path:
    save_file(released_tensors(), path)
    return path


def plain_score(all_weights: Mapping[str, Tensor], pixels: Tensor, ids: Tensor) -> Tensor:
    """z of preprocessed pixels (3, s, s) and tokens (L,) without padding, in plain float64."""
    w = {name: tensor.double() for name, tensor in all_weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.reshape(len(part), -1, 64).transpose(0, 1) for part in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / 8.0).softmax(-1) @ v
        return mixed.transpose(0, 1).reshape(mixed.shape[1], -1)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    cut = pixels.double().unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # (3, r, c, p, p)
    cut = cut.permute(1, 2, 0, 3, 4).reshape(-1, 3 * PATCH**2)
    kernel = w[f"{eye}.patch_embed.proj.weight"].reshape(WIDTH, -1)
    x = cut @ kernel.T + w[f"{eye}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{eye}.cls_token"][0], x]) + w[f"{eye}.pos_embed"][0]
    for n in range(DEPTH):
        block = f"{eye}.blocks.{n}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v), f"{block}.attn.proj")
        seen = F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1"))
        x = x + linear(seen, f"{block}.mlp.fc2")
    picture = norm(x, f"{eye}.norm", 1e-6)
    h = w[f"{text}.embeddings.word_embeddings.weight"][ids]
    h = h + w[f"{text}.embeddings.position_embeddings.weight"][: len(ids)]
    h = norm(h, f"{text}.embeddings.LayerNorm", 1e-12)
    for n in range(DEPTH):
        layer = f"{text}.encoder.layer.{n}"
        for kind in ("attention", "crossattention"):
            own = f"{layer}.{kind}"
            source = h if kind == "attention" else picture
            q, k, v = (
                linear(part, f"{own}.self.{name}")
                for part, name in ((h, "query"), (source, "key"), (source, "value"))
            )
            out = linear(attend(q, k, v), f"{own}.output.dense")
            h = norm(h + out, f"{own}.output.LayerNorm", 1e-12)
        inner = F.gelu(linear(h, f"{layer}.intermediate.dense"))
        out = linear(inner, f"{layer}.output.dense")
        h = norm(h + out, f"{layer}.output.LayerNorm", 1e-12)
    z = h[0]
    for place in HEAD_PLACES:
        z = linear(z, f"mlp.layers.{place}")
    return z[0]
