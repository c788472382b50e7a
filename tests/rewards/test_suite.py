"""A suite gives scores, or an error that names reward and sample; it changes nothing else."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from flowalign.config.rewards import JpegReward, ShapesReward
from flowalign.errors import ConfigError, HealthError, RewardError
from flowalign.guarded_call import KEPT_CHARACTERS, CallTimeoutError, call_within
from flowalign.scoring import build_suite, combine
from flowalign.types import Sample
from tests.rewards.world import brightness, noise_samples, sample, suite_of, true_samples


def failing_on(*bad: int):
    """A pure reward that raises when one of these samples is in its batch."""

    def answer(samples: Sequence[Sample]) -> Tensor:
        for s in samples:
            if 4 * s.prompt_id + s.sample_id in bad:
                raise ValueError(f"cannot read sample {s.sample_id}\nsecond line")
        return brightness(samples)

    return answer


# The failure policy.


def test_raise_names_reward_prompt_sample_and_the_first_line() -> None:
    with pytest.raises(RewardError) as caught:
        suite_of(failing_on(6)).score(noise_samples(8))
    line = caught.value.line()
    assert caught.value.exit_code == 5
    assert "reward `scorer`" in line and "prompt 1 sample 2" in line
    assert "ValueError: cannot read sample 2" in line and "second line" not in line


@pytest.mark.parametrize("bad", [(0,), (3, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_drop_masks_the_failing_samples_and_counts_them(bad: tuple[int, ...]) -> None:
    samples = noise_samples(8)
    scores = suite_of(failing_on(*bad), failure="drop").score(samples)
    valid = scores.valid["scorer"]
    assert scores.dropped == {"scorer": len(bad)}
    assert [row for row in range(8) if not valid[row]] == list(bad)
    assert scores.terms["scorer"][~valid].isnan().all()
    kept = [s for row, s in enumerate(samples) if row not in bad]
    assert torch.equal(scores.terms["scorer"][valid], brightness(kept))


def test_the_kept_samples_are_scored_together_as_if_the_others_had_not_been() -> None:
    """A score that depends on its batch shows which batch it was scored in."""

    def batch_size(samples: Sequence[Sample]) -> Tensor:
        failing_on(2)(samples)
        return torch.full((len(samples),), float(len(samples)))

    scores = suite_of(batch_size, failure="drop").score(noise_samples(8))
    assert scores.terms["scorer"][scores.valid["scorer"]].tolist() == [7.0] * 7


@pytest.mark.parametrize("failure", ["raise", "drop"])
def test_failure_of_all_samples_is_an_error_under_both_policies(failure) -> None:
    fragment = "prompt 0 sample 0" if failure == "raise" else "all 8 samples failed"
    with pytest.raises(RewardError, match=fragment):
        suite_of(failing_on(*range(8)), failure=failure).score(noise_samples(8))
    with pytest.raises(RewardError, match=r"all 8 samples failed|returned nan"):
        suite_of(lambda s: [float("nan")] * len(s), failure=failure).score(noise_samples(8))


def test_half_raising_and_half_nan_is_a_failure_of_all() -> None:
    def answer(samples: Sequence[Sample]) -> Tensor:
        failing_on(0, 1)(samples)
        return torch.full((len(samples),), torch.nan)

    with pytest.raises(RewardError, match="all 4 samples failed"):
        suite_of(answer, failure="drop").score(noise_samples(4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_value_stops_or_is_masked(value: float) -> None:
    def answer(samples: Sequence[Sample]) -> list[float]:
        return [value if s.sample_id == 2 else 0.5 for s in samples]

    with pytest.raises(RewardError, match=r"prompt 0 sample 2"):
        suite_of(answer).score(noise_samples(4))
    scores = suite_of(answer, failure="drop").score(noise_samples(4))
    assert scores.valid["scorer"].tolist() == [True, True, False, True]
    assert scores.dropped == {"scorer": 1}


@pytest.mark.parametrize("failure", ["raise", "drop"])
def test_the_rewards_own_mask_means_no_score_here(failure) -> None:
    def answer(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        return brightness(samples), torch.tensor([s.sample_id != 1 for s in samples])

    scores = suite_of(answer, failure=failure).score(noise_samples(4))
    assert scores.valid["scorer"].tolist() == [True, False, True, True]
    assert scores.terms["scorer"][1].isnan() and scores.dropped == {"scorer": 0}


@pytest.mark.parametrize("failure", ["raise", "drop"])
def test_malformed_answers_are_errors_under_both_policies(failure) -> None:
    for answer in (lambda s: None, lambda s: [0.5] * (len(s) - 1), lambda s: torch.zeros(4, 1)):
        with pytest.raises(RewardError, match="expected"):
            suite_of(answer, failure=failure).score(noise_samples(4))


def test_a_failure_of_the_batch_alone_is_told_as_such() -> None:
    def answer(samples: Sequence[Sample]) -> Tensor:
        if len(samples) > 2:
            raise MemoryError("too many")
        return brightness(samples)

    with pytest.raises(RewardError, match="failed on 4 samples together, but on none alone"):
        suite_of(answer, failure="drop").score(noise_samples(4))


def test_a_group_only_reward_is_not_asked_for_single_samples() -> None:
    asked = []

    def answer(samples: Sequence[Sample]) -> Tensor:
        asked.append(len(samples))
        raise ValueError("no")

    with pytest.raises(RewardError, match="failed on 4 samples together"):
        suite_of(answer, failure="drop", group_only=True).score(noise_samples(4))
    assert asked == [4]


def test_a_reward_that_exits_does_not_end_the_run() -> None:
    with pytest.raises(RewardError, match="SystemExit"):
        suite_of(lambda s: sys.exit(0)).score(noise_samples(2))


def test_no_samples_give_no_scores() -> None:
    scores = suite_of(brightness).score([])
    assert scores.terms["scorer"].shape == (0,) and scores.dropped == {"scorer": 0}


# Media that are no media.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_picture_is_never_scored(value: float) -> None:
    samples = noise_samples(4)
    samples[2].media[1, 3, 3] = value
    seen: list[int] = []

    def answer(given: Sequence[Sample]) -> Tensor:
        seen.extend(s.sample_id for s in given)
        return brightness(given)

    with pytest.raises(HealthError, match="prompt 0 sample 2: 1 of 192 values") as caught:
        suite_of(answer).score(samples)
    assert caught.value.exit_code == 9 and seen == []
    scores = suite_of(answer, failure="drop").score(samples)
    assert seen == [0, 1, 3]
    assert scores.valid["scorer"].tolist() == [True, True, False, True]
    assert scores.dropped == {"scorer": 1}


def test_without_the_check_a_nan_picture_gets_a_jpeg_size() -> None:
    """Negative control: the picture would be saved as black, and black compresses well."""
    broken = torch.full((3, 8, 8), torch.nan).nan_to_num()
    suite = build_suite([JpegReward(name="jpeg")])
    assert suite.score([sample(broken)]).terms["jpeg"].item() > 0
    with pytest.raises(HealthError):
        suite.score([sample(torch.full((3, 8, 8), torch.nan))])


def test_another_modality_is_refused_before_any_reward() -> None:
    with pytest.raises(RewardError, match="scores video, but prompt 0 sample 0 is image"):
        suite_of(brightness, modality="video").score(noise_samples(2))


# Time, prints, and what is not the reward's own.


def test_a_sleeping_reward_is_cut_and_named() -> None:
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"reward `scorer`.*within 0.2 s"):
        suite_of(lambda s: time.sleep(30), timeout_s=0.2).score(noise_samples(2))
    assert time.monotonic() - start < 2.2


def test_a_busy_reward_is_cut() -> None:
    stop = threading.Event()

    def answer(samples: Sequence[Sample]) -> Tensor:
        while not stop.is_set():
            pass
        return brightness(samples)

    start = time.monotonic()
    try:
        with pytest.raises(RewardError, match="did not answer for 2 samples"):
            suite_of(answer, timeout_s=0.2).score(noise_samples(2))
        assert time.monotonic() - start < 2.2
    finally:
        stop.set()


def test_retries_share_the_time_limit() -> None:
    def answer(samples: Sequence[Sample]) -> Tensor:
        time.sleep(0.15)
        raise ValueError

    start = time.monotonic()
    with pytest.raises(RewardError, match=r"within 0\.4 s"):
        suite_of(answer, timeout_s=0.4, failure="drop").score(noise_samples(16))
    assert time.monotonic() - start < 2.4


def test_an_interrupt_of_the_caller_is_not_the_rewards_failure(monkeypatch) -> None:
    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        suite_of(brightness, failure="drop").score(noise_samples(2))


def test_prints_are_captured_and_capped(capsys, caplog) -> None:
    def answer(samples: Sequence[Sample]) -> Tensor:
        for _ in range(100_000):
            print("0123456789")
        print("to stderr", file=sys.stderr)
        return brightness(samples)

    with caplog.at_level(logging.INFO, logger="flowalign"):
        suite_of(answer).score(noise_samples(2))
    assert capsys.readouterr() == ("", "")
    message = caplog.messages[-1]
    assert "printed 1100010 characters" in message and len(message) < KEPT_CHARACTERS + 100


def test_prints_of_other_threads_are_left_alone(capsys) -> None:
    """Sampling goes on while rewards are scored, and its progress bar must stay visible."""
    scoring, printed = threading.Event(), threading.Event()

    def answer(samples: Sequence[Sample]) -> Tensor:
        scoring.set()
        assert printed.wait(5)
        print("inside")
        return brightness(samples)

    def bar() -> None:
        assert scoring.wait(5)
        print("progress")
        printed.set()

    other = threading.Thread(target=bar)
    other.start()
    suite_of(answer).score(noise_samples(2))
    other.join()
    assert capsys.readouterr().out == "progress\n"


def test_global_randomness_and_grad_mode_are_as_before() -> None:
    def answer(samples: Sequence[Sample]) -> Tensor:
        torch.set_grad_enabled(True)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return brightness(samples)

    def state() -> tuple[object, ...]:
        numpy_state = repr(np.random.get_state())
        return random.getstate(), numpy_state, torch.get_rng_state().sum().item()

    before = state()
    with torch.no_grad():
        suite_of(answer).score(noise_samples(2))
        assert not torch.is_grad_enabled()
    assert state() == before
    answer(noise_samples(2))  # negative control: without the suite it does change
    torch.set_grad_enabled(True)
    assert state() != before


def test_a_reward_runs_without_gradients_and_with_our_number_of_threads() -> None:
    seen = {}

    def answer(samples: Sequence[Sample]) -> Tensor:
        seen.update(grad=torch.is_grad_enabled(), threads=torch.get_num_threads())
        return brightness(samples)

    suite_of(answer).score(noise_samples(2))
    assert seen == {"grad": False, "threads": torch.get_num_threads()}


@pytest.mark.parametrize("raises", [False, True])
def test_a_change_of_the_input_is_an_error(raises: bool) -> None:
    def answer(samples: Sequence[Sample]) -> Tensor:
        samples[0].media.mul_(0.5)
        if raises:
            raise ValueError
        return brightness(samples)

    with pytest.raises(RewardError, match="changed its input media in place"):
        suite_of(answer, failure="drop").score(noise_samples(2))
    if not raises:  # negative control: without the comparison it goes unnoticed
        suite_of(answer, trusted=True).score(noise_samples(2))


def test_call_within_returns_and_cuts() -> None:
    assert call_within(lambda: 7, 5.0) == 7
    with pytest.raises(CallTimeoutError):
        call_within(lambda: time.sleep(5), 0.05)


# Several rewards together.


def test_labels_are_unique() -> None:
    twice = [ShapesReward(name="shapes"), ShapesReward(name="shapes", mode="strict")]
    with pytest.raises(ConfigError, match="two rewards are called 'shapes'"):
        build_suite(twice)
    labelled = [twice[0], ShapesReward(name="shapes", mode="strict", label="shapes_strict")]
    suite = build_suite([*labelled, JpegReward(name="jpeg", weight=-0.5)])
    assert suite.names == ["shapes", "shapes_strict", "jpeg"]
    assert suite.weights == {"shapes": 1.0, "shapes_strict": 1.0, "jpeg": -0.5}
    scores = suite.score(true_samples(4))
    assert set(scores.terms) == set(scores.valid) == set(scores.dropped) == set(suite.names)


def test_combine_is_the_weighted_sum_of_what_is_valid() -> None:
    terms = {"a": torch.tensor([1.0, 2.0, torch.nan]), "b": torch.tensor([10.0, torch.nan, 30.0])}
    valid = {name: ~values.isnan() for name, values in terms.items()}
    reward, good = combine(terms, valid, {"a": 2.0, "b": -0.5})
    assert reward[0] == 2.0 * 1.0 - 0.5 * 10.0
    assert good.tolist() == [True, False, False] and reward[1:].isnan().all()
    reward, good = combine(terms, valid, {"a": 2.0, "b": 0.0})  # a term of weight 0 is not needed
    assert good.tolist() == [True, True, False] and reward[:2].tolist() == [2.0, 4.0]
