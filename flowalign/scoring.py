"""Scoring samples with a list of rewards, so that a fault is never a number.

N samples; a term is one reward's scores under its label. Where a sample is not valid, its score is
NaN: whoever uses it by mistake sees it at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowalign.catalog import resolve
from flowalign.config.rewards import CodeReward, RewardConfig, is_set
from flowalign.config.rewards_rules import TAKE_CODE
from flowalign.errors import ConfigError, HealthError, RewardError
from flowalign.processes import Processes, usable_device
from flowalign.protocols import SetReward
from flowalign.reward_call import Entry, Failure, SetEntry, features_one, named, score_one
from flowalign.types import Sample
from flowalign.user_code import LoadedCode, load_reward

__all__ = [
    "Entry",
    "Failure",
    "RewardSuite",
    "Scores",
    "SetEntry",
    "build_suite",
    "combine",
    "gathered",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Every reward's answer for the same N samples."""

    terms: dict[str, Tensor]  # (N,) float32 on the CPU; NaN where not valid
    valid: dict[str, Tensor]  # (N,) bool; False: failed under `drop`, or masked by the reward
    dropped: dict[str, int]  # samples that failed; a reward's own mask is not counted
    features: dict[str, Tensor] = field(default_factory=dict)  # (N, D) of set rewards, as terms


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
    set_entries: Sequence[SetEntry] = ()

    def __post_init__(self) -> None:
        labels = [entry.label for entry in (*self.entries, *self.set_entries)]
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

    @property
    def sets(self) -> dict[str, SetReward]:
        """The set rewards by label."""
        return {entry.label: entry.reward for entry in self.set_entries}

    @property
    def set_weights(self) -> dict[str, float]:
        """Weight of each set reward."""
        return {entry.label: entry.weight for entry in self.set_entries}

    @property
    def code(self) -> dict[str, LoadedCode]:
        """The user's files behind the terms, for the record of the run."""
        return {entry.label: entry.code for entry in self.entries if entry.code is not None}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the user's files that run, by path."""
        return {str(code.file): code.sha256 for code in self.code.values()}

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Scores of `samples` by every reward, and their features for every set reward.

        Global random generators, grad mode and the samples are as before afterwards.
        """
        _check_modality((*self.entries, *self.set_entries), samples)
        finite = _finite(samples, self.failure)
        kept = [sample for sample, good in zip(samples, finite.tolist(), strict=True) if good]
        limits = {"failure": self.failure, "timeout_s": self.timeout_s}
        unseen = torch.zeros(0, dtype=torch.bool)
        terms, features, valid, dropped = {}, {}, {}, {}
        for entry in self.entries:
            found = score_one(entry, kept, **limits) if kept else (torch.zeros(0), unseen, 0)
            terms[entry.label], valid[entry.label] = _masked(finite, *found[:2])
            dropped[entry.label] = found[2] + len(samples) - len(kept)
        for entry in self.set_entries:
            found = features_one(entry, kept, **limits) if kept else (torch.zeros(0, 0), unseen, 0)
            features[entry.label], valid[entry.label] = _masked(finite, *found[:2])
            dropped[entry.label] = found[2] + len(samples) - len(kept)
        return Scores(terms=terms, valid=valid, dropped=dropped, features=features)


def _masked(finite: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(values (N, ...), NaN where not valid, valid (N,)) of the answer for `finite` (N,) only."""
    valid = torch.zeros(len(finite), dtype=torch.bool)
    valid[finite] = mask
    spread = torch.full((len(finite), *values.shape[1:]), torch.nan)
    spread[valid] = values[mask]
    return spread, valid


