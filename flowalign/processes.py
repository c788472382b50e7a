"""The processes of one run: who am I, and what do we agree on.

Placement is accelerate's. Gradients are summed by hand, once per update: a pipeline's own loop
needs the bare network (a wrapper would hide its `config`), and one sum in a fixed order makes the
result independent of how micro-batches fall on the processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from flowalign.config.checks import DEVICE, DEVICES
from flowalign.config.suggest import did_you_mean
from flowalign.errors import ConfigError, ProcessError, ResourceError
from flowalign.peers import Pulse, noticed


class Processes:
    """A thin view of the process group; everything works the same with one process."""

    def __init__(self, accelerator: Accelerator, pulse: Path | None = None) -> None:
        self.accelerator = accelerator
        self.pulse: Pulse | None = None
        if pulse is not None and accelerator.num_processes > 1:
            self.pulse = Pulse(pulse, accelerator.process_index)
        self.rank = accelerator.process_index
        self.count = accelerator.num_processes
        self.device = accelerator.device
        self.is_main = accelerator.is_main_process

    def share(self, items: Sequence[int]) -> list[int]:
        """The items of this process: every `count`-th, so that all items are used once."""
        return list(items[self.rank :: self.count])

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes, on every process. Exact when each entry has one contributor."""
        if self.count == 1:
            return value
        total = value.to(self.device).clone()
        with noticed("a sum", self.pulse):
            dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.to(value.device)

    def largest(self, value: Tensor) -> Tensor:
        """Element-wise maximum over processes, on every process."""
        if self.count == 1:
            return value.clone()
        found = value.to(self.device).clone()
        with noticed("a decision", self.pulse):
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.to(value.device)

    def worst(self, status: int) -> int:
        """The largest status word of all processes: they decide together."""
        return int(self.largest(torch.tensor(status)))

    def text_of_main(self, text: str) -> str:
        """The main process's text, on every process; bytes travel, never pickled objects."""
        if self.count == 1:
            return text
        data = text.encode()
        length = torch.tensor(len(data), device=self.device)
        with noticed("a message of the main process", self.pulse):
            dist.broadcast(length, src=0)
            buffer = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
            if self.is_main:
                buffer.copy_(torch.tensor(list(data), dtype=torch.uint8))
            dist.broadcast(buffer, src=0)
        return bytes(buffer.tolist()).decode()

    def together(self, local: Tensor, index: Tensor, size: int) -> Tensor:
        """Rows `local` of places `index`, joined to all `size` rows of all processes."""
        rows = torch.zeros((size, *local.shape[1:]), dtype=local.dtype)
        rows[index] = local.cpu()
        if local.dtype == torch.bool:
            return self.sum(rows.to(torch.int32)).to(torch.bool)
        return self.sum(rows)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over processes, in one message."""
        if self.count == 1:
            return
        grads = []
        for parameter in parameters:
            if parameter.grad is None:  # a process without samples still takes part
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        with noticed("the gradients", self.pulse):
            dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        for grad, summed in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(summed.view_as(grad))

    def barrier(self) -> None:
        """Wait for all processes."""
        with noticed("a barrier", self.pulse):
            self.accelerator.wait_for_everyone()


def usable_device(name: str) -> torch.device:
    """The device of `auto` (CUDA, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises ConfigError for any other name, ResourceError (exit 7) when it is not there.
    """
    if not DEVICE.fullmatch(name):
        what = f"unknown device '{name}'"
        raise ConfigError("CFG-CHOICE", "device", what, did_you_mean(name, DEVICES))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(name)
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if found.type in there and not there[found.type]():
        what = f"no {found.type.upper()} device here"
        raise ResourceError("ENV-DEVICE", "device", what, "say `device: cpu`")
    if (found.index or 0) >= torch.cuda.device_count() > 0:
        what = f"no `{name}`, {torch.cuda.device_count()} CUDA devices are here"
        raise ResourceError("ENV-DEVICE", "device", what, "count from 0")
    return found


def start_processes(
    device: str, mixed_precision: str, *, timeout_s: float = 600.0, pulse: Path | None = None
) -> Processes:
    """Join the processes of this run (accelerate launch, torchrun, or alone).

    `device` is `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. One that does not answer for `timeout_s`
    is lost; in the folder `pulse` each tells where it is.

    Raises:
        ResourceError: the device is not there.
        ProcessError: this one is alone among the processes that were started.
    """
    chosen = usable_device(device)
    if ":" in device:
        torch.cuda.set_device(chosen)
    accelerator = Accelerator(
        cpu=chosen.type == "cpu",  # else `auto` joins nobody where there is no accelerator
        mixed_precision=mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s))],
    )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        what = f"{accelerator.num_processes} of {wanted} processes joined"
        raise ProcessError(
            "PROC-JOIN", f"device `{device}`", what, "say `device: cpu`, or start one"
        )
    return Processes(accelerator, pulse)
