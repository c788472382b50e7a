"""What a signal asks of a run, agreed on by all ranks at one place of the training loop.

    SIGTERM            save and stop, exit code 143
    SIGINT (Ctrl-C)    save and stop, exit code 130; a second one stops at once
    SIGUSR1            save and continue

Handlers only set flags, so a signal never interrupts a step or a save; the second Ctrl-C alone
raises `KeyboardInterrupt` where it strikes, which a checkpoint survives as it survives a kill.
Torch-free.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import FrameType
from typing import Any

from flowalign.errors import EXIT_INTERRUPTED, EXIT_TERMINATED


class Action(IntEnum):
    """A rank's wish; the largest one over the ranks is what all do."""

    CONTINUE = 0
    SAVE = 1
    INTERRUPT = 2
    TERMINATE = 3

    @property
    def stop(self) -> bool:
        return self >= Action.INTERRUPT

    @property
    def exit_code(self) -> int:
        """130 or 143 of an action that stops."""
        return {Action.INTERRUPT: EXIT_INTERRUPTED, Action.TERMINATE: EXIT_TERMINATED}[self]


def alone(word: int) -> int:
    """Agreement of a single process."""
    return word


_shields = 0
_stop_now = False


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, a second Ctrl-C waits until the end of the block (a few renames, not a save)."""
    global _shields, _stop_now
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1
    if _stop_now and not _shields:
        _stop_now = False
        raise KeyboardInterrupt


class Signals:
    """Handlers of the main thread while the `with` block runs; elsewhere it changes nothing."""

    def __init__(self) -> None:
        self._stop = Action.CONTINUE
        self._interrupts = 0
        self._saves_asked = 0
        self._saves_seen = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python allows handlers in the main thread only; in a notebook's worker there are none.
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGTERM, self._on_terminate),
                (signal.SIGINT, self._on_interrupt),
                (signal.SIGUSR1, self._on_save),
            ):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def poll(self, agree: Callable[[int], int] = alone) -> Action:
        """What all ranks do now; a wish to save ends by being told.

        `agree` returns the largest of the words of all ranks (an all-reduce). It is called at
        every poll, so all ranks must poll equally often.
        """
        asked = self._saves_asked
        wish = max(self._stop, Action.SAVE if asked > self._saves_seen else Action.CONTINUE)
        self._saves_seen = asked
        return Action(agree(int(wish)))

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._stop = Action.TERMINATE

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._saves_asked += 1

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        global _stop_now
        self._interrupts += 1
        if self._interrupts == 1:
            self._stop = max(self._stop, Action.INTERRUPT)
        elif _shields:
            _stop_now = True
        else:
            raise KeyboardInterrupt
