"""P18, P23, P25: trouble of one process of two ends both, with one reason and one exit code."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowalign import api, processes, trainer
from flowalign.errors import DataError, ProcessError, ResourceError, RewardError
from tests.forked import CRASHED
from tests.toy_run import Change, ToyReward, around, at, nothing, rank, start, toy

FEW = {"steps": 4, "save_every": 1, "warmup_steps": 0}
SECONDS = 30.0  # promised 10 on an idle machine


def fails(owner: Any, name: str, number: int, act: Callable[[], object]) -> Change:
    """`act` before the n-th call of `owner.name`, on the second process alone."""

    def change() -> None:
        if rank() == 1:
            around(owner, name, before=at(number, act), after=at(-1, nothing))

    return change


def raising(error: Exception) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


REWARD = RewardError("RWD-RAISED", "reward `red`", "a planted fault", "mend it")
PLACES = {
    "reward": (ToyReward, "__call__", 3, REWARD),
    "rollout": (
        trainer,
        "collect",
        1,
        DataError("DATA-X", "prompts", "a fault", "mend it"),
    ),
    "update": (trainer, "update", 3, ResourceError("ENV-MEMORY", "update", "a fault", "mend it")),
    "save": (trainer.Loop, "save", 1, ResourceError("CKPT-WRITE", "save", "a fault", "mend it")),
    "evaluation": (trainer, "evaluate", 1, REWARD),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_of_one_process_is_the_reason_of_both(place: str, tmp_path: Path) -> None:
    owner, name, number, error = PLACES[place]
    root = tmp_path / "run"
    config = toy(root, train=FEW)
    run = start(config, world=2, change=fails(owner, name, number, raising(error)))
    assert run.wait(SECONDS) == [error.exit_code] * 2
    reason = json.loads((root / "status.json").read_text())["reason"]
    assert error.code in reason and "process 1" in reason


def test_a_fault_of_ours_ends_the_other_too(tmp_path: Path) -> None:
    """Not the user's mistake: the other process tells it as internal, exit code 1."""
    root = tmp_path / "run"
    change = fails(trainer, "update", 1, raising(AssertionError("planted")))
    codes = start(toy(root, train=FEW), world=2, change=change).wait(SECONDS)
    assert codes == [1, CRASHED]  # the forked child of tests has a code of its own for it
    assert "planted" in json.loads((root / "status.json").read_text())["reason"]


def test_a_killed_process_is_noticed(tmp_path: Path) -> None:
    """No reason was left: exit code 6 within seconds, and a resume starts with a clean slate."""
    root, killed = tmp_path / "run", tmp_path / "time"

    def die() -> None:
        killed.write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    run = start(toy(root, train=FEW), world=2, change=fails(trainer, "update", 3, die))
    assert run.wait(SECONDS) == [ProcessError.exit_code, -signal.SIGKILL]
    assert time.time() - float(killed.read_text()) < 15.0
    assert "RUN-PEER" in json.loads((root / "status.json").read_text())["reason"]
    assert start(toy(root, train=FEW), world=2, resume=True).wait(SECONDS) == [0, 0]


def test_control_without_the_notice_it_is_no_users_error(tmp_path: Path) -> None:
    """Negative control: the same fault, with the bare collective's error let through."""
    inner = fails(trainer, "update", 3, raising(REWARD))

    def change() -> None:
        inner()
        if rank() == 0:
            from contextlib import nullcontext

            processes.noticed = lambda what: nullcontext()  # type: ignore[assignment]

    codes = start(toy(tmp_path / "run", train=FEW), world=2, change=change).wait(SECONDS)
    assert codes == [CRASHED, RewardError.exit_code]


def test_what_an_earlier_start_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".failure-1.json").write_text("[]")
    api.peers.forget(tmp_path)
    assert not list(tmp_path.iterdir())
