"""Real signals to real runs: saved, stopped with the agreed exit code, resumed to the same end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from flowalign import trainer
from flowalign.metrics import MetricsLog
from tests import toy_run
from tests.toy_run import Run, around, at, counters, nothing, start, straight, toy


def steps_done(root: Path) -> int:
    path = root / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_step(run: Run, root: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while steps_done(root) < step:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def slower() -> None:
    """A step takes 50 ms more, so that a signal finds the run under way."""
    around(MetricsLog, "write", before=lambda n: nothing(), after=lambda n: time.sleep(0.05))


def status(root: Path) -> dict[str, object]:
    return json.loads((root / "status.json").read_text())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    root = tmp_path_factory.mktemp("straight")
    return {world: straight(toy(root / f"{world}"), world=world) for world in (1, 2)}


@pytest.mark.parametrize(
    ("world", "target", "number", "code"),
    [
        (1, 0, signal.SIGTERM, 143),
        (1, 0, signal.SIGINT, 130),
        (2, 0, signal.SIGTERM, 143),
        (2, 1, signal.SIGTERM, 143),
        (2, 1, signal.SIGINT, 130),
    ],
)
def test_a_signal_to_any_rank_saves_and_stops_all(
    tmp_path: Path, expected: dict[int, str], world: int, target: int, number: int, code: int
) -> None:
    """P19: both ranks stop after the same step with its checkpoint, and resume to the same end."""
    root = tmp_path / "run"
    config = toy(root)
    run = start(config, world=world, change=slower)
    rng = random.Random(f"{world} {target} {number}")
    wait_for_step(run, root, rng.randint(1, 6))
    time.sleep(rng.uniform(0, 0.05))
    run.children[target].kill(number)
    begun = time.monotonic()
    assert run.wait() == [code] * world
    assert time.monotonic() - begun < 10
    step = steps_done(root)
    assert 0 < step < 12
    assert counters(toy_run.newest(root))["step"] == step
    assert status(root) == {
        "state": "stopped",
        "step": step,
        "exit_code": code,
        "reason": f"stopped with exit code {code}",
    }
    assert straight(config, world=world, resume=True) == expected[world]
    assert status(root)["state"] == "finished"


def test_control_without_handlers_nothing_is_saved(tmp_path: Path) -> None:
    root = tmp_path / "run"

    def deaf() -> None:
        slower()
        trainer.Signals.__enter__ = lambda self: self  # type: ignore[method-assign]

    run = start(toy(root, train={"save_every": "never"}), change=deaf)
    wait_for_step(run, root, 2)
    run.children[0].kill(signal.SIGTERM)
    assert run.wait() == [-signal.SIGTERM]
    assert not (root / "checkpoints").exists()


def test_a_signal_before_the_first_step_stops_without_a_checkpoint(
    tmp_path: Path, expected: dict[int, str]
) -> None:
    """X13."""
    config = toy(tmp_path / "run")

    def early() -> None:
        kill = at(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        around(trainer, "evaluate", before=kill, after=lambda n: nothing())

    assert start(config, change=early).wait() == [143]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert straight(config, resume=True) == expected[1]


def test_a_signal_during_the_first_save_leaves_it_complete(
    tmp_path: Path, expected: dict[int, str]
) -> None:
    """X14."""
    config = toy(tmp_path / "run")

    def during() -> None:
        kill = at(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        around(toy_run.checkpoint, "_publish", before=kill, after=lambda n: nothing())

    assert start(config, change=during).wait() == [143]
    assert counters(toy_run.newest(tmp_path / "run"))["step"] in (2, 3)
    assert straight(config, resume=True) == expected[1]


def test_a_wish_to_save_changes_nothing_but_saves(tmp_path: Path, expected: dict[int, str]) -> None:
    """P21: three times SIGUSR1, on one rank of two."""
    root = tmp_path / "run"
    saved: list[int] = []

    def asks() -> None:
        def ask(number: int) -> None:
            if toy_run.rank() == 0 and number in (2, 4, 8):
                os.kill(os.getpid(), signal.SIGUSR1)

        around(MetricsLog, "write", before=lambda n: nothing(), after=ask)

        def note(number: int) -> None:
            with (tmp_path / "saves").open("a") as file:
                file.write(".")

        around(trainer.checkpoint, "save", before=note, after=lambda n: nothing())

    assert start(toy(root), world=2, change=asks).wait() == [0, 0]
    assert toy_run.fingerprint(root) == expected[2]
    assert len((tmp_path / "saves").read_text()) == 6 + 3
    assert saved == []


def test_two_ctrl_c_stop_at_once_and_lose_nothing_saved(
    tmp_path: Path, expected: dict[int, str]
) -> None:
    """P20 on a run: the second one does not wait for the step to end."""
    root = tmp_path / "run"

    def stuck() -> None:
        def wait(number: int) -> None:
            (tmp_path / "stuck").touch()
            time.sleep(60)

        around(trainer, "update", before=lambda n: wait(n) if n == 7 else None, after=lambda n: n)

    run = start(toy(root), change=stuck)
    deadline = time.monotonic() + 60
    while not (tmp_path / "stuck").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    run.children[0].kill(signal.SIGINT)
    time.sleep(0.05)
    run.children[0].kill(signal.SIGINT)
    begun = time.monotonic()
    assert run.wait() == [130]
    assert time.monotonic() - begun < 5
    assert status(root)["exit_code"] == 130
    assert straight(toy(root), resume=True) == expected[1]
