"""Samples and tiny models for the reward tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowalign.reward_call import Entry
from flowalign.scoring import Failure, RewardSuite
from flowalign.types import Modality, Sample
from flowalign.user_code import LoadedCode
from flowalign.worlds.shapes.grammar import parse, prompts
from flowalign.worlds.shapes.render import pictures


def sample(media: Tensor, prompt: str = "a red circle", prompt_id: int = 0, sample_id: int = 0):
    """One picture as a sample."""
    return Sample(
        prompt=prompt,
        media=media,
        modality="image",
        rate=None,
        prompt_id=prompt_id,
        sample_id=sample_id,
        seed=0,
    )


def noise_samples(num: int, *, side: int = 8, seed: int = 0) -> list[Sample]:
    """Random pictures; sample i is prompt i // 4, sample i % 4."""
    generator = torch.Generator().manual_seed(seed)
    media = torch.rand(num, 3, side, side, generator=generator)
    return [sample(media[i], prompt_id=i // 4, sample_id=i % 4) for i in range(num)]


def true_samples(num: int, *, split: str = "train", seed: int = 0) -> list[Sample]:
    """Pictures of the shapes world that show what their prompts say, categories in turn."""
    texts = prompts(split, limit=num)
    media = pictures([parse(text) for text in texts], torch.Generator().manual_seed(seed))
    return [sample(media[i], texts[i], prompt_id=i) for i in range(num)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """A reward that answers whatever `answer(samples)` is."""

    answer: Callable[[Sequence[Sample]], Any]
    name: str = "scorer"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (-1e9, 1e9)

    def __call__(self, samples: Sequence[Sample]) -> Any:
        return self.answer(samples)


def suite_of(
    answer: Callable[[Sequence[Sample]], Any],
    *,
    failure: Failure = "raise",
    timeout_s: float = 20.0,
    trusted: bool = False,
    **attributes: Any,
) -> RewardSuite:
    """A suite of one reward called `scorer`."""
    reward = Scorer(answer=answer, **attributes)
    code = None if trusted else LoadedCode(file=Path("my.py"), sha256="0" * 64)
    entry = Entry(label="scorer", reward=reward, code=code)
    return RewardSuite(entries=[entry], failure=failure, timeout_s=timeout_s)


def brightness(samples: Sequence[Sample]) -> Tensor:
    """A pure score: the mean of each picture."""
    return torch.stack([s.media.mean() for s in samples])


def write_tiny_clip(folder: Path, *, seed: int = 0, side: int = 32) -> Path:
    """An untrained CLIP of the built-in's shape, as a transformers checkpoint."""
    from transformers import CLIPImageProcessor

    from flowalign.worlds.shapes.training.clip import build_clip
    from flowalign.worlds.shapes.training.tokenizer import build_tokenizer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = build_clip()
        # The default start is so small that all features are nearly equal.
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    clip.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    return folder
