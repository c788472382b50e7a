"""The built-in CLIP as a reward: what its card says about strengths and blind spots."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from flowalign.config.rewards import ClipReward, OpenClipReward
from flowalign.reward_check import check_reward
from flowalign.scoring import RewardSuite, build_suite
from flowalign.types import Sample
from flowalign.worlds.shapes.corruptions import corrupt
from flowalign.worlds.shapes.grammar import caption, parse
from tests.rewards.world import noise_samples, true_samples


@pytest.fixture(scope="module")
def suite() -> RewardSuite:
    return build_suite([ClipReward(name="clip"), OpenClipReward(name="open_clip")])


@pytest.fixture(scope="module")
def truth() -> list[Sample]:
    return true_samples(100, split="heldout")


def corrupted(samples: list[Sample], kind: str) -> list[tuple[Sample, Sample]]:
    """(sample, the same picture with one thing wrong in its prompt)."""
    rng = random.Random(0)
    pairs = ((s, corrupt(parse(s.prompt), kind, rng)) for s in samples)
    return [(s, replace(s, prompt=caption(wrong))) for s, wrong in pairs if wrong is not None]


def preferred(suite: RewardSuite, pairs: list[tuple[Sample, Sample]]) -> float:
    """Share of pictures that score higher with the right prompt."""
    right = suite.score([pair[0] for pair in pairs]).terms["clip"]
    wrong = suite.score([pair[1] for pair in pairs]).terms["clip"]
    return (right > wrong).double().mean().item()


def test_both_libraries_give_the_same_scores(suite, truth) -> None:
    scores = suite.score(truth).terms
    assert (scores["clip"] - scores["open_clip"]).abs().max() < 1e-5
    assert scores["clip"].std() > 1e-3


def test_it_tells_colours_and_shapes(suite, truth) -> None:
    assert preferred(suite, corrupted(truth, "colour")) > 0.95
    assert preferred(suite, corrupted(truth, "shape")) > 0.75


def test_it_is_blind_to_relations(suite, truth) -> None:
    """The gap that a generator trained on it alone can exploit."""
    assert preferred(suite, corrupted(truth, "relation")) < 0.75


def test_random_pictures_and_foreign_prompts_score_low(suite, truth) -> None:
    right = suite.score(truth).terms["clip"].mean()
    prompts = [s.prompt for s in truth]
    turned = zip(truth, prompts[7:] + prompts[:7], strict=True)
    foreign = suite.score([replace(s, prompt=p) for s, p in turned]).terms["clip"].mean()
    noise = [
        replace(n, prompt=s.prompt) for n, s in zip(noise_samples(100, side=32), truth, strict=True)
    ]
    assert right > 0.7
    assert foreign < 0.3
    assert suite.score(noise).terms["clip"].mean() < 0.3


def test_the_shipped_rewards_are_pure(suite, truth) -> None:
    for entry in suite.entries:
        assert check_reward(entry.reward, truth[:17]) == []


def test_scores_follow_the_picture_up_its_gradient(suite, truth) -> None:
    """One small step along the gradient raises the score: the reward can guide."""
    reward = suite.entries[0].reward
    start = noise_samples(4, side=32)
    given = [replace(n, prompt=s.prompt) for n, s in zip(start, truth, strict=False)]
    leaves = [s.media.clone().requires_grad_() for s in given]
    pairs = zip(given, leaves, strict=True)
    values = reward([replace(s, media=leaf) for s, leaf in pairs])[0]
    grads = torch.autograd.grad(values.sum(), leaves)
    pairs = zip(given, leaves, grads, strict=True)
    moved = [replace(s, media=(leaf + 0.05 * g / g.norm()).detach()) for s, leaf, g in pairs]
    with torch.no_grad():
        assert (reward(moved)[0] > values).all()
