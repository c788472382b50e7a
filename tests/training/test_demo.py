"""The demo's own parts: two processes at once, and gains paired by prompt and seed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from flowalign.demo import gains_of, next_free, run_demo, run_together
from flowalign.errors import ProcessError, ResourceError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_of_both_runs_are_told_with_their_names() -> None:
    told: list[str] = []
    run_together({"a": python("print('one')"), "b": python("print('two')")}, told.append)
    assert sorted(told) == ["[a] one", "[b] two"]


def test_a_failed_run_ends_the_other_at_once() -> None:
    begun = time.monotonic()
    commands = {
        "slow": python("import time; time.sleep(60)"),
        "bad": python("print('error[X] y: z; w'); raise SystemExit(4)"),
    }
    told: list[str] = []
    with pytest.raises(ProcessError, match="exit code 4"):
        run_together(commands, told.append)
    assert time.monotonic() - begun < 30
    assert "[bad] error[X] y: z; w" in told


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ResourceError):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_demo_finds_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    assert next_free(folder) == folder
    folder.mkdir()
    assert next_free(folder) == folder  # empty
    (folder / "x").touch()
    assert next_free(folder) == tmp_path / "demo-2"


def write_scores(run: Path, step: int, scores: list[float | None]) -> None:
    folder = run / "eval" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    rows = [
        {"prompt_id": i, "sample_id": 0, "scores": {"shapes": score}}
        for i, score in enumerate(scores)
    ]
    (folder / "scores.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_gain_is_the_mean_paired_difference(tmp_path: Path) -> None:
    """Differences .1, .3, .2 have mean .2 and Student-t half width 4.303 * .1 / sqrt(3)."""
    write_scores(tmp_path, 0, [0.1, 0.2, 0.3])
    write_scores(tmp_path, 10, [0.2, 0.5, 0.5])
    (gain,) = gains_of(tmp_path, ("shapes",))
    assert gain.base == pytest.approx(0.2) and gain.tuned == pytest.approx(0.4)
    half = 4.302653 * 0.1 / 3**0.5
    assert gain.difference.low == pytest.approx(0.2 - half, abs=1e-6)
    assert gain.difference.high == pytest.approx(0.2 + half, abs=1e-6)


def test_a_prompt_without_a_score_is_in_neither_mean(tmp_path: Path) -> None:
    write_scores(tmp_path, 0, [0.1, None, 0.3])
    write_scores(tmp_path, 10, [0.2, 0.9, 0.4])
    (gain,) = gains_of(tmp_path, ("shapes",))
    assert gain.base == pytest.approx(0.2) and gain.tuned == pytest.approx(0.3)
