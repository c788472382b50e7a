"""Scores of the columns against their bases, paired by prompt and seed. Torch-free.

The unit is a prompt: its samples are averaged first. Such an interval speaks about these models
on further prompts of the same kind; it says nothing about another training seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowalign.gallery.columns import Column, PromptRow
from flowalign.gallery.records import Run, Score
from flowalign.statistics import Interval, mean_interval

FILLS_UNIT_RANGE = 0.5  # spread of values in [0, 1] from which bars show [0, 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreKind:
    """One reward as the page shows it."""

    index: int
    name: str
    role: str  # "trained", "held out", "trained in <runs>", or ""
    trained: bool  # in at least one run, or steered by
    steered: bool  # nothing was trained: it steered
    low: float  # range of bars and colours: 0 to 1 for scores that fill it, else their extremes
    high: float
    lower_is_better: bool

    def place(self, value: float) -> float:
        """Where `value` lies in the range, 0 to 1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def goodness(self, value: float) -> float:
        """`place`, turned so that 1 is good."""
        return 1 - self.place(value) if self.lower_is_better else self.place(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One score of one column over a set of prompts."""

    column: int
    mean: float | None  # over prompts with a valid score
    n: int  # those prompts
    base_mean: float | None  # of the base, over the paired prompts
    difference: Interval | None  # to the base over the prompts both have; None for a base


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All columns' results of one score."""

    kind: ScoreKind
    results: tuple[Result, ...]
    categories: tuple[tuple[str, tuple[Result, ...]], ...]  # empty with fewer than two


def score_kinds(runs: Sequence[Run], columns: Sequence[Column]) -> list[ScoreKind]:
    """Every score of the columns: the trained ones first, in the config's order."""
    evaluations = [run.evaluations[-1] for run in runs]
    trained_by: dict[str, list[str]] = {}
    for run, evaluation in zip(runs, evaluations, strict=True):
        for name in evaluation.trained:
            trained_by.setdefault(name, []).append(run.name)
    held_out = dict.fromkeys(name for e in evaluations for name in e.held_out)
    values: dict[str, list[float]] = {}
    for column in columns:
        for sample in column.evaluation.samples.values():
            for name, value in sample.scores.items():
                values.setdefault(name, []).extend([] if value is None else [value])
    order = [name for name in dict.fromkeys([*trained_by, *held_out, *values]) if name in values]
    return [
        _kind(index, name, values[name], trained_by.get(name, []), name in held_out, runs)
        for index, name in enumerate(order)
    ]


def tables(
    kinds: Sequence[ScoreKind], columns: Sequence[Column], rows: Sequence[PromptRow]
) -> list[Table]:
    """Means and paired differences, of all prompts and of each category."""
    groups: dict[str, list[PromptRow]] = {}
    for row in rows:
        groups.setdefault(row.category, []).append(row)
    shown = groups if len(groups) > 1 else {}
    return [
        Table(
            kind=kind,
            results=_results(kind.name, columns, rows),
            categories=tuple(
                (category, _results(kind.name, columns, members))
                for category, members in sorted(shown.items())
            ),
        )
        for kind in kinds
    ]


def gain(row: PromptRow, column: Column, name: str) -> float | None:
    """Mean over the prompt's samples of score `name` minus the base's, equal seeds paired."""
    if column.base is None:
        return None
    pairs = list(_pairs(row, column.index, column.base, name))
    return math.fsum(a - b for a, b in pairs) / len(pairs) if pairs else None


def _results(name: str, columns: Sequence[Column], rows: Sequence[PromptRow]) -> tuple[Result, ...]:
    return tuple(_result(name, column, rows) for column in columns)


def _result(name: str, column: Column, rows: Sequence[PromptRow]) -> Result:
    means = [m for row in rows if (m := _prompt_mean(row, column.index, name)) is not None]
    base_means, differences = [], []
    if column.base is not None:
        for row in rows:
            pairs = list(_pairs(row, column.index, column.base, name))
            if pairs:
                base_means.append(math.fsum(b for _, b in pairs) / len(pairs))
                differences.append(math.fsum(a - b for a, b in pairs) / len(pairs))
    return Result(
        column=column.index,
        mean=math.fsum(means) / len(means) if means else None,
        n=len(means),
        base_mean=math.fsum(base_means) / len(base_means) if base_means else None,
        difference=mean_interval(differences) if differences else None,
    )


def _prompt_mean(row: PromptRow, column: int, name: str) -> float | None:
    values = [v for _, cells in row.lines if (v := _value(cells[column], name)) is not None]
    return math.fsum(values) / len(values) if values else None


def _pairs(row: PromptRow, column: int, base: int, name: str) -> list[tuple[float, float]]:
    return [
        (after, before)
        for _, cells in row.lines
        if (after := _value(cells[column], name)) is not None
        and (before := _value(cells[base], name)) is not None
    ]


def _value(cell: Score | None, name: str) -> float | None:
    return None if cell is None else cell.scores.get(name)


def shown_range(values: Sequence[float]) -> tuple[float, float]:
    """The range of bars and colours: 0 to 1 for values that fill it, else their extremes."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low >= 0 and high <= 1 and high - low >= FILLS_UNIT_RANGE:
        low, high = 0.0, 1.0
    elif low == high:
        high = low + 1.0
    return low, high


def _kind(
    index: int,
    name: str,
    values: Sequence[float],
    trained_by: Sequence[str],
    held_out: bool,
    runs: Sequence[Run],
) -> ScoreKind:
    low, high = shown_range(values)
    steered = all(run.steered for run in runs)
    if trained_by:
        everywhere = len(trained_by) == len(runs)
        word = "steered by" if steered else "trained"
        role = word if everywhere else f"{word} in " + ", ".join(trained_by)
    else:
        role = "held out" if held_out else ""
    return ScoreKind(
        index=index,
        name=name,
        role=role,
        trained=bool(trained_by),
        steered=steered,
        low=low,
        high=high,
        lower_is_better=any(name in run.lower_is_better for run in runs),
    )


def differing_settings(runs: Sequence[Run]) -> list[tuple[str, tuple[str, ...]]]:
    """Config keys in which the runs differ, with each run's value; where it is saved is no news."""
    keys: Mapping[str, None] = dict.fromkeys(key for run in runs for key in run.settings)
    compared = [(key, tuple(run.settings.get(key, "") for run in runs)) for key in sorted(keys)]
    return [pair for pair in compared if pair[0] != "output" and len(set(pair[1])) > 1]
