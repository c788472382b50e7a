"""`flowalign score`: files and prompts in, one row of scores per file out.

A manifest is JSON lines, `{"image": "relative/path.png", "prompt": "..."}`; `flowalign sample`
writes one. Its files stay below its folder. A row of the output is
`{"image", "prompt", "scores": {label: number or null}}`; null is a masked score, never a number.
A set reward gives one number for all files together, in the summary alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowalign.config.rewards import GoalBaselineReward, RewardConfig
from flowalign.disk import write_file
from flowalign.errors import DataError, FlowalignError, ResourceError, first_of
from flowalign.media import load_image
from flowalign.media_audio import load_audio
from flowalign.media_video import KINDS, load_video
from flowalign.safe_path import inside
from flowalign.scoring import Failure, RewardSuite, Scores, build_suite
from flowalign.set_results import set_result
from flowalign.types import Modality, Sample

MANIFEST = "manifest.jsonl"
MAX_LINE_BYTES = 1_000_000
READ_PROMPTS = (
    "shapes",
    "clap",
    "clip",
    "open_clip",
    "pickscore",
    "hpsv2",
    "hpsv3",
    "image_reward",
    "video_reward",
    "vqascore",
    "rewarddance",
    "questions",
    "judge",
    "ocr",
    "geneval",
)  # mean nothing without a prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """What `score_files` found."""

    rows: list[dict[str, Any]]  # as in the output file
    # label: mean, std, n, masked; of a set reward its one score as mean, and its std_error
    summary: dict[str, dict[str, float | int | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """One file to score."""

    name: str  # as the user or the manifest wrote it
    path: Path
    prompt: str | None
    where: str  # place in errors


def score_files(
    inputs: Sequence[str | Path],
    rewards: Sequence[RewardConfig],
    *,
    prompt: str | None = None,
    output: str | Path | None = None,
    allow_code: Sequence[str] = (),
    device: str = "cpu",
    failure: Failure = "raise",
    timeout_s: float = 120.0,
    batch_size: int = 64,
) -> ScoreReport:
    """Score media files, manifests, or folders with a manifest, with every reward.

    `prompt` belongs to files that are named directly. `output` gets the rows as JSON lines and
    must not exist; `<output>.summary.json` gets the summary. DataError (exit 3) for what cannot be
    read, SecurityError (exit 8) for a path that leaves its manifest's folder.
    """
    target = None if output is None else Path(output)
    if target is not None and target.exists():
        raise ResourceError("RUN-OUTPUT", str(target), "exists", "choose another output")
    items = _items(inputs, prompt)
    _check_prompts(items, rewards)
    suite = build_suite(
        rewards, allow_code=allow_code, device=device, failure=failure, timeout_s=timeout_s
    )
    rows: list[dict[str, Any]] = []
    parts: list[Scores] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        scores = suite.score([_sample(item, start + k) for k, item in enumerate(batch)])
        rows.extend(_rows(scores, batch))
        parts.append(scores)
    summary = _summary(suite.names, rows) | _set_summary(suite, parts)
    report = ScoreReport(rows=rows, summary=summary)
    if target is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_file(target, text.encode())
        summary = json.dumps(report.summary, indent=2) + "\n"
        write_file(target.with_name(target.name + ".summary.json"), summary.encode())
    return report


def read_samples(
    inputs: Sequence[str | Path], rewards: Sequence[RewardConfig], *, prompt: str | None = None
) -> list[Sample]:
    """The media of files, manifests and folders as samples that `rewards` can score."""
    items = _items(inputs, prompt)
    _check_prompts(items, rewards)
    return [_sample(item, place) for place, item in enumerate(items)]


def _items(inputs: Sequence[str | Path], prompt: str | None) -> list[_Item]:
    items: list[_Item] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            path = path / MANIFEST
        if path.suffix == ".jsonl":
            items.extend(_manifest(path))
        else:
            items.append(_Item(name=str(given), path=path, prompt=prompt, where=str(given)))
    if not items:
        raise DataError("DATA-EMPTY", "inputs", "nothing to score", "name files or a manifest")
    return items


def _manifest(path: Path) -> list[_Item]:
    """All rows of a manifest, or one error that lists every bad row."""
    if not path.is_file():
        what = f"no such file (in {Path.cwd()})"
        raise DataError("DATA-FILE", str(path), what, "name a manifest or a folder that has one")
    items: list[_Item] = []
    faults: list[FlowalignError] = []
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{path}:{number}"
            try:
                if raw.strip():
                    items.append(_item(_object(raw, where), path.parent, where))
            except FlowalignError as fault:
                faults.append(fault)
    if faults:
        raise first_of(faults)
    return items


def _object(raw: bytes, where: str) -> dict[str, Any]:
    fix = 'write {"image": "a.png", "prompt": "..."}'
    if len(raw) > MAX_LINE_BYTES:
        raise DataError("DATA-LINE", where, f"a line of {len(raw)} bytes", fix)
    try:
        row = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError("DATA-JSON", where, f"not JSON: {error}", fix) from error
    if not isinstance(row, dict):
        raise DataError("DATA-JSON", where, "expected an object", fix)
    for name in ("image", "prompt"):
        value = row.get(name)
        if (name == "image" and value is None) or not isinstance(value, str | None):
            what = f"`{name}`: expected text, got {json.dumps(value)[:60]}"
            raise DataError("DATA-TYPE", where, what, fix)
    return row


def _item(row: dict[str, Any], root: Path, where: str) -> _Item:
    path = inside(root, row["image"], where)
    return _Item(name=row["image"], path=path, prompt=row.get("prompt"), where=where)


def _check_prompts(items: Sequence[_Item], rewards: Sequence[RewardConfig]) -> None:
    needing = [
        reward.name
        for reward in rewards
        if reward.name in READ_PROMPTS
        or (isinstance(reward, GoalBaselineReward) and not reward.goal)
    ]
    missing = [item for item in items if item.prompt is None]
    if needing and missing:
        what = f"no prompt, and reward `{needing[0]}` needs one"
        fix = "give `prompt` in the manifest's row, or `--prompt` for files"
        raise DataError("DATA-KEY", missing[0].where, what, fix)


def _rows(scores: Scores, items: Sequence[_Item]) -> Iterator[dict[str, Any]]:
    """A row for each item of one batch."""
    for place, item in enumerate(items):
        found = {
            name: float(values[place]) if bool(scores.valid[name][place]) else None
            for name, values in scores.terms.items()
        }
        yield {"image": item.name, "prompt": item.prompt, "scores": found}


def _sample(item: _Item, place: int) -> Sample:
    media, modality, rate = _load(item)
    return Sample(
        prompt=item.prompt or "",
        media=media,
        modality=modality,
        rate=rate,
        prompt_id=place,
        sample_id=0,
        seed=0,
    )


def _load(item: _Item) -> tuple[Tensor, Modality, float | None]:
    """(media, modality, rate) by the file's suffix; anything unknown is tried as a picture."""
    suffix = item.path.suffix.lower()
    where = None if item.where == item.name else item.where
    if suffix in KINDS:
        media, fps = load_video(item.path, where=where)
        return media, "video", fps
    if suffix == ".wav":
        media, rate_hz = load_audio(item.path, where=where)
        return media, "audio", rate_hz
    return load_image(item.path, where=where), "image", None


def _summary(
    names: Sequence[str], rows: Sequence[dict[str, Any]]
) -> dict[str, dict[str, float | int | None]]:
    """Mean and standard deviation (n - 1) of each reward over its valid scores."""
    summary: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        values = [row["scores"][name] for row in rows if row["scores"][name] is not None]
        given = torch.tensor(values, dtype=torch.float64)
        summary[name] = {
            "mean": float(given.mean()) if values else None,
            "std": float(given.std()) if len(values) > 1 else None,
            "n": len(values),
            "masked": len(rows) - len(values),
        }
    return summary


def _set_summary(
    suite: RewardSuite, parts: Sequence[Scores]
) -> dict[str, dict[str, float | int | None]]:
    """The score of all files together by each set reward."""
    summary: dict[str, dict[str, float | int | None]] = {}
    for name, reward in suite.sets.items():
        valid = torch.cat([part.valid[name] for part in parts])
        features = torch.cat([part.features[name] for part in parts])
        found = set_result(reward, features, valid, torch.arange(len(valid)))
        summary[name] = {
            "mean": found.score if math.isfinite(found.score) else None,
            "std_error": found.std_error if math.isfinite(found.std_error) else None,
            "n": found.n,
            "masked": len(valid) - found.n,
        }
    return summary
