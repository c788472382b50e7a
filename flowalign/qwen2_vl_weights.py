"""Reads a Qwen2-VL with a reward head: safetensors only, under the names of any release.

The backbone's own repository gives sizes, tokenizer and preprocessing; `weights` gives every
weight. Names of transformers before 4.52 (`visual.`, `model.`), after (`model.visual.`,
`model.language_model.`) and of peft (`base_model.model.`, adapters beside their base weights) are
understood. Nothing is left random: what is absent, of wrong shape or unknown is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, Qwen2VLModel

from flowalign.config.rewards_heads import QwenHeadBase
from flowalign.errors import CheckpointError
from flowalign.pretrained import model_of_tensors, model_source, read_tensors, readable
from flowalign.qwen2_vl import IMAGE, VIDEO, QwenReader, Vision

KIND = "a Qwen2-VL"
FIX = "give the weights of this reward, and as `model` the backbone it was trained on"
HEAD = "rm_head."
EMBEDDING = "language_model.embed_tokens.weight"
_PREFIXES = (  # first match wins
    ("model.visual.", "visual."),
    ("visual.", "visual."),
    ("model.language_model.", "language_model."),
    ("language_model.", "language_model."),
    ("model.", "language_model."),
    (HEAD, HEAD),
)
_ADAPTER = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def plain_names(tensors: Mapping[str, Tensor], *, lora_alpha: float) -> dict[str, Tensor]:
    """The tensors under the names of `Qwen2VLModel` and `rm_head.`, adapters merged.

    W + (alpha / rank) B A (LoRA, arXiv 2106.09685), in float32. The language head is left out.
    """
    found: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        own = own.replace(".modules_to_save.default.", ".")
        if own.startswith("lm_head.") or ".original_module." in own:
            continue
        own = next((new + own[len(old) :] for old, new in _PREFIXES if own.startswith(old)), own)
        if match := _ADAPTER.fullmatch(own):
            adapters.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor.float()
        else:
            found[own] = tensor
    for name, pair in adapters.items():
        if name not in found or set(pair) != {"A", "B"}:
            found[f"{name} (adapter)"] = torch.zeros(0)  # told as an unknown name
            continue
        change = lora_alpha / len(pair["A"]) * pair["B"] @ pair["A"]
        found[name] = (found[name].float() + change).to(found[name].dtype)
    return found


def head_layers(tensors: Mapping[str, Tensor], widths: Sequence[int], where: str) -> list[Tensor]:
    """The head's tensors in float32, weight and bias in turn: linear layers of `widths`.

    `rm_head.weight` of a single layer without bias, or `rm_head.N.weight` and `rm_head.N.bias`.
    """
    names = [HEAD + "weight"]
    if len(widths) > 2:
        numbers = sorted({int(n[1]) for n in map(_layer, tensors) if n})
        names = [f"{HEAD}{n}.{kind}" for n in numbers for kind in ("weight", "bias")]
    shapes = [tuple(tensors[name].shape) for name in names if name in tensors]
    expected = [(b, a) for a, b in pairwise(widths)]
    if len(widths) > 2:
        expected = [shape for out, width in expected for shape in ((out, width), (out,))]
    if shapes != expected or {n for n in tensors if n.startswith(HEAD)} != set(names):
        what = f"its head has shapes {shapes or 'none'}, expected {expected}"
        raise CheckpointError("CKPT-SHAPE", where, what, FIX)
    return [tensors[name].float() for name in names]


def _layer(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"rm_head\.(\d+)\.(?:weight|bias)", name)


def read_model(
    config: QwenHeadBase,
    model: str,
    tokens: tuple[str, ...],
    *,
    reward: str,
    device: torch.device,
) -> tuple[QwenReader, dict[str, Tensor]]:
    """The reader and the tensors of the head; `tokens` are added to the tokenizer in this order."""
    where = f"reward `{reward}`, model `{model}`"
    source = model_source(model, where)
    given: dict[str, Any] = {"revision": config.revision or "main", "trust_remote_code": False}
    with readable(where, KIND):
        sizes = AutoConfig.from_pretrained(source, **given)
        if sizes.model_type != "qwen2_vl":
            raise ValueError(f"its architecture is {sizes.model_type}")
        tokenizer = AutoTokenizer.from_pretrained(source, **given)
        pictures = AutoImageProcessor.from_pretrained(source, **given)
        vision = Vision(
            patch=sizes.vision_config.patch_size,
            merge=sizes.vision_config.spatial_merge_size,
            temporal=sizes.vision_config.temporal_patch_size,
            mean=tuple(pictures.image_mean),
            std=tuple(pictures.image_std),
        )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*tokens]}, replace_extra_special_tokens=False
    )
    where = f"reward `{reward}`, weights `{config.weights}`"
    tensors = plain_names(read_tensors(Path(config.weights), where), lora_alpha=config.lora_alpha)
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    body = {name: tensor for name, tensor in tensors.items() if name not in head}
    _check_vocabulary(tokenizer, tokens, body, where)
    sizes.text_config.vocab_size = len(body[EMBEDDING])
    loaded = model_of_tensors(
        Qwen2VLModel,
        sizes,
        body,
        dtype=DTYPES[config.dtype],
        where=where,
        kind=KIND,
        fix=FIX,
        attention=config.attention,
    )
    reader = QwenReader(
        model=loaded.to(device),
        tokenizer=tokenizer,
        vision=vision,
        tokens=tokens,
        positions=config.positions,
        device=device,
    )
    return reader, {name: tensor.to(device) for name, tensor in head.items()}


def _check_vocabulary(
    tokenizer: Any, tokens: tuple[str, ...], body: Mapping[str, Tensor], where: str
) -> None:
    """The embedding has a row for each token that will be read."""
    if EMBEDDING not in body:
        what = f"has no `{EMBEDDING}`, so it is no Qwen2-VL"
        raise CheckpointError("CKPT-MODEL", where, what, FIX)
    ids = tokenizer.convert_tokens_to_ids([*tokens, IMAGE, VIDEO])
    if None in ids or max(ids) >= len(body[EMBEDDING]):
        what = f"embeds {len(body[EMBEDDING])} tokens, but those of the reward have ids {ids}"
        raise CheckpointError("CKPT-SHAPE", where, what, FIX)
