"""A learned value of states: what a reward network on noisy latents answers, nothing decoded.

The potentials of Feynman-Kac steering may come from any r_t(x_t) (arXiv 2501.06848, section 4),
because the terminal weight makes up for them; the best is the soft value, log E[exp(lambda r) |
x_t] / lambda, to which objective `soft_value` fits. With svdd this is its Monte-Carlo form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.config.learned_value import LearnedValueConfig
from flowalign.noisy_reward.conditions import text_of
from flowalign.steering.chain import PipelineChain, pieces
from flowalign.steering.judges import Judge
from flowalign.steering.noisy_guidance import Loaded, weights_of
from flowalign.steering.protocols import Finish, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedValue:
    """Judges states by a network, and ends by the rewards; a `flowalign.steering.protocols.Value`.

    One that answers no finite number leaves the state without a reward.
    """

    chain: PipelineChain
    judge: Judge
    reward: Loaded
    weights: Tensor  # (K,) w_j, by head

    @torch.no_grad()
    def promise(self, x: Tensor, pred: Tensor, step: int, rows: Tensor) -> Verdict:
        """sum_j w_j r_j(x_t, t, y), with r_j = mean_j + std_j h_j."""
        network, card = self.reward
        chain, t = self.chain, self.chain.plan.t[step].to(x.device)
        chain.costs.noisy_reward_passes += len(x)
        parts = []
        for piece in pieces(len(x), chain.batch_size):
            text = text_of(chain.cond.select(rows[piece]), card.text).to(x.device)
            parts.append(network(x[piece].float(), t.expand(len(text)), text))
        h = torch.cat(parts).double().cpu()
        mean = torch.tensor([head.mean for head in card.heads], dtype=torch.float64)
        std = torch.tensor([head.std for head in card.heads], dtype=torch.float64)
        reward = (mean + std * h) @ self.weights
        return Verdict(reward=reward, valid=reward.isfinite())

    def finish(self, x: Tensor, rows: Tensor) -> Finish:
        """The ends decoded and scored by the rewards themselves."""
        return self.judge.finish(x, rows)


def learned_value(
    chain: PipelineChain, judge: Judge, config: LearnedValueConfig, reward: Loaded
) -> LearnedValue:
    """A value with the weights of a config.

    Raises:
        ConfigError: a weight is of no head.
    """
    weights = torch.tensor(weights_of(reward[1], config.weights), dtype=torch.float64)
    return LearnedValue(chain=chain, judge=judge, reward=reward, weights=weights)
