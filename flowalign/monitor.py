"""The watch for reward hacking: alarms from what the evaluations of one run show.

Shapes: E evaluations so far, N samples of one evaluation (the same prompts and noise each time),
K statistics of pictures. The history lives in the run's memory and so in its checkpoints. The
rules compare with chance, so that a small or noisy evaluation does not raise an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, median

import torch
from torch import Tensor

from flowalign.config.monitor import MonitorConfig
from flowalign.errors import HealthError
from flowalign.evaluation import Evaluation
from flowalign.memory import KNOWN, keep, recall
from flowalign.picture_statistics import STATISTICS, diversity
from flowalign.scoring import combine
from flowalign.types import Scored

HACKING = "HACKING"  # code of the error that alarms become
STEPS = "monitor.steps"  # (E,) int64
TRAINED = "monitor.trained"  # (E, N) float32, the weighted sum of the trained rewards
HELD_OUT = "monitor.held_out."  # + label: (E, N) float32
PICTURES = "monitor.base_pictures"  # (N, WIDTH) float32 of the first evaluation
GROUPS = "monitor.groups"  # (2, 2) float64: mean and std within groups, at first and last
ALARMS = "monitor.alarms"  # () int64, of the last evaluation
BASE_QUANTILE = 0.0025  # on each side: the 99.5 % range
CHANCE = 1e-3  # of an artefact alarm in one evaluation of the base's own law


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one evaluation told."""

    alarms: tuple[str, ...]
    best_step: int | None = None  # of the highest held-out rewards
    diversity: float = math.nan
    base_diversity: float = math.nan
    drift: float = math.nan  # mean distance to the base's picture of the same prompt and noise
    outside: Mapping[str, float] = field(default_factory=dict)  # share of samples, by statistic
    means: Mapping[str, float] = field(default_factory=dict)  # by statistic

    def numbers(self) -> dict[str, float]:
        """Finite numbers by name, for trackers."""
        found = {"alarms": float(len(self.alarms)), "diversity": self.diversity}
        found["drift"] = self.drift
        found |= {f"outside/{name}": share for name, share in self.outside.items()}
        found |= {f"mean/{name}": mean for name, mean in self.means.items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def summary(self) -> dict[str, object]:
        """The entry of an evaluation's summary.json."""
        found: dict[str, object] = dict(self.numbers())
        found["alarms"] = list(self.alarms)
        found["best_held_out_step"] = self.best_step
        found["base_diversity"] = self.base_diversity if math.isfinite(self.diversity) else None
        return found


def watch(
    result: Evaluation,
    weights: Mapping[str, float],
    config: MonitorConfig,
    memory: dict[str, Tensor],
) -> Report:
    """Add an evaluation to the history and judge it. `weights` are those of trained rewards."""
    known = {name: weight for name, weight in weights.items() if name in result.scores}
    held_out = [name for name in result.scores if name not in weights]
    _record(result, known, held_out, memory)
    alarms: list[str] = []
    found = [recall(memory, HELD_OUT + name) for name in held_out]
    curves, trained = [one for one in found if one is not None], recall(memory, TRAINED)
    if curves and trained is not None:
        rule = {"num": config.evaluations, "errors": config.standard_errors}
        if parted(trained, curves, **rule):
            alarms.append("the trained reward rises while held-out rewards fall")
    if GROUPS in memory:
        (first_mean, first_std), (mean, std) = memory[GROUPS].tolist()
        if std < config.min_group_std * first_std and mean > first_mean:
            alarms.append(f"rewards within a group spread {std:.3g}, {first_std:.3g} at first")
    report = Report(alarms=tuple(alarms), best_step=best_step(memory))
    if result.pictures is not None:
        report = _with_pictures(report, result, config, memory)
    memory[ALARMS] = torch.tensor(len(report.alarms))
    return report


def _with_pictures(
    report: Report, result: Evaluation, config: MonitorConfig, memory: Mapping[str, Tensor]
) -> Report:
    """The report with what the pictures tell against those of the first evaluation."""
    pictures, base, num = result.pictures, memory[PICTURES], len(STATISTICS)
    assert pictures is not None, "asked for by the caller"
    alarms, means, outside = list(report.alarms), dict[str, float](), dict[str, float]()
    unit = torch.tensor([prompt.prompt_id for prompt in result.prompts])
    now, before = (diversity(rows[:, num:], unit) for rows in (pictures, base))
    if now < config.min_diversity * before:
        alarms.append(f"pictures differ by {now:.3g}, those of the base by {before:.3g}")
    for name, column, own in zip(STATISTICS, pictures.T, base.T, strict=False):
        means[name] = float(column.double().mean())
        outside[name], unlikely = left_range(column, own)
        if outside[name] > config.artefact_share and unlikely:
            alarms.append(f"{name} of {outside[name]:.0%} of the pictures is outside the base")
    return replace(
        report,
        alarms=tuple(alarms),
        diversity=now,
        base_diversity=before,
        drift=float((pictures[:, num:] - base[:, num:]).double().norm(dim=1).mean()),
        outside=outside,
        means=means,
    )


def hacking(report: Report, step: int) -> HealthError | None:
    """The alarms of an evaluation as one error, for a warning or a stop."""
    if not report.alarms:
        return None
    best = (
        "" if report.best_step is None else f" (held-out rewards were best at {report.best_step})"
    )
    fix = f"look at the pictures{best}; train less, or hold the policy nearer to its start"
    return HealthError(HACKING, f"evaluation at step {step}", "; ".join(report.alarms), fix)


def _record(
    result: Evaluation,
    weights: Mapping[str, float],
    held_out: Sequence[str],
    memory: dict[str, Tensor],
) -> None:
    """Append an evaluation to the history; one of a step that is in it already replaces it.

    Where other samples or rewards are evaluated than before, or pictures have other statistics,
    the history starts anew.
    """
    rows = {HELD_OUT + name: result.scores[name] for name in held_out}
    if any(weights.values()):
        rows[TRAINED] = combine(
            {name: result.scores[name] for name in weights},
            {name: result.valid[name] for name in weights},
            weights,
        )[0]
    curves = [key for key in memory if key == TRAINED or key.startswith(HELD_OUT)]
    stored = {key: memory[key].shape[1] for key in curves if not key.endswith(KNOWN)}
    seen = result.pictures
    other = seen is not None and PICTURES in memory and memory[PICTURES].shape != seen.shape
    if other or stored != {key: len(row) for key, row in rows.items()}:
        for key in [*curves, STEPS, PICTURES, TRAINED + KNOWN]:
            memory.pop(key, None)
    steps = memory.get(STEPS, torch.zeros(0, dtype=torch.int64))
    kept = steps < result.step
    for key, row in rows.items():
        old = recall(memory, key)
        keep(memory, key, row[None] if old is None else torch.cat([old[kept], row[None]]))
    memory[STEPS] = torch.cat([steps[kept], torch.tensor([result.step])])
    if result.pictures is not None:
        memory.setdefault(PICTURES, result.pictures)


def watch_groups(scored: Scored, memory: dict[str, Tensor]) -> float:
    """Std (0 or more) of the combined reward within groups, root mean square; kept as the last."""
    reward, valid = combine(scored.terms, scored.valid, scored.weights)
    values, group = reward[valid].double(), scored.group[valid]
    if not len(values):
        return math.nan
    zeros = torch.zeros(int(scored.group.max()) + 1, dtype=torch.float64)
    count = zeros.index_add(0, group, torch.ones_like(values)).clamp(min=1)
    centred = values - (zeros.index_add(0, group, values) / count)[group]
    spread = centred.square().mean().sqrt()
    last = torch.stack([values.mean(), spread])
    first = memory[GROUPS][0] if GROUPS in memory else last
    memory[GROUPS] = torch.stack([first, last])
    return float(spread)


def parted(trained: Tensor, held_out: Sequence[Tensor], *, num: int, errors: float) -> bool:
    """Whether the trained reward (E, N) has left the held-out rewards (E, N) behind.

    In each of the last `num` evaluations the median held-out reward lies below its best earlier
    evaluation, and the trained reward above where it was then, by `errors` standard errors of
    the paired difference. The best of several noisy evaluations is too high by choice, so the
    held-out side needs the quantile that a choice among them leaves equally unlikely (Bonferroni).
    """
    if len(trained) <= num:
        return False
    candidates = len(trained) - num
    best = best_evaluation([curve[:candidates] for curve in held_out])
    corrected = -NormalDist().inv_cdf(NormalDist().cdf(-errors) / candidates)
    for now in range(candidates, len(trained)):
        fall = median(paired_t(curve[now], curve[best]) for curve in held_out)
        if fall > -corrected or paired_t(trained[now], trained[best]) < errors:
            return False
    return True


def best_evaluation(held_out: Sequence[Tensor]) -> int:
    """The evaluation with the highest median held-out reward, each in units of its own spread."""
    levels = []
    for curve in held_out:
        values = curve.double()
        centred = values - values.nanmean()
        spread = centred.square().nanmean().sqrt().clamp(min=1e-12)
        levels.append((centred.nanmean(dim=1) / spread).nan_to_num(-math.inf).tolist())
    medians = [median(column) for column in zip(*levels, strict=True)]
    return medians.index(max(medians))


def best_step(memory: Mapping[str, Tensor], among: Collection[int] | None = None) -> int | None:
    """The step of the highest held-out rewards so far, or of those `among`; None without any."""
    names = [key for key in memory if key.startswith(HELD_OUT) and not key.endswith(KNOWN)]
    curves = [curve for name in names if (curve := recall(memory, name)) is not None]
    if not curves:
        return None
    steps = memory[STEPS].tolist()
    rows = [row for row, step in enumerate(steps) if among is None or step in among]
    if not rows:
        return None
    return steps[rows[best_evaluation([curve[rows] for curve in curves])]]


def paired_t(after: Tensor, before: Tensor) -> float:
    """Mean of after - before (N,) over its standard error, over samples that have both; 0 alone."""
    difference = (after - before).double()
    difference = difference[difference.isfinite()]
    if len(difference) < 2 or not difference.any():
        return 0.0
    mean = float(difference.mean())
    error = float(difference.std()) / math.sqrt(len(difference))
    return mean / error if error > 0 else math.copysign(math.inf, mean)


def left_range(values: Tensor, base: Tensor) -> tuple[float, bool]:
    """Share of `values` (n,) outside the 99.5 % range of `base` (m,), and whether chance is out.

    The range is between the r-th lowest and the r-th highest of the base, r = 0.0025 (m + 1) and
    at least 1. Of a continuous law it covers a Beta(m + 1 - 2r, 2r) share, so the number outside
    of n new values of the same law is beta-binomial.
    """
    ordered, size = base.sort().values, len(base)
    r = max(1, int(BASE_QUANTILE * (size + 1)))
    if size < 2 * r + 1:
        return 0.0, False
    number = int(((values < ordered[r - 1]) | (values > ordered[size - r])).sum())
    chance = beta_binomial_tail(number, len(values), 2 * r, size + 1 - 2 * r)
    return number / len(values), chance < CHANCE / len(STATISTICS)


def beta_binomial_tail(number: int, n: int, a: float, b: float) -> float:
    """P(X >= number) of the beta-binomial law: sum_j C(n, j) B(j + a, n - j + b) / B(a, b)."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    def log_choose(j: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1)

    return sum(
        math.exp(log_choose(j) + log_beta(j + a, n - j + b) - log_beta(a, b))
        for j in range(number, n + 1)
    )
