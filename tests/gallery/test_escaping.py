"""Nothing that a run contains becomes markup: 40 payloads in each place a text can come from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest

from flowalign.errors import FlowalignWarning, SecurityError
from flowalign.gallery import build_gallery, page
from tests.gallery.payloads import PAYLOADS, Page
from tests.gallery.synthetic import draw, write_run

PLACES = ("prompt", "negative_prompt", "category", "rationale", "rationale name", "reward name")


def poisoned(place: str, row: dict[str, Any]) -> Mapping[str, Any]:
    """The row with its payload in one place."""
    payload = PAYLOADS[row["prompt_id"]]
    if place == "rationale":
        row["rationale"] = {"clip": payload}
    elif place == "rationale name":
        row["rationale"] = {payload: "because"}
    elif place == "reward name":
        row["scores"] = {text: 0.5 for text in PAYLOADS}
    else:
        row[place] = payload
    return row


def run_with(folder: Path, place: str) -> Path:
    return write_run(
        folder,
        steps=(0, 1),
        num_prompts=2 if place == "reward name" else len(PAYLOADS),
        edit=lambda row: poisoned(place, row),
    )


def assert_text_only(path: Path, payloads: tuple[str, ...] = PAYLOADS) -> None:
    seen = Page(path.read_text())
    assert seen.findings == []
    shown = "\n".join([*seen.texts, *seen.attributes])
    missing = [payload for payload in payloads if payload not in shown]
    assert not missing, "not shown as it is"


def test_there_are_forty() -> None:
    assert len(set(PAYLOADS)) == 40


@pytest.mark.parametrize("place", PLACES)
def test_texts_of_a_run(place: str, tmp_path: Path) -> None:
    assert_text_only(build_gallery([run_with(tmp_path / "run", place)], tmp_path / "out"))


def test_config_values_and_keys(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, steps=(0, 1), num_prompts=2) for name in "ab"]
    for run in runs:
        quoted = [text.replace("'", "''") for text in PAYLOADS]
        lines = [f"k{n}: '{run.name} {text}'" for n, text in enumerate(quoted)]
        lines += [f"'{text}': {run.name}" for text in quoted]
        (run / "config.yaml").write_text("\n".join(lines) + "\n")
    path = build_gallery(runs, tmp_path / "out")
    assert "settings differ" in path.read_text()
    assert_text_only(path, PAYLOADS[:30])  # the table of differences is cut after 60 rows


def test_file_names(tmp_path: Path) -> None:
    """A name without a slash is shown, escaped; a name with one is refused."""
    plain = tuple(text for text in PAYLOADS if not any(c in text for c in "/\\\u202e"))
    assert len(plain) >= 8

    def rename(row: dict[str, Any]) -> Mapping[str, Any]:
        row["image"] = plain[row["prompt_id"]] + ".png"
        return row

    run = write_run(tmp_path / "run", steps=(0, 1), num_prompts=len(plain), edit=rename)
    with pytest.warns(match="missing"):
        path = build_gallery([run], tmp_path / "out")
    assert_text_only(path, plain)
    for folder in (run / "eval").iterdir():
        for name in plain:
            (folder / f"{name}.png").write_bytes(draw((("red", "circle"),)))
    seen = Page(build_gallery([run], tmp_path / "out").read_text())
    assert seen.findings == [] and seen.counts["img"] == 2 * len(plain)


@pytest.mark.parametrize("payload", [text for text in PAYLOADS if "/" in text])
def test_file_names_with_a_slash_show_no_markup(payload: str, tmp_path: Path) -> None:
    def rename(row: dict[str, Any]) -> Mapping[str, Any]:
        return row | {"image": payload}

    run = write_run(tmp_path / "run", steps=(0,), num_prompts=1, edit=rename)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FlowalignWarning)
            path = build_gallery([run], tmp_path / "out")
    except SecurityError:
        assert not (tmp_path / "out").exists()
    else:
        assert Page(path.read_text()).findings == []


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 8))
def test_run_names_and_titles(start: int, tmp_path: Path) -> None:
    names = PAYLOADS[start : start + 8]
    runs, shown = [], []
    for place, name in enumerate(names):
        if name.startswith(("/", "\\")) or not name.isprintable():
            continue
        runs.append(write_run(tmp_path / str(place), steps=(0, 1), num_prompts=1))
        shown.append(name)
    path = build_gallery(runs, tmp_path / "out", names=shown, title=names[0])
    assert_text_only(path, tuple(shown))


def test_status_and_libraries(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1), num_prompts=1)
    text = PAYLOADS[0]
    (run / "status.json").write_text(f'{{"state": "failed", "step": "{text}", "reason": "{text}"}}')
    (run / "run.json").write_text(f'{{"run_id": "{text}", "libraries": {{"torch": "{text}"}}}}')
    assert_text_only(build_gallery([run], tmp_path / "out"), (text,))


@pytest.mark.parametrize("place", PLACES)
def test_the_check_notices_a_page_without_escaping(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the same pages with autoescape off."""
    escaping = page._environment

    def careless() -> jinja2.Environment:
        environment = escaping()
        environment.autoescape = False
        return environment

    monkeypatch.setattr(page, "_environment", careless)
    run = run_with(tmp_path / "run", place)
    assert Page(build_gallery([run], tmp_path / "out").read_text()).findings
