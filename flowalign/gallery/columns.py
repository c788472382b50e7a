"""Which evaluations stand side by side, and which prompts make the rows. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowalign.errors import ConfigError
from flowalign.gallery.media import media_bytes
from flowalign.gallery.records import Evaluation, LineKey, PromptKey, Run, Score, Steps

MAX_COLUMNS = 24
AUTO_COLUMNS = 5  # of one run, with the base


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One model: a run at a step, or the base of one or several runs."""

    index: int
    name: str  # "base", or the run's name
    detail: str  # "step 40", "budget 80", or whose base it is
    run: int  # index of the (first) run
    series: int  # what has a colour of its own: a run, or a method of a steering job
    evaluation: Evaluation
    base: int | None  # index of the column it is compared with; None for a base


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One prompt with its samples: `lines[k][c]` is sample k of column c, or None."""

    number: int  # from 1, in the first run's order
    key: PromptKey
    category: str
    negative_prompt: str
    lines: tuple[tuple[LineKey, tuple[Score | None, ...]], ...]


def parse_steps(text: str) -> Steps:
    """`auto`, `all`, `ends`, or numbers with commas, as `steps` of `build_gallery`."""
    if text == "auto" or text == "all" or text == "ends":
        return text
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        what = f"{text!r} names no steps"
        raise ConfigError("GAL-STEPS", "steps", what, "give auto, all, ends, or 0,20,40")
    return numbers


def choose_columns(runs: Sequence[Run], steps: Steps) -> list[Column]:
    """Bases first where the runs share one, else each before its run; then each run's steps."""
    shared, series = _same_bases(runs), series_of(runs)
    columns: list[Column] = []
    base_of: dict[int, int] = {}  # run -> column
    for place, run in enumerate(runs):
        chosen = chosen_evaluations(run, steps, alone=len(runs) == 1)
        if run.base is not None and place not in base_of:
            owners = [k for k in range(len(runs)) if shared[k] == shared[place]]
            base_of.update(dict.fromkeys(owners, len(columns)))
            columns.append(
                Column(
                    index=len(columns),
                    name="base",
                    detail=_base_detail(runs, owners),
                    run=place,
                    series=series[place, ""],
                    evaluation=run.base,
                    base=None,
                )
            )
        columns += [
            Column(
                index=len(columns) + offset,
                name=column_name(run, evaluation, alone=len(runs) == 1),
                detail=column_detail(evaluation, alone=len(runs) == 1),
                run=place,
                series=series[place, label_of(evaluation)],
                evaluation=evaluation,
                base=base_of.get(place),
            )
            for offset, evaluation in enumerate(e for e in chosen if e is not run.base)
        ]
    if len(columns) > MAX_COLUMNS:
        what = f"{len(columns)} columns, at most {MAX_COLUMNS} can be read"
        raise ConfigError("GAL-COLUMNS", "steps", what, "choose fewer steps or runs")
    return columns


def label_of(evaluation: Evaluation) -> str:
    """What a steering job calls it; "" for a training run's."""
    return "" if evaluation.steering is None else evaluation.steering.label


def series_of(runs: Sequence[Run]) -> dict[tuple[int, str], int]:
    """(run, method) -> number of the colour; a training run, and any run's base, has method ""."""
    series: dict[tuple[int, str], int] = {}
    count = 0
    for place, run in enumerate(runs):
        series[place, ""] = count
        labels = dict.fromkeys(label_of(e) for e in run.evaluations if e is not run.base)
        for offset, label in enumerate(labels):
            series[place, label] = count + offset
        count += max(1, len(labels))
    return series


def column_name(run: Run, evaluation: Evaluation, *, alone: bool) -> str:
    """The run's name; the method's where one steering job is shown."""
    return label_of(evaluation) or run.name if alone else run.name


def column_detail(evaluation: Evaluation, *, alone: bool) -> str:
    """The step; of a steering job the method (where it is not the name) and its budget."""
    steering = evaluation.steering
    if steering is None:
        return f"step {evaluation.step}"
    told = "plain" if steering.plain else ""
    if steering.budget is not None:
        told = f"budget {steering.budget}"
    elif steering.particles is not None and steering.particles > 1:
        told = f"k = {steering.particles}"
    return told if alone else ", ".join(part for part in (steering.label, told) if part)


