"""The purity check passes every shipped reward and catches each planted offender."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flowalign.reward_check import check_reward
from flowalign.rewards.jpeg import JpegSize
from flowalign.rewards.shapes import ShapesScore
from flowalign.types import Sample
from tests.rewards.world import Scorer, brightness, noise_samples, true_samples


def changes_input(samples: Sequence[Sample]) -> Tensor:
    score = brightness(samples)
    samples[0].media.clamp_(0.1, 0.9)
    return score


def draws(samples: Sequence[Sample]) -> Tensor:
    return brightness(samples) + 0.01 * torch.randn(len(samples))


def normalises_over_the_batch(samples: Sequence[Sample]) -> Tensor:
    score = brightness(samples)
    return score - score.mean()


def counts_within_the_batch(samples: Sequence[Sample]) -> Tensor:
    return brightness(samples) + 0.001 * torch.arange(len(samples))


class Counter:
    """Better at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        self.calls += 1
        return brightness(samples) + 0.001 * self.calls


def sets_grad_mode(samples: Sequence[Sample]) -> Tensor:
    torch.set_grad_enabled(False)
    return brightness(samples)


def changes_directory(samples: Sequence[Sample]) -> Tensor:
    os.chdir("/")
    return brightness(samples)


def sets_environment(samples: Sequence[Sample]) -> Tensor:
    os.environ["FLOWALIGN_TEST_OFFENDER"] = "1"
    return brightness(samples)


def seeds_numpy(samples: Sequence[Sample]) -> Tensor:
    np.random.seed(0)
    random.seed(0)
    return brightness(samples)


def sets_threads(samples: Sequence[Sample]) -> Tensor:
    torch.set_num_threads(2)
    return brightness(samples)


OFFENDERS = {
    "changes its input": (changes_input, "inputs"),
    "draws global random numbers": (draws, "repeat"),
    "normalises over the batch": (normalises_over_the_batch, "batch"),
    "counts within the batch": (counts_within_the_batch, "order"),
    "counts its calls": (Counter(), "repeat"),
    "sets the grad mode": (sets_grad_mode, "surroundings"),
    "changes the directory": (changes_directory, "surroundings"),
    "sets the environment": (sets_environment, "surroundings"),
    "seeds numpy and random": (seeds_numpy, "surroundings"),
    "sets the threads": (sets_threads, "surroundings"),
}


@pytest.mark.parametrize("kind", OFFENDERS)
def test_each_planted_offender_is_caught(kind: str) -> None:
    answer, fault = OFFENDERS[kind]
    here, threads = Path.cwd(), torch.get_num_threads()
    findings = check_reward(Scorer(answer=answer), noise_samples(17))
    assert fault in {finding.fault for finding in findings}, findings
    # The check itself leaves everything as it was.
    assert Path.cwd() == here and torch.get_num_threads() == threads
    assert "FLOWALIGN_TEST_OFFENDER" not in os.environ and torch.is_grad_enabled()


def without_gradient(samples: Sequence[Sample]) -> Tensor:
    return brightness(samples).detach()


def gradient_of_nan(samples: Sequence[Sample]) -> Tensor:
    return torch.stack([(s.media - s.media).sum().sqrt() + s.media.mean() for s in samples])


def gradient_for_the_first_only(samples: Sequence[Sample]) -> Tensor:
    first, rest = samples[0].media.mean(), [s.media.detach().mean() for s in samples[1:]]
    return torch.stack([first, *rest])


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (without_gradient, "has no gradient"),
        (gradient_of_nan, "not finite"),
        (gradient_for_the_first_only, "16 of 17 samples have no gradient"),
    ],
)
def test_a_promised_gradient_is_there_and_finite(answer, what: str) -> None:
    given = noise_samples(17)
    findings = check_reward(Scorer(answer=answer, differentiable=True), given)
    assert [f.fault for f in findings] == ["gradient"] and what in findings[0].what
    assert check_reward(Scorer(answer=answer), given) == []  # nothing was promised


def test_pure_rewards_pass() -> None:
    assert check_reward(Scorer(answer=brightness, differentiable=True), noise_samples(17)) == []
    assert check_reward(JpegSize(), noise_samples(17)) == []
    for mode in ("flat", "hierarchical", "strict"):
        assert check_reward(ShapesScore(mode=mode), true_samples(17)) == []


def test_a_group_only_reward_may_see_its_batch() -> None:
    reward = Scorer(answer=normalises_over_the_batch, group_only=True)
    assert check_reward(reward, noise_samples(8)) == []


def test_a_mask_that_depends_on_the_batch_is_caught() -> None:
    def answer(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        return brightness(samples), torch.arange(len(samples)) < 8

    findings = check_reward(Scorer(answer=answer), noise_samples(17))
    assert {f.fault for f in findings} == {"order", "batch"}
    assert "other samples are masked" in findings[0].what
