"""The tokenizers of a pipeline decide which prompts are cut, and by how much."""

from __future__ import annotations

import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import AutoTokenizer

from flowalign.config.schema import ModelConfig
from flowalign.errors import DataError, FlowalignWarning
from flowalign.prompt_lengths import check_lengths, limit_of
from flowalign.worlds.shapes.models import sd3_path


class TextOnly(DiffusionPipeline):
    """A pipeline that is nothing but its tokenizer."""

    def __init__(self, tokenizer: object) -> None:
        super().__init__()
        self.register_modules(tokenizer=tokenizer)

    def __call__(self, max_sequence_length: int = 8) -> None:
        """As pipelines with a T5 have it."""


@pytest.fixture(scope="module")
def pipe() -> TextOnly:
    return TextOnly(AutoTokenizer.from_pretrained(sd3_path() / "tokenizer"))


def test_lost_tokens_are_counted(pipe: TextOnly) -> None:
    """The built-in CLIP reads 16 tokens, two of them special: 40 words lose 26."""
    long = " ".join(["red"] * 40)
    prompts = ["a red circle", long]
    with pytest.warns(
        FlowalignWarning, match="the 16-token text encoder cuts 1 of 2.*loses 26 tok"
    ):
        check_lengths(pipe, ModelConfig(), prompts, strict=False)
    with pytest.raises(DataError, match="loses 26 tokens") as caught:
        check_lengths(pipe, ModelConfig(), prompts, strict=True)
    assert caught.value.exit_code == 3


def test_control_prompts_that_fit(pipe: TextOnly) -> None:
    """14 words fit exactly, though their letters are more than 16."""
    check_lengths(pipe, ModelConfig(), [" ".join(["red"] * 14)], strict=True)
    with pytest.raises(DataError, match="loses 1 tokens"):
        check_lengths(pipe, ModelConfig(), [" ".join(["red"] * 15)], strict=True)


def test_limits(pipe: TextOnly) -> None:
    """CLIP's limit is its own; other encoders end at the call's max_sequence_length."""
    clip = pipe.components["tokenizer"]
    assert limit_of(clip, pipe, ModelConfig(call={"max_sequence_length": 4})) == 16
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), model_max_length=512)
    assert limit_of(other, pipe, ModelConfig()) == 8
    assert limit_of(other, pipe, ModelConfig(call={"max_sequence_length": 100})) == 100
    assert limit_of(other, pipe, ModelConfig(call={"max_sequence_length": 1000})) == 512
