"""Flow-NRG: guidance by the gradient of a reward network on noisy latents (arXiv 2501.13918).

No picture is decoded on the way, and the weight of each objective is chosen now. Letters: n
states, *S a latent's shape, K heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.config.flow_nrg import FlowNRGConfig
from flowalign.config.noisy_card import Card
from flowalign.config.steering import FKConfig, MethodConfig, SteerConfig, SVDDConfig
from flowalign.config.suggest import did_you_mean
from flowalign.errors import CheckpointError, ConfigError
from flowalign.noisy_reward.conditions import text_of
from flowalign.noisy_reward.files import load_reward
from flowalign.noisy_reward.network import NoisyReward
from flowalign.protocols import Generator, Path
from flowalign.rollout import device_of
from flowalign.steering.chain import PipelineChain, pieces
from flowalign.steering.tilting import tilted
from flowalign.types import Cond

Loaded = tuple[NoisyReward, Card]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyGuide:
    """A network with the weights of this run."""

    network: NoisyReward
    card: Card
    exponent: Tensor  # (K,), lambda w_j std_j: the network answers in standard deviations
    start: float
    stop: float
    clip: float | None

    def active(self, t: Tensor) -> bool:
        """Whether states of level t are guided."""
        return self.stop <= float(t) <= self.start and bool((self.exponent != 0).any())

    def gradient(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """grad_x sum_j lambda w_j r_j(x, t, y), (n, *S) float32; parameters get none."""
        text = text_of(cond, self.card.text).to(x.device)
        with torch.enable_grad():
            state = x.detach().float().requires_grad_()
            answers = self.network(state, t.to(x.device).expand(len(x)), text)
            (found,) = torch.autograd.grad((answers @ self.exponent.to(x.device)).sum(), state)
        return found

    def factor(self, path: Path, t: Tensor) -> float:
        """min(1, clip / (sigma / alpha))."""
        ratio = float(path.sigma(t) / path.alpha(t))
        return 1.0 if self.clip is None else min(1.0, self.clip / ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedChain:
    """A chain whose predictions are tilted; see `flowalign.steering.protocols.Chain`."""

    chain: PipelineChain
    guide: NoisyGuide

    @property
    def num_steps(self) -> int:
        return self.chain.num_steps

    def start(self) -> Tensor:
        """As without guidance: the same noise."""
        return self.chain.start()

    def predict(self, x: Tensor, step: int, rows: Tensor) -> Tensor:
        """The network's output, tilted where the level is guided."""
        chain, guide, t = self.chain, self.guide, self.chain.plan.t[step]
        pred = chain.predict(x, step, rows)
        if not guide.active(t):
            return pred
        chain.costs.noisy_reward_passes += len(x)
        parts = [
            guide.gradient(x[piece], t, chain.cond.select(rows[piece]))
            for piece in pieces(len(x), chain.batch_size)
        ]
        path = chain.generator.path
        return tilted(path, pred, guide.factor(path, t) * torch.cat(parts), t)

    def advance(
        self, x: Tensor, pred: Tensor, step: int, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The sampler's own step."""
        return self.chain.advance(x, pred, step, rows)

    def uniform(self, step: int) -> Tensor:
        """As without guidance."""
        return self.chain.uniform(step)


def noisy_rewards(config: SteerConfig, generator: Generator) -> dict[str, Loaded]:
    """The rewards of all methods of a job, by the names they have in it.

    Raises:
        CheckpointError: one cannot be read, or was trained on other latents, another path or text.
    """
    methods = (config.method, *(entry.method for entry in config.compare.methods))
    names = {name for method in methods if (name := reward_name(method)) is not None}
    found = {name: load_reward(name, device_of(generator)) for name in sorted(names)}
    for name, (_, card) in found.items():
        check_fit(card, generator, name)
    return found


def reward_name(method: MethodConfig) -> str | None:
    """The noisy reward that a method uses."""
    match method:
        case FlowNRGConfig():
            return method.reward
        case FKConfig() | SVDDConfig() if method.learned is not None:
            return method.learned.reward
        case _:
            return None


def guided_chain(chain: PipelineChain, config: FlowNRGConfig, reward: Loaded) -> GuidedChain:
    """A chain with the weights and levels of a config.

    Raises:
        ConfigError: a weight is of no head.
    """
    network, card = reward
    guide = NoisyGuide(
        network=network,
        card=card,
        exponent=exponents(card, config.weights, config.strength),
        start=config.start,
        stop=config.stop,
        clip=config.clip,
    )
    return GuidedChain(chain=chain, guide=guide)


def exponents(card: Card, weights: Mapping[str, float], strength: float) -> Tensor:
    """lambda w_j std_j (K,) in the order of the heads.

    Raises:
        ConfigError: a weight is of no head.
    """
    given = zip(weights_of(card, weights), card.heads, strict=True)
    return torch.tensor([strength * weight * head.std for weight, head in given])


def weights_of(card: Card, weights: Mapping[str, float]) -> list[float]:
    """w_j in the order of the heads; 0 for a head that has none, unless none has: then all have 1.

    Raises:
        ConfigError: a weight is of no head.
    """
    for name in weights:
        if name not in card.names:
            what = f"the reward has no head `{name}`"
            raise ConfigError(
                "CFG-CHOICE", "method.weights", what, did_you_mean(name, list(card.names))
            )
    given = weights or dict.fromkeys(card.names, 1.0)
    return [given.get(head.name, 0.0) for head in card.heads]


def check_fit(card: Card, generator: Generator, reward: str) -> None:
    """Refuse a reward of other latents, of another path, or of other text."""
    where, path = f"method.reward `{reward}`", type(generator.path).__name__
    fix = "use the model it was trained on, or train one with `flowalign reward train-noisy`"
    if card.latent_shape != tuple(generator.latent_shape):
        what = f"reads latents {card.latent_shape}, and the model's are {generator.latent_shape}"
        raise CheckpointError("CKPT-SHAPE", where, what, fix)
    if card.path != path:
        what = f"was trained on states of a {card.path}, and the model walks a {path}"
        raise CheckpointError("CKPT-SHAPE", where, what, fix)
    text_of(generator.encode([""]), card.text)
