"""Which prompts the text encoders of a pipeline cannot hold whole."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from flowalign.config.schema import ModelConfig
from flowalign.prompts import report_lengths

UNLIMITED = 1_000_000  # tokenizers without a limit of their own carry a huge number


def check_lengths(
    pipe: DiffusionPipeline, config: ModelConfig, prompts: Sequence[str], *, strict: bool
) -> None:
    """Warn about prompts that even the longest text encoder cuts; an error when `strict`."""
    tokenizers = [
        part for part in pipe.components.values() if isinstance(part, PreTrainedTokenizerBase)
    ]
    if not tokenizers:
        return
    limit, tokenizer = max(
        ((limit_of(part, pipe, config), part) for part in tokenizers), key=lambda pair: pair[0]
    )
    # Each token takes a byte at least, so that most prompts need not be counted.
    long = [text for text in prompts if len(text.encode()) + 2 > limit]
    if limit >= UNLIMITED or not long:
        return
    logger = logging.getLogger("transformers.tokenization_utils_base")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of what is reported here with the numbers
    try:
        tokens = tokenizer(long)["input_ids"]
    finally:
        logger.setLevel(level)
    counted = dict(zip(long, map(len, tokens), strict=True))  # type: ignore[arg-type]
    lengths = [counted.get(text, 0) for text in prompts]
    report_lengths(prompts, lengths, limit, strict=strict, encoder="text encoder")


def limit_of(
    tokenizer: PreTrainedTokenizerBase, pipe: DiffusionPipeline, config: ModelConfig
) -> int:
    """Tokens that reach the encoder; CLIP's are fixed, others end at `max_sequence_length`."""
    limit = int(tokenizer.model_max_length)
    if isinstance(tokenizer, CLIPTokenizer):
        return limit
    parameters = inspect.signature(type(pipe).__call__).parameters
    default = (
        parameters["max_sequence_length"].default if "max_sequence_length" in parameters else 0
    )
    given = config.call.get("max_sequence_length", default)
    return min(limit, given) if isinstance(given, int) and given > 0 else limit
