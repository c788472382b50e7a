"""Trouble of one process ends all processes of a run: with its own reason, or as a lost peer.

A process that fails writes `.failure-<rank>.json` into the run's directory before it ends. The
others learn of it where they wait for it, because the connection breaks; they read the reason
and end with the same code. Without a file (a kill, or one that hangs) it is a ProcessError, exit
code 6, that tells who was last heard of, when and where. Torch-free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flowalign import disk, errors
from flowalign.errors import FlowalignError, ProcessError

LOST = "RUN-PEER"  # code of the error of a broken connection
PATIENCE_S = 2.0  # for a reason that is being written
CLASSES = {
    one.__name__: one
    for one in (
        errors.ConfigError,
        errors.DataError,
        errors.CheckpointError,
        errors.RewardError,
        errors.RewardServerError,
        errors.ProcessError,
        errors.ResourceError,
        errors.SecurityError,
        errors.HealthError,
    )
}


@dataclass(frozen=True, slots=True)
class Pulse:
    """Where a process was last: a small file of the run, for those who wait for it in vain."""

    run: Path
    rank: int

    @property
    def file(self) -> Path:
        """This process's own."""
        return self.run / f".pulse-{self.rank}.json"

    def beat(self, place: str) -> None:
        """Say where the process is; a disk that takes no file must not end a run."""
        with suppress(OSError):
            self.file.write_text(json.dumps([time.time(), place]))

    def quietest(self) -> str:
        """Who of the others was heard of least lately."""
        heard = []
        for path in self.run.glob(".pulse-*.json"):
            with suppress(OSError, ValueError):  # gone, or half written
                when, place = json.loads(path.read_bytes())
                if path != self.file:
                    heard.append((float(when), path.stem.removeprefix(".pulse-"), str(place)))
        if not heard:
            return "another process"
        when, rank, place = min(heard)
        return f"process {rank}, last heard of {time.time() - when:.0f} s ago {place}"


@contextmanager
def noticed(what: str, pulse: Pulse | None = None) -> Iterator[None]:
    """Waiting for other processes: a broken connection is a ProcessError that says for what."""
    if pulse is not None:
        pulse.beat(f"at: {what}")
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of their own for it
        fix = "see why in its own output, or raise peer_timeout_s; go on with --resume"
        where = "another process" if pulse is None else pulse.quietest()
        told = f"ended, or did not answer in time, at: {what}"
        raise ProcessError(LOST, where, told, fix) from error
    if pulse is not None:
        pulse.beat(f"after: {what}")


def tell(run: Path, rank: int, error: BaseException) -> None:
    """Leave the reason of this process's end for the others; a peer's end is not a reason."""
    if isinstance(error, FlowalignError):
        if error.code == LOST:
            return
        row = [type(error).__name__, error.code, error.where, error.what, error.fix]
    else:
        what = f"{type(error).__name__}: {error}"
        row = ["", "INTERNAL", "flowalign", what, "run again with --debug and report it"]
    with suppress(OSError):  # the error itself goes on in any case
        disk.write_file(run / f".failure-{rank}.json", json.dumps(row).encode())


def reason(run: Path, error: BaseException) -> FlowalignError | None:
    """What ended the peer whose loss `error` tells; None for any other error, or without a word."""
    if not isinstance(error, FlowalignError) or error.code != LOST:
        return None
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for path in sorted(run.glob(".failure-*.json")):
            name, code, where, what, fix = json.loads(path.read_bytes())
            rank = path.stem.removeprefix(".failure-")
            return CLASSES.get(name, FlowalignError)(code, f"process {rank}: {where}", what, fix)
        time.sleep(0.05)
    return None


def forget(run: Path) -> None:
    """Remove what an earlier start left."""
    for path in (*run.glob(".failure-*.json"), *run.glob(".pulse-*.json")):
        path.unlink(missing_ok=True)
