"""What a method took: counted where it happens."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
KIB_PER_MIB = 1024
BYTES_PER_MIB = 1024**2


@dataclass(kw_only=True, slots=True)
class Costs:
    """Counters of one method over all its prompts."""

    network_evaluations: int = 0  # samples through the network; guidance counts as one
    noisy_reward_passes: int = 0  # samples through a noisy reward (flow_nrg: and back)
    decodes: int = 0  # samples through the decoder
    linear_previews: int = 0
    reward_calls: int = 0  # samples scored, once for each reward
    seconds: float = 0.0
    peak_memory_mib: float = 0.0  # of the device, or of the whole process on a CPU

    @contextmanager
    def measured(self, device: torch.device) -> Iterator[None]:
        """Add the time of a block, and note the largest memory so far."""
        reset_peak_memory(device)
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - begun
            self.peak_memory_mib = max(self.peak_memory_mib, peak_memory_mib(device))

    def as_dict(self) -> dict[str, float | int]:
        """For summary.json."""
        return asdict(self)


def reset_peak_memory(device: torch.device) -> None:
    """Forget how large it was, so that every method has a peak of its own.

    Linux does so for a process that writes 5 into its clear_refs (proc(5)); where that cannot be
    done, the largest size since the start stays.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        with suppress(OSError):
            CLEAR_REFS.write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory since the last reset, of the device or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / BYTES_PER_MIB
    if STATUS.exists():  # getrusage also counts what the process was before its exec
        (line,) = (row for row in STATUS.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) / KIB_PER_MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_MIB
