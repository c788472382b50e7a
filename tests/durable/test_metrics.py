"""metrics.jsonl of a resumed run is that of the straight one; the progress line disturbs nobody."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import accelerate
import pytest

from flowalign import metrics as metrics_module
from flowalign.errors import CheckpointError, FlowalignWarning, ResourceError
from flowalign.metrics import (
    MetricsLog,
    Progress,
    Value,
    format_row,
    open_trackers,
    read_rows,
)


def write(path: Path, first: int, last: int, *, resume_step: int = 0) -> None:
    log = MetricsLog(path, resume_step=resume_step)
    for step in range(first, last + 1):
        log.write(step, {"loss": 1 / step, "reward/a": step})
    log.sync()
    log.close()


def test_rows_are_strict_json_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 3)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    assert read_rows(path)[2] == {"step": 3, "loss": 1 / 3, "reward/a": 3}


def test_values_that_are_not_finite_become_words() -> None:
    row: dict[str, Value] = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": None, "e": True}
    text = format_row(1, row)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "a": "nan",
        "b": "inf",
        "c": "-inf",
        "d": None,
        "e": True,
    }
    assert "NaN" in json.dumps(row), "control: plain json would not be JSON"


@pytest.mark.parametrize("resumed_at", [0, 2, 4, 6])
@pytest.mark.parametrize("torn", ["", '{"step": 7, "lo', "\x00\x00\x00"])
def test_resumed_file_equals_the_straight_one(tmp_path: Path, resumed_at: int, torn: str) -> None:
    """Rows after the checkpoint, and a row the kill cut short, are written again."""
    write(tmp_path / "straight", 1, 9)
    path = tmp_path / "resumed"
    write(path, 1, 6)
    with path.open("a") as file:
        file.write(torn)
    write(path, resumed_at + 1, 9, resume_step=resumed_at)
    assert path.read_bytes() == (tmp_path / "straight").read_bytes()


def test_control_without_the_cut_the_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "_cut", lambda path, step: None)
    write(tmp_path / "straight", 1, 9)
    write(tmp_path / "resumed", 1, 6)
    write(tmp_path / "resumed", 5, 9, resume_step=4)
    assert (tmp_path / "resumed").read_bytes() != (tmp_path / "straight").read_bytes()


@pytest.mark.parametrize("line", ["nonsense\n", '{"loss": 1}\n', '{"step": 1}\n', "[]\n"])
def test_a_damaged_row_before_the_checkpoint_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2)
    rows = path.read_text()
    path.write_text(rows + line)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:3: is not the next row") as caught:
        MetricsLog(path, resume_step=5)
    assert caught.value.exit_code == 4
    assert path.read_text() == rows + line


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.warns(FlowalignWarning, match="is missing; it will begin at step 6"):
        MetricsLog(tmp_path / "metrics.jsonl", resume_step=5).close()


def test_a_row_is_complete_when_write_returns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    log.write(1, {"a": 1})
    assert (tmp_path / "m").read_text() == '{"step": 1, "a": 1}\n'
    with pytest.raises(AssertionError):
        log.write(1, {"a": 2})
    log.close()


def test_tensorboard_shows_the_numbers_of_the_row(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume_step in (0, 2):
        trackers = open_trackers(
            ["tensorboard"], tmp_path, run_id="r", config={}, resume_step=resume_step
        )
        for step in range(resume_step + 1, 5):
            row: dict[str, Value] = {"loss": step + resume_step, "note": "text", "ok": True}
            trackers[0].write(step, row)
        trackers[0].write(4, {"eval/a": 0.5})
        trackers[0].close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/a", "loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 5), (4, 6)]


def test_a_missing_tracker_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ResourceError, match="pip install wandb") as caught:
        open_trackers(["wandb"], tmp_path, run_id="r", config={})
    assert caught.value.exit_code == 7


def test_wandb_gets_the_numbers_under_the_id_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, object]]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            calls.append(("log", {"step": step, **values}))

        def finish(self) -> None:
            calls.append(("finish", {}))

    def init(**options: object) -> Run:
        calls.append(("init", options))
        return Run()

    class Config:
        def update(self, values: dict[str, object], allow_val_change: bool) -> None:
            calls.append(("config", values))

    wandb = types.ModuleType("wandb")
    monkeypatch.setattr(wandb, "init", init, raising=False)
    monkeypatch.setattr(wandb, "config", Config(), raising=False)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    accelerate.PartialState()
    (tracker,) = open_trackers(["wandb"], tmp_path, run_id="r", config={"seed": 0})
    tracker.write(1, {"loss": 2.0, "note": "text"})
    tracker.close()
    assert [name for name, _ in calls] == ["init", "config", "log", "finish"]
    assert calls[0][1]["id"] == "r" and calls[0][1]["resume"] == "allow"
    assert calls[1][1] == {"seed": 0} and calls[2][1] == {"step": 1, "loss": 2.0}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_progress_line_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(), io.StringIO()
    monkeypatch.setattr(metrics_module.time, "monotonic", clock.monotonic)
    progress = Progress(100, start=10, stream=stream)
    for step in range(11, 21):
        clock.now += 4.0
        progress.update(step, reward=0.5, samples=128)
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "step 20/100  reward 0.500  32.0 samples/s  5:20 left"
    assert len(lines) == 4, "one line in ten seconds where there is no terminal"
    assert "\r" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_rewrites_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(), Terminal()
    monkeypatch.setattr(metrics_module.time, "monotonic", clock.monotonic)
    progress = Progress(3, stream=stream)
    for step in (1, 2, 3):
        clock.now += 4000.0
        progress.update(step, reward=0.5, samples=1)
    progress.message("saved")
    progress.close()
    text = stream.getvalue()
    assert text.count("\r") == 3 and text.count("\n") == 2
    assert "2:13:20 left" in text and text.endswith("\nsaved\n")


SPEAKS = (
    "import sys, time\n"
    "from flowalign.metrics import Progress\n"
    "p = Progress(50, interval_s=0.0)\n"
    "for step in range(1, 51):\n"
    "    p.update(step, reward=0.5, samples=1)\n"
    "    time.sleep(0.002)\n"
    "p.message('the end')\n"
    "p.close()\n"
    "print('done', file=sys.stderr)\n"
)


def test_a_reader_that_goes_away_does_not_stop_the_run(tmp_path: Path) -> None:
    """X20: `| head -1`."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$0" -c "$1" | head -1', sys.executable, SPEAKS],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("step 1/50")
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_control_plain_printing_fails_when_the_reader_goes_away(tmp_path: Path) -> None:
    script = "import time\nfor _ in range(99):\n    print('x', flush=True)\n    time.sleep(0.002)\n"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$0" -c "$1" | head -1', sys.executable, script],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "BrokenPipeError" in done.stderr


def test_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" >&-', sys.executable, SPEAKS], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "done\n")
    stream = io.StringIO()
    progress = Progress(1, stream=stream)
    stream.close()
    progress.message("nobody hears")


def test_the_clock_may_jump_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """X16: the line counts monotonic seconds, whatever the wall clock says."""
    monkeypatch.setattr(metrics_module.time, "time", lambda: -86_400.0)
    progress = Progress(2, stream=io.StringIO())
    progress.update(1, reward=0.0, samples=1)
    assert "-" not in progress.line(0.0)
    assert os.getpid() > 0
