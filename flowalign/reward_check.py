"""Is a reward pure? A function of each sample alone that leaves the world as it was.

N samples. Training compares scores of samples that were scored in different batches, so a score
that depends on its batch, on the order, on a counter or on global randomness is noise to it.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flowalign.answers import read_answer
from flowalign.guarded_call import global_randomness_kept
from flowalign.protocols import Reward
from flowalign.types import Sample

TOLERANCE = 1e-5  # float32 sums differ in their last bits between batch shapes
BATCH_SIZES = (1, 2, 3, 4, 5, 7, 8, 16)

Fault = Literal[
    "inputs", "surroundings", "repeat", "order", "batch", "gradient", "answer", "range", "extremes"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One way in which a reward is not pure."""

    fault: Fault
    what: str


def check_reward(
    reward: Reward, samples: Sequence[Sample], *, tolerance: float = TOLERANCE
) -> list[Finding]:
    """Everything wrong with `reward` as seen on `samples`; nothing for a pure one.

    Checks inputs, global state (random generators, directory, environment, threads, grad mode,
    default dtype), repeated calls, the reverse order, batches of 1 to 16 (not for a group-only
    reward, which is meant to see its batch), and finite gradients where it promises them.
    """
    with everything_restored():
        findings = _changes(reward, samples)
    with everything_restored():
        findings += _differences(reward, samples, tolerance)
    if reward.differentiable:
        with everything_restored():
            findings += _gradient(reward, samples)
    return findings


def _differences(reward: Reward, samples: Sequence[Sample], tolerance: float) -> list[Finding]:
    """How the scores depend on the call, the order and the batch."""
    first, again = _scores(reward, samples), _scores(reward, samples)
    findings = []
    if not _equal(first, again, 0.0):
        findings.append(_differs("repeat", "called twice", first, again))
    turned = tuple(part.flip(0) for part in _scores(reward, samples[::-1]))
    if not _equal(first, turned, tolerance):
        findings.append(_differs("order", "in the reverse order", first, turned))
    for size in () if reward.group_only else BATCH_SIZES:
        split = _in_batches(reward, samples, size)
        if not _equal(first, split, tolerance):
            findings.append(_differs("batch", f"in batches of {size}", first, split))
            break
    return findings


def _scores(reward: Reward, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(values (N,), valid (N,)) on copies of the media, so that a change does no harm."""
    copies = [replace(sample, media=sample.media.clone()) for sample in samples]
    with torch.no_grad():
        answer = reward(copies)
    return read_answer(answer, where=f"reward `{reward.name}`", num=len(samples))


def _changes(reward: Reward, samples: Sequence[Sample]) -> list[Finding]:
    """What one call changes beside its answer."""
    copies = [replace(sample, media=sample.media.clone()) for sample in samples]
    before = {name: look() for name, look in _SURROUNDINGS.items()}
    reward(copies)
    changed = [name for name, look in _SURROUNDINGS.items() if look() != before[name]]
    findings = [Finding(fault="surroundings", what=f"changes {name}") for name in changed]
    pairs = zip(copies, samples, strict=True)
    if not all(torch.equal(copy.media, sample.media) for copy, sample in pairs):
        findings.append(Finding(fault="inputs", what="changes its input media in place"))
    return findings


@contextlib.contextmanager
def everything_restored() -> Iterator[None]:
    """Undo what an impure reward does to the process."""
    directory, environment = Path.cwd(), dict(os.environ)
    threads, grad, dtype = (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
    )
    try:
        with global_randomness_kept():
            yield
    finally:
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)


_SURROUNDINGS: dict[str, Callable[[], object]] = {
    "torch's random generator": lambda: torch.get_rng_state().numpy().tobytes(),
    "numpy's random generator": lambda: repr(np.random.get_state()),
    "Python's random generator": random.getstate,
    "the directory": Path.cwd,
    "the environment": lambda: dict(os.environ),
    "the number of threads": torch.get_num_threads,
    "the grad mode": torch.is_grad_enabled,
    "the default dtype": torch.get_default_dtype,
}


def _in_batches(reward: Reward, samples: Sequence[Sample], size: int) -> tuple[Tensor, Tensor]:
    parts = [_scores(reward, samples[i : i + size]) for i in range(0, len(samples), size)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...], tolerance: float) -> bool:
    """Equal masks, and values equal up to `tolerance` (relative to 1 or to their size)."""
    if not torch.equal(a[1], b[1]):
        return False
    one, other = a[0][a[1]], b[0][b[1]]
    room = tolerance * one.abs().clamp(min=1.0)
    # Two NaN or two equal infinities are a fault of another kind, not a difference.
    equal = (one == other) | (one.isnan() & other.isnan()) | ((one - other).abs() <= room)
    return bool(equal.all())


def _differs(
    fault: Fault, how: str, first: tuple[Tensor, Tensor], other: tuple[Tensor, ...]
) -> Finding:
    if not torch.equal(first[1], other[1]):
        return Finding(fault=fault, what=f"{how}, other samples are masked")
    gap = torch.where(first[1], (first[0] - other[0]).abs(), 0.0)
    row = int(gap.nan_to_num(torch.inf).argmax())
    values = f"{float(first[0][row]):.7g} and {float(other[0][row]):.7g}"
    return Finding(fault=fault, what=f"{how}, sample {row} scores {values}")


def _gradient(reward: Reward, samples: Sequence[Sample]) -> list[Finding]:
    """Findings about d sum(values) / d media, which must exist and be finite and not all zero."""
    leaves = [sample.media.clone().requires_grad_() for sample in samples]
    given = [replace(sample, media=leaf) for sample, leaf in zip(samples, leaves, strict=True)]
    with torch.enable_grad():
        answer: object = reward(given)
    values, valid = answer if isinstance(answer, tuple) else (answer, None)
    if not isinstance(values, Tensor) or not values.requires_grad:
        return [Finding(fault="gradient", what="is called differentiable and has no gradient")]
    if isinstance(valid, Tensor):  # a masked sample owes nothing
        values = values[valid.to(values.device)]
        leaves = [leaf for leaf, counts in zip(leaves, valid.tolist(), strict=True) if counts]
        if not leaves:
            return []
    grads = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    missing = sum(1 for grad in grads if grad is None or not bool(grad.any()))
    infinite = sum(1 for grad in grads if grad is not None and not bool(grad.isfinite().all()))
    findings = []
    if missing:
        what = f"{missing} of {len(leaves)} samples have no gradient"
        findings.append(Finding(fault="gradient", what=what))
    if infinite:
        what = f"{infinite} of {len(leaves)} samples have a gradient that is not finite"
        findings.append(Finding(fault="gradient", what=what))
    return findings
