"""Rewards with the gradient of the media: their sum, and the failure policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flowalign.errors import RewardError
from flowalign.reward_call import Failure
from flowalign.scoring import Entry, RewardSuite
from flowalign.steering.noise_optimization import gradient_of
from flowalign.steering.reward_gradients import graded
from flowalign.types import Sample
from tests.rewards.world import sample
from tests.steering.test_noise_optimization import Warmth


def test_a_graded_sum_is_the_weighted_sum() -> None:
    """With its gradient; a weight of 0 does not count."""
    media = torch.full((3, 2, 2), 0.4, requires_grad=True)
    entries = [
        Entry(label=name, reward=Warmth(), weight=weight)
        for name, weight in (("one", 2.0), ("other", -0.5), ("none", 0.0))
    ]
    reward, valid = graded(RewardSuite(entries=entries), [sample(media)])
    assert valid.tolist() == [True]
    assert float(reward.detach()) == pytest.approx(1.5 * -10.0 * 0.3**2)
    (gradient,) = torch.autograd.grad(reward.sum(), media)
    assert float(gradient[0].sum()) == pytest.approx(1.5 * 20.0 * 0.3)
    assert float(gradient[1:].abs().max()) == 0.0


@dataclass(frozen=True)
class Fussy(Warmth):
    """Fails for the batches that hold a sample of the prompt `raises`, is NaN for `nan`, masks
    `masked`."""

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        if any(one.prompt == "raises" for one in samples):
            raise ValueError("broken on purpose")
        values, _ = super().__call__(samples)
        broken = torch.tensor([one.prompt == "nan" for one in samples])
        known = torch.tensor([one.prompt != "masked" for one in samples])
        return values + torch.where(broken, torch.nan, 0.0), known


def fussy(prompts: Sequence[str], failure: Failure) -> tuple[Tensor, Tensor, Tensor]:
    """(reward, valid, gradient) of pictures with these prompts."""
    media = torch.full((len(prompts), 3, 2, 2), 0.4, requires_grad=True)
    samples = [sample(media[i], prompt, prompt_id=i) for i, prompt in enumerate(prompts)]
    suite = RewardSuite(entries=[Entry(label="fussy", reward=Fussy())], failure=failure)
    reward, valid = graded(suite, samples)
    return reward.detach(), valid, gradient_of(reward, media, valid)


@pytest.mark.parametrize("bad", ["raises", "nan", "masked"])
def test_a_failure_of_one_sample_masks_it_with_drop(bad: str) -> None:
    """The others have their own value and gradient, as if it were not there."""
    reward, valid, gradient = fussy(["a", bad, "b"], "drop")
    alone, _, slope = fussy(["a"], "drop")
    assert valid.tolist() == [True, False, True]
    assert reward[0] == reward[2] == alone[0]
    torch.testing.assert_close(gradient, torch.cat([slope, torch.zeros_like(slope), slope]))
    if bad != "masked":
        code = {"raises": "RWD-RAISED", "nan": "RWD-NONFINITE"}[bad]
        with pytest.raises(RewardError) as error:
            fussy(["a", bad, "b"], "raise")
        assert error.value.code == code
        with pytest.raises(RewardError) as error:
            fussy([bad, bad], "drop")
        assert error.value.code == "RWD-ALL-FAILED"


def test_where_no_sample_has_a_reward_nothing_rises() -> None:
    _, valid, gradient = fussy(["masked", "masked"], "raise")
    assert valid.tolist() == [False, False] and float(gradient.abs().max()) == 0.0
