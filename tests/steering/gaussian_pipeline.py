"""A generator of one number, data N(0.5, 0.8^2) with the exact network, and rewards of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flowalign.levels import diffusion_levels, diffusion_timesteps, flow_levels
from flowalign.paths import RectifiedFlow, VariancePreserving
from flowalign.protocols import Path, Sampler
from flowalign.rollout import Plan, Request
from flowalign.samplers import DDIM, ODE
from flowalign.scoring import Entry, RewardSuite
from flowalign.steering.chain import PipelineChain
from flowalign.steering.costs import Costs
from flowalign.steering.judges import Judge
from flowalign.steering.previews import Decoded
from flowalign.types import Cond, Modality, Sample
from tests.math.gaussian_data import GaussianData
from tests.tiny_policy import stable_diffusion_path

DATA = GaussianData(mean=0.5, variance=0.64)


@dataclass(kw_only=True)
class NumberGenerator:
    """Latents (1, 1, 1), shown as three equal channels."""

    path: Path = field(default_factory=RectifiedFlow)
    modality: Modality = "image"
    latent_shape: tuple[int, ...] = (1, 1, 1)
    rate: float | None = None
    media_shape: tuple[int, ...] = (3, 1, 1)
    net: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))

    def levels(self, num_steps: int) -> Tensor:
        if isinstance(self.path, VariancePreserving):
            return diffusion_levels(diffusion_timesteps(num_steps), 1000)
        return flow_levels(num_steps, 1.0)

    def encode(self, prompts: Sequence[str]) -> Cond:
        return Cond(batched={}, shared={}, size=len(prompts))

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        # The parameter takes part with weight 0, so that a gradient could reach it.
        touched = 0.0 * self.net(torch.ones(1, 1)).sum()
        return DATA.prediction(self.path, x, t).to(x.dtype) + touched

    def decode(self, x0: Tensor) -> Tensor:
        return x0.expand(-1, 3, 1, 1)

    def encode_media(self, media: Tensor) -> Tensor:
        return media[:, :1]

    def media_fingerprint(self) -> str:
        return "number"

    def text_fingerprint(self) -> str:
        return "none"

    def denoisers(self) -> Sequence[nn.Module]:
        return [self.net]


@dataclass(frozen=True)
class OfNumber:
    """A function of the number."""

    function: Callable[[Tensor], Tensor]
    name: str = "number"
    modality: Modality = "image"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (-torch.inf, torch.inf)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        x = torch.stack([sample.media[0, 0, 0] for sample in samples])
        return self.function(x), torch.ones(len(x), dtype=torch.bool)


def parts(
    function: Callable[[Tensor], Tensor],
    *,
    groups: int,
    particles: int,
    num_steps: int,
    noise: float = 0.0,
    path: Path | None = None,
    seed: int = 0,
) -> tuple[PipelineChain, Judge]:
    """A chain and its judge; every group is a prompt of its own."""
    generator, costs = NumberGenerator(path=path or RectifiedFlow()), Costs()
    sampler: Sampler = DDIM() if noise else ODE()
    t = generator.levels(num_steps)
    levels = torch.full((num_steps,), noise, dtype=torch.float64)
    levels[-1] = 0.0
    plan = Plan(sampler=sampler, t=t, noise=levels)
    requests = [
        Request(prompt="", prompt_id=g, sample_id=k, start_id=k, group=g)
        for g in range(groups)
        for k in range(particles)
    ]
    batch = len(requests)
    chain = PipelineChain(
        generator=generator,
        plan=plan,
        cond=generator.encode([""] * batch),
        requests=requests,
        particles=particles,
        seed=seed,
        batch_size=batch,
        costs=costs,
    )
    reward = OfNumber(function)
    judge = Judge(
        generator=generator,
        plan=plan,
        requests=requests,
        suite=RewardSuite(entries=[Entry(label="r", reward=reward, weight=1.0)], failure="raise"),
        preview=Decoded(generator=generator, batch_size=batch, costs=costs),
        seed=seed,
        batch_size=batch,
        costs=costs,
    )
    return chain, judge


SD_PATH = stable_diffusion_path()
