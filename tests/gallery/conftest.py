"""One finished pair of runs, built once; tests that change a run copy it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.gallery.synthetic import write_run


@pytest.fixture(scope="session")
def stored_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "nft", skill=0.9)
    write_run(root / "grpo", skill=0.4, algorithm="grpo")
    return root


@pytest.fixture
def runs(stored_runs: Path, tmp_path: Path) -> Path:
    """A folder with the runs `nft` and `grpo`, the test's own."""
    return Path(shutil.copytree(stored_runs, tmp_path / "runs"))