def gathered(
    suite: RewardSuite, parts: Sequence[Scores], index: Tensor, size: int, processes: Processes
) -> Scores:
    """Scores of all `size` samples of all processes, from local batches of the places `index`."""

    def together(rows: Sequence[Tensor], kind: Tensor) -> Tensor:
        return processes.together(torch.cat([kind, *rows]), index, size)

    terms, features, valid, dropped = {}, {}, {}, {}
    for name in suite.names:
        terms[name] = together([part.terms[name] for part in parts], torch.zeros(0))
    for name in suite.sets:
        rows = [part.features[name] for part in parts]
        # A process without a sample to score does not know the number of features.
        width = processes.worst(max((row.shape[1] for row in rows), default=0))
        rows = [
            row.new_full((len(row), width), torch.nan) if not row.shape[1] else row for row in rows
        ]
        features[name] = together(rows, torch.zeros(0, width))
    for name in (*suite.names, *suite.sets):
        valid[name] = together([part.valid[name] for part in parts], torch.zeros(0).bool())
        count = torch.tensor(sum(part.dropped[name] for part in parts))
        dropped[name] = int(processes.sum(count))
    return Scores(terms=terms, valid=valid, dropped=dropped, features=features)


def combine(
    terms: Mapping[str, Tensor], valid: Mapping[str, Tensor], weights: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """(reward (N,) float32, valid (N,)): the weighted sum of the terms.

    A sample is valid when every term of non-zero weight is; elsewhere the reward is NaN. Terms of
    weight 0 do not count at all. Without terms (set rewards alone) it is 0.
    """
    used = [name for name in terms if weights[name] != 0]
    first = next(iter(valid.values()))
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
    where = usable_device(device) if isinstance(device, str) else device
    single = [_entry(config, allow_code, where) for config in configs if not is_set(config)]
    sets = [_set_entry(config, where) for config in configs if is_set(config)]
    return RewardSuite(entries=single, set_entries=sets, failure=failure, timeout_s=timeout_s)


def _entry(config: RewardConfig, allow_code: Sequence[str], device: torch.device) -> Entry:
    """The reward a config names: file `rewards/<name>.py`, or the user's own.

    `name` is one of the schema's literals, so no config can choose what is imported.
    """
    label = config.label or config.name
    if isinstance(config, CodeReward):
        reward, code = load_reward(config.target, config.args, allow_code=allow_code)
        return Entry(label=label, reward=reward, weight=config.weight, code=code)
    build = resolve("rewards", config.name)
    if isinstance(config, TAKE_CODE):
        reward, code = build(config, device=device, allow_code=allow_code)
        return Entry(label=label, reward=reward, weight=config.weight, code=code)
    reward = build(config, device=device)
    return Entry(label=label, reward=reward, weight=config.weight)


def _set_entry(config: RewardConfig, device: torch.device) -> SetEntry:
    """The set reward a config names."""
    reward = resolve("rewards", config.name)(config, device=device)
    return SetEntry(label=config.label or config.name, reward=reward, weight=config.weight)


def _check_modality(entries: Sequence[Entry | SetEntry], samples: Sequence[Sample]) -> None:
    for entry in entries:
        for sample in samples:
            if sample.modality != entry.reward.modality:
                raise RewardError(
                    "RWD-MODALITY",
                    entry.where,
                    f"scores {entry.reward.modality}, but {named(sample)} is {sample.modality}",
                    "choose a reward for that modality (`flowalign list rewards`)",
                )


def _finite(samples: Sequence[Sample], failure: Failure) -> Tensor:
    """(N,) bool; under `raise` a non-finite medium stops before any reward sees it."""
    finite = torch.tensor([_is_finite(s.media) for s in samples], dtype=torch.bool)
    if failure == "raise" and not bool(finite.all()):
        bad = samples[int((~finite).nonzero()[0])]
        num = int((~bad.media.isfinite()).sum())
        what = f"{num} of {bad.media.numel()} values are NaN or infinite"
        fix = "a generator's fault is never scored; try float32 or a lower learning rate"
        raise HealthError("MEDIA-NONFINITE", named(bad), what, fix)
    return finite


def _is_finite(media: Tensor) -> bool:
    """Whether all values are: by the extremes, which need no memory and pass NaN on."""
    return not media.numel() or bool(torch.stack(media.aminmax()).isfinite().all())
