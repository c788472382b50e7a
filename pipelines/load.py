"""A diffusers pipeline from a config: the built-in one, a local folder, or a Hub id.

Weights are safetensors and nothing from the folder is ever run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from flowalign.config.schema import ModelConfig
from flowalign.pipelines import flux2
from flowalign.pipelines.arguments import Arguments, call_arguments
from flowalign.pipelines.proof import prove
from flowalign.pipelines.traced import TracedGenerator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def unchanged(pipe: DiffusionPipeline, arguments: Arguments) -> Callable[[Tensor], Tensor]:
    """Most pipelines take the loop's own latents."""
    return lambda x: x


PACK = {"Flux2Pipeline": flux2.unpacked, "Flux2KleinPipeline": flux2.unpacked}


def load_pipeline(config: ModelConfig, device: str | torch.device) -> DiffusionPipeline:
    """Load the pipeline that `config` names onto `device`, frozen and in evaluation mode."""
    folder = config.name
    missing = {}
    if config.name == "shapes":
        from flowalign.worlds.shapes.models import sd3_path

        folder, missing = sd3_path(), {"text_encoder_3": None, "tokenizer_3": None}
    pipe = DiffusionPipeline.from_pretrained(
        folder,
        revision=config.revision,
        torch_dtype=DTYPES[config.dtype],
        use_safetensors=True,
        **missing,
    )
    return pipe.to(device)


def make_generator(
    pipe: DiffusionPipeline, config: ModelConfig, *, guidance_scale: float | None = None
) -> TracedGenerator:
    """A proved generator of `pipe`, called as `config` says.

    `guidance_scale` overrides the config's, for evaluation. A Cond belongs to the generator that
    encoded it, because a guided one also holds what stands for the empty prompt.

    Raises:
        ConfigError: an argument does not fit the class, or the proof failed.
    """
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    arguments = call_arguments(pipe, config, scale)
    pack = PACK.get(type(pipe).__name__, unchanged)(pipe, arguments)
    generator = TracedGenerator(pipe, arguments=arguments, pack=pack, rate=None)
    prove(generator, num_steps=3)
    return generator
