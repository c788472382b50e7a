"""LAION aesthetics: how much people like a picture, whatever it shows.

Measures   a small head on CLIP's unit picture features, trained on ratings of 1 to 10 (Simulacra
           Aesthetic Captions, LAION-Logos, AVA). The prompt is not read. Easily pleased by
           saturation and one style: train with a KL term and a second reward.
Range      nominally 1 to 10; generated pictures reach 4.5 to 7, higher is better. No hard limits.
Source     LAION-Aesthetics predictor v2 (in LAION-5B, arXiv 2210.08402): 768-1024-128-64-16-1, all
           layers linear; its dropout acts in training only.
Licence    Apache-2.0 (head), MIT (OpenAI's CLIP).
Checkpoint `model`: openai/clip-vit-large-patch14. `head`: a safetensors file with
           `layers.{0,2,4,6,7}.{weight,bias}`: the tensors of sac+logos+ava1-l14-linearMSE.pth under
           their own names, saved once in a place you trust; pickles are never read here. Other
           widths and numbers of layers are taken as the file has them.
Differentiable: yes, in the pixels. Group-only: no.
Cost       one ViT-L/14 pass a picture; the head is free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowalign.config.rewards import AestheticReward
from flowalign.errors import CheckpointError
from flowalign.exemplars import unit_picture_features
from flowalign.pretrained import read_tensors
from flowalign.rewards.clip import load_towers
from flowalign.similarity import PictureTower
from flowalign.types import Modality, Sample

Layers = Sequence[tuple[Tensor, Tensor]]  # (weight (out, in), bias (out,)) of each layer
_NAME = re.compile(r"layers\.(\d+)\.(weight|bias)")


@dataclass(frozen=True, kw_only=True, slots=True)
class AestheticScore:
    """head(picture features of length 1)."""

    tower: PictureTower
    head: Layers
    name: str = "aesthetic"
    modality: Modality = "image"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (-torch.inf, torch.inf)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(scores (N,), valid (N,)); valid everywhere, keeps the gradient of the media."""
        seen = unit_picture_features(self.tower, [sample.media for sample in samples])
        return apply_head(self.head, seen), torch.ones(len(samples), dtype=torch.bool)


def apply_head(head: Layers, features: Tensor) -> Tensor:
    """(N,) of features (N, D): x W^T + b, layer after layer."""
    x = features
    for weight, bias in head:
        x = x @ weight.T + bias
    return x.squeeze(-1)


def read_head(path: Path, width: int) -> Layers:
    """The layers of a head for features of `width`, float32 on the CPU."""
    where = f"reward `aesthetic`, head `{path}`"
    return head_of(read_tensors(path, where), width, where)


def head_of(tensors: Mapping[str, Tensor], width: int, where: str) -> Layers:
    """The layers of a head for features of `width`, in float32, from its tensors."""
    numbers = sorted({int(found[1]) for name in tensors if (found := _NAME.fullmatch(name))})
    names = {f"layers.{number}.{kind}" for number in numbers for kind in ("weight", "bias")}
    if not numbers or names != set(tensors):
        seen = ", ".join(sorted(tensors)[:4])
        fix = "give layers.0.weight, layers.0.bias, ... of the head and nothing else"
        raise CheckpointError("CKPT-MODEL", where, f"is no such head, it holds {seen}", fix)
    head = [
        (tensors[f"layers.{n}.weight"].float(), tensors[f"layers.{n}.bias"].float())
        for n in numbers
    ]
    for weight, bias in head:
        if weight.ndim != 2 or weight.shape != (*bias.shape, width):
            what = f"a layer of shape {tuple(weight.shape)} cannot follow {width} features"
            fix = "use the model for which the head was trained, and all layers of the head"
            raise CheckpointError("CKPT-SHAPE", where, what, fix)
        width = len(weight)
    if width != 1:
        fix = "give all layers of the head"
        raise CheckpointError("CKPT-SHAPE", where, f"ends in {width} numbers, not in one", fix)
    return head


def from_config(config: AestheticReward, *, device: torch.device) -> AestheticScore:
    """The reward of a config."""
    towers = load_towers(
        config.model,
        config.revision or "main",
        device,
        attention=config.attention,
        reward="aesthetic",
    )
    head = read_head(Path(config.head), towers.model.visual_projection.out_features)
    return AestheticScore(tower=towers, head=head)
