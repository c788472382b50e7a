"""One run per directory: an advisory lock that the kernel frees when its holder dies. Torch-free.

The lock is `flock` on an open file, so `kill -9` frees it at once and nothing has to be cleaned.
The file's text (pid, host, start time) is only for the message of the second start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flowalign.errors import ResourceError

_held: set[int] = set()


def _close_inherited() -> None:
    """In a forked child: give up the copies of our locks, or they would outlive their holder."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLock:
    """A lock that is held until `release` or the end of the process."""

    path: Path
    descriptor: int
    stale: str | None  # who held it before and died without releasing it

    def release(self, *, remove: bool = False) -> None:
        """Free the lock; with `remove` the file goes too. Safe to call again or in a fork."""
        if self.descriptor not in _held:
            return
        _held.remove(self.descriptor)
        # Removed or emptied while still locked, so that no other holder's text is lost.
        if remove:
            self.path.unlink(missing_ok=True)
        else:
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def acquire(path: Path) -> RunLock:
    """Take the lock file `path`, made when absent, or raise `ResourceError` naming its holder."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _flock(path, descriptor)
            if _is_still(path, descriptor):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the last holder removed the file between our open and our lock
    stale = _describe(os.pread(descriptor, 4096, 0))
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    _held.add(descriptor)
    return RunLock(path=path, descriptor=descriptor, stale=stale)


def _flock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _describe(os.pread(descriptor, 4096, 0)) or "a process that is just starting"
        raise ResourceError(
            "RUN-LOCKED",
            str(path.parent),
            f"in use by {holder}",
            "wait for it, stop it, or choose another `output`",
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise ResourceError(
            "RUN-NO-LOCKS",
            str(path.parent),
            f"this file system has no file locks ({error.strerror})",
            "choose an `output` on a local disk",
        ) from None


def _is_still(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _describe(text: bytes) -> str | None:
    """The holder written in a lock file; None when the last holder released it properly."""
    if not text:
        return None
    try:
        holder = json.loads(text)
        return f"pid {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
