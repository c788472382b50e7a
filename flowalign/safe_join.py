"""The one way from a name found in data to a file under a root. Torch-free."""

from __future__ import annotations

import stat
from pathlib import Path, PureWindowsPath

from flowalign.errors import SecurityError

MAX_NAME_BYTES = 255  # of one part; a whole path may have four times as many


def safe_join(root: Path, name: str, *, what: str) -> Path:
    """`root / name`, resolved, refused when `name` could mean anything outside `root`.

    `what` says in the error where the name was found. The file need not exist; what exists must
    be a directory or a regular file with one name, because a link reaches outside by itself.

    Raises SecurityError.
    """
    refuse_name(name, what=what)
    base = root.resolve()
    path = base / name
    found = None
    try:
        resolved = path.resolve()
        if resolved.exists():
            found = resolved.lstat()
    except (OSError, RuntimeError) as error:
        raise _refusal(name, what, f"cannot be resolved ({error})") from None
    if not resolved.is_relative_to(base):
        raise _refusal(name, what, "leads outside its directory")
    if resolved != path:
        raise _refusal(name, what, "passes through a symbolic link")
    if found is not None and not stat.S_ISDIR(found.st_mode):
        if not stat.S_ISREG(found.st_mode):
            raise _refusal(name, what, "is not a regular file")
        if found.st_nlink > 1:
            raise _refusal(name, what, "is a hard link, so it may be a file from outside")
    return resolved


def refuse_name(name: str, *, what: str) -> None:
    """Raise SecurityError for a relative path that is unsafe on any system: `..`, roots, NUL."""
    windows = PureWindowsPath(name)
    parts = name.replace("\\", "/").split("/")
    if not name or not all(parts):
        reason = "has an empty part, or begins or ends with a slash"
    elif windows.drive or windows.root or name.startswith("~"):
        reason = "is absolute"
    elif ".." in parts or "." in parts:
        reason = "has a part '.' or '..'"
    elif any(not c.isprintable() for c in name):
        reason = "has control characters"
    elif "\\" in name:
        reason = "has a backslash"
    elif any(part != part.strip() or part.endswith(".") for part in parts):
        reason = "has a part that begins or ends with a blank, or ends with a dot"
    elif any(_is_device(part) for part in parts):
        reason = "is the name of a device on Windows"
    elif max(len(name.encode()) // 4, *(len(part.encode()) for part in parts)) > MAX_NAME_BYTES:
        reason = "is too long"
    else:
        return
    raise _refusal(name, what, reason)


def _is_device(part: str) -> bool:
    stem = part.partition(".")[0].rstrip().upper()
    numbered = len(stem) == 4 and stem[:3] in ("COM", "LPT") and stem[3].isdigit()
    return numbered or stem in ("CON", "PRN", "AUX", "NUL")


def _refusal(name: str, what: str, reason: str) -> SecurityError:
    shown = name if len(name) <= 80 else name[:77] + "..."
    return SecurityError("PATH-ESCAPE", what, f"path {shown!r} {reason}", "name a file inside it")
