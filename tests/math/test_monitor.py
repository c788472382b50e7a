"""P62 on synthetic curves: a planted hole raises an alarm in time, honest curves do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import betabinom
from torch import Tensor

from flowalign.config.monitor import MonitorConfig
from flowalign.evaluation import Evaluation
from flowalign.monitor import (
    GROUPS,
    STEPS,
    Report,
    best_evaluation,
    beta_binomial_tail,
    hacking,
    left_range,
    paired_t,
    parted,
    watch,
    watch_groups,
)
from flowalign.picture_statistics import STATISTICS, diversity, picture_rows, statistics_of
from flowalign.prompts import Prompt
from flowalign.types import Sample, Scored

NUM_EVALUATIONS, NUM_SAMPLES = 20, 100
RULE = {"num": 3, "errors": 2.0}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curves(kind: str, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Trained (E, N), two held-out (E, N): a part of each sample that stays, and fresh noise.

    The trained reward rises by 3 of its standard deviations. `hole`: held-out rewards rise with
    it for a third of the way, by 1, and then fall by as much as they can; `honest`: they rise by
    1; `flat`: they never move.
    """
    draw = generator(seed)
    progress = torch.linspace(0, 1, NUM_EVALUATIONS)[:, None]
    rise = {
        "hole": torch.where(progress < 1 / 3, 3 * progress, 1 - 3 * (progress - 1 / 3)),
        "honest": progress,
        "flat": 0 * progress,
    }[kind]

    def noisy(mean: Tensor) -> Tensor:
        stays = 0.6 * torch.randn(NUM_SAMPLES, generator=draw)
        return mean + stays + 0.8 * torch.randn(NUM_EVALUATIONS, NUM_SAMPLES, generator=draw)

    return noisy(3 * progress), [noisy(rise), 10 * noisy(rise) + 5]


def first_alarm(kind: str, seed: int) -> int | None:
    """The evaluation of the first alarm of a run."""
    trained, held_out = curves(kind, seed)
    for end in range(1, NUM_EVALUATIONS + 1):
        if parted(trained[:end], [curve[:end] for curve in held_out], **RULE):
            return end - 1
    return None


def test_a_planted_hole_is_seen_before_a_quarter_of_the_gain_and_base_is_lost() -> None:
    """At least 18 of 20 runs; the held-out reward of this hole passes its start after 13."""
    found = [first_alarm("hole", seed) for seed in range(20)]
    seen = [one for one in found if one is not None and one <= 13]
    assert len(seen) >= 18, found


@pytest.mark.parametrize("kind", ["honest", "flat"])
def test_other_curves_raise_no_alarm(kind: str) -> None:
    """At most 1 of 20, over 100 runs; flat held-out rewards are the hard case of this rule."""
    alarms = sum(first_alarm(kind, seed) is not None for seed in range(100))
    assert alarms <= 5


def test_control_plain_standard_errors_alarm_on_noise() -> None:
    """Negative control: 2 plain standard errors below the best so far come from noise alone."""
    alarms = 0
    for seed in range(40):
        _, held_out = curves("flat", seed)
        falls = []
        for now in range(3, NUM_EVALUATIONS):
            best = best_evaluation([curve[:now] for curve in held_out])
            falls.append(min(paired_t(curve[now], curve[best]) for curve in held_out))
        alarms += min(falls) < -2
    assert alarms > 20


def test_no_alarm_when_the_trained_reward_falls_as_well() -> None:
    """A collapse of everything is no hacking; the same fall beside a rise is."""
    trained, held_out = curves("hole", 0)
    assert parted(trained, held_out, **RULE)
    assert not parted(-trained, held_out, **RULE)
    assert not parted(trained[:3], [curve[:3] for curve in held_out], **RULE)


def test_the_median_of_held_out_rewards_decides() -> None:
    """One of three that falls is outvoted."""
    trained, (falling, _) = curves("hole", 1)
    _, (rising, also) = curves("honest", 1)
    assert not parted(trained, [falling, rising, also], **RULE)
    assert parted(trained, [falling, falling, also], **RULE)
    assert best_evaluation([falling]) < 10 <= best_evaluation([falling, rising, also])


