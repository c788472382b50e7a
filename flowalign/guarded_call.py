"""Calling code that may hang, print without end, or touch what is not its own."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO, TypeVar

import numpy as np
import torch

T = TypeVar("T")

KEPT_CHARACTERS = 2_000


class CallTimeoutError(Exception):
    """The call did not end in time."""


class CallRaisedError(Exception):
    """The called code raised; carries what, so that it is not taken for the caller's own."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def call_within(function: Callable[[], T], seconds: float, *, log: Captured | None = None) -> T:
    """`function()` in a thread of its own, without gradients; `CallTimeoutError` after `seconds`.

    Whatever `function` raises comes as a `CallRaisedError`.

    Covers sleeping, waiting and busy Python code. Native code that holds the interpreter's lock
    cannot be cut from inside the process. A cut call's thread stays until the process ends (it is
    a daemon, so it does not hold the exit). Grad mode, inference mode and autocast are a thread's
    own, so the call cannot change the caller's. With `log`, what the thread prints goes there.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    threads, device = torch.get_num_threads(), _cuda_device()

    def body() -> None:
        if log is not None:
            log.thread = threading.get_ident()
        # The number of threads changes the last bits of a sum, and is set per thread.
        torch.set_num_threads(threads)
        if device is not None:
            torch.cuda.set_device(device)
        try:
            with torch.no_grad():
                outcome.append(function())
        except BaseException as error:  # also SystemExit: a reward must not end the run
            failure.append(error)

    thread = threading.Thread(target=body, name="flowalign-reward", daemon=True)
    with contextlib.nullcontext() if log is None else log.redirected():
        thread.start()
        thread.join(seconds)
    if thread.is_alive():
        raise CallTimeoutError
    if failure:
        raise CallRaisedError(failure[0]) from failure[0]
    return outcome[0]


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


class Captured:
    """What one thread prints: the first characters are kept, the rest is counted."""

    def __init__(self) -> None:
        self.thread: int | None = None
        self.text = ""
        self.characters = 0

    def add(self, text: str) -> None:
        """Keep `text` as far as there is room, and count it."""
        self.characters += len(text)
        room = KEPT_CHARACTERS - len(self.text)
        if room > 0:
            self.text += text[:room]

    @contextlib.contextmanager
    def redirected(self) -> Iterator[None]:
        """Inside, what `thread` prints comes here; other threads print as before."""
        out, err = sys.stdout, sys.stderr
        with (
            contextlib.redirect_stdout(_Switch(out, self)),
            contextlib.redirect_stderr(_Switch(err, self)),
        ):
            yield


class _Switch:
    """A text stream that takes the watched thread's writes out of `stream`.

    A progress bar made meanwhile by another thread keeps this object, so it goes on to pass
    writes through for ever.
    """

    def __init__(self, stream: TextIO, captured: Captured) -> None:
        self.stream, self.captured = stream, captured
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        if threading.get_ident() == self.captured.thread:
            self.captured.add(text)
            return len(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


@contextlib.contextmanager
def global_randomness_kept() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    device = _cuda_device()
    with torch.random.fork_rng([] if device is None else [device]):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
