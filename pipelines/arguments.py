"""The keyword arguments with which a pipeline is called, from the model's config."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available

from flowalign.config.schema import ModelConfig
from flowalign.errors import ConfigError

OURS = ("prompt", "latents", "generator", "num_inference_steps", "output_type", "return_dict")
PER_PROMPT = ("negative_prompt", "lyrics")  # texts, of which each prompt needs its own
SPATIAL = (
    "vae_scale_factor",
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
)
TEMPORAL = (
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arguments:
    """`every` is given to each call as it is, `per_prompt` as a list with one entry per prompt."""

    every: Mapping[str, Any]
    per_prompt: Mapping[str, Any]


def call_arguments(
    pipe: DiffusionPipeline, config: ModelConfig, guidance_scale: float
) -> Arguments:
    """Arguments for guidance, size and whatever `config.call` adds.

    Raises:
        ConfigError: the class has no such argument, or the size does not fit its autoencoder.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    every: dict[str, Any] = {}
    if "use_resolution_binning" in parameters:
        every["use_resolution_binning"] = False  # it would decode to another size
    if "clean_caption" in parameters and not (is_bs4_available() and is_ftfy_available()):
        every["clean_caption"] = False  # the pipeline would do so itself, with a warning each time
    per_prompt = guide(pipe, parameters, guidance_scale, every)
    if config.resolution is not None:
        check_resolution(pipe, parameters, config.resolution)
        every |= {"height": config.resolution, "width": config.resolution}
    if config.num_frames is not None:
        check_frames(pipe, parameters, config.num_frames)
        every["num_frames"] = config.num_frames
    if config.name == "shapes":
        every["max_sequence_length"] = 0  # else 256 zero tokens stand in for the absent T5
    for name, value in config.call.items():
        check_argument(pipe, parameters, name)
        if name.startswith(PER_PROMPT):
            per_prompt[name] = value
        else:
            every[name] = value
    if "lyrics" in parameters:
        per_prompt.setdefault("lyrics", "")
    return Arguments(every=every, per_prompt=per_prompt)


def guide(
    pipe: DiffusionPipeline,
    parameters: Mapping[str, inspect.Parameter],
    scale: float,
    every: dict[str, Any],
) -> dict[str, Any]:
    """Add the guidance to `every`; returns the arguments needed per prompt.

    A pipeline with `true_cfg_scale` whose network takes no embedded guidance is guided by it.
    """
    if "true_cfg_scale" in parameters and not embeds_guidance(pipe):
        every["true_cfg_scale"] = scale
        return {"negative_prompt": ""} if scale > 1 else {}
    if "guidance_scale" not in parameters:
        raise ConfigError(
            "MODEL-GUIDANCE",
            type(pipe).__name__,
            "the class has no guidance_scale; its guidance is an object of the pipeline",
            "choose a class of `flowalign list pipelines`",
        )
    every["guidance_scale"] = scale
    return {}


def embeds_guidance(pipe: DiffusionPipeline) -> bool:
    """Whether the network takes the guidance scale as an input (guidance distillation)."""
    transformer = pipe.components.get("transformer")
    return transformer is not None and bool(transformer.config.get("guidance_embeds", False))


def check_resolution(
    pipe: DiffusionPipeline, parameters: Mapping[str, inspect.Parameter], resolution: int
) -> None:
    """Refuse a resolution that the autoencoder cannot reach."""
    if "height" not in parameters:
        raise ConfigError(
            "MODEL-RESOLUTION",
            "model.resolution",
            f"{type(pipe).__name__} has no height and width",
            "leave it out",
        )
    factor = factor_of(pipe, SPATIAL)
    if resolution % factor:
        low = resolution // factor * factor
        nearest = " or ".join(str(n) for n in (low, low + factor) if n > 0)
        raise ConfigError(
            "MODEL-RESOLUTION",
            "model.resolution",
            f"{resolution} is not a multiple of {factor}, the factor of the autoencoder",
            f"use {nearest}",
        )


def check_frames(
    pipe: DiffusionPipeline, parameters: Mapping[str, inspect.Parameter], num_frames: int
) -> None:
    """Refuse a number of frames that the autoencoder cannot reach: 1 + n times its factor."""
    if "num_frames" not in parameters:
        raise ConfigError(
            "MODEL-FRAMES",
            "model.num_frames",
            f"{type(pipe).__name__} makes no video",
            "leave it out",
        )
    factor = factor_of(pipe, TEMPORAL)
    if (num_frames - 1) % factor:
        low = (num_frames - 1) // factor * factor + 1
        raise ConfigError(
            "MODEL-FRAMES",
            "model.num_frames",
            f"{num_frames} is not 1 plus a multiple of {factor}, the autoencoder's factor in time",
            f"use {low} or {low + factor}",
        )


def factor_of(pipe: DiffusionPipeline, names: tuple[str, ...]) -> int:
    """The pipeline's compression factor under whichever name it has; 1 where it has none."""
    members = vars(pipe)
    return next((int(members[name]) for name in names if name in members), 1)


def check_argument(
    pipe: DiffusionPipeline, parameters: Mapping[str, inspect.Parameter], name: str
) -> None:
    """Refuse an argument that the call does not have or that is ours to set."""
    if name in OURS:
        raise ConfigError(
            "MODEL-CALL", f"model.call.{name}", "the argument is set by flowalign", "leave it out"
        )
    if name not in parameters:
        near = difflib.get_close_matches(name, list(parameters), n=1, cutoff=0.0)[0]
        raise ConfigError(
            "MODEL-CALL",
            f"model.call.{name}",
            f"{type(pipe).__name__} takes no such argument",
            f"did you mean {near}?",
        )
