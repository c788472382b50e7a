"""What the templates write down: finished texts and places, no more arithmetic. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowalign.gallery.columns import Column, PromptRow
from flowalign.gallery.compare import Result, ScoreKind, Table, gain
from flowalign.gallery.family import Tree, is_history, reward_range, tree
from flowalign.gallery.media import MediaShelf, Medium, Missing
from flowalign.gallery.records import Score
from flowalign.gallery.wording import number, short, signed
from flowalign.statistics import Interval

FOREST_WIDTH = 140  # pixels of the interval drawings
MAX_PARTICLES_OF_ROW = 6000  # drawn for one prompt, in all its family trees: about 1.5 MB
PIXELATED_UP_TO = 128  # longest side in pixels; larger pictures are scaled smoothly


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueView:
    """A score under a picture; `place` is the bar's length in per cent, `goodness` 0 to 10."""

    name: str
    text: str
    hint: str
    place: int | None
    goodness: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CellView:
    column: int
    medium: Medium | None
    hole: str  # what stands in place of a medium
    alt: str
    pixelated: bool
    values: tuple[ValueView, ...]
    reasons: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LineView:
    label: str
    cells: tuple[CellView, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Badge:
    """A run's gain on one prompt; `place` counts the tuned columns."""

    name: str
    place: int
    text: str
    sense: str  # "up", "down" or "same"


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeView:
    """A column's family tree of a prompt."""

    column: Column
    repeat: str  # "sample 2" where a prompt has several populations
    tree: Tree


@dataclass(frozen=True, kw_only=True, slots=True)
class RowView:
    number: int
    prompt: str
    negative_prompt: str
    category: str
    category_index: int
    gains: str  # tuned columns x scores, for the page's sorting; empty where there is none
    badges: tuple[Badge, ...]
    lines: tuple[LineView, ...]
    trees: tuple[TreeView, ...]
    not_drawn: int  # family trees that are too large


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """Places of an interval's drawing, in pixels."""

    zero: float
    low: float
    high: float
    mean: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultView:
    column: Column
    base: bool
    mean: str
    gain: str  # empty without a base
    interval: str
    sense: str  # "up" or "down" only where the interval excludes zero
    forest: Forest | None
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryView:
    name: str
    cells: tuple[ResultView, ...]
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TableView:
    kind: ScoreKind
    lines: tuple[ResultView, ...]
    categories: tuple[CategoryView, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """A run's main result in words."""

    series: int
    name: str
    detail: str  # a steered column's budget
    verb: str
    score: str
    trained: str  # "trained", "steered", or "" when it is neither
    before: float
    after: float
    n: int
    difference: Interval
    sense: str
    held_out: tuple[tuple[str, Interval], ...]  # further scores


def row_view(
    row: PromptRow,
    columns: Sequence[Column],
    kinds: Sequence[ScoreKind],
    categories: Sequence[str],
    shelf: MediaShelf,
    ranges: Mapping[int, tuple[float, float]],
) -> RowView | None:
    """The row's view; None when no column has a medium for it. `ranges` as `reward_ranges`."""
    lines = tuple(
        LineView(
            label=f"seed {seed}" + (f", sample {sample}" if len(row.lines) > 1 else ""),
            cells=tuple(
                _cell(row, column, cell, kinds, shelf)
                for column, cell in zip(columns, cells, strict=True)
            ),
        )
        for (seed, sample), cells in row.lines
        if any(cell is not None and cell.media is not None for cell in cells)
    )
    if not lines:
        return None
    tuned = [column for column in columns if column.base is not None]
    gains = [[gain(row, column, kind.name) for kind in kinds] for column in tuned]
    trees, not_drawn = _trees(row, columns, ranges)
    return RowView(
        number=row.number,
        prompt=row.key[0],
        negative_prompt=row.negative_prompt,
        category=row.category,
        category_index=categories.index(row.category),
        gains=",".join("" if g is None else f"{g:.6g}" for by_kind in gains for g in by_kind),
        badges=tuple(_badges(tuned, gains, kinds)),
        lines=lines,
        trees=tuple(trees),
        not_drawn=not_drawn,
    )


def reward_ranges(columns: Sequence[Column]) -> dict[int, tuple[float, float]]:
    """The range of the family trees of each column."""
    return {
        column.index: reward_range([f for own in families.values() for f in own])
        for column in columns
        if (families := column.evaluation.families)
    }


def _trees(
    row: PromptRow, columns: Sequence[Column], ranges: Mapping[int, tuple[float, float]]
) -> tuple[list[TreeView], int]:
    """The family trees of a prompt, and how many are too large to be drawn."""
    trees, room, not_drawn = [], MAX_PARTICLES_OF_ROW, 0
    for column in columns:
        families = column.evaluation.families.get(row.key, ())
        for family in families:
            size = sum(len(generation.particles) for generation in family.generations)
            if not is_history(family):
                continue
            if size > room:
                not_drawn += 1
                continue
            room -= size
            repeat = f"sample {family.repeat + 1}" if len(families) > 1 else ""
            drawing = tree(family, *ranges[column.index])
            trees.append(TreeView(column=column, repeat=repeat, tree=drawing))
    return trees, not_drawn


def _badges(
    tuned: Sequence[Column], gains: Sequence[Sequence[float | None]], kinds: Sequence[ScoreKind]
) -> list[Badge]:
    """The main score's gain at the last column of each run, or of each steering method."""
    last = {column.series: place for place, column in enumerate(tuned)}
    return [
        Badge(
            name=tuned[place].name,
            place=place,
            text="" if main is None else signed(main),
            sense="same" if main is None else sense(main, kinds[0]),
        )
        for place in last.values()
        for main in gains[place][:1]
    ]


def _cell(
    row: PromptRow,
    column: Column,
    score: Score | None,
    kinds: Sequence[ScoreKind],
    shelf: MediaShelf,
) -> CellView:
    medium, hole = None, "not sampled"
    if score is not None and score.media is None:
        hole = "no picture saved"
    elif score is not None and score.media is not None:
        found = shelf.take(column.evaluation.folder, score.media)
        if isinstance(found, Missing):
            hole = f"{score.media}: {found.what}"
        else:
            medium = found
    small = medium is not None and max(medium.width or 999, medium.height or 999) <= PIXELATED_UP_TO
    return CellView(
        column=column.index,
        medium=medium,
        hole=hole,
        alt=f"{column.name}, {column.detail}: {row.key[0]}",
        pixelated=small,
        values=() if score is None else tuple(_value(kind, score) for kind in kinds),
        reasons=() if score is None else tuple(sorted(score.rationale.items())),
    )


def _value(kind: ScoreKind, score: Score) -> ValueView:
    value = score.scores.get(kind.name)
    if value is None:
        return ValueView(name=kind.name, text="none", hint=kind.name, place=None, goodness=0)
    return ValueView(
        name=kind.name,
        text=short(value),
        hint=f"{kind.name} {number(value)}, bar from {short(kind.low)} to {short(kind.high)}",
        place=round(100 * kind.place(value)),
        goodness=round(10 * kind.goodness(value)),
    )


def sense(difference: float, kind: ScoreKind) -> str:
    """`up` for better, `down` for worse, `same` for none."""
    if round(difference, 6) == 0:
        return "same"
    return "up" if (difference > 0) != kind.lower_is_better else "down"


def table_view(table: Table, columns: Sequence[Column]) -> TableView:
    """A score's table; the drawings share one range."""
    ends = [0.0]
    for result in table.results:
        if result.difference is not None and result.difference.n > 1:
            ends += [result.difference.low, result.difference.high]
    span = min(ends), max(ends)
    categories = tuple(
        CategoryView(
            name=name or "no category",
            cells=tuple(_result(table.kind, r, columns, span) for r in results),
            n=max(r.n for r in results),
        )
        for name, results in table.categories
    )
    lines = tuple(
        _result(table.kind, r, columns, span) for r in table.results if r.mean is not None
    )
    return TableView(kind=table.kind, lines=lines, categories=categories)


def _result(
    kind: ScoreKind, result: Result, columns: Sequence[Column], span: tuple[float, float]
) -> ResultView:
    column, found = columns[result.column], result.difference
    mean = "" if result.mean is None else number(result.mean)
    if found is None:
        return ResultView(
            column=column,
            base=column.base is None,
            mean=mean,
            gain="",
            interval="",
            sense="same",
            forest=None,
            n=result.n,
        )
    return ResultView(
        column=column,
        base=False,
        mean=mean,
        gain=signed(found.mean),
        interval=f"{signed(found.low)} to {signed(found.high)}" if found.n > 1 else "one prompt",
        sense=significant_sense(found, kind),
        forest=_forest(found, span),
        n=found.n,
    )


def significant_sense(difference: Interval, kind: ScoreKind) -> str:
    """`sense` where the interval excludes zero, `same` elsewhere."""
    if difference.low <= 0 <= difference.high:
        return "same"
    return sense(difference.mean, kind)


def _forest(found: Interval, span: tuple[float, float]) -> Forest:
    width = (span[1] - span[0]) or 1.0

    def at(value: float) -> float:
        share = (min(span[1], max(span[0], value)) - span[0]) / width
        return round(6 + share * (FOREST_WIDTH - 12), 1)

    return Forest(zero=at(0.0), low=at(found.low), high=at(found.high), mean=at(found.mean))


def headlines(tables: Sequence[Table], columns: Sequence[Column]) -> list[Headline]:
    """One for each run or method that has a base: its last column, by the first score."""
    last = {column.series: column for column in columns if column.base is not None}
    found = []
    for series, column in last.items():
        main = tables[0].results[column.index] if tables else None
        if main is None or main.difference is None or main.base_mean is None:
            continue
        kind, change = tables[0].kind, main.difference
        others = [table for table in tables[1:] if not table.kind.trained]
        found.append(
            Headline(
                series=series,
                name=column.name,
                detail="" if column.evaluation.steering is None else column.detail,
                verb=_verb(change),
                score=kind.name,
                trained="" if not kind.trained else "steered" if kind.steered else "trained",
                before=main.base_mean,
                after=main.base_mean + change.mean,
                n=change.n,
                difference=change,
                sense=significant_sense(change, kind),
                held_out=tuple(
                    (table.kind.name, d)
                    for table in others
                    if (d := table.results[column.index].difference) is not None
                ),
            )
        )
    return found


def _verb(change: Interval) -> str:
    if change.low <= 0 <= change.high:
        return "changed"
    return "raised" if change.mean > 0 else "lowered"
