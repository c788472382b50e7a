"""Where the project's own files are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("flowalign", "rewards", "pipelines", "configs", "tests", "benchmarks", "samples", ".ci")
LINKS = ("rewards", "pipelines", "configs")
TEXT = {".py", ".toml", ".yaml", ".yml", ".md", ".json", ".jsonl", ".txt", ".html", ".css", ".js"}


def files(*folders: str) -> Iterator[Path]:
    """Every file below the folders, links not followed, without caches."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            relative = path.relative_to(ROOT).parts
            linked = relative[0] == "flowalign" and len(relative) > 1 and relative[1] in LINKS
            if path.is_file() and "__pycache__" not in relative and not linked:
                yield path


def python_files() -> list[Path]:
    """Every Python source of the project."""
    return [path for path in files(*CODE) if path.suffix == ".py"]


def text_files() -> list[Path]:
    """Every file a person writes and reads, top level included."""
    top = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    below = [p for p in files(*CODE) if p.suffix in TEXT or p.parent.name == ".ci"]
    return [p for p in below if "models" not in p.relative_to(ROOT).parts] + top
