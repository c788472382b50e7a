"""Peak memory of each steering method beyond what the process holds before it. Linux only.

    python -m benchmarks.steering_memory                 # some minutes
    python -m benchmarks.steering_memory --sizes nano

The pipelines of `benchmarks.steering`, 4 samples of one prompt in one call of the network. Noise
optimisation goes through 4 steps, forward and back. What an earlier method has left to the
allocator is not counted, so small numbers are too small.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from benchmarks.epoch import SIZES
from benchmarks.models import Size, sd3
from benchmarks.steering import PARTICLES, session
from flowalign.config.noise_methods import NoiseOptimizationConfig
from flowalign.scoring import Entry, RewardSuite
from flowalign.steering.costs import peak_memory_mib, reset_peak_memory
from flowalign.steering.session import SteeringSession, run_method
from flowalign.types import Sample

STEPS = 4
ASCENT = {"name": "noise_optimization", "iterations": 2}
METHODS: dict[str, dict[str, Any]] = {
    "plain sampling": {"name": "none"},
    "best of 4": {"name": "best_of_n", "candidates": PARTICLES},
    "FK, every step, decoded": {"name": "fk", "particles": PARTICLES, "looks": "every_step"},
    "FK, every step, linear": {
        "name": "fk",
        "particles": PARTICLES,
        "looks": "every_step",
        "preview": "linear",
    },
    "SVDD": {"name": "svdd", "candidates": PARTICLES},
    "noise search": {"name": "noise_search", "rounds": 2, "neighbours": PARTICLES},
    "noise optimisation, checkpointing": ASCENT,
    "noise optimisation, all activations kept": {**ASCENT, "checkpointing": False},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Brightness:
    """A cheap reward with a gradient."""

    name: str = "brightness"
    modality: Any = "image"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """The mean of each picture."""
        values = torch.stack([sample.media.mean() for sample in samples])
        return values, torch.ones(len(samples), dtype=torch.bool)


def added_mib(job: SteeringSession) -> float:
    """How much the method of the job adds to the process at most."""
    reset_peak_memory(torch.device("cpu"))
    before = peak_memory_mib(torch.device("cpu"))
    return run_method(job, job.config.method, budget=None).costs.peak_memory_mib - before


def job_of(pipe: StableDiffusion3Pipeline, size: Size, method: dict[str, Any]) -> SteeringSession:
    """4 samples by one method."""
    if method["name"] == "noise_optimization":
        job = climbing(session(pipe, size, {"name": "none"}, STEPS), method)
    else:
        job = session(pipe, size, method, STEPS)
    if method["name"] in ("none", "noise_optimization"):
        return replace(job, prompts=[job.prompts[0]] * PARTICLES)
    return job


def climbing(job: SteeringSession, method: dict[str, Any]) -> SteeringSession:
    """The job with a deterministic sampler, and a reward that has a gradient."""
    ode = job.config.sampler.model_copy(update={"name": "ode", "noise_level": 0.0})
    settings = NoiseOptimizationConfig.model_validate(method)
    config = job.config.model_copy(update={"sampler": ode, "method": settings})
    suite = RewardSuite(entries=[Entry(label="brightness", reward=Brightness())])
    return replace(job, config=config, suite=suite)


def main() -> int:
    parser = argparse.ArgumentParser(description="peak memory of steering")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.sizes:
        pipe = sd3(SIZES[name])
        for title, method in METHODS.items():
            job = job_of(pipe, SIZES[name], method)
            print(f"{name:6} {title:42} {added_mib(job):8.1f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
