"""Peak memory: each method has its own, where the system can forget the largest size so far."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from flowalign.steering import costs
from flowalign.steering.costs import BYTES_PER_MIB, KIB_PER_MIB, Costs

CPU = torch.device("cpu")
BLOCK = b"\1" * BYTES_PER_MIB


def touch_128_mib() -> None:
    """Use memory that goes back to the system at once, whatever the allocator keeps."""
    with mmap.mmap(-1, 128 * BYTES_PER_MIB) as block:
        for _ in range(128):
            block.write(BLOCK)


def largest_mib() -> float:
    """VmHWM of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / KIB_PER_MIB


def system_forgets() -> bool:
    """Whether writing 5 into clear_refs lowers the largest size; some sandboxes ignore it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = largest_mib()
        touch_128_mib()
        raised = largest_mib()
        Path("/proc/self/clear_refs").write_text("5")
        return raised - before > 100.0 and raised - largest_mib() > 100.0
    except (OSError, IndexError):
        return False


def gap_mib() -> float:
    """How much larger the peak of 128 MiB is than that of nothing after it."""
    large, small = Costs(), Costs()
    with large.measured(CPU):
        touch_128_mib()
    with small.measured(CPU):
        pass
    return large.peak_memory_mib - small.peak_memory_mib


def test_a_small_method_after_a_large_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Control: where nothing is forgotten the first peak stays."""
    assert (gap_mib() > 100.0) == system_forgets()
    monkeypatch.setattr(costs, "CLEAR_REFS", tmp_path / "none")
    assert gap_mib() <= 0.0
