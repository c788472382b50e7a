"""Learning from examples: what is known is found, the same seed gives the same bits."""

from __future__ import annotations

import pytest
import torch

from flowalign.config.noisy_card import Card, NetworkCard
from flowalign.config.noisy_reward import (
    BradleyTerryConfig,
    NoisyTrainConfig,
    ObjectiveConfig,
    SoftValueConfig,
)
from flowalign.errors import DataError, HealthError
from flowalign.noisy_reward.examples import Examples
from flowalign.noisy_reward.fit import ordered
from flowalign.noisy_reward.job import fitted
from flowalign.noisy_reward.network import NoisyReward
from flowalign.paths import RectifiedFlow
from tests.noisy_reward.toy import examples

SIZES = NetworkCard(width=16, layers=1, attention_heads=2, patch=2)
SOFT = SoftValueConfig(name="soft_value", strength=1.0)
PAIRS = BradleyTerryConfig(name="bradley_terry")


def channel_means() -> Examples:
    """20 prompts of 16 samples; two rewards, the means of the two channels, the second masked for
    half of the prompts."""
    key = torch.Generator().manual_seed(0)
    latents = torch.randn(320, 2, 4, 4, generator=key) + torch.randn(320, 2, 1, 1, generator=key)
    prompt = torch.arange(20).repeat_interleave(16)
    valid = torch.ones(320, 2, dtype=torch.bool)
    valid[::2, 1] = False
    return examples(latents.mean((2, 3)), latents, prompt, valid)


def fit(
    found: Examples, objective: ObjectiveConfig = SOFT, *, seed: int = 0, **changes: object
) -> tuple[NoisyReward, Card]:
    settings = NoisyTrainConfig.model_validate(
        {"steps": 250, "batch_size": 64, "learning_rate": 5e-3, "held_out": 0.25, **changes}
    )
    return fitted(
        found,
        RectifiedFlow(),
        objective=objective,
        sizes=SIZES,
        settings=settings,
        seed=seed,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("objective", [SOFT, PAIRS], ids=["soft_value", "bradley_terry"])
def test_unseen_prompts_are_ordered(objective: ObjectiveConfig) -> None:
    """Nearly all pairs where little noise is, chance where all is noise; no head takes the other's
    place."""
    network, card = fit(channel_means(), objective)
    for levels in card.trained["pairwise_accuracy_by_level"].values():
        assert levels["0.1"] > 0.9 and levels["0.9"] < levels["0.5"] < levels["0.1"] + 0.02
    x = torch.zeros(2, 2, 4, 4)
    x[0, 0], x[1, 1] = 1.0, 1.0
    h = network(x, torch.full((2,), 0.1), torch.zeros(2, 3, 5)).detach()
    assert float(h[0, 0] - h[1, 0]) > 0.5 and float(h[1, 1] - h[0, 1]) > 0.5


def test_the_same_seed_is_the_same_network() -> None:
    found, state = channel_means(), torch.random.get_rng_state()
    one, again, other = (fit(found, steps=3, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["answer.weight"], other["answer.weight"])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_order_of_pairs() -> None:
    """3 of the 4 pairs with different rewards are right, and one prompt is never compared with
    another."""
    h = torch.tensor([3.0, 1.0, 2.0, 9.0, 8.0])
    reward, prompt = torch.tensor([2.0, 1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    assert ordered(h, reward, prompt) == 0.75
    assert ordered(h * 0, reward, prompt) == 0.5
    assert ordered(h, reward * 0, prompt) is None


def test_what_cannot_be_learned() -> None:
    found = channel_means()
    flat = examples(torch.ones(8, 1), found.latents[:8], torch.arange(8) // 2)
    with pytest.raises(DataError, match="all with the same score"):
        fit(flat)
    alone = examples(found.reward[:8], found.latents[:8], torch.zeros(8, dtype=torch.int64))
    with pytest.raises(DataError, match="1 prompt"):
        fit(alone)
    single = examples(found.reward[:8], found.latents[:8], torch.arange(8))
    with pytest.raises(DataError, match="no prompt has two samples"):
        fit(single, PAIRS)
    fit(single, SOFT, steps=1)
    far = examples(found.reward * torch.tensor([1.0, torch.inf]), found.latents, found.prompt)
    with pytest.raises((HealthError, DataError)):
        fit(far, steps=3)
