"""Scoring samples with a list of rewards, so that a fault is never a number.

N samples; a term is one reward's scores under its label. Where a sample is not valid, its score is
NaN: whoever uses it by mistake sees it at once.
"""

from __future__ import annotations

import importlib
import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor

from flowalign.answers import read_answer
from flowalign.config.rewards import CodeReward, RewardConfig
from flowalign.errors import ConfigError, FlowalignError, HealthError, RewardError
from flowalign.guarded_call import CallTimeoutError, Captured, call_within, global_randomness_kept
from flowalign.protocols import Reward
from flowalign.types import Sample
from flowalign.user_code import load_reward

_log = logging.getLogger(__name__)

Failure = Literal["raise", "drop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One reward of a suite."""

    label: str  # name of the term
    reward: Reward
    weight: float = 1.0
    trusted: bool = True  # False: a user's code, whose inputs are compared before and after


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Every reward's answer for the same N samples."""

    terms: dict[str, Tensor]  # (N,) float32 on the CPU; NaN where not valid
    valid: dict[str, Tensor]  # (N,) bool; False: failed under `drop`, or masked by the reward
    dropped: dict[str, int]  # samples that failed; a reward's own mask is not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSuite:
    """Rewards with one failure policy and one time limit.

    `raise` ends in an error that names reward, prompt and sample; `drop` masks failing samples,
    and gives the others exactly the scores they would have without the failing ones. An answer
    of the wrong form, a timeout, and a failure of all samples are errors under both. A mask that
    the reward gives by itself means "no score here" and is accepted under both.
    """

    entries: Sequence[Entry]
    failure: Failure = "raise"
    timeout_s: float = 120.0  # for all calls of one reward on one batch together

    def __post_init__(self) -> None:
        labels = self.names
        for label in labels:
            if labels.count(label) > 1:
                what = f"two rewards are called {label!r}"
                raise ConfigError("CFG-DUPLICATE", "rewards", what, "give one of them a `label`")

    @property
    def names(self) -> list[str]:
        """Labels of the terms, in order."""
        return [entry.label for entry in self.entries]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term."""
        return {entry.label: entry.weight for entry in self.entries}

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Scores of `samples` by every reward.

        Global random generators, grad mode and the samples are as before afterwards.
        """
        _check_modality(self.entries, samples)
        finite = _finite(samples, self.failure)
        kept = [sample for sample, good in zip(samples, finite.tolist(), strict=True) if good]
        terms, valid, dropped = {}, {}, {}
        for entry in self.entries:
            values, mask, failed = (torch.zeros(0), torch.zeros(0, dtype=torch.bool), 0)
            if kept:
                values, mask, failed = _score(entry, kept, self.failure, self.timeout_s)
            terms[entry.label] = torch.full((len(samples),), torch.nan)
            terms[entry.label][finite] = torch.where(mask, values, torch.nan)
            valid[entry.label] = torch.zeros(len(samples), dtype=torch.bool)
            valid[entry.label][finite] = mask
            dropped[entry.label] = failed + len(samples) - len(kept)
        return Scores(terms=terms, valid=valid, dropped=dropped)


def combine(
    terms: Mapping[str, Tensor], valid: Mapping[str, Tensor], weights: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """(reward (N,) float32, valid (N,)): the weighted sum of the terms.

    A sample is valid when every term of non-zero weight is; elsewhere the reward is NaN. Terms of
    weight 0 do not count at all.
    """
    used = [name for name in terms if weights[name] != 0]
    first = next(iter(terms.values()))
    good = torch.ones(first.shape, dtype=torch.bool, device=first.device)
    total = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
    for name in used:
        good = good & valid[name]
        total = total + weights[name] * terms[name].double()
    return torch.where(good, total, torch.nan).float(), good


def build_suite(
    configs: Sequence[RewardConfig],
    *,
    allow_code: Sequence[str] = (),
    device: str | torch.device = "cpu",
    failure: Failure = "raise",
    timeout_s: float = 120.0,
) -> RewardSuite:
    """The suite of a config; `allow_code` are the files named on the command line."""
    entries = [
        Entry(
            label=config.label or _default_label(config),
            reward=_build(config, allow_code, torch.device(device)),
            weight=config.weight,
            trusted=not isinstance(config, CodeReward),
        )
        for config in configs
    ]
    return RewardSuite(entries=entries, failure=failure, timeout_s=timeout_s)


def _default_label(config: RewardConfig) -> str:
    if isinstance(config, CodeReward):
        return config.target.rsplit(":", 1)[-1]
    return config.name


def _build(config: RewardConfig, allow_code: Sequence[str], device: torch.device) -> Reward:
    """The reward a config names: file `rewards/<name>.py`, or the user's own.

    `name` is one of the schema's literals, so no config can choose what is imported.
    """
    if isinstance(config, CodeReward):
        return load_reward(config.target, config.args, allow_code=allow_code).reward
    module = importlib.import_module(f"flowalign.rewards.{config.name}")
    return module.from_config(config, device=device)


def _score(
    entry: Entry, samples: Sequence[Sample], failure: Failure, timeout_s: float
) -> tuple[Tensor, Tensor, int]:
    """(values (N,), valid (N,), number that failed) of one reward."""
    deadline = time.monotonic() + timeout_s
    try:
        values, mask = _call(entry, samples, deadline, timeout_s)
        good = torch.ones(len(samples), dtype=torch.bool)
    except _CallFailedError as failed:
        good = _which_are_good(entry, samples, failure, deadline, timeout_s, failed.error)
        rest = [sample for sample, ok in zip(samples, good.tolist(), strict=True) if ok]
        values = torch.full((len(samples),), torch.nan)
        mask = torch.zeros(len(samples), dtype=torch.bool)
        # The rest is scored together once more: the scores it would have had by itself.
        try:
            values[good], mask[good] = _call(entry, rest, deadline, timeout_s)
        except _CallFailedError as again:
            _raise_batch(entry, len(samples), again.error)
    broken = mask & ~values.isfinite()
    if failure == "raise" and bool(broken.any()):
        sample = samples[int(broken.nonzero()[0])]
        value = float(values[broken][0])
        what = f"returned {value} for {_named(sample)}"
        fix = "return a finite number, or a mask; `reward_failure: drop` masks such samples"
        raise RewardError("RWD-NONFINITE", f"reward `{entry.label}`", what, fix)
    if bool(broken.all()) and len(samples) > 0:
        what = f"all {len(samples)} samples failed: every value is NaN or infinite"
        fix = "repair the reward"
        raise RewardError("RWD-ALL-FAILED", f"reward `{entry.label}`", what, fix)
    return values, mask & ~broken, int((broken | ~good).sum())


class _CallFailedError(Exception):
    """The reward raised; carries what."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _call(
    entry: Entry, samples: Sequence[Sample], deadline: float, timeout_s: float
) -> tuple[Tensor, Tensor]:
    """One guarded call; `_CallFailedError` when the reward raised."""
    where = f"reward `{entry.label}`"
    before = None if entry.trusted else _fingerprints(samples)
    log = Captured()
    seconds = max(deadline - time.monotonic(), 0.0)
    try:
        with global_randomness_kept():
            answer = call_within(lambda: entry.reward(list(samples)), seconds, log=log)
    except CallTimeoutError as cut:
        what = f"did not answer for {len(samples)} samples within {timeout_s:g} s"
        fix = "make it faster, or raise `reward_timeout_s`"
        raise RewardError("RWD-TIMEOUT", where, what, fix) from cut
    except BaseException as error:
        if isinstance(error, FlowalignError) and not isinstance(error, RewardError):
            raise
        raise _CallFailedError(error) from error
    finally:
        if log.characters:
            _log.info("%s printed %d characters: %s", where, log.characters, log.text[:200])
    if before is not None and before != _fingerprints(samples):
        what = "changed its input media in place"
        raise RewardError("RWD-CHANGED-INPUT", where, what, "work on a copy: `media.clone()`")
    return read_answer(answer, label=entry.label, num=len(samples))


def _which_are_good(
    entry: Entry,
    samples: Sequence[Sample],
    failure: Failure,
    deadline: float,
    timeout_s: float,
    error: BaseException,
) -> Tensor:
    """(N,) bool: samples that the reward can score alone, after it raised for all together."""
    where = f"reward `{entry.label}`"
    if failure == "raise" and isinstance(error, RewardError):
        raise error
    if entry.reward.group_only and len(samples) > 1:
        _raise_batch(entry, len(samples), error)
    good = torch.ones(len(samples), dtype=torch.bool)
    first: BaseException | None = None
    for i, sample in enumerate(samples):
        try:
            if len(samples) > 1:
                _call(entry, [sample], deadline, timeout_s)
            else:
                raise _CallFailedError(error)
        except _CallFailedError as failed:
            good[i] = False
            first = first or failed.error
            if failure == "raise":
                what = f"{_named(sample)}: {_first_line(failed.error)}"
                fix = "repair it, or mask failing samples with `reward_failure: drop`"
                raise RewardError("RWD-RAISED", where, what, fix) from failed.error
    if first is None:
        _raise_batch(entry, len(samples), error)
    if not bool(good.any()):
        what = f"all {len(samples)} samples failed: {_first_line(first)}"
        raise RewardError("RWD-ALL-FAILED", where, what, "repair the reward") from first
    return good


def _raise_batch(entry: Entry, num: int, error: BaseException) -> NoReturn:
    what = f"failed on {num} samples together, not on one alone: {_first_line(error)}"
    fix = "a score must not depend on the other samples of its batch"
    raise RewardError("RWD-RAISED", f"reward `{entry.label}`", what, fix) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _named(sample: Sample) -> str:
    return f"prompt {sample.prompt_id} sample {sample.sample_id}"


def _check_modality(entries: Sequence[Entry], samples: Sequence[Sample]) -> None:
    for entry in entries:
        for sample in samples:
            if sample.modality != entry.reward.modality:
                raise RewardError(
                    "RWD-MODALITY",
                    f"reward `{entry.label}`",
                    f"scores {entry.reward.modality}, but {_named(sample)} is {sample.modality}",
                    "choose a reward for that modality (`flowalign list rewards`)",
                )


def _finite(samples: Sequence[Sample], failure: Failure) -> Tensor:
    """(N,) bool; under `raise` a non-finite medium stops before any reward sees it."""
    finite = torch.tensor([bool(s.media.isfinite().all()) for s in samples], dtype=torch.bool)
    if failure == "raise" and not bool(finite.all()):
        bad = samples[int((~finite).nonzero()[0])]
        num = int((~bad.media.isfinite()).sum())
        what = f"{num} of {bad.media.numel()} values are NaN or infinite"
        fix = "a generator's fault is never scored; try float32 or a lower learning rate"
        raise HealthError("MEDIA-NONFINITE", _named(bad), what, fix)
    return finite


def _fingerprints(samples: Sequence[Sample]) -> list[int]:
    """Checksum of each medium's bytes: enough to see a change nobody hides."""
    return [zlib.crc32(s.media.detach().cpu().contiguous().numpy().tobytes()) for s in samples]