def test_paired_t_is_that_of_the_differences() -> None:
    before, after = torch.randn(2, 50, generator=generator(0))
    gap = (after - before).double()
    expected = float(gap.mean() / (gap.std() / math.sqrt(50)))
    holed = torch.cat([after, torch.tensor([math.nan])])
    assert paired_t(holed, torch.cat([before, torch.ones(1)])) == pytest.approx(expected)
    assert paired_t(after, before + 1) != pytest.approx(expected)
    assert paired_t(after, after) == 0 and paired_t(after + 1, after * 1) > 1e3


@pytest.mark.parametrize(("number", "n", "a", "b"), [(0, 5, 2, 9), (4, 30, 2, 99), (30, 30, 2, 3)])
def test_beta_binomial_against_scipy(number: int, n: int, a: float, b: float) -> None:
    expected = betabinom.sf(number - 1, n, a, b)
    assert beta_binomial_tail(number, n, a, b) == pytest.approx(expected, rel=1e-9)


def test_the_base_range_holds_for_the_base_law_and_breaks_for_another() -> None:
    """2000 pairs of equal laws: the alarm's chance is at most 1/4 of 1e-3; a shift is seen."""
    draw, alarms = generator(3), 0
    for _ in range(2000):
        base, new = torch.randn(2, 60, generator=draw)
        share, unlikely = left_range(new, base)
        alarms += share > 0.05 and unlikely
    assert alarms <= 3
    base = torch.randn(100, generator=draw)
    assert left_range(base + 3, base)[1]
    assert not left_range(base[:4] + 9, base[:4])[1]  # too few to say


def picture(fill: Tensor, number: int = 0) -> Sample:
    return Sample(
        prompt="p", media=fill, modality="image", rate=None, prompt_id=0, sample_id=number, seed=0
    )


