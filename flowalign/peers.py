"""Trouble of one process ends all processes of a run: with its own reason, or as a lost peer.

A process that fails writes `.failure-<rank>.json` into the run's directory before it ends. The
others learn of it where they wait for it, because the connection breaks; they read the reason
and end with the same code. Without a file (a kill) it is a ProcessError, exit code 6. Torch-free.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def noticed(what: str) -> Iterator[None]:
    """Waiting for other processes: a broken connection is a ProcessError that says for what."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of their own for it
        fix = "see why it ended in its own output; go on with --resume"
        where = "another process"
        raise ProcessError(LOST, where, f"ended, or cannot be reached, at: {what}", fix) from error


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
    for path in run.glob(".failure-*.json"):
        path.unlink(missing_ok=True)
