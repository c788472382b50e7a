"""Curves as geometry: the template only writes it down as SVG. Torch-free.

A panel shows one score: evaluations as dots joined by a line, with the 95 % interval of the change
from the base as a bar; the mean over each training step's own samples as a thin line behind it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from flowalign.gallery.columns import Column, align
from flowalign.gallery.compare import Result, ScoreKind, tables
from flowalign.gallery.records import Evaluation, Run, TrainingRow
from flowalign.gallery.wording import duration, number, signed

Axis = Literal["step", "time", "evaluations"]
AXES: tuple[Axis, ...] = ("step", "time")

WIDTH, HEIGHT = 360.0, 210.0  # of the panel, SVG units (CSS pixels on a phone)
LEFT, RIGHT, TOP, BOTTOM = 40.0, 14.0, 10.0, 24.0
MAX_POINTS = 60  # of a training line; more are averaged in bins


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A value with its interval, SVG coordinates; `bar` is (y of high, y of low)."""

    x: float
    y: float
    bar: tuple[float, float] | None
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One run, or one method, in one panel."""

    series: int | None  # number of its colour and marker; None for a base
    path: str  # through the dots
    dots: tuple[Dot, ...]
    training_path: str
    training: tuple[Dot, ...]  # hover points of the thin line


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    kind: ScoreKind
    axis: Axis
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A value of a curve before it has a place."""

    x: float
    y: float
    half: float | None  # half width of the interval
    title: str


def panels(runs: Sequence[Run], kinds: Sequence[ScoreKind], series: Sequence[int]) -> list[Panel]:
    """A panel for each axis and score that has at least two points of some training run.

    `series` are the numbers of the runs' colours.
    """
    evaluated = [_results(run, kinds) for run in runs]
    found = []
    for axis, kind in itertools.product(AXES, kinds):
        curves = [
            (
                _evaluated(run, kind, results, axis),
                _binned([p for row in run.training if (p := _trained(run, kind, row, axis))]),
            )
            for run, results in zip(runs, evaluated, strict=True)
        ]
        if any(len(dots) > 1 for dots, _ in curves):
            found.append(panel(kind, axis, list(zip(series, curves, strict=True))))
    return found


Curve = tuple[list[Point], list[Point]]  # evaluations, and training samples


def panel(kind: ScoreKind, axis: Axis, shown: Sequence[tuple[int | None, Curve]]) -> Panel:
    """The geometry of one panel; each curve with the number of its colour."""
    curves = [curve for _, curve in shown]
    points = [point for pair in curves for part in pair for point in part]
    extent = [y for p in points for y in (p.y - (p.half or 0), p.y + (p.half or 0))]
    low, high = with_margin(min(extent), max(extent))
    if kind.low == 0 and kind.high == 1:
        low, high = max(0.0, low), min(1.0, high)
    y_step = nice_step((high - low) / 5)
    x_max = max(p.x for p in points) or 1.0
    unit, _ = time_unit(x_max) if axis == "time" else (1.0, "")
    x_step = nice_step(x_max / unit / 5) * unit
    if axis != "time":
        x_step = max(1.0, x_step)

    def x_at(value: float) -> float:
        return round(LEFT + value / x_max * (WIDTH - LEFT - RIGHT), 1)

    def y_at(value: float) -> float:
        share = (value - low) / (high - low)
        return round(TOP + (1 - min(1.0, max(0.0, share))) * (HEIGHT - TOP - BOTTOM), 1)

    x_values = [k * x_step for k in range(math.floor(x_max / x_step + 1e-9) + 1)]
    first = math.ceil(low / y_step - 1e-9)
    y_values = [k * y_step for k in range(first, math.floor(high / y_step + 1e-9) + 1)]
    return Panel(
        kind=kind,
        axis=axis,
        x_ticks=tuple(Tick(at=x_at(v), text=_x_text(v, x_max, axis)) for v in x_values),
        y_ticks=tuple(Tick(at=y_at(v), text=_y_text(v, y_step)) for v in y_values),
        series=tuple(
            Series(
                series=series,
                path=_path(dots, x_at, y_at),
                dots=tuple(_dot(p, x_at, y_at) for p in dots),
                training_path=_path(training, x_at, y_at),
                training=tuple(_dot(p, x_at, y_at) for p in training),
            )
            for series, (dots, training) in shown
        ),
    )


