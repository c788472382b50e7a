"""Signals become wishes, wishes become one action of all ranks, and no save is torn."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flowalign import checkpoint, signals
from flowalign.signals import Action, Signals, uninterrupted
from tests.forked import fork


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def caught() -> Iterator[Signals]:
    with Signals() as installed:
        yield installed


def test_nothing_asked(caught: Signals) -> None:
    assert caught.poll() is Action.CONTINUE and not caught.poll().stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_is_told_until_it_happens(caught: Signals, number: int, code: int) -> None:
    send(number)
    for _ in range(2):
        action = caught.poll()
        assert action.stop and action.exit_code == code


def test_a_wish_to_save_is_told_once(caught: Signals) -> None:
    send(signal.SIGUSR1)
    assert caught.poll() is Action.SAVE
    assert caught.poll() is Action.CONTINUE
    send(signal.SIGUSR1)
    send(signal.SIGUSR1)
    assert [caught.poll(), caught.poll()] == [Action.SAVE, Action.CONTINUE]


def test_terminate_wins_over_interrupt_and_both_over_save(caught: Signals) -> None:
    send(signal.SIGUSR1)
    send(signal.SIGINT)
    assert caught.poll() is Action.INTERRUPT
    send(signal.SIGTERM)
    assert caught.poll() is Action.TERMINATE


def test_one_ctrl_c_after_a_terminate_is_the_first(caught: Signals) -> None:
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert caught.poll() is Action.TERMINATE


def test_all_ranks_do_what_one_was_asked() -> None:
    """The word of the ranks is their maximum; a rank that heard nothing does the same."""
    words: list[int] = []

    def agree(word: int) -> int:
        words.append(word)
        return max(word, int(Action.TERMINATE))

    with Signals() as here:
        assert here.poll(agree) is Action.TERMINATE
        assert words == [0]
        assert here.poll() is Action.CONTINUE, "control: alone it would have gone on"


def test_a_wish_heard_by_two_ranks_at_different_polls_is_not_lost(caught: Signals) -> None:
    send(signal.SIGUSR1)
    assert caught.poll(lambda word: max(word, 2)) is Action.INTERRUPT
    assert caught.poll() is Action.CONTINUE


def test_the_second_ctrl_c_stops_at_once(caught: Signals) -> None:
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_the_second_ctrl_c_waits_for_renames(caught: Signals) -> None:
    done = []
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        send(signal.SIGINT)
        with uninterrupted():
            done.append("renamed")
        done.append("synced")
    assert done == ["renamed", "synced"]
    with uninterrupted():
        pass  # and it is told once


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with Signals():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_another_thread_installs_nothing() -> None:
    seen: list[Action] = []

    def run() -> None:
        with Signals() as here:
            seen.append(here.poll())

    thread = threading.Thread(target=run)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert seen == [Action.CONTINUE] and signal.getsignal(signal.SIGTERM) is before


def saves_until_stopped(root: Path, ready: int) -> None:
    state = {"weights": {"w": torch.zeros(20_000)}}
    options = {"keep_last": 1, "run_id": "r", "world_size": 1}
    with Signals() as here:
        for step in range(1, 100_000):
            checkpoint.save(root, step, state, {}, **options)
            if step == 1:
                os.write(ready, b".")
            action = here.poll()
            if action.stop:
                os._exit(action.exit_code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_saves_leaves_a_good_checkpoint(tmp_path: Path, number: int) -> None:
    """P20: once at 5 moments, and Ctrl-C twice at 5 more; the save under way is whole or absent."""
    for trial in range(10):
        root = tmp_path / str(trial)
        begin, end = os.pipe()
        child = fork(lambda root=root, end=end: saves_until_stopped(root, end))
        os.close(end)
        assert os.read(begin, 1) == b"."
        os.close(begin)
        time.sleep(0.0037 * trial)
        child.kill(number)
        if trial % 2:
            child.kill(number)
        assert child.wait(10) == (143 if number == signal.SIGTERM else 130)
        path = checkpoint.latest(root)
        assert path is not None
        checkpoint.load(path, run_id="r", world_size=1)
        assert signals._shields == 0
