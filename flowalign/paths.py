"""Probability paths x = alpha(t) x0 + sigma(t) eps, and what a network's output means on them.

t = 1 is noise, t = 0 is data. Shapes: B samples, *S the latent shape; t is 0-dim or (B,) float64.
Coefficients are computed in float64 and rounded once, latents in float32 or better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from flowalign.errors import ConfigError
from flowalign.gaussian import full_precision, per_sample
from flowalign.protocols import Path

PredictionType = Literal["epsilon", "v_prediction", "sample"]


def diffuse(path: Path, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) eps, (B, *S) in float32 or better."""
    x0, eps = full_precision(x0), full_precision(eps)
    return per_sample(path.alpha(t), x0) * x0 + per_sample(path.sigma(t), x0) * eps


@dataclass(frozen=True, kw_only=True, slots=True)
class RectifiedFlow:
    """x = (1 - t) x0 + t eps; the network predicts the velocity eps - x0 (arXiv 2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def split(self, x: Tensor, pred: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x - t v, x + (1 - t) v), each (B, *S)."""
        x, v = full_precision(x), full_precision(pred)
        return x - per_sample(t, x) * v, x + per_sample(1.0 - t, x) * v

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """eps - x0 at every t."""
        return full_precision(eps) - full_precision(x0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VariancePreserving:
    """x = sqrt(abar) x0 + sqrt(1 - abar) eps with the table of a discrete diffusion.

    Training timestep k of N has the level t = (k + 1) / N, and t = 0 is the state after the last
    step, whose abar is `final_alpha_cumprod`: 1 where the scheduler sets alpha to one, else
    `alphas_cumprod[0]`. (DDPO's code clamps the last timestep at 0 and so always uses the
    latter, arXiv 2305.13301; give it here to reproduce it.) Between two timesteps abar is
    interpolated linearly.

    Raises:
        ConfigError: the table ends at abar = 0 and the network predicts eps, from which no x0
            follows there.
    """

    alphas_cumprod: Tensor  # (N,) decreasing in [0, 1)
    final_alpha_cumprod: float = 1.0
    prediction_type: PredictionType = "epsilon"
    table: Tensor = field(init=False, repr=False)  # (N+1,) float64, abar from t = 0 to t = 1

    def __post_init__(self) -> None:
        abar = self.alphas_cumprod.double().cpu()
        table = torch.cat([abar.new_tensor([self.final_alpha_cumprod]), abar])
        object.__setattr__(self, "table", table)
        if self.prediction_type == "epsilon" and not bool((self.alphas_cumprod > 0).all()):
            raise ConfigError(
                "MODEL-ZERO-SNR",
                "scheduler",
                "alphas_cumprod reaches 0 with epsilon prediction, so x0 is undefined there",
                "use a v_prediction model, or rescale_betas_zero_snr: false",
            )

    def alpha_cumprod(self, t: Tensor) -> Tensor:
        """abar(t), of the shape of t, float64."""
        table = self.table.to(t.device)
        position = t.double() * (len(table) - 1)
        low = position.floor().clamp(0, len(table) - 2).long()
        return torch.lerp(table[low], table[low + 1], position - low)

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt(abar)."""
        return self.alpha_cumprod(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - abar)."""
        return (1.0 - self.alpha_cumprod(t)).sqrt()

    def split(self, x: Tensor, pred: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0hat, epshat), each (B, *S), from eps, from v = alpha eps - sigma x0, or from x0."""
        x, pred = full_precision(x), full_precision(pred)
        alpha, sigma = per_sample(self.alpha(t), x), per_sample(self.sigma(t), x)
        match self.prediction_type:
            case "epsilon":
                return (x - sigma * pred) / alpha, pred
            case "v_prediction":
                return alpha * x - sigma * pred, alpha * pred + sigma * x
            case "sample":
                return pred, (x - alpha * pred) / sigma

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """eps, alpha eps - sigma x0, or x0."""
        x0, eps = full_precision(x0), full_precision(eps)
        match self.prediction_type:
            case "epsilon":
                return eps
            case "v_prediction":
                return per_sample(self.alpha(t), x0) * eps - per_sample(self.sigma(t), x0) * x0
            case "sample":
                return x0


def require_rectified_flow(path: Path, sampler: str) -> None:
    """Refuse a sampler whose formula holds on rectified flows only.

    Raises:
        ConfigError: the model diffuses along another path.
    """
    if not isinstance(path, RectifiedFlow):
        raise ConfigError(
            "CFG-SAMPLER-PATH",
            "sampler.name",
            f"{sampler} is defined on rectified flows, and this model is {type(path).__name__}",
            "use sampler.name: ddim, cps or ode",
        )
