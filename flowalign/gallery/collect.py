"""Run directories, read and checked: each mistake names its file and line. Torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from flowalign.errors import ConfigError, DataError, SecurityError
from flowalign.gallery.alarms import alarm_notes
from flowalign.gallery.ancestry import read_families
from flowalign.gallery.describe import describe
from flowalign.gallery.files import (
    MAX_NAME,
    FileModel,
    Label,
    Number,
    damaged,
    lines,
    parsed,
    read_text,
)
from flowalign.gallery.records import Evaluation, Run, SampleKey, Score, Steering, TrainingRow
from flowalign.safe_path import safe_join


class ScoreLine(FileModel):
    """A line of scores.jsonl."""

    step: int
    prompt: str
    category: str | None = None
    prompt_id: int
    sample_id: int
    seed: int
    image: str | None = None
    scores: dict[Label, Number | None]
    negative_prompt: str | None = None
    rationale: dict[str, str] = Field(default_factory=dict)


class Monitored(FileModel):
    """What the watch for reward hacking wrote into summary.json."""

    alarms: tuple[str, ...] = ()
    best_held_out_step: int | None = None


class Summary(FileModel):
    """The part of summary.json that scores.jsonl does not tell."""

    train_seconds: Number | None = None
    trained: tuple[Label, ...] = ()
    held_out: tuple[Label, ...] = ()
    monitor: Monitored = Monitored()
    method: Label | None = None
    label: Label | None = None
    budget: int | None = None
    particles: int | None = None
    populations: Annotated[int, Field(ge=1)] | None = None
    costs: dict[Label, Annotated[Number, Field(ge=0)]] = Field(default_factory=dict)


class MetricsLine(FileModel):
    """A line of metrics.jsonl; non-finite numbers are strings there."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    step: int
    seconds: Number | str | None = None


def read_runs(runs: Sequence[str | Path], names: Sequence[str] | None) -> list[Run]:
    """All runs, each with a name of its own.

    Raises DataError for what is no run or is damaged, ConfigError for wrong arguments,
    SecurityError for a name or link that leads elsewhere.
    """
    if not runs:
        raise ConfigError("GAL-NO-RUNS", "RUN", "no run was named", "name a run's directory")
    folders = [_run_folder(Path(run)) for run in runs]
    for folder, count in Counter(folders).items():
        if count > 1:
            raise ConfigError("GAL-TWICE", str(folder), "named twice", "name each run once")
    given = _default_names(folders) if names is None else list(names)
    if len(given) != len(folders):
        what = f"{len(given)} names for {len(folders)} runs"
        raise ConfigError("GAL-NAMES", "names", what, "give one name for each run")
    for name in given:
        refuse_run_name(name)
    if len(set(given)) < len(given):
        raise ConfigError("GAL-NAMES", "names", "two runs have one name", "give different names")
    return [read_run(folder, name) for folder, name in zip(folders, given, strict=True)]


def refuse_run_name(name: str) -> None:
    """Raise SecurityError for a name that is a path elsewhere; any other text is only shown."""
    parts = re.split(r"[/\\]", name)
    rooted = not parts[0] or name.startswith("~") or re.match(r"[A-Za-z]:", name)
    if not name or len(name) > MAX_NAME or rooted or ".." in parts or not name.isprintable():
        shown = repr(name[:80])
        raise SecurityError("GAL-RUN-NAME", "run name", f"{shown} is no plain name", "rename it")


def read_run(folder: Path, name: str) -> Run:
    """The run in `folder`, shown as `name`."""
    notes: list[str] = []
    evaluations = tuple(_evaluations(folder, notes))
    if not evaluations:
        what = "holds no complete evaluation"
        raise DataError("GAL-NO-SCORES", str(folder), what, "wait for one, or evaluate the run")
    known = {name for e in evaluations for sample in e.samples.values() for name in sample.scores}
    training = tuple(_training(folder, known, notes))
    described = describe(folder, notes)
    notes.extend(alarm_notes(evaluations))
    return Run(
        name=name,
        folder=folder,
        evaluations=evaluations,
        training=training,
        config_yaml=described.config_yaml,
        settings=described.settings,
        lower_is_better=described.lower_is_better,
        facts=described.facts,
        notes=tuple(notes),
    )


