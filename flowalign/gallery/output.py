"""A gallery's directory: put in place whole by a rename, or not at all. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from flowalign.errors import ResourceError

GENERATOR = "flowalign gallery"  # the mark by which an older gallery is known
_OURS = re.compile(r"index\.html|page-\d+\.html|assets")


def check_output(output: Path) -> None:
    """Raise ResourceError when `output` holds anything but an older gallery."""
    try:
        if not os.path.lexists(output):
            return
        if output.is_symlink() or not output.is_dir():
            raise _taken(output, "exists and is not a directory")
        names = [path.name for path in output.iterdir()]
        strange = sorted(name for name in names if not _OURS.fullmatch(name))
        if strange:
            raise _taken(output, f"exists and holds {strange[0]!r}, which is no part of a gallery")
        if names and not _is_gallery(output / "index.html"):
            raise _taken(output, "exists and is not a gallery")
    except (OSError, ValueError) as error:
        raise _unusable(output, error) from None


def write_gallery(output: Path, pages: Mapping[str, str], assets: Mapping[str, Path]) -> None:
    """Write `pages` (name -> HTML) and copy `assets` into a new directory, then rename it.

    A gallery that was there is moved aside first and removed last, so that a fault at any point
    leaves one whole gallery on the disk.
    """
    target = Path(os.path.abspath(output))  # noqa: PTH100 - keeps links; a link was refused before
    fresh = target.with_name(f".{target.name[:200]}.new-{os.getpid()}")
    aside = target.with_name(f".{target.name[:200]}.old-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        for name, text in pages.items():
            (fresh / name).write_text(text, encoding="utf-8", newline="\n")
        for name, source in assets.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, fresh / name, follow_symlinks=False)
        _swap(fresh, target, aside)
    except (OSError, ValueError) as error:
        raise _unusable(output, error) from None
    finally:
        with contextlib.suppress(ValueError):
            shutil.rmtree(fresh, ignore_errors=True)


def _swap(fresh: Path, target: Path, aside: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        return
    target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside)


def _is_gallery(index: Path) -> bool:
    if not index.is_file():
        return False
    with index.open("rb") as file:
        return f'<meta name="generator" content="{GENERATOR}">'.encode() in file.read(4096)


def _taken(output: Path, what: str) -> ResourceError:
    fix = "choose another directory, or remove it"
    return ResourceError("GAL-OUTPUT-TAKEN", str(output), what, fix)


def _unusable(output: Path, error: Exception) -> ResourceError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    what = f"cannot be written ({reason})"
    return ResourceError("GAL-OUTPUT", str(output), what, "choose another directory")
