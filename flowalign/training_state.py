"""Everything a run needs to go on bit for bit, as named tensors and JSON.

Random state is absent on purpose: every draw is a function of its key, and the keys follow from
the counters in `Progress`. Learning rate and prompt order are functions of the same counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import Tensor
from torch.nn import Parameter

from flowalign.errors import CheckpointError
from flowalign.policy import Weights

Files = dict[str, dict[str, Tensor]]


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a run stands. Counters only ever rise, except `bad_streak`."""

    step: int = 0  # training steps done
    updates: int = 0  # optimiser steps done
    cursor: int = 0  # prompts drawn
    samples: int = 0  # samples of training rollouts, all processes
    evaluations: int = 0  # network evaluations of one sample, backward passes as 2, all processes
    train_seconds: float = 0.0  # wall time without evaluation and saving
    bad_streak: int = 0  # updates skipped in a row
    skipped: int = 0  # updates skipped in all


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """The trained tensors and their companions."""

    parameters: Mapping[str, Parameter]
    optimizer: torch.optim.AdamW
    ema: Weights | None
    old: Weights | None
    progress: Progress
    memory: dict[str, Tensor] = field(default_factory=dict)  # of `Algorithm.credit`

    def files(self) -> Files:
        """Tensors by file; `optimizer` holds `<parameter>.<moment>`."""
        files: Files = {"weights": dict(self.parameters), "optimizer": {}}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                files["optimizer"][f"{name}.{key}"] = value
        if self.ema is not None:
            files["ema"] = self.ema
        if self.old is not None:
            files["old"] = self.old
        if self.memory:
            files["memory"] = self.memory
        return {
            stem: {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            for stem, tensors in files.items()
        }

    def estimated_bytes(self) -> int:
        """Size of a checkpoint once the optimiser has both of its moments."""
        weights = sum(parameter.nbytes for parameter in self.parameters.values())
        return weights * (3 + (self.ema is not None) + (self.old is not None))

    def restore(self, files: Files, progress: Mapping[str, object], where: str) -> None:
        """Put back what `files` and `asdict(progress)` gave.

        Raises CheckpointError (exit 4) when an entry is missing, unknown or of another shape:
        a state that cannot be restored must not train.
        """
        known = {field.name for field in fields(Progress)}
        if set(progress) != known:
            raise _misfit(where, "progress", sorted(known ^ set(progress)))
        expected = self.expected_names(files)
        for stem, names in expected.items():
            if stem not in files or set(files[stem]) != names:
                raise _misfit(where, stem, sorted(names ^ set(files.get(stem, {}))))
        if set(files) != set(expected):
            raise _misfit(where, "files", sorted(set(files) ^ set(expected)))
        with torch.no_grad():
            _copy_into(self.parameters, files["weights"], where)
            for target, stem in ((self.ema, "ema"), (self.old, "old")):
                if target is not None:
                    _copy_into(target, files[stem], where)
        self.optimizer.state.clear()  # a state of before the first update has no moments
        for name, parameter in self.parameters.items():
            moments = {
                key: files["optimizer"][f"{name}.{key}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in files["optimizer"]
            }
            if moments:
                for key in ("exp_avg", "exp_avg_sq"):
                    moments[key] = moments[key].to(parameter.device)
                self.optimizer.state[parameter] = moments
        self.memory.clear()
        self.memory.update({name: value.clone() for name, value in files.get("memory", {}).items()})
        for key, value in progress.items():
            setattr(self.progress, key, value)

    def expected_names(self, files: Files) -> dict[str, set[str]]:
        """What each file must hold; before the first update the optimiser holds nothing."""
        names = set(self.parameters)
        moments = {f"{n}.{k}" for n in names for k in ("step", "exp_avg", "exp_avg_sq")}
        expected = {"weights": names, "optimizer": moments if files.get("optimizer") else set()}
        if self.ema is not None:
            expected["ema"] = names
        if self.old is not None:
            expected["old"] = names
        if "memory" in files:  # running statistics: their names grow with the run
            expected["memory"] = set(files["memory"])
        return expected


def progress_dict(progress: Progress) -> dict[str, object]:
    """JSON of the counters."""
    return asdict(progress)


def _misfit(where: str, part: str, names: list[str]) -> CheckpointError:
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return CheckpointError(
        "CKPT-MISFIT", where, f"{part} does not fit this run: {shown}", "resume with its config"
    )


def _copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], where: str) -> None:
    for name, target in targets.items():
        if target.shape != values[name].shape:
            shapes = f"{tuple(values[name].shape)} saved, {tuple(target.shape)} here"
            raise CheckpointError(
                "CKPT-SHAPE", where, f"{name}: {shapes}", "use the rank and model of the run"
            )
        target.copy_(values[name])
