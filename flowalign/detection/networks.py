"""Detection networks: torchvision's by name, transformers' by folder or Hub id. No code is run.

Every picture is seen alone: networks that pad a batch to its largest picture see others otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import detection as torchvision_detection
from torchvision.models import get_model, get_model_weights, list_models
from transformers import AutoImageProcessor, AutoModelForObjectDetection, PreTrainedModel

from flowalign.config.suggest import did_you_mean
from flowalign.detection.objects import Found
from flowalign.errors import CheckpointError, ConfigError, ResourceError
from flowalign.media import to_uint8
from flowalign.model_files import check_weights_file
from flowalign.pretrained import frozen_model, model_source, readable

KIND = "an object detector"
LEAST = 0.05  # confidence below which nothing is worth handing on
PIXEL = 0.5  # probability above which a pixel is the object's


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchvisionDetector:
    """A detection model of torchvision, maybe with masks (Mask R-CNN)."""

    model: torch.nn.Module
    names: Sequence[str]  # label of each class number
    device: torch.device

    @property
    def labels(self) -> frozenset[str]:
        """Every label that it can give."""
        return frozenset(self.names)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Tensor]) -> list[list[Found]]:
        """The objects in each picture."""
        return [self._objects(picture) for picture in pictures]

    def _objects(self, picture: Tensor) -> list[Found]:
        answer: Mapping[str, Tensor] = self.model([picture.to(self.device).float()])[0]
        masks = answer["masks"][:, 0].cpu() > PIXEL if "masks" in answer else None
        rows = zip(answer["boxes"].tolist(), answer["scores"].tolist(), strict=True)
        return [
            Found(
                label=self.names[int(answer["labels"][row])],
                box=tuple(box),
                score=score,
                mask=None if masks is None else masks[row],
            )
            for row, (box, score) in enumerate(rows)
            if score > LEAST
        ]


def torchvision_detector(name: str, weights: Path, device: torch.device) -> TorchvisionDetector:
    """`name` of torchvision's detection models with the tensors of a safetensors file.

    The classes are the 91 numbers of COCO, as torchvision's own weights have them.
    """
    where = f"reward `geneval`, torchvision model `{name}`"
    known = list_models(module=torchvision_detection)
    if name not in known or "categories" not in next(iter(get_model_weights(name))).meta:
        raise ConfigError("CFG-VALUE", where, "is no detector", did_you_mean(name, known))
    check_weights_file(weights)
    names = next(iter(get_model_weights(name))).meta["categories"]
    model = get_model(name, weights=None, weights_backbone=None, num_classes=len(names))
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        what = f"`{weights}` does not fit: {str(error).strip().splitlines()[-1].strip()[:200]}"
        fix = "save the state dict of this very model as safetensors"
        raise CheckpointError("CKPT-SHAPE", where, what, fix) from error
    return TorchvisionDetector(
        model=model.requires_grad_(False).eval().to(device), names=names, device=device
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersDetector:
    """A detector of transformers (DETR, YOLOS, RT-DETR, ...) with its own preparation."""

    model: PreTrainedModel
    processor: Any  # an image processor with `post_process_object_detection`; no common type
    names: Mapping[int, str]
    device: torch.device

    @property
    def labels(self) -> frozenset[str]:
        """Every label that it can give."""
        return frozenset(self.names.values())

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Tensor]) -> list[list[Found]]:
        """The objects in each picture, which it sees in 8 bits as a file would hold it."""
        return [self._objects(picture) for picture in pictures]

    def _objects(self, picture: Tensor) -> list[Found]:
        inputs = self.processor(images=[to_uint8(picture)], return_tensors="pt").to(self.device)
        answer = self.processor.post_process_object_detection(
            self.model(**inputs), threshold=LEAST, target_sizes=[tuple(picture.shape[-2:])]
        )[0]
        rows = zip(answer["boxes"], answer["scores"], answer["labels"], strict=True)
        return [
            Found(label=self.names[int(label)], box=tuple(box.tolist()), score=float(score))
            for box, score, label in rows
        ]


def transformers_detector(
    name: str, revision: str | None, device: torch.device
) -> TransformersDetector:
    """Read a detector from a folder or the Hub: safetensors only, no code."""
    where = f"reward `geneval`, model `{name}`"
    source, commit = model_source(name, where), revision or "main"
    try:
        model = frozen_model(
            AutoModelForObjectDetection,
            source,
            revision=commit,
            where=where,
            kind=KIND,
            device=device,
            attention="eager",  # the one that every architecture has
        )
    except ImportError as error:  # the first DETRs have their backbone from timm
        what = f"needs a package that is missing: {str(error).strip().splitlines()[0][:200]}"
        fix = "pip install timm, or name a detector without it, such as a YOLOS or an RT-DETR"
        raise ResourceError("ENV-PACKAGE", where, what, fix) from error
    with readable(where, KIND):
        processor = AutoImageProcessor.from_pretrained(
            source, revision=commit, trust_remote_code=False
        )
    return TransformersDetector(
        model=model, processor=processor, names=model.config.id2label, device=device
    )