def _results(run: Run, kinds: Sequence[ScoreKind]) -> list[tuple[Evaluation, list[Result]]]:
    """Each evaluation of the run with its results by score, compared with the run's base."""
    paired = []
    for evaluation in run.evaluations:
        both = [run.base, evaluation] if run.base not in (None, evaluation) else [evaluation]
        columns = [
            Column(
                index=k, name="", detail="", run=0, series=0, evaluation=e, base=0 if k else None
            )
            for k, e in enumerate(e for e in both if e is not None)
        ]
        found = tables(kinds, columns, align(columns))
        paired.append((evaluation, [table.results[-1] for table in found]))
    return paired


def _evaluated(
    run: Run, kind: ScoreKind, results: Sequence[tuple[Evaluation, list[Result]]], axis: Axis
) -> list[Point]:
    points = []
    for evaluation, by_score in results:
        result = by_score[kind.index]
        x = float(evaluation.step) if axis == "step" else evaluation.train_seconds
        if result.mean is None or x is None:
            continue
        change = result.difference
        half = None if change is None or change.n < 2 else (change.high - change.low) / 2
        title = f"{run.name}, {_when(evaluation.step, evaluation.train_seconds)}: "
        title += f"{kind.name} {number(result.mean)}"
        if change is not None:
            title += f" ({signed(change.mean)} from base)"
        points.append(Point(x=x, y=result.mean, half=half, title=title))
    return points


def _trained(run: Run, kind: ScoreKind, row: TrainingRow, axis: Axis) -> Point | None:
    x = float(row.step) if axis == "step" else row.seconds
    if x is None or kind.name not in row.rewards:
        return None
    y = row.rewards[kind.name]
    title = f"{run.name}, {_when(row.step, row.seconds)}: training samples {number(y)}"
    return Point(x=x, y=y, half=None, title=title)


def _binned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS: means of neighbours, titled by the last of each bin."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) / MAX_POINTS)
    bins = [points[k : k + size] for k in range(0, len(points), size)]
    return [
        Point(
            x=math.fsum(p.x for p in b) / len(b),
            y=math.fsum(p.y for p in b) / len(b),
            half=None,
            title=b[-1].title + (f" (dot: mean of {len(b)} steps)" if len(b) > 1 else ""),
        )
        for b in bins
    ]


def _dot(point: Point, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> Dot:
    bar = None if point.half is None else (y_at(point.y + point.half), y_at(point.y - point.half))
    return Dot(x=x_at(point.x), y=y_at(point.y), bar=bar, title=point.title)


def _path(
    points: Sequence[Point], x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> str:
    if len(points) < 2:
        return ""
    return "M" + "L".join(f"{x_at(p.x):g} {y_at(p.y):g}" for p in points)


def _when(step: int, seconds: float | None) -> str:
    return f"step {step}" + (f", {duration(seconds)}" if seconds else "")


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= rough * (1 - 1e-9))


def with_margin(low: float, high: float) -> tuple[float, float]:
    """A range a little wider than the data's; of some width where they are all equal."""
    margin = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
    return low - margin, high + margin


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit that suits a duration, and its letters."""
    if seconds < 120:
        return 1.0, "s"
    return (60.0, "min") if seconds < 7200 else (3600.0, "h")


def _x_text(value: float, x_max: float, axis: Axis) -> str:
    if axis != "time":
        return f"{value:.0f}"
    unit, letters = time_unit(x_max)
    return f"{value / unit:g} {letters}" if value else "0"


def _y_text(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
