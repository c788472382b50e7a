"""What steering took, and what it bought: scores against network evaluations. Torch-free.

A dot is a column of the gallery: its mean score, with the 95 % interval of the change from the
plain samples as a bar, over the network evaluations of one population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowalign.gallery.columns import Column, label_of
from flowalign.gallery.compare import Result, ScoreKind, Table
from flowalign.gallery.curves import Curve, Panel, Point, panel
from flowalign.gallery.records import Run, Steering
from flowalign.gallery.wording import number, signed

KEY = "network_evaluations"
TITLES = {
    KEY: "network evaluations",
    "decodes": "decodes",
    "linear_previews": "linear previews",
    "reward_calls": "reward calls",
}
WHOLE = {"seconds": "seconds in all", "peak_memory_mib": "peak memory, MiB"}  # not by population
ASIDE = 0.012  # dots of one budget stand side by side: this share of the axis apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """What one column took."""

    column: Column
    particles: str
    cells: tuple[str, ...]  # one for each title; empty where it was not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """All that a page tells about costs."""

    panels: tuple[Panel, ...]
    legend: tuple[tuple[int | None, str], ...]  # (colour, name)
    titles: tuple[str, ...]
    bills: tuple[Bill, ...]


def spending(
    runs: Sequence[Run], columns: Sequence[Column], found: Sequence[Table]
) -> Spending | None:
    """Panels and table of the columns that say what they took; None where none does."""
    paid = [c for c in columns if c.evaluation.steering is not None and c.evaluation.steering.costs]
    if not paid:
        return None
    known = {key: None for key in (*TITLES, *WHOLE)}
    given = {key: None for c in paid if (s := c.evaluation.steering) for key in s.costs}
    keys = [key for key in {**known, **given} if any(_cost(c, key) for c in paid)]
    titles = {**TITLES, **WHOLE}
    bills = tuple(
        Bill(
            column=column,
            particles=_particles(column.evaluation.steering),
            cells=tuple(_cell(column, key) for key in keys),
        )
        for column in paid
    )
    groups = _groups(paid)
    panels = [] if len(paid) < 2 else [_panel(table, groups) for table in found]
    return Spending(
        panels=tuple(each for each in panels if each is not None),
        legend=tuple((series, _name(runs, members[0])) for series, members in groups),
        titles=tuple(titles.get(key, key.replace("_", " ")) for key in keys),
        bills=bills,
    )


def _groups(paid: Sequence[Column]) -> list[tuple[int | None, list[Column]]]:
    """The columns of each curve: plain samples first, then each method of each run."""
    groups: dict[int | None, list[Column]] = {}
    for column in paid:
        groups.setdefault(None if column.base is None else column.series, []).append(column)
    return sorted(groups.items(), key=lambda group: -1 if group[0] is None else group[0])


def _panel(table: Table, groups: Sequence[tuple[int | None, Sequence[Column]]]) -> Panel | None:
    xs = [x for _, members in groups for c in members if (x := _each(c, KEY)) is not None]
    apart = ASIDE * max(xs, default=0.0)
    middle = (len(groups) - 1) / 2
    shown: list[tuple[int | None, Curve]] = []
    for order, (series, members) in enumerate(groups):
        points = [
            point
            for column in members
            if (point := _point(table.kind, table.results[column.index], column))
        ]
        aside = 0.0 if series is None else apart * (order - middle)
        moved = [Point(x=p.x + aside, y=p.y, half=p.half, title=p.title) for p in points]
        shown.append((series, (sorted(moved, key=lambda p: p.x), [])))
    if sum(len(dots) for _, (dots, _) in shown) < 2:
        return None
    return panel(table.kind, "evaluations", shown)


def _point(kind: ScoreKind, result: Result, column: Column) -> Point | None:
    x = _each(column, KEY)
    if x is None or result.mean is None:
        return None
    change = result.difference
    half = None if change is None or change.n < 2 else (change.high - change.low) / 2
    title = f"{column.name}, {column.detail}, {x:g} evaluations: {kind.name} {number(result.mean)}"
    if change is not None:
        title += f" ({signed(change.mean)} from base)"
    return Point(x=x, y=result.mean, half=half, title=title)


def _cost(column: Column, key: str) -> float | None:
    steering = column.evaluation.steering
    return None if steering is None else steering.costs.get(key)


def _each(column: Column, key: str) -> float | None:
    """A cost of one population."""
    total, steering = _cost(column, key), column.evaluation.steering
    if total is None or steering is None or steering.populations is None:
        return None
    return total / steering.populations


def _cell(column: Column, key: str) -> str:
    value = _cost(column, key) if key in WHOLE else _each(column, key)
    if value is None:
        return ""
    if key == "seconds":
        return f"{value:.1f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _particles(steering: Steering | None) -> str:
    return "" if steering is None or steering.particles is None else str(steering.particles)


def _name(runs: Sequence[Run], column: Column) -> str:
    if column.base is None:
        return "base" if column.name == "base" else column.name
    label = label_of(column.evaluation)
    return label if len(runs) == 1 else f"{runs[column.run].name}: {label}"
