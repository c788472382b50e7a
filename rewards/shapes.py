"""The exact verifier of the shapes world: does the picture show what the prompt says?

Measures   things, colours, sizes, count, relation and background, from pixels alone.
           Modes: `flat`, the verifier's soft score; `strict`, 1 when everything is exact, else 0;
           `hierarchical`, the weighted mean of its global, subject and relation levels, where a
           prompt without a relation has no relation level (it is left out, not counted as 1);
           and single parts: `colour`, `count`, `relation` (masked for a prompt without one).
Range      [0, 1], higher is better; a picture of another prompt scores below 0.15.
Source     the three levels follow HiCoGen (arXiv 2511.19965), R = R_global + R_subj + R_rel. We
           differ: a weighted mean instead of a sum, so that scores of prompts with and without
           relations are comparable, and an exact verifier instead of CLIP, DINO and a judge.
Licence    this project's (Apache-2.0). Weights: none.
Differentiable: no. Group-only: no.
Cost       about 0.4 ms a 32x32 picture on one core.
Refuses    a prompt outside the grammar: that is an error, not a score of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowalign.config.rewards import ShapesReward
from flowalign.errors import RewardError
from flowalign.types import Modality, Sample
from flowalign.worlds.shapes.grammar import parse
from flowalign.worlds.shapes.parts import colour_share, right_count
from flowalign.worlds.shapes.verifier import verify


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesScore:
    """Agreement of pictures with prompts of the shapes world."""

    name: str = "shapes"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)
    mode: Literal["flat", "hierarchical", "strict", "colour", "count", "relation"] = "flat"
    global_weight: float = 1.0
    subject_weight: float = 1.0
    relation_weight: float = 1.0

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(score (N,), valid (N,)); valid everywhere but for `relation`."""
        values, valid = torch.zeros(len(samples)), torch.ones(len(samples), dtype=torch.bool)
        for prompt in dict.fromkeys(sample.prompt for sample in samples):
            _check_prompt(prompt)
        for rows in _rows_by_size(samples):
            pictures = torch.stack([samples[row].media for row in rows]).float().cpu()
            prompts = [samples[row].prompt for row in rows]
            verdict = verify(pictures, prompts)
            if self.mode == "strict":
                values[rows] = verdict.strict.float()
            elif self.mode == "flat":
                values[rows] = verdict.score
            elif self.mode == "colour":
                values[rows] = colour_share(verdict, prompts)
            elif self.mode == "count":
                values[rows] = right_count(verdict, prompts)
            elif self.mode == "relation":
                values[rows], valid[rows] = verdict.relation, verdict.has_relation
            else:
                levels = torch.stack([verdict.global_score, verdict.subject, verdict.relation])
                values[rows] = hierarchical(levels, verdict.has_relation, self._weights())
        return values, valid

    def _weights(self) -> Tensor:
        return torch.tensor([self.global_weight, self.subject_weight, self.relation_weight])


def hierarchical(levels: Tensor, has_relation: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k s_k / sum_k w_k (N,) of levels (3, N); the third counts only where there is one."""
    counted = torch.ones_like(levels)
    counted[2] = has_relation.to(levels.dtype)
    shares = counted * weights[:, None]
    # A level that is left out may hold anything, so it is not multiplied by 0 but replaced.
    return (shares * torch.where(counted > 0, levels, 0.0)).sum(0) / shares.sum(0)


def _check_prompt(prompt: str) -> None:
    try:
        parse(prompt)
    except ValueError as error:
        what = f"prompt {prompt!r} is not of the shapes world: {error}"
        fix = "use prompts of `shapes:train` or `shapes:heldout`, or another reward"
        raise RewardError("RWD-PROMPT", "reward `shapes`", what, fix) from error


def _rows_by_size(samples: Sequence[Sample]) -> list[list[int]]:
    """Row numbers grouped by the size of the picture."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(tuple(sample.media.shape), []).append(row)
    return list(groups.values())


def from_config(config: ShapesReward, *, device: torch.device) -> ShapesScore:
    """The reward of a config; it works on the CPU wherever the pictures are."""
    if config.mode == "hierarchical" and config.global_weight + config.subject_weight == 0:
        what = "a prompt without a relation would have no score"
        fix = "give `global_weight` or `subject_weight` more than 0"
        raise RewardError("RWD-WEIGHTS", "reward `shapes`", what, fix)
    return ShapesScore(
        mode=config.mode,
        global_weight=config.global_weight,
        subject_weight=config.subject_weight,
        relation_weight=config.relation_weight,
    )
