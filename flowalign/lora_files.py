"""LoRA weights as files: what plain `pipe.load_lora_weights(folder)` reads, for every class.

One safetensors file per denoiser, keys `<component>.<layer>.lora_A.weight`, rank and alpha in the
metadata that diffusers knows. Classes that have no `load_lora_weights` get the same file, and
`import_lora` reads it. Our own metadata names the base model by a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowalign.errors import CheckpointError, SecurityError
from flowalign.lora import (
    ADAPTER,
    check_names,
    inject,
    load_lora_state,
    lora_parameters,
    lora_state,
    named_layers,
    pattern,
)

DENOISERS = ("transformer", "transformer_2", "unet")
WEIGHTS = {
    "transformer": "pytorch_lora_weights.safetensors",
    "unet": "pytorch_lora_weights.safetensors",
    "transformer_2": "pytorch_lora_weights_2.safetensors",
}
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
DIFFUSERS_KEY, OUR_KEY = "lora_adapter_metadata", "flowalign"
FINGERPRINT_VALUES = 32  # of each weight

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The weights of one denoiser: `<layer>.lora_A` and `<layer>.lora_B`."""

    state: Mapping[str, Tensor]
    rank: int
    alpha: float
    base: str | None  # fingerprint, None in files of other programs


def denoisers_of(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks that are trained, by the name of the component."""
    components = pipe.components
    found = {name: components.get(name) for name in DENOISERS}
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def export_lora(pipe: DiffusionPipeline, folder: str | Path) -> Path:
    """Write the adapter's weights to `folder`, and return it.

    `pipe.load_lora_weights(folder)` reads them; the second expert of a pipeline is read with
    `weight_name="pytorch_lora_weights_2.safetensors", load_into_transformer_2=True`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for component, module in denoisers_of(pipe).items():
        layers = dict(named_layers([module]))
        assert layers, f"{component} has no adapter"
        first = next(iter(layers.values()))
        prefix = "unet" if component == "unet" else "transformer"  # also for the second expert
        config = {
            f"{prefix}.r": first.r[ADAPTER],
            f"{prefix}.lora_alpha": first.lora_alpha[ADAPTER],
            f"{prefix}.target_modules": pattern([name.removeprefix("0.") for name in layers]),
        }
        ours = {"class": type(pipe).__name__, "base": fingerprint(module)}
        state = {
            f"{prefix}.{name.removeprefix('0.')}.weight": value.to("cpu").contiguous()
            for name, value in lora_state([module]).items()
        }
        metadata = {
            "format": "pt",
            DIFFUSERS_KEY: json.dumps(config, sort_keys=True),
            OUR_KEY: json.dumps(ours, sort_keys=True),
        }
        file = folder / WEIGHTS[component]
        partial = file.with_suffix(".partial")
        save_file(state, partial, metadata=metadata)
        partial.replace(file)  # a reader of the old file keeps it
    return folder


def import_lora(pipe: DiffusionPipeline, path: str | Path) -> None:
    """Load the adapter in `path`, a folder of `export_lora` or a safetensors file.

    A model without an adapter gets one of the file's rank; one that has an adapter must fit.

    Raises:
        CheckpointError: files are missing or damaged, names or shapes differ, values are not
            finite, or the adapter was trained on another base.
        SecurityError: the weights are a pickle, which runs code when it is read.
    """
    path = Path(path)
    modules = denoisers_of(pipe)
    for component, module in modules.items():
        file = weights_file(path, component)
        part = read_part(file)
        if part.base is not None and part.base != fingerprint(module):
            raise CheckpointError(
                "LORA-BASE",
                str(file),
                "the adapter was trained on another base model (its fingerprint differs)",
                "load it onto the model and revision it was trained on",
            )
        if not named_layers([module]):
            names = sorted({key.rpartition(".")[0] for key in part.state})
            linear = {n for n, layer in module.named_modules() if isinstance(layer, nn.Linear)}
            check_names(dict.fromkeys(linear & set(names)), dict.fromkeys(names))
            inject(module, names, rank=part.rank, alpha=part.alpha)
        load_lora_state([module], {f"0.{key}": value for key, value in part.state.items()})
    if all(not bool(b.any()) for b in all_b(list(modules.values()))):
        log.warning("the adapter %s has no effect: all of its B weights are zero", path)


def all_b(modules: list[nn.Module]) -> list[Tensor]:
    """The weights B of all layers."""
    return [value for name, value in lora_parameters(modules).items() if name.endswith("lora_B")]


def weights_file(path: Path, component: str) -> Path:
    """The file of a component in a folder, or the file that was named."""
    if path.suffix in PICKLES:
        raise SecurityError(
            "LORA-PICKLE",
            str(path),
            "the file is a pickle, which can run code when it is read",
            "convert it to safetensors where it came from",
        )
    second = component == "transformer_2"
    if path.is_file() and not second:
        return path
    file = (path.parent if path.is_file() else path) / WEIGHTS[component]
    if file.is_file():
        return file
    if path.is_dir() and any(other.suffix in PICKLES for other in path.iterdir()):
        raise SecurityError(
            "LORA-PICKLE",
            str(path),
            "the folder holds pickled weights only, which can run code when they are read",
            "convert them to safetensors where they came from",
        )
    raise CheckpointError(
        "LORA-MISSING",
        str(file),
        "there is no such file",
        "name a folder written by `flowalign export`, or a .safetensors file",
    )


def read_part(file: Path) -> Part:
    """The weights and settings in one file."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            raw = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            "LORA-DAMAGED", str(file), f"not readable as safetensors ({error})", "copy it again"
        ) from None
    state = {}
    for key, value in raw.items():
        layer = key.partition(".")[2].removesuffix(".weight")
        if not key.startswith(("transformer.", "unet.")) or not layer.endswith(
            (".lora_A", ".lora_B")
        ):
            raise CheckpointError(
                "LORA-FORMAT",
                str(file),
                f"key {key!r} is not `<component>.<layer>.lora_A.weight`",
                "load it with pipe.load_lora_weights and save it with pipe.save_lora_weights",
            )
        state[layer] = value
    if not state:
        raise CheckpointError("LORA-FORMAT", str(file), "holds no weights", "export it again")
    config = {k.partition(".")[2]: v for k, v in read_json(metadata, DIFFUSERS_KEY, file).items()}
    rank = int(next(v.shape[0] for k, v in state.items() if k.endswith("lora_A")))
    return Part(
        state=state,
        rank=rank,
        alpha=float(config.get("lora_alpha", rank)),
        base=read_json(metadata, OUR_KEY, file).get("base"),
    )


def read_json(metadata: Mapping[str, str], key: str, file: Path) -> dict[str, Any]:
    """A JSON object of the file's metadata; empty where it is absent."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(
            "LORA-FORMAT", str(file), f"metadata {key!r} is broken", "export again"
        )
    return value


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and the first values of all base weights.

    Values are rounded to bfloat16, so that a model has one fingerprint in every storage type.
    """
    digest = hashlib.sha256()
    base = {
        name.replace(".base_layer.", "."): value
        for name, value in module.state_dict().items()
        if ".lora_A." not in name and ".lora_B." not in name
    }
    for name, value in sorted(base.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        few = value.flatten()[:FINGERPRINT_VALUES].to("cpu", torch.bfloat16)
        digest.update(few.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
