"""A diffusers pipeline from a config: the built-in one, a local folder, or a Hub id.

Weights are safetensors and nothing from the folder is ever run.
"""

from __future__ import annotations

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from flowalign.config.schema import ModelConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
