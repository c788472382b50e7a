"""Reading a vision-language model from the package, a folder or the Hub: safetensors, no code."""

from __future__ import annotations

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from flowalign.config.rewards_vlm import VLMBase
from flowalign.errors import CheckpointError
from flowalign.pretrained import frozen_model, model_source, readable
from flowalign.vlm.asking import VisionLanguageModel
from flowalign.vlm.tokens import yes_no_of
from flowalign.worlds.shapes.models import vlm_path

KIND = "a vision-language model"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_vlm(config: VLMBase, reward: str, device: torch.device) -> VisionLanguageModel:
    """The frozen model of a reward's config with its tokens of yes and no."""
    where = f"reward `{reward}`, model `{config.model}`"
    revision = config.revision or "main"
    source = str(vlm_path()) if config.model == "shapes" else model_source(config.model, where)
    with readable(where, KIND):
        processor = AutoProcessor.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    if getattr(processor, "chat_template", None) is None:
        what = "has no chat template, so nobody knows how it wants to be asked"
        raise CheckpointError("CKPT-MODEL", where, what, "use an instruction-tuned model")
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked, and behind everything that is read
    model = frozen_model(
        AutoModelForImageTextToText,
        source,
        revision=revision,
        where=where,
        kind=KIND,
        device=device,
        attention=config.attention,
        dtype=DTYPES[config.dtype],
    )
    if model.config.is_encoder_decoder:
        what = f"is a {type(model).__name__}, which does not continue the question"
        raise CheckpointError("CKPT-MODEL", where, what, "use a causal vision-language model")
    return VisionLanguageModel(
        model=model,
        processor=processor,
        tokens=yes_no_of(tokenizer, where),
        device=device,
        control=frozenset(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        ),
        batch_size=config.batch_size,
    )