def _run_folder(path: Path) -> Path:
    try:
        folder = path.resolve()
        found = folder.is_dir() and any(folder.iterdir())
        has_evaluations = (folder / "eval").is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_a_run(path, f"cannot be read ({error})") from None
    if not found:
        what = "is empty" if folder.is_dir() else "is not a directory"
        raise _not_a_run(path, what if folder.exists() else "does not exist")
    if not has_evaluations:
        raise _not_a_run(path, "is not a run: it has no folder eval")
    return folder


def _not_a_run(path: Path, what: str) -> DataError:
    fix = "name the `output` directory of a training run"
    return DataError("GAL-NOT-A-RUN", str(path), what, fix)


def _default_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; with their parents where two are equal, numbered where still equal."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{folder.name}".lstrip("/") for folder in folders]
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _evaluations(folder: Path, notes: list[str]) -> Iterator[Evaluation]:
    root = safe_join(folder, "eval", what=str(folder))
    for found in sorted(root.iterdir()):
        match = re.fullmatch(r"step-(\d{6,12})", found.name)
        if match is None:
            continue
        place = safe_join(folder, f"eval/{found.name}", what=str(folder))
        if not (place / "summary.json").exists():  # written last
            notes.append(f"the evaluation at step {int(match[1])} is incomplete and left out")
            continue
        yield _evaluation(place, int(match[1]), notes)


def _evaluation(folder: Path, step: int, notes: list[str]) -> Evaluation:
    summary_path = safe_join(folder, "summary.json", what=str(folder))
    summary = parsed(Summary, read_text(summary_path), str(summary_path))
    path = safe_join(folder, "scores.jsonl", what=str(folder))
    samples: dict[SampleKey, Score] = {}
    prompt_ids: dict[str, list[int]] = {}
    for where, line in lines(path):
        row = parsed(ScoreLine, line, where)
        if row.step != step:
            raise damaged(where, f"step {row.step} in the evaluation of step {step}")
        ids = prompt_ids.setdefault(row.prompt, [])
        if row.prompt_id not in ids:
            ids.append(row.prompt_id)
        sample = _score(row, ids.index(row.prompt_id))
        key = sample.prompt_key, sample.line_key
        if key in samples:
            raise damaged(where, "the same prompt, seed and sample_id a second time")
        samples[key] = sample
    if not samples:
        raise damaged(str(path), "holds no scores")
    return Evaluation(
        step=step,
        folder=folder,
        samples=samples,
        train_seconds=summary.train_seconds,
        trained=summary.trained,
        held_out=summary.held_out,
        alarms=summary.monitor.alarms,
        best_held_out=summary.monitor.best_held_out_step,
        steering=_steering(summary),
        families=read_families(folder, prompt_ids, notes),
    )


def _steering(summary: Summary) -> Steering | None:
    """What steered, of a steering job's summary."""
    if summary.method is None:
        return None
    return Steering(
        label=summary.label or summary.method,
        plain=summary.method == "none",
        budget=summary.budget,
        particles=summary.particles,
        populations=summary.populations,
        costs=summary.costs,
    )


def _score(row: ScoreLine, occurrence: int) -> Score:
    return Score(
        prompt=row.prompt,
        occurrence=occurrence,
        category=row.category or "",
        prompt_id=row.prompt_id,
        sample_id=row.sample_id,
        seed=row.seed,
        media=row.image,
        scores=row.scores,
        negative_prompt=row.negative_prompt or "",
        rationale=row.rationale,
    )


def _training(folder: Path, known: set[str], notes: list[str]) -> Iterator[TrainingRow]:
    """Rows of metrics.jsonl with the mean reward of those names that evaluations score too."""
    path = safe_join(folder, "metrics.jsonl", what=str(folder))
    if not path.exists():
        return
    seconds: float | None = 0.0
    for where, line in lines(path, notes):
        row = parsed(MetricsLine, line, where)
        known_time = seconds is not None and isinstance(row.seconds, float)
        seconds = seconds + row.seconds if known_time else None  # type: ignore[operator]
        extra: Mapping[str, object] = row.model_extra or {}
        rewards = {
            name: float(value)
            for name in known
            if isinstance(value := extra.get(f"reward/{name}"), (int, float))
        }
        yield TrainingRow(step=row.step, seconds=seconds, rewards=rewards)