def _base_detail(runs: Sequence[Run], owners: Sequence[int]) -> str:
    if len(owners) == sum(run.base is not None for run in runs):
        steered = all(runs[k].steered for k in owners)
        return "plain samples" if steered else "before training"
    return "of " + ", ".join(runs[k].name for k in owners)


def chosen_evaluations(run: Run, steps: Steps, *, alone: bool) -> list[Evaluation]:
    """The evaluations of `run` that become columns; ConfigError for a step it does not have."""
    found = list(run.evaluations)
    if isinstance(steps, tuple):
        by_step = {e.step: e for e in found}
        for step in steps:
            if step not in by_step:
                have = ", ".join(str(e.step) for e in found[:MAX_COLUMNS])
                what = f"run {run.name} has no evaluation at step {step}"
                raise ConfigError("GAL-STEPS", "steps", what, f"it has: {have}")
        return [by_step[step] for step in sorted(steps)]
    if steps == "all":
        return found
    if steps == "auto" and run.steered:
        return found
    if steps == "ends" or not alone or len(found) <= 2:
        return list({e.step: e for e in (found[0], found[-1])}.values())
    count = min(AUTO_COLUMNS, len(found))
    places = [round(k * (len(found) - 1) / (count - 1)) for k in range(count)]
    return [found[place] for place in places]


def align(columns: Sequence[Column]) -> list[PromptRow]:
    """The union of the columns' prompts, and under each the union of their seeds."""
    rows: dict[PromptKey, dict[LineKey, list[Score | None]]] = {}
    for column in columns:
        for (prompt, line), score in column.evaluation.samples.items():
            cells = rows.setdefault(prompt, {}).setdefault(line, [None] * len(columns))
            cells[column.index] = score
    return [_prompt_row(number, key, table) for number, (key, table) in enumerate(rows.items(), 1)]


def notes_on(columns: Sequence[Column], rows: Sequence[PromptRow]) -> list[str]:
    """What keeps a row's cells from being comparable, in words."""
    notes = []
    partial = sum(any(_absent(row, c.index) for c in columns) for row in rows)
    if partial:
        notes.append(
            f"{partial} of {len(rows)} prompts were not sampled by every column; "
            "each comparison uses the prompts both sides have"
        )
    torn = sum(
        not _absent(row, c.index) and any(cells[c.index] is None for _, cells in row.lines)
        for row in rows
        for c in columns
    )
    if torn:
        notes.append(
            "not all columns used the same seeds; only samples of equal seed stand on one line "
            "and are compared"
        )
    if any(_other_noise(cells) for row in rows for _, cells in row.lines):
        notes.append(
            "some prompts have other ids in another run: equal seeds started from other noise there"
        )
    return notes


def _absent(row: PromptRow, column: int) -> bool:
    return all(cells[column] is None for _, cells in row.lines)


def _other_noise(cells: Sequence[Score | None]) -> bool:
    return len({cell.prompt_id for cell in cells if cell is not None}) > 1


def _prompt_row(
    number: int, key: PromptKey, table: Mapping[LineKey, Sequence[Score | None]]
) -> PromptRow:
    some = [cell for cells in table.values() for cell in cells if cell is not None]
    return PromptRow(
        number=number,
        key=key,
        category=next((cell.category for cell in some if cell.category), ""),
        negative_prompt=next((cell.negative_prompt for cell in some if cell.negative_prompt), ""),
        lines=tuple((line, tuple(cells)) for line, cells in sorted(table.items())),
    )


def _same_bases(runs: Sequence[Run]) -> list[int]:
    """For each run the first run whose base has the same samples, scores and files; else itself."""
    owners: list[int] = []
    for place, run in enumerate(runs):
        same = (k for k in range(place) if owners[k] == k and _equal(runs[k].base, run.base))
        owners.append(next(same, place))
    return owners


def _equal(a: Evaluation | None, b: Evaluation | None) -> bool:
    if a is None or b is None or dict(a.samples) != dict(b.samples):
        return False
    return all(_bytes(a, score) == _bytes(b, score) for score in a.samples.values() if score.media)


def _bytes(evaluation: Evaluation, score: Score) -> bytes | None:
    return media_bytes(evaluation.folder, score.media or "")
