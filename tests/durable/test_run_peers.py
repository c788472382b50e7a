"""P18, P23-P25: trouble of one process of two ends both, with one reason and one exit code."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowalign import api, processes, trainer
from flowalign.errors import DataError, ProcessError, ResourceError, RewardError
from flowalign.peers import Pulse
from tests.forked import CRASHED
from tests.toy_run import Change, ToyReward, around, at, nothing, rank, start, straight, toy

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
    reason = json.loads((root / "status.json").read_text())["reason"]
    assert "RUN-PEER" in reason and "process 1, last heard of" in reason
    assert start(toy(root, train=FEW), world=2, resume=True).wait(SECONDS) == [0, 0]


def test_a_process_that_hangs_is_noticed(tmp_path: Path) -> None:
    """It is named, with its last place; the others end after the time that is set, not later."""
    root, stopped = tmp_path / "run", tmp_path / "time"

    def hang() -> None:
        stopped.write_text(f"{time.time()} {os.getpid()}")
        os.kill(os.getpid(), signal.SIGSTOP)

    config = toy(root, train=FEW).model_copy(update={"peer_timeout_s": 3.0})
    run = start(config, world=2, change=fails(trainer, "update", 3, hang))
    assert run.children[0].wait(SECONDS) == ProcessError.exit_code
    begun, child = stopped.read_text().split()
    assert 3.0 <= time.time() - float(begun) < 15.0
    reason = json.loads((root / "status.json").read_text())["reason"]
    assert "process 1, last heard of" in reason and "s ago after: " in reason
    os.kill(int(child), signal.SIGKILL)
    assert run.wait(SECONDS) == [ProcessError.exit_code, -signal.SIGKILL]


def test_processes_of_device_auto_join_where_there_is_no_gpu(tmp_path: Path) -> None:
    """They are one run, the same as with `device: cpu`, and not two that write over each other."""

    def no_gpu() -> None:
        torch.cuda.is_available = lambda: False

    found = [
        straight(toy(tmp_path / device, train=FEW, device=device), world=2, change=no_gpu)
        for device in ("cpu", "auto")
    ]
    assert found[0] == found[1]


def test_one_that_joins_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: what accelerate made of `device: auto` before."""
    alone = SimpleNamespace(num_processes=1, process_index=0, device="cpu", is_main_process=True)
    monkeypatch.setattr(processes, "Accelerator", lambda **options: alone)
    assert processes.start_processes("cpu", "no").count == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProcessError, match="1 of 2 processes joined"):
        processes.start_processes("cpu", "no")


def test_pulses_go_with_the_run(tmp_path: Path) -> None:
    """A run that ends well leaves none; a patient one outlives a pause."""
    root = tmp_path / "run"
    pause = fails(trainer, "update", 2, lambda: time.sleep(2.0))
    assert start(toy(root, train=FEW), world=2, change=pause).wait(SECONDS) == [0, 0]
    assert not list(root.glob(".pulse-*"))


def test_the_quietest_is_told(tmp_path: Path) -> None:
    """Of three others the one that was heard of first; unreadable files tell nothing."""
    for number, age in ((0, 1), (1, 50), (2, 100), (3, 7)):
        row = json.dumps([time.time() - age, "at: the gradients"])
        (tmp_path / f".pulse-{number}.json").write_text(row)
    (tmp_path / ".pulse-4.json").write_text('[12, "half')
    told = "process 2, last heard of 100 s ago at: the gradients"
    assert Pulse(tmp_path, 0).quietest() == told
    assert "process 1" in Pulse(tmp_path, 2).quietest()
    assert Pulse(tmp_path / "none", 0).quietest() == "another process"
    Pulse(tmp_path / "none", 0).beat("nowhere")  # no folder: nothing to do, and no error


def test_control_without_the_notice_it_is_no_users_error(tmp_path: Path) -> None:
    """Negative control: the same fault, with the bare collective's error let through."""
    inner = fails(trainer, "update", 3, raising(REWARD))

    def change() -> None:
        inner()
        if rank() == 0:
            from contextlib import nullcontext

            processes.noticed = lambda *where: nullcontext()  # type: ignore[assignment]

    codes = start(toy(tmp_path / "run", train=FEW), world=2, change=change).wait(SECONDS)
    assert codes == [CRASHED, RewardError.exit_code]


def test_what_an_earlier_start_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".failure-1.json").write_text("[]")
    api.peers.forget(tmp_path)
    assert not list(tmp_path.iterdir())
