"""Frozen models of rewards in transformers' format: safetensors only, no code, nothing random."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from flowalign.config.attention import TowerAttention
from flowalign.errors import CheckpointError, SecurityError
from flowalign.model_files import PICKLED, check_model_folder, check_weights_file
from flowalign.progress_bars import hidden_bars
from flowalign.similarity import Preprocessing

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def model_source(model: str, where: str) -> str:
    """A folder that was checked, or a Hub id."""
    folder = Path(model)
    if folder.is_dir():
        check_model_folder(folder)
        return str(folder)
    if not _HUB_ID.fullmatch(model):
        what = "no such folder, and not a Hub id `owner/name`"
        raise CheckpointError("CKPT-MISSING", where, what, "name a folder or a Hub id")
    return model


@contextmanager
def readable(where: str, kind: str) -> Iterator[None]:
    """What fails inside is told as a model that is not `kind` ("a CLIP")."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        what = f"cannot be read as {kind}: {str(error).strip().splitlines()[0][:200]}"
        fix = f"name a folder or Hub id of {kind} of transformers in safetensors"
        raise CheckpointError("CKPT-MODEL", where, what, fix) from error


def model_type(source: str, revision: str, where: str, kind: str) -> str:
    """transformers' name of the architecture."""
    with readable(where, kind):
        return AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False
        ).model_type


def frozen_model(
    architecture: Any,  # a class of transformers with `from_pretrained`
    source: str,
    *,
    revision: str,
    where: str,
    kind: str,
    device: torch.device,
    attention: TowerAttention,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The model, whole, without gradients of its weights."""
    with readable(where, kind), hidden_bars():
        loaded, report = architecture.from_pretrained(
            source,
            revision=revision,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,  # makes it a pair
        )
    if absent := sorted(report["missing_keys"]):
        # transformers would go on with random numbers in their place.
        what = f"is no whole model: {len(absent)} weights are missing, for example `{absent[0]}`"
        fix = f"name a folder or Hub id of {kind} of transformers in safetensors"
        raise CheckpointError("CKPT-MODEL", where, what, fix)
    loaded.requires_grad_(False).eval()
    return torch.nn.Module.to(loaded, device)  # PreTrainedModel.to hides its signature


def read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of the files of a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        if any(file.suffix in PICKLED for file in path.iterdir()):
            fix = "convert them to safetensors in a place you trust"
            raise SecurityError("SEC-PICKLE", where, "its weights can run code", fix)
        what = "no safetensors file in this folder"
        raise CheckpointError("CKPT-MISSING", where, what, "correct the path")
    tensors: dict[str, Tensor] = {}
    for file in files:
        check_weights_file(file)
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            what = f"cannot be read: {str(error).splitlines()[0][:200]}"
            raise CheckpointError("CKPT-MODEL", where, what, "save it again") from error
    return tensors


def model_of_tensors(
    architecture: Any,  # a class of transformers with `from_pretrained`
    sizes: Any,  # its config
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    where: str,
    kind: str,
    fix: str,
    attention: TowerAttention = "sdpa",
) -> Any:
    """The model of exactly these tensors on the CPU, without gradients of its weights."""
    with readable(where, kind), hidden_bars():
        loaded, report = architecture.from_pretrained(
            None,
            config=sizes,
            state_dict=dict(tensors),
            dtype=dtype,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,  # told below, with the name
            output_loading_info=True,  # makes it a pair
        )
    for name, seen, wanted in sorted(report["mismatched_keys"]):
        what = f"`{name}` has shape {tuple(seen)}, {kind} of this size wants {tuple(wanted)}"
        raise CheckpointError("CKPT-SHAPE", where, what, fix)
    for key, word in (("missing_keys", "missing"), ("unexpected_keys", "unknown")):
        if names := sorted(report[key]):
            what = f"{len(names)} weights are {word}, for example `{names[0]}`"
            raise CheckpointError("CKPT-MODEL", where, what, fix)
    return loaded.requires_grad_(False).eval()


def preprocessing_of(processor: Any) -> Preprocessing:
    """Sides, mean, std and filter as a checkpoint's own image processor has them.

    Raises ValueError for what `Preprocessing` cannot do.
    """
    size = processor.size
    if int(processor.resample) not in _INTERPOLATIONS:
        raise ValueError(f"its pictures are resized by filter {int(processor.resample)}")
    shortest = size["shortest_edge"]
    if not shortest and size["height"] != size["width"]:
        raise ValueError("its pictures are not square")
    side = shortest or size["height"]
    if shortest and getattr(processor, "do_center_crop", False):
        side = processor.crop_size["height"]
    return Preprocessing(
        side=side,
        short=shortest or None,
        resize="shortest" if shortest else "squash",
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation=_INTERPOLATIONS[int(processor.resample)],  # type: ignore[arg-type]
    )
