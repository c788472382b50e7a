"""What a noisy reward learns from: clean latents with their prompts and rewards.

Letters: N samples of M prompts, *S a latent's shape, K rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowalign.config.data import DataConfig
from flowalign.config.noisy_card import TextCard
from flowalign.config.noisy_reward import ScoredSamplesConfig
from flowalign.data.dataset import Member, good_rows, members_of
from flowalign.data.layouts import layout_named
from flowalign.data.media import fitted, load_media
from flowalign.data.read import rows_of
from flowalign.data.rows import labels_of
from flowalign.errors import DataError
from flowalign.noisy_reward.conditions import text_card, text_of
from flowalign.prompts import Prompt
from flowalign.protocols import Generator
from flowalign.rollout import Plan, PromptCache, Request, decoded, device_of, walk
from flowalign.scoring import RewardSuite
from flowalign.types import Sample

CHUNK = 64  # prompts whose text is taken at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Everything on the CPU."""

    heads: tuple[str, ...]
    latents: Tensor  # (N, *S) float32, clean
    prompt: Tensor  # (N,) int64, row of `text`
    reward: Tensor  # (N, K) float32, undefined where not valid
    valid: Tensor  # (N, K) bool
    text: Tensor  # (M, L, D) float32
    text_card: TextCard


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """How the model's own samples are drawn."""

    generator: Generator
    plan: Plan
    cache: PromptCache
    batch_size: int
    seed: int


def drawn_examples(
    drawing: Drawing,
    prompts: Sequence[Prompt],
    suite: RewardSuite,
    samples_per_prompt: int,
    on_samples: Callable[[int], None] | None = None,
) -> Examples:
    """The model's own samples, scored: a head for each reward. `on_samples` hears how many."""
    wanted = [
        Request(prompt=p.text, prompt_id=p.prompt_id, sample_id=k, start_id=k, group=place)
        for place, p in enumerate(prompts)
        for k in range(samples_per_prompt)
    ]
    latents, reward, valid = [], [], []
    for start in range(0, len(wanted), drawing.batch_size):
        chunk = wanted[start : start + drawing.batch_size]
        x0, samples = drawn(drawing, chunk)
        scores = suite.score(samples)
        latents.append(x0)
        reward.append(torch.stack([scores.terms[name] for name in suite.names], dim=1))
        valid.append(torch.stack([scores.valid[name] for name in suite.names], dim=1))
        if on_samples is not None:
            on_samples(start + len(chunk))
    text, card = texts_of(drawing.cache, [prompt.text for prompt in prompts])
    return Examples(
        heads=tuple(suite.names),
        latents=torch.cat(latents),
        prompt=torch.tensor([request.group for request in wanted]),
        reward=torch.cat(reward),
        valid=torch.cat(valid),
        text=text,
        text_card=card,
    )


def drawn(drawing: Drawing, chunk: Sequence[Request]) -> tuple[Tensor, list[Sample]]:
    """Ends (n, *S) float32 on the CPU, and the same decoded."""
    cond = drawing.cache.conditions([request.prompt for request in chunk])
    trajectory = walk(
        drawing.generator, drawing.plan, cond, chunk, seed=drawing.seed, stream="noisy reward"
    )
    x0 = trajectory.x[:, -1].float()
    return x0.cpu(), decoded(drawing.generator, x0, chunk, seed=drawing.seed)


def texts_of(cache: PromptCache, prompts: Sequence[str]) -> tuple[Tensor, TextCard]:
    """((M, L, D) on the CPU, which tensor it is)."""
    parts: list[Tensor] = []
    card: TextCard | None = None
    for start in range(0, len(prompts), CHUNK):
        cond = cache.conditions(prompts[start : start + CHUNK])
        card = card or text_card(cond)
        parts.append(text_of(cond, card).cpu())
    assert card is not None, "there are prompts"
    return torch.cat(parts), card


def read_examples(
    config: ScoredSamplesConfig,
    generator: Generator,
    on_samples: Callable[[int], None] | None = None,
) -> Examples:
    """Scored samples of a file, encoded: a head for each score. `on_samples` hears how many.

    Raises:
        DataError: rows cannot be used, are pairs, have no score, or are another medium.
    """
    layout = None if config.layout == "auto" else layout_named(config.layout)
    folder = None if config.media_folder is None else Path(config.media_folder)
    found = list(rows_of(Path(config.path), layout=layout, media_folder=folder))
    rows = good_rows(found, DataConfig(path=config.path, bad_rows=config.bad_rows))
    names = list(labels_of(rows[0]))
    if len(rows[0].media) > 1 or not names:
        what = f"{rows[0].where} is {'a pair' if names else 'a sample without scores'}"
        raise DataError("DATA-KIND", config.path, what, 'write rows with "media" and "scores"')
    prompts, members = members_of(rows, dict.fromkeys(names, 1.0))
    labels = [[member.labels[name] for name in names] for member in members]
    text, card = texts_of(PromptCache(generator), prompts)
    return Examples(
        heads=tuple(names),
        latents=torch.cat(list(encoded(members, config, generator, on_samples))),
        prompt=torch.tensor([member.prompt_id for member in members]),
        reward=torch.tensor([[0.0 if v is None else v for v in row] for row in labels]),
        valid=torch.tensor([[v is not None for v in row] for row in labels]),
        text=text,
        text_card=card,
    )


@torch.no_grad()
def encoded(
    members: Sequence[Member],
    config: ScoredSamplesConfig,
    generator: Generator,
    on_samples: Callable[[int], None] | None,
) -> Iterator[Tensor]:
    """Clean latents (1, *S) of media."""
    for count, member in enumerate(members):
        if on_samples is not None:
            on_samples(count)
        media, modality, _ = load_media(member.media, member.where)
        place = f"{member.where}, {member.media.name}"
        if modality != generator.modality:
            what = f"is {modality}, and the model makes {generator.modality}"
            raise DataError("DATA-MODALITY", place, what, "choose data for this model")
        media = fitted(media, generator.media_shape, config.fit, place)
        yield generator.encode_media(media[None].to(device_of(generator))).float().cpu()


def joined(parts: Sequence[Examples]) -> Examples:
    """All examples of parts with the same heads and text; equal prompts stay apart."""
    first = parts[0]
    assert all((p.heads, p.text_card) == (first.heads, first.text_card) for p in parts)
    offsets = [sum(len(p.text) for p in parts[:place]) for place in range(len(parts))]
    return Examples(
        heads=first.heads,
        latents=torch.cat([part.latents for part in parts]),
        prompt=torch.cat([p.prompt + offset for p, offset in zip(parts, offsets, strict=True)]),
        reward=torch.cat([part.reward for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        text=torch.cat([part.text for part in parts]),
        text_card=first.text_card,
    )
