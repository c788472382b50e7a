"""Writes that are whole or absent, and the question whether there is room for them. Torch-free."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flowalign.errors import ResourceError

TEMPORARY_PREFIX = ".tmp-"


def write_file(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace `path` by `data`: a reader, or a kill at any moment, sees the old or the new bytes.

    With `sync` the bytes are on the disk when this returns (power loss, not only a kill).
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    try:
        write_new(temporary, data, sync=sync)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(path.parent)


def write_new(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` to `path`, which nobody reads before it is complete."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until the bytes of `path` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until the names in directory `path` are on the disk; a rename is durable after this."""
    sync_file(path)


def free_bytes(path: Path) -> int:
    """Bytes this user may still write where `path` lies or will lie."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_free(path: Path, needed_bytes: int, purpose: str) -> None:
    """Raise `ResourceError` when fewer than `needed_bytes` are free under `path`."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise ResourceError(
            "DISK-FULL",
            str(path),
            f"{purpose} needs {megabytes(needed_bytes)}, {megabytes(free)} are free",
            "free some space or choose another `output`",
        )


def megabytes(count: int) -> str:
    """`count` bytes for a person, in units of 10^6 bytes."""
    return f"{count / 1e6:.1f} MB"