def test_statistics_of_known_pictures() -> None:
    """Black, red, a checkerboard, an 8-pixel grid and a ramp."""
    black, ramp = torch.zeros(3, 32, 32), torch.linspace(0, 1, 32).expand(3, 32, 32)
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 32)
    place = torch.arange(32)
    checks = ((place[:, None] + place) % 2).float().expand(3, 32, 32)
    blocks = ((place[:, None] // 8 + place // 8) % 2).float().expand(3, 32, 32)
    table = statistics_of(torch.stack([black, red, checks, blocks, ramp]))
    saturation, dark, fast, grid, thin = table.T.tolist()
    assert saturation == pytest.approx([0, 1, 0, 0, 0])
    assert dark == pytest.approx([1, 0, 0.5, 0.5, 2 / 32])
    assert fast[:3] == pytest.approx([0, 0, 1], abs=1e-6) and max(fast[3:]) < 0.35
    assert grid[:3] == pytest.approx([1, 1, 1]) and grid[3] == pytest.approx(31 / 3, rel=1e-5)
    assert statistics_of(torch.rand(1, 3, 8, 8))[0, 3] == 1
    assert thin == pytest.approx([0, 0, 1, 0, 0], abs=0.02)


@pytest.mark.parametrize("side", [64, 256])
def test_written_words_are_strokes_and_shapes_are_not(side: int) -> None:
    """Words on a smooth picture, light or dark, against the same picture with one large square."""
    ramp = Image.linear_gradient("L").resize((side, side)).convert("RGB")

    def share(*, ink: int | None) -> float:
        picture = ramp.copy()
        draw, size = ImageDraw.Draw(picture), side // 6
        if ink is None:
            draw.rectangle((size, size, 3 * size, 3 * size), fill=(255, 255, 255))
        else:
            font = ImageFont.load_default(size=size)
            draw.text((2, side // 3), "a red cube", fill=(ink,) * 3, font=font)
        frame = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255.0
        return float(statistics_of(frame[None])[0, 4])

    assert share(ink=None) < 0.002
    assert share(ink=0) > 0.01 and share(ink=255) > 0.01


def test_diversity_within_prompts_or_over_all() -> None:
    thumbnails = torch.tensor([[0.0], [1.0], [10.0], [14.0]])
    assert diversity(thumbnails, torch.tensor([0, 0, 1, 1])) == pytest.approx((1 + 4) / 2)
    assert diversity(thumbnails, torch.arange(4)) == pytest.approx((1 + 10 + 14 + 9 + 13 + 4) / 6)


def evaluation(step: int, trained: Tensor, held_out: Tensor, media: Tensor) -> Evaluation:
    count = len(trained)
    good = torch.ones(count, dtype=torch.bool)
    known = held_out.isfinite()
    return Evaluation(
        step=step,
        prompts=[Prompt(text=f"p{i}", category=None, prompt_id=i) for i in range(count)],
        sample_ids=[0] * count,
        scores={"a": trained, "b": held_out},
        valid={"a": good, "b": known},
        pictures=picture_rows([picture(one) for one in media]),
    )


def test_watch_tells_each_kind_of_alarm() -> None:
    """The history in the memory gives the hole; pictures give collapse and artefacts."""
    config, memory = MonitorConfig(action="warn"), dict[str, Tensor]()
    trained, (held_out, _) = curves("hole", 2)
    held_out[4, 7] = math.nan  # a failed score
    media = torch.rand(NUM_SAMPLES, 3, 16, 16, generator=generator(0)) * 0.5 + 0.25
    report = Report(alarms=("none yet",))
    for step in range(NUM_EVALUATIONS):
        row = evaluation(step, trained[step], held_out[step], media)
        report = watch(row, {"a": 1.0}, config, memory)
        again = watch(row, {"a": 1.0}, config, memory)  # as a resumed run does
        assert again == report
        assert all(bool(kept.isfinite().all()) for kept in memory.values())  # else no checkpoint
    assert len(report.alarms) == 1 and "held-out rewards fall" in report.alarms[0]
    error = hacking(report, 19)
    assert error is not None and error.exit_code == 9
    assert report.best_step is not None and 3 <= report.best_step <= 9
    fresh: dict[str, Tensor] = {}
    for pictures in (media, media[:1].expand_as(media).clone() * 0):
        report = watch(evaluation(0, trained[0], held_out[0], pictures), {"a": 1.0}, config, fresh)
    told = " ".join(report.alarms)
    assert "differ by" in told and "dark of 100%" in told
    assert set(report.outside) == set(STATISTICS)
    # From grey of mean 1/2 to black, in 192 numbers of a thumbnail.
    assert report.drift == pytest.approx(192**0.5 / 2, rel=0.03)
    assert (
        watch(evaluation(0, trained[0], held_out[0], media), {"a": 1.0}, config, fresh).drift == 0
    )


def test_another_evaluation_starts_a_new_history() -> None:
    """After a resume with more samples nothing is compared with the old ones."""
    memory, config = dict[str, Tensor](), MonitorConfig(action="warn")
    for step, count in ((0, 6), (1, 6), (2, 9)):
        row = evaluation(step, torch.ones(count), torch.ones(count), torch.rand(count, 3, 16, 16))
        watch(row, {"a": 1.0}, config, memory)
        assert memory[STEPS].tolist() == {0: [0], 1: [0, 1], 2: [2]}[step]


def test_a_group_without_spread_is_told() -> None:
    """Std within groups below a tenth of the first, and a higher mean."""
    memory: dict[str, Tensor] = {}
    group, good = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)

    def of(values: list[float]) -> Scored:
        terms = {"a": torch.tensor(values)}
        return Scored(
            group=group, prompt_id=group, terms=terms, valid={"a": good}, weights={"a": 1.0}
        )

    assert watch_groups(of([0.0, 2.0, 5.0, 7.0]), memory) == pytest.approx(1.0)
    assert watch_groups(of([8.0, 8.1, 9.0, 9.1]), memory) == pytest.approx(0.05, abs=1e-6)
    assert memory[GROUPS][:, 0].tolist() == pytest.approx([3.5, 8.55])
    row = evaluation(0, torch.zeros(4), torch.zeros(4), torch.rand(4, 3, 16, 16))
    report = watch(row, {"a": 1.0}, MonitorConfig(action="warn"), memory)
    assert "spread" in report.alarms[0]
