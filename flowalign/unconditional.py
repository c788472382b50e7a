"""Unconditional outputs of a rollout, carried by its conditions to the update.

While the weights are those that drew the rollout, the unconditional half of guidance need not be
computed again. What is kept is used only for the very states it belongs to.

B samples, T steps, *S the latent shape, *U the shape of the denoiser's raw output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowalign.types import Cond, Rollout

ROW, KEPT = "unconditional.row", "unconditional.kept"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """Unconditional outputs of a rollout, with the states they belong to."""

    x: Tensor  # (B, T, *S), in the dtype in which the states were fed back
    t: Tensor  # (T,) float64
    output: Tensor  # (B, T, *U)

    def find(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor | None:
        """Outputs (b, *U) of the states x (b, *S) at level t, or None when they are others."""
        rows = rows.to(self.x.device)
        for i in torch.nonzero(self.t == t.to(self.t)).flatten().tolist():
            if torch.equal(self.x[rows, i].to(x.dtype), x):
                return self.output[rows, i]
        return None


def known_output(cond: Cond, x: Tensor, t: Tensor) -> Tensor | None:
    """The output (b, *U) kept for states x (b, *S) at level t, or None."""
    kept, rows = cond.shared.get(KEPT), cond.batched.get(ROW)
    if not isinstance(kept, Kept) or not isinstance(rows, Tensor):
        return None
    return kept.find(x, t, rows)


def remembering(rollout: Rollout, heard: Sequence[Tensor]) -> Rollout:
    """The rollout with the outputs (b, *U) heard at each step of each chunk, in order."""
    if not heard:
        return rollout
    trajectory, steps = rollout.trajectory, len(rollout.trajectory.noise)
    chunks = [torch.stack(list(heard[i : i + steps]), 1) for i in range(0, len(heard), steps)]
    kept = Kept(x=trajectory.x[:, :-1], t=trajectory.t[:-1], output=torch.cat(chunks))
    cond = trajectory.cond
    batched = {**cond.batched, ROW: torch.arange(cond.size)}
    remembered = replace(cond, batched=batched, shared={**cond.shared, KEPT: kept})
    return replace(rollout, trajectory=replace(trajectory, cond=remembered))


def forgetting(cond: Cond) -> Cond:
    """`cond` without unconditional outputs, for other weights than those of the rollout."""
    if KEPT not in cond.shared:
        return cond
    batched = {name: value for name, value in cond.batched.items() if name != ROW}
    shared = {name: value for name, value in cond.shared.items() if name != KEPT}
    return replace(cond, batched=batched, shared=shared)
