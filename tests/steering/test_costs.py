"""Peak memory: each method has its own, where the system can forget the largest size so far."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowalign.steering import costs
from flowalign.steering.costs import BYTES_PER_MIB, Costs

CPU = torch.device("cpu")


def gap_mib() -> float:
    """How much larger the peak of a block of 128 MiB is than that of an empty one after it."""
    large, small = Costs(), Costs()
    with large.measured(CPU):
        block = torch.ones(128 * BYTES_PER_MIB // 4)
        del block
    with small.measured(CPU):
        pass
    return large.peak_memory_mib - small.peak_memory_mib


def test_a_small_method_after_a_large_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Control: on a system without clear_refs the first peak stays."""
    if costs.CLEAR_REFS.exists():
        costs.CLEAR_REFS.write_text("5")
        assert gap_mib() > 100.0
    monkeypatch.setattr(costs, "CLEAR_REFS", tmp_path / "none")
    assert gap_mib() <= 0.0
