"""The methods that follow gradients, on a generator: from a config to what came out."""

from __future__ import annotations

import torch

from flowalign.config.gradient_methods import GuidanceConfig
from flowalign.config.noise_methods import BACKWARD, NoiseOptimizationConfig
from flowalign.config.steering import FKConfig, MethodConfig
from flowalign.rollout import Plan
from flowalign.steering.best_of_n import Contest, best_of_n
from flowalign.steering.chain import PipelineChain
from flowalign.steering.feynman_kac import Outcome, Steering, feynman_kac
from flowalign.steering.gradient_chains import GuidedChain, TwistedChain, guided_steps
from flowalign.steering.judges import Judge


def follows_gradients(method: MethodConfig) -> bool:
    """Whether the rewards have to be differentiable."""
    twisted = isinstance(method, FKConfig) and method.proposal == "gradient"
    return twisted or isinstance(method, GuidanceConfig | NoiseOptimizationConfig)


def extra_evaluations(method: MethodConfig, plan: Plan) -> int:
    """Network evaluations of one particle beyond one for each step."""
    match method:
        case GuidanceConfig(strength=0):
            return method.recurrence * len(guided_steps(plan, method.start, method.stop))
        case GuidanceConfig():
            steps = guided_steps(plan, method.start, method.stop)
            return len(steps) * ((1 + BACKWARD) * (1 + method.recurrence) - 1)
        case FKConfig(proposal="gradient"):
            return BACKWARD * len(twisted_steps(plan))
        case _:
            return 0


def twisted_steps(plan: Plan) -> tuple[int, ...]:
    """The noisy steps but those from pure noise; a deterministic one has no other law."""
    noisy = (plan.noise > 0).tolist()
    return tuple(step for step in guided_steps(plan, 0.0, 1.0) if noisy[step])


def guided(
    chain: PipelineChain, judge: Judge, method: GuidanceConfig, *, groups: int, candidates: int
) -> Contest:
    """Guided samples, `candidates` of each group."""
    guide = GuidedChain(
        chain=chain,
        judge=judge,
        strength=method.strength,
        steps=guided_steps(chain.plan, method.start, method.stop),
        recurrence=method.recurrence,
    )
    return best_of_n(guide, judge, (), groups=groups, candidates=candidates)


def twisted(
    chain: PipelineChain, judge: Judge, steering: Steering, *, groups: int, particles: int
) -> Outcome:
    """Feynman-Kac steering from twisted proposals."""
    begun = 0.0 if steering.tempering is not None else steering.strength
    twist = TwistedChain(
        chain=chain,
        judge=judge,
        strength=torch.full((groups,), begun, dtype=torch.float64),
        steps=twisted_steps(chain.plan),
    )
    return feynman_kac(
        twist, twist, steering, groups=groups, particles=particles, on_look=twist.hear
    )
