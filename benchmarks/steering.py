"""What Feynman-Kac steering costs beyond plain sampling of as many samples.

    python -m benchmarks.steering              # both sizes, some minutes
    python -m benchmarks.steering --rounds 3 --sizes nano

Random StableDiffusion3 pipelines on the CPU, 4 particles of one prompt, guidance 4.5 and a reward
that costs nothing. "plain" is the pipeline's own call for 4 pictures of the prompt, with the same
number of steps. Ratios of CPU time are medians over interleaved pairs; the decoder's share is that
of one run. The exit code is 1 when a must is missed by more than 5 percent. Memory is measured by
`python -m benchmarks.steering_memory`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from benchmarks.epoch import SIZES, Goal, report
from benchmarks.models import Size, sd3
from benchmarks.training import cpu_seconds, paired
from flowalign.config.jobs import STEER
from flowalign.config.load import mapping_for
from flowalign.config.steering import NoneConfig
from flowalign.pipelines.load import make_generator
from flowalign.prompts import Prompt
from flowalign.rollout import PromptCache
from flowalign.scoring import Entry, RewardSuite
from flowalign.steering.session import SteeringSession, run_method
from flowalign.types import Modality, Sample

PROMPT, PARTICLES, GUIDANCE = "a picture of a thing", 4, 4.5
NUM_STEPS = {"nano": 50, "small": 30}


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstPixel:
    """The cheapest reward."""

    name: str = "pixel"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """One value of each picture."""
        values = torch.stack([sample.media[0, 0, 0] for sample in samples])
        return values, torch.ones(len(samples), dtype=torch.bool)


def session(
    pipe: StableDiffusion3Pipeline, size: Size, method: dict[str, Any], num_steps: int
) -> SteeringSession:
    """A job on `pipe` with one prompt."""
    config = mapping_for(
        STEER,
        {
            "output": "unused",
            "device": "cpu",
            "model": {
                "name": "random",
                "guidance_scale": GUIDANCE,
                "resolution": size.latent * 8,
                "call": {"max_sequence_length": 128},
            },
            "prompts": [PROMPT],
            "rewards": ["jpeg"],
            "sampler": {"num_steps": num_steps, "noise_level": 0.7},
            "method": method,
        },
    )
    generator = make_generator(pipe, config.model)
    return SteeringSession(
        config=config,
        generator=generator,
        prompts=[Prompt(text=PROMPT, category=None, prompt_id=0)],
        suite=RewardSuite(entries=[Entry(label="pixel", reward=FirstPixel())]),
        held_out=RewardSuite(entries=[]),
        cache=PromptCache(generator),
    )


def steering_seconds(job: SteeringSession) -> Callable[[], float]:
    """CPU seconds of one population."""
    return lambda: cpu_seconds(lambda: run_method(job, job.config.method, budget=None))


def plain_seconds(pipe: StableDiffusion3Pipeline, size: Size, num_steps: int) -> float:
    """CPU seconds of the pipeline's own call."""
    return cpu_seconds(
        lambda: pipe(
            PROMPT,
            num_images_per_prompt=PARTICLES,
            num_inference_steps=num_steps,
            guidance_scale=GUIDANCE,
            height=size.latent * 8,
            width=size.latent * 8,
            max_sequence_length=128,
            output_type="pt",
        )
    )


def own_plain_seconds(job: SteeringSession) -> Callable[[], float]:
    """CPU seconds of our own plain sampling of as many."""
    prompts = [job.prompts[0]] * PARTICLES
    many = SteeringSession(
        config=job.config,
        generator=job.generator,
        prompts=prompts,
        suite=job.suite,
        held_out=job.held_out,
        cache=job.cache,
    )
    return lambda: cpu_seconds(lambda: run_method(many, NoneConfig(name="none"), budget=None))


def decode_share(job: SteeringSession) -> float:
    """Share of a run's CPU time that the decoder takes."""
    spent: list[float] = []
    decode = job.generator.decode

    def timed(x0: Tensor) -> Tensor:
        found: list[Tensor] = []
        spent.append(cpu_seconds(lambda: found.append(decode(x0))))
        return found[0]

    with patch.object(job.generator, "decode", timed):
        total = steering_seconds(job)()
    return sum(spent) / total


def measured(
    pipe: StableDiffusion3Pipeline,
    size: Size,
    num_steps: int,
    method: dict[str, Any],
    *,
    rounds: int,
) -> tuple[list[float], str]:
    """Ratios of a method to plain, and a line about what it took."""
    job = session(pipe, size, method, num_steps)
    seconds = steering_seconds(job)
    against = paired(seconds, lambda: plain_seconds(pipe, size, num_steps), rounds)
    own = paired(seconds, own_plain_seconds(job), rounds)
    costs = run_method(job, job.config.method, budget=None).costs
    return [a / b for a, b in against], (
        f"     against our own plain sampling {median(a / b for a, b in own):.3g}; "
        f"{costs.network_evaluations} network evaluations, {costs.decodes} decodes "
        f"({100 * decode_share(job):.0f} % of the time), {costs.linear_previews} linear previews"
    )


def measure(name: str, rounds: int) -> bool:
    """C8 and C9 of one size, and what the same costs with the other preview."""
    size, num_steps = SIZES[name], NUM_STEPS[name]
    pipe = sd3(size)
    five = {"name": "fk", "particles": PARTICLES, "looks": 5}
    every = five | {"looks": "every_step", "start": 0.0, "stop": 1.0, "preview": "linear"}
    told = f"{name}, {num_steps} steps"
    c8 = Goal(name="C8", what=f"FK, 5 looks / plain, {told}", must=1.12, aim=1.05, at_most=True)
    c9 = Goal(
        name="C9", what=f"FK, every step, linear / plain, {told}", must=1.25, aim=1.1, at_most=True
    )
    good = True
    for goal, title, method in (
        (c8, "", five),
        (None, f"FK, 5 looks, linear / plain, {told}", {**five, "preview": "linear"}),
        (c9, "", every),
        (None, f"FK, every step, decoded / plain, {told}", {**every, "preview": "decode"}),
    ):
        ratios, took = measured(pipe, size, num_steps, method, rounds=rounds)
        if goal is not None:
            good &= report(goal, ratios)
        else:
            print(f"     {title}: {median(ratios):.3g}")
        print(took, flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="cost of steering")
    parser.add_argument("--rounds", type=int, default=7, help="counted pairs of each ratio")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    return 0 if all([measure(name, args.rounds) for name in args.sizes]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
