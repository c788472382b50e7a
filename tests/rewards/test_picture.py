"""The picture's statistics against closed forms, and their slopes."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from flowalign.config.rewards_rules import PictureReward
from flowalign.reward_check import check_reward
from flowalign.reward_report import extremes_findings
from flowalign.rewards.picture import LUMA, MEASURES, Measure, PictureStatistic, from_config
from tests.rewards.world import noise_samples, sample

NAMES = get_args(Measure)


def score(measure: Measure, picture: torch.Tensor) -> float:
    values, valid = PictureStatistic(measure=measure)([sample(picture)])
    assert bool(valid[0])
    return float(values[0])


def painted(rgb: tuple[float, float, float], side: int = 8) -> torch.Tensor:
    return torch.tensor(rgb)[:, None, None].expand(3, side, side).contiguous()


@pytest.mark.parametrize("rgb", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.9, 0.4)])
def test_one_colour(rgb: tuple[float, float, float]) -> None:
    given = painted(rgb)
    luma = sum(weight * level for weight, level in zip(LUMA, rgb, strict=True))
    assert score("brightness", given) == pytest.approx(luma, abs=1e-6)
    assert score("saturation", given) == pytest.approx(max(rgb) - min(rgb), abs=1e-6)
    assert score("contrast", given) == pytest.approx(0.0, abs=1e-6)
    assert score("sharpness", given) == pytest.approx(0.0, abs=1e-6)


def test_half_and_half() -> None:
    """A share p of white on black: brightness p, contrast sqrt(p (1 - p))."""
    for count in (1, 4, 8):
        given = torch.zeros(3, 8, 16)
        given[:, :, :count] = 1.0
        share = count / 16
        assert score("brightness", given) == pytest.approx(share, abs=1e-6)
        assert score("contrast", given) == pytest.approx(math.sqrt(share * (1 - share)), abs=1e-6)


def test_the_upper_ends_are_reached() -> None:
    chequered = ((torch.arange(18)[:, None] + torch.arange(18)) % 2).float().expand(3, 18, 18)
    ends: tuple[tuple[Measure, float], ...] = (("contrast", 0.5), ("sharpness", 16.0))
    for measure, most in ends:
        assert PictureStatistic(measure=measure).score_range == (0.0, most)
        assert score(measure, chequered) == pytest.approx(most, abs=1e-5)
    assert score("saturation", painted((1.0, 0.0, 0.5))) == 1.0


def test_sharpness_of_a_wave() -> None:
    """The Laplacian's eigenvalue: 2 cos a + 2 cos b - 4 for sin(a x + b y), of variance A^2 / 2."""
    side, amplitude = 66, 0.4  # the inner 64 pixels are whole periods
    for i, j in ((1, 0), (3, 5), (16, 16)):
        a, b = 2 * math.pi * i / 64, 2 * math.pi * j / 64
        x = torch.arange(side, dtype=torch.float64)
        wave = 0.5 + amplitude * torch.sin(a * x + b * x[:, None])
        expected = (2 * math.cos(a) + 2 * math.cos(b) - 4) ** 2 * amplitude**2 / 2
        assert score("sharpness", wave.float().expand(3, side, side)) == pytest.approx(
            expected, rel=1e-3, abs=1e-6
        )


@pytest.mark.parametrize("measure", NAMES)
def test_slopes(measure: Measure) -> None:
    """Against differences in float64, on a picture without ties."""
    picture = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    function = MEASURES[measure]

    def of(x: torch.Tensor) -> torch.Tensor:
        return function(x)

    weights = torch.tensor(LUMA)
    assert weights.sum() == pytest.approx(1.0)
    assert torch.autograd.gradcheck(of, picture.requires_grad_(), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("measure", NAMES)
def test_sound(measure: Measure) -> None:
    """Also on flat pictures, where a root's slope is infinite."""
    reward = PictureStatistic(measure=measure)
    assert check_reward(reward, noise_samples(17)) == []
    assert extremes_findings(reward, noise_samples(1)[0]) == []
    flat = painted((0.5, 0.5, 0.5)).requires_grad_()
    (slope,) = torch.autograd.grad(reward([sample(flat)])[0].sum(), flat)
    assert bool(slope.isfinite().all())
    # Negative control: the textbook's root has none there.
    (root,) = torch.autograd.grad(flat.var().sqrt(), flat)
    assert not bool(root.isfinite().all())


def test_a_video_is_the_mean_of_its_frames() -> None:
    frames = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for measure in NAMES:
        reward = from_config(
            PictureReward(name="picture", measure=measure, modality="video"),
            device=torch.device("cpu"),
        )
        assert reward.modality == "video"
        alone = [score(measure, frame) for frame in frames]
        assert float(reward([sample(frames)])[0][0]) == pytest.approx(sum(alone) / 5, abs=1e-6)


def test_too_small_for_a_laplacian_is_masked() -> None:
    samples = [sample(torch.rand(3, 2, 8)), sample(torch.rand(3, 3, 3))]
    values, valid = PictureStatistic(measure="sharpness")(samples)
    assert valid.tolist() == [False, True] and float(values[1]) == 0.0  # one inner pixel
    assert PictureStatistic(measure="contrast")(samples)[1].tolist() == [True, True]
