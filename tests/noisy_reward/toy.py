"""Exact noisy rewards of Gaussian data, and examples with known soft values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowalign.config.noisy_card import Card
from flowalign.noisy_reward.conditions import text_card
from flowalign.noisy_reward.examples import Examples
from flowalign.protocols import Path
from flowalign.types import Cond

MEAN, SD = 0.5, 0.8


def card(**changes: object) -> Card:
    """Of a network for latents (2, 4, 4) and text of 3 tokens."""
    base = {
        "heads": [{"name": n, "mean": 0.0, "std": 1.0} for n in ("colour", "count")],
        "latent_shape": (2, 4, 4),
        "path": "RectifiedFlow",
        "text": {"name": "text", "tokens": 3, "width": 5},
        "network": {"width": 16, "layers": 2, "attention_heads": 2, "patch": 2},
    }
    return Card.model_validate({**base, **changes})


def posterior(path: Path, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(E[x_0 | x_t], its slope in x_t) for data N(0.5, 0.8^2)."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    gain = alpha * SD**2 / (alpha**2 * SD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN), gain


def exact_prediction(path: Path, x: Tensor, t: Tensor) -> Tensor:
    """The native output of a perfect network."""
    x0, _ = posterior(path, x, t)
    return path.target(x0, (x - path.alpha(t) * x0) / path.sigma(t), t)


class SumOfEnd(nn.Module):
    """The soft values of r_k = k-th share of the latent's sum, up to a constant: exact for data
    N(0.5, 0.8^2) in every element. K = 2: the first and the last channel."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.scale = path, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        x0 = self.scale * posterior(self.path, x, t[0])[0]
        return torch.stack([x0[:, 0].flatten(1).sum(1), x0[:, -1].flatten(1).sum(1)], dim=1).float()


def examples(reward: Tensor, latents: Tensor, prompt: Tensor, valid: Tensor | None = None):
    """Examples with a text of their own for each prompt."""
    count = int(prompt.max()) + 1
    text = torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(5))
    return Examples(
        heads=tuple(f"head{k}" for k in range(reward.shape[1])),
        latents=latents,
        prompt=prompt,
        reward=reward,
        valid=torch.ones_like(reward, dtype=torch.bool) if valid is None else valid,
        text=text,
        text_card=text_card(Cond(batched={"text": text}, shared={}, size=count)),
    )
