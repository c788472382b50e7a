"""Paths that come from data stay below the folder that the user named. Torch-free."""

from __future__ import annotations

import stat
from pathlib import Path

from flowalign.errors import SecurityError

MAX_NAME_BYTES = 1_000


def inside(root: Path, name: str, where: str) -> Path:
    """The file `name`, written relative to `root`, resolved; SecurityError when it is elsewhere.

    Refused are addresses, absolute paths of any system, `..` that leaves the root, links that lead
    out of it, devices, NUL and over-long names. The file need not exist. `where` is the place in
    the error, for example a manifest's row.
    """
    if "\0" in name or not name or len(name.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
        raise _refused(where, name, "is empty, too long, or has a NUL")
    if "://" in name or name.startswith(("file:", "data:")):
        raise _refused(where, name, "is an address; only local files are read")
    drive = len(name) > 1 and name[1] == ":"
    if name.startswith(("/", "\\", "~")) or drive or "\\" in name:
        raise _refused(where, name, "is not a relative path with forward slashes")
    try:
        base = root.resolve()
        path = (base / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise _refused(where, name, f"cannot be resolved ({error})") from error
    if not path.is_relative_to(base):
        raise _refused(where, name, f"leaves `{root}`")
    if path.exists() and not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
        raise _refused(where, name, "is no regular file")
    return path


def _refused(where: str, name: str, why: str) -> SecurityError:
    what = f"path {name[:120]!r} {why}"
    fix = "put the file below the manifest's folder and name it relative to that"
    return SecurityError("SEC-PATH", where, what, fix)
