"""Chains that follow the gradient of the rewards of x0hat: guided ones, and twisted ones.

n states, *S a latent's shape, G groups of K particles. The gradient goes through rewards, decoder
and network to the state; no parameter gets one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowalign.config.noise_methods import BACKWARD
from flowalign.gaussian import Gaussian, full_precision, per_sample
from flowalign.randomness import normal
from flowalign.rollout import Plan, as_samples
from flowalign.steering.chain import STREAM, PipelineChain, pieces
from flowalign.steering.feynman_kac import Look
from flowalign.steering.judges import Judge
from flowalign.steering.noise_optimization import gradient_of
from flowalign.steering.noise_search import renoised
from flowalign.steering.protocols import Finish, Situation, Verdict
from flowalign.steering.reward_gradients import graded
from flowalign.steering.tilting import tilted


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope:
    """What n states promise, and where it rises."""

    pred: Tensor  # (n, *S), the network's output
    gradient: Tensor  # (n, *S) of r(x0hat(x)); 0 where r is not valid
    verdict: Verdict


def guided_steps(plan: Plan, start: float, stop: float) -> tuple[int, ...]:
    """Steps from share `start` to share `stop` of all, without those from pure noise, t = 1.

    There x0hat knows nothing of the state, and sigma^2 / alpha has no limit on a rectified flow.
    """
    count = len(plan.noise)
    return tuple(
        step
        for step in range(count)
        if start * count <= step < stop * count and float(plan.t[step]) < 1.0
    )


def slope(chain: PipelineChain, judge: Judge, x: Tensor, step: int, rows: Tensor) -> Slope:
    """One pass forward and one backward for states (n, *S), at most `batch_size` together."""
    parts = [_slope(chain, judge, x[p], step, rows[p]) for p in pieces(len(x), chain.batch_size)]
    return Slope(
        pred=torch.cat([part.pred for part in parts]),
        gradient=torch.cat([part.gradient for part in parts]),
        verdict=Verdict(
            reward=torch.cat([part.verdict.reward for part in parts]),
            valid=torch.cat([part.verdict.valid for part in parts]),
        ),
    )


def _slope(chain: PipelineChain, judge: Judge, x: Tensor, step: int, rows: Tensor) -> Slope:
    generator, costs = chain.generator, chain.costs
    owners = [chain.requests[row] for row in rows.tolist()]
    with torch.enable_grad():
        state = full_precision(x.detach()).requires_grad_()
        pred = chain.predict(state, step, rows)
        x0, _ = generator.path.split(state, pred, chain.plan.t[step])
        media = generator.decode(x0).float().cpu()
        samples = as_samples(generator, media, owners, seed=chain.seed)
        reward, valid = graded(judge.suite, samples)
        gradient = gradient_of(reward, state, valid, where="steering by gradients")
    costs.network_evaluations += BACKWARD * len(x)
    costs.decodes += len(x)
    costs.reward_calls += len(x) * len(judge.suite.names)
    verdict = Verdict(reward=reward.detach(), valid=valid)
    return Slope(pred=pred.detach(), gradient=gradient, verdict=verdict)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedChain:
    """Universal guidance (arXiv 2302.07121, eq. 6 and algorithm 1); a `Chain`.

    The plug-in r(x0hat) in the place of the soft value log E[exp(lambda r(x0)) | x] ignores how
    uncertain x0 is: exact for a reward that is linear in x0 but for a factor that a state does not
    know, too sure of itself for a curved one. Twisted particles make up for it by their weights.
    """

    chain: PipelineChain
    judge: Judge
    strength: float  # lambda
    steps: Sequence[int]
    recurrence: int = 0

    @property
    def num_steps(self) -> int:
        return self.chain.num_steps

    def start(self) -> Tensor:
        """As without guidance: the same noise."""
        return self.chain.start()

    def predict(self, x: Tensor, step: int, rows: Tensor) -> Tensor:
        """The network's output, tilted in the guided steps."""
        chain = self.chain
        if step not in self.steps or self.strength == 0:
            return chain.predict(x, step, rows)
        found = slope(chain, self.judge, x, step, rows)
        push = self.strength * found.gradient
        return tilted(chain.generator.path, found.pred, push, chain.plan.t[step])

    def advance(
        self, x: Tensor, pred: Tensor, step: int, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The sampler's step; a guided one is noised again and repeated."""
        chain, (t, t_next) = self.chain, self.chain.plan.t[step : step + 2]
        x_next, _ = chain.advance(x, pred, step, rows)
        if step in self.steps:
            for number in range(self.recurrence):
                eps = self.noise(step, number, rows).to(x_next.device)
                back = renoised(chain.generator.path, x_next, eps, t_next, t).to(x.dtype)
                x_next, _ = chain.advance(back, self.predict(back, step, rows), step, rows)
        return x_next, None

    def noise(self, step: int, number: int, rows: Tensor) -> Tensor:
        """Keyed noise (n, *S) of a repetition."""
        owners = [self.chain.requests[row] for row in rows.tolist()]
        return normal(
            self.chain.generator.latent_shape,
            seed=self.chain.seed,
            stream=f"{STREAM}/recurrence/{number}",
            prompt_ids=[owner.prompt_id for owner in owners],
            sample_ids=[owner.sample_id for owner in owners],
            step=step,
        )

    def uniform(self, step: int) -> Tensor:
        """As without guidance."""
        return self.chain.uniform(step)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shifted:
    """q = N(mu + s^2 grad, s^2) where the sampler has N(mu, s^2): a `Proposal`."""

    gradient: Tensor  # (n, *S), lambda grad r

    def __call__(self, base: Gaussian, situation: Situation) -> Gaussian:
        push = per_sample(base.std.square(), base.mean) * self.gradient.to(base.mean.dtype)
        return Gaussian(mean=base.mean + push, std=base.std)


@dataclass(kw_only=True, slots=True)
class TwistedChain:
    """TDS's proposal (arXiv 2306.17775, eq. 9) as `Chain` and `Value` of Feynman-Kac steering.

    The weights gain log p / q, and with looks at every step under the potential `difference` the
    ratio of twists; with tempering it is DAS (arXiv 2501.05803). Reward and gradient of a state
    come from one pass, and the gradient travels with the prediction, (n, 2, *S), so that
    resampling moves both. (DAS's code leaves twist and gradient where they were: its particles
    follow other particles' gradients.)
    """

    chain: PipelineChain
    judge: Judge
    strength: Tensor  # (G,) float64, lambda so far
    steps: Sequence[int]
    verdict: tuple[int, Verdict] | None = None  # of the step that was predicted last

    @property
    def num_steps(self) -> int:
        return self.chain.num_steps

    def start(self) -> Tensor:
        """As without a twist."""
        return self.chain.start()

    def predict(self, x: Tensor, step: int, rows: Tensor) -> Tensor:
        """(n, 2, *S) output and gradient in the twisted steps, else the output (n, *S)."""
        if step not in self.steps:
            return self.chain.predict(x, step, rows)
        found = slope(self.chain, self.judge, x, step, rows)
        self.verdict = step, found.verdict
        return torch.stack([full_precision(found.pred), full_precision(found.gradient)], dim=1)

    def promise(self, x: Tensor, pred: Tensor, step: int, rows: Tensor) -> Verdict:
        """Known from the pass that found the gradient."""
        if self.verdict is not None and self.verdict[0] == step:
            return self.verdict[1]
        return self.judge.promise(x, pred, step, rows)

    def hear(self, look: Look) -> None:
        """lambda of each group from this look on."""
        self.strength = look.strength

    def advance(
        self, x: Tensor, pred: Tensor, step: int, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """A step of the shifted law, and log p / q; the sampler's own elsewhere."""
        if step not in self.steps:
            return self.chain.advance(x, pred, step, rows)
        output, gradient = pred.unbind(dim=1)
        strength = self.strength[rows // self.chain.particles]
        push = per_sample(strength, gradient) * gradient
        twisted = replace(self.chain, proposal=Shifted(gradient=push))
        return twisted.advance(x, output, step, rows)

    def finish(self, x: Tensor, rows: Tensor) -> Finish:
        """The true ends."""
        return self.judge.finish(x, rows)

    def uniform(self, step: int) -> Tensor:
        """As without a twist."""
        return self.chain.uniform(step)
