"""Resumable training state in one safetensors file, written atomically, and the clock that ends a
run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_state(
    path: Path, tensors: Mapping[str, Mapping[str, Tensor]], *, step: int, seconds: float
) -> None:
    """Write named groups of tensors; a reader never sees half a file."""
    flat = {
        f"{group}/{name}": value.detach().contiguous().clone()
        for group, part in tensors.items()
        for name, value in part.items()
    }
    flat["progress"] = torch.tensor([float(step), seconds], dtype=torch.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(flat, unfinished)
    unfinished.replace(path)


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], int, float]:
    """The groups of tensors, the step and the seconds spent so far."""
    flat = load_file(path)
    step, seconds = flat.pop("progress").tolist()
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in flat.items():
        group, rest = name.split("/", 1)
        groups.setdefault(group, {})[rest] = value
    return groups, int(step), seconds


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors: `index.name`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": torch.as_tensor(value)
        for i, part in state.items()
        for name, value in part.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


@dataclass(kw_only=True)
class Budget:
    """How long to train: `steps`, or wall `minutes` counted over all resumed parts of the run."""

    steps: int | None
    minutes: float | None
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give exactly one of --steps and --minutes")

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """0 at the start of training, 1 or more when it is over."""
        return (
            step / self.steps
            if self.steps is not None
            else self.seconds() / (60 * (self.minutes or 1))
        )


def log_line(step: int, loss: float, budget: Budget) -> str:
    """One line of the loss log; CPU seconds count this process only, wall seconds the whole run."""
    seconds = f"wall {budget.seconds():.0f} s cpu {time.process_time():.0f} s"
    return f"step {step} loss {loss:.4f} {seconds}"


def cosine(progress: float, *, warmup: float = 0.02, floor: float = 0.0) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine down to `floor`."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    angle = torch.pi * min((progress - warmup) / (1 - warmup), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(angle))))
