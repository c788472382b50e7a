"""Runs that are none, damaged, or point elsewhere; each ends in one line and writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flowalign.errors import (
    ConfigError,
    DataError,
    FlowalignError,
    ResourceError,
    SecurityError,
)
from flowalign.gallery import build_gallery, parse_steps
from flowalign.gallery.collect import read_runs
from tests.gallery.payloads import Page
from tests.gallery.synthetic import write_run

LAST = "eval/step-000040"


def refused(runs: Path, kind: type[FlowalignError], *names: str, **options) -> FlowalignError:
    with pytest.raises(kind) as caught:
        build_gallery([runs / name for name in names or ("nft",)], runs / "out", **options)
    assert not (runs / "out").exists()
    assert not [path for path in runs.iterdir() if path.name.startswith(".")]
    assert "\n" not in caught.value.line()
    return caught.value


def edit_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")


def test_not_a_run(runs: Path) -> None:
    (runs / "empty").mkdir()
    (runs / "other").mkdir()
    (runs / "other" / "x").touch()
    (runs / "file").touch()
    assert "does not exist" in refused(runs, DataError, "nowhere").what
    assert "is empty" in refused(runs, DataError, "empty").what
    assert "no folder eval" in refused(runs, DataError, "other").what
    assert "not a directory" in refused(runs, DataError, "file").what
    assert refused(runs, DataError, "na\0me").exit_code == 3
    with pytest.raises(ConfigError, match="no run"):
        build_gallery([], runs / "out")


def test_no_evaluation_yet(runs: Path) -> None:
    shutil.rmtree(runs / "nft" / "eval")
    (runs / "nft" / "eval").mkdir()
    assert "no complete evaluation" in refused(runs, DataError).what


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda line: line[: len(line) // 2], "Invalid JSON"),
        (lambda line: "[1, 2]", "an object"),
        (lambda line: line.replace('"prompt":', '"promt":'), "prompt: Field required"),
        (lambda line: line.replace('"prompt_id": 2', '"prompt_id": "2"'), "prompt_id"),
        (lambda line: json.dumps(json.loads(line) | {"scores": {"a": "high"}}), "scores.a"),
        (lambda line: line.replace('"strict": ', '"strict": NaN, "x": '), "scores.strict"),
        (lambda line: line.replace('"strict": ', '"strict": 1e999, "x": '), "scores.strict"),
        (lambda line: line.replace('"step": 40', '"step": 41'), "step 41"),
        (lambda line: line.replace('"prompt_id": 2', '"prompt_id": 1.5'), "prompt_id"),
        (lambda line: line + "x" * 1_000_001, "longer than"),
        (lambda line: line.replace('"a ', '"\\ud800a ', 1), "Invalid JSON"),
    ],
)
def test_damaged_scores_name_file_and_line(
    change: Callable[[str], str], expected: str, runs: Path
) -> None:
    path = runs / "nft" / LAST / "scores.jsonl"
    edit_line(path, 3, change)
    error = refused(runs, DataError)
    assert error.where == f"{path}:3" and expected in error.what


def test_other_damage(runs: Path) -> None:
    path = runs / "nft" / LAST / "scores.jsonl"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"prompt": "a', b'"prompt": "\xff', 1))
    assert "not UTF-8" in refused(runs, DataError).what
    path.write_bytes(good + good.splitlines(keepends=True)[0])
    assert "a second time" in refused(runs, DataError).what
    path.write_bytes(b"")
    assert "no scores" in refused(runs, DataError).what
    path.unlink()
    assert "cannot be read" in refused(runs, DataError).what
    path.write_bytes(good)
    (path.parent / "summary.json").write_text("{")
    assert refused(runs, DataError).where.endswith("summary.json")


def test_damaged_metrics_name_file_and_line(runs: Path) -> None:
    path = runs / "nft" / "metrics.jsonl"
    edit_line(path, 7, lambda line: line[:-9])
    assert refused(runs, DataError).where == f"{path}:7"


def test_what_a_kill_leaves_is_left_out_and_said(runs: Path) -> None:
    """A cut last line of metrics and an evaluation without its summary are no damage."""
    metrics = runs / "nft" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-20])
    (runs / "nft" / LAST / "summary.json").unlink()
    (runs / "nft" / "status.json").write_text('{"state": "stopped", "step": 40, "reason": "TERM"}')
    text = "".join(Page(build_gallery([runs / "nft"], runs / "out").read_text()).texts)
    assert "the last line of metrics.jsonl is cut off" in text
    assert "the evaluation at step 40 is incomplete" in text
    assert "the run stopped at step 40 (TERM)" in text


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "status.json"])
@pytest.mark.parametrize("content", [b"\xff", b"{[", b"- a\n- b\n", b"[]"])
def test_a_damaged_description_is_a_note(name: str, content: bytes, runs: Path) -> None:
    (runs / "nft" / name).write_bytes(content)
    text = "".join(Page(build_gallery([runs / "nft"], runs / "out").read_text()).texts)
    assert f"{name} cannot be read" in text


def test_missing_pictures(runs: Path) -> None:
    for number in (1, 3):
        (runs / "nft" / LAST / f"{number:04d}-0.png").unlink()
    (runs / "nft" / LAST / "0005-0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    error = refused(runs, DataError, strict=True)
    assert error.exit_code == 3 and "3 in all" in error.what and len(error.earlier) == 3
    with pytest.warns(match="missing"):
        page = Page(build_gallery([runs / "nft"], runs / "out").read_text())
    text = "".join(page.texts)
    assert "3 pictures are missing" in text and "0001-0.png: missing" in text
    assert page.counts["img"] == 3 * 12 - 3


def test_pictures_that_were_not_saved_are_not_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_prompts=9, pictures=4)
    page = Page(build_gallery([run], tmp_path / "out", strict=True).read_text())
    assert page.counts["article"] == 4
    assert "5 more without pictures" in "".join(page.texts)


def test_runs_with_different_prompts(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", num_prompts=6)
    b = write_run(tmp_path / "b", num_prompts=9)
    page = Page(build_gallery([a, b], tmp_path / "out").read_text())
    assert page.counts["article"] == 9
    text = "".join(page.texts)
    assert "3 of 9 prompts were not sampled by every column" in text
    assert "not sampled" in text and "equal seeds" not in text


def test_runs_with_different_seeds_stand_on_different_lines(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", num_prompts=3)
    b = write_run(tmp_path / "b", num_prompts=3, noise_seed=8)
    html = build_gallery([a, b], tmp_path / "out").read_text()
    assert "not all columns used the same seeds" in html
    assert html.count('<div class="line">') == 6


@pytest.mark.parametrize(
    "name", ["../../x", "..", "/etc/x", "a/../b", "..\\x", "C:\\x", "~root", "a\nb", "", "x" * 201]
)
def test_run_names_with_path_tricks(name: str, runs: Path) -> None:
    assert refused(runs, SecurityError, names=[name]).exit_code == 8


def test_names(runs: Path) -> None:
    assert "give one name" in refused(runs, ConfigError, names=["a", "b"]).fix
    error = refused(runs, ConfigError, "nft", "grpo", names=["a", "a"])
    assert "one name" in error.what
    assert "named twice" in refused(runs, ConfigError, "nft", "../runs/nft").what
    shutil.copytree(runs / "nft", runs / "other" / "nft")
    found = read_runs([runs / "nft", runs / "other" / "nft"], None)
    assert [run.name for run in found] == ["runs/nft", "other/nft"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("all", "all"), ("ends", "ends"), ("0,20", (0, 20)), ("5", (5,))],
)
def test_steps_are_parsed(text: str, value: object) -> None:
    assert parse_steps(text) == value


@pytest.mark.parametrize("text", ["", "last", "1,", "-1", "1,1", "1.5", "0 20"])
def test_wrong_steps_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no steps"):
        parse_steps(text)


def test_steps_that_a_run_does_not_have(runs: Path) -> None:
    assert "it has: 0, 20, 40" in refused(runs, ConfigError, steps=[0, 30]).fix


def test_too_many_columns(tmp_path: Path) -> None:
    run = write_run(tmp_path / "nft", steps=tuple(range(30)), num_prompts=1)
    assert "30 columns" in refused(tmp_path, ConfigError, run.name, steps="all").what


def test_output_that_is_something_else_stays_untouched(runs: Path) -> None:
    kept = runs / "kept"
    kept.mkdir()
    (kept / "thesis.tex").write_text("years of work")
    for output in (kept, kept / "thesis.tex", runs):
        with pytest.raises(ResourceError) as caught:
            build_gallery([runs / "nft"], output)
        assert caught.value.exit_code == 7
    assert (kept / "thesis.tex").read_text() == "years of work"
    (runs / "alike").mkdir()
    (runs / "alike" / "index.html").write_text("<p>my home page</p>")
    with pytest.raises(ResourceError, match="not a gallery"):
        build_gallery([runs / "nft"], runs / "alike")


def test_an_older_gallery_is_replaced_whole(runs: Path) -> None:
    (runs / "out").mkdir()  # an empty directory is taken as it is
    first = build_gallery([runs / "nft"], runs / "out")
    (runs / "out" / "page-2.html").write_text("from a larger gallery")
    second = build_gallery([runs / "grpo"], runs / "out")
    assert first == second and "grpo" in second.read_text()
    assert [path.name for path in (runs / "out").iterdir()] == ["index.html"]
    assert sorted(path.name for path in runs.iterdir()) == ["grpo", "nft", "out"]


@pytest.mark.parametrize("call", range(1, 4))
def test_a_fault_while_writing_leaves_the_older_gallery(
    call: int, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build_gallery([runs / "nft"], runs / "out").read_bytes()
    count = 0

    def fails(real: Callable) -> Callable:
        def inner(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return inner

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fails(Path.write_text))
        patch.setattr(Path, "rename", fails(Path.rename))
        with pytest.raises(ResourceError, match="No space left"):
            build_gallery([runs / "grpo"], runs / "out")
    assert (runs / "out" / "index.html").read_bytes() == old
    assert sorted(path.name for path in runs.iterdir()) == ["grpo", "nft", "out"]
