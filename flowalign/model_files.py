"""What a folder of weights may hold: data, never code."""

from __future__ import annotations

import json
from pathlib import Path

from flowalign.errors import CheckpointError, SecurityError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_model_folder(folder: Path) -> None:
    """Raise SecurityError for a model folder with code or with weights in pickles only.

    Looks at every file below `folder`: Python files, an `auto_map` in any JSON (transformers would
    import what it names), and weights that only a pickle holds.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        inner = path.relative_to(folder).as_posix()
        if path.suffix == ".py":
            raise _code(folder, f"holds code, `{inner}`")
        if path.suffix == ".json" and _has_auto_map(path):
            raise _code(folder, f"`{inner}` has an `auto_map`, which names code to import")
    pickled = [path for path in files if path.suffix in PICKLED]
    if pickled and not any(path.suffix == ".safetensors" for path in files):
        what = f"has its weights in `{pickled[0].relative_to(folder)}` only, which can run code"
        fix = "convert them to safetensors (`save_pretrained` of a trusted copy does)"
        raise SecurityError("SEC-PICKLE", str(folder), what, fix)


def check_weights_file(path: Path) -> None:
    """Raise unless `path` is an existing safetensors file."""
    if path.suffix != ".safetensors":
        fix = "convert it to safetensors in a place you trust"
        what = f"weights in {path.suffix or 'an unknown format'} are never read"
        raise SecurityError("SEC-PICKLE", str(path), what, fix)
    if not path.is_file():
        raise CheckpointError("CKPT-MISSING", str(path), "no such file", "correct the path")


def _has_auto_map(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False  # whoever needs this file will say that it is no JSON
    return _names_auto_map(content)


def _names_auto_map(content: object) -> bool:
    if isinstance(content, dict):
        return "auto_map" in content or any(_names_auto_map(value) for value in content.values())
    return isinstance(content, list) and any(_names_auto_map(value) for value in content)


def _code(folder: Path, what: str) -> SecurityError:
    fix = "flowalign runs no code of a model; remove it if the weights alone are enough"
    return SecurityError("SEC-CODE", str(folder), what, fix)
