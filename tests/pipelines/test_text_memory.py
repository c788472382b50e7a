"""Every prompt is encoded once, and the negative prompt once in all."""

from __future__ import annotations

import torch

from flowalign.config.schema import ModelConfig
from flowalign.pipelines.load import make_generator
from flowalign.pipelines.text_memory import TextMemory
from tests.zoo.image import sd3

PROMPTS = ["a red circle", "two dogs", "a red circle"]


def test_encoders_are_asked_once_for_each_prompt() -> None:
    """Guidance needs the negative prompt too; without the memory it is encoded each time."""
    pipe = sd3()
    generator = make_generator(pipe, ModelConfig(name="x", guidance_scale=4.0))
    # A call may be answered from memory; a pass reaches the embedding.
    passes: list[str] = []
    embedding = pipe.text_encoder.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda *_: passes.append("pass"))
    remembered = generator.encode(PROMPTS)
    assert len(passes) == 2
    generator.memory = TextMemory(pipe)  # negative control: an empty memory
    passes.clear()
    plain = generator.encode(PROMPTS)
    assert len(passes) == 4
    for name, value in plain.batched.items():
        assert isinstance(value, torch.Tensor)
        other = remembered.batched[name]
        assert isinstance(other, torch.Tensor) and torch.equal(other, value)
