"""Fitting the network of a noisy reward: states noised at random levels, one objective, AdamW.

Letters: N samples of M prompts, n states of a batch, *S a latent's shape, K heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.config.noisy_card import Card, HeadCard, NetworkCard
from flowalign.config.noisy_reward import NoisyTrainConfig
from flowalign.errors import DataError, HealthError
from flowalign.noisy_reward.examples import Examples
from flowalign.noisy_reward.network import NoisyReward
from flowalign.noisy_reward.objectives import Objective
from flowalign.paths import diffuse
from flowalign.protocols import Path
from flowalign.randomness import generator as keyed

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # where accuracy is told
WARMUP, DECAY, MAX_NORM = 0.05, 0.01, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Rows of examples by prompt: what is learned from, and what is not."""

    train: Tensor  # (n,) int64
    held_out: Tensor  # (N - n,) int64


def split_by_prompt(examples: Examples, share: float, seed: int) -> Split:
    """A share of the prompts, at least one and chosen by the seed, is held out with its samples.

    Raises:
        DataError: there is one prompt only.
    """
    count = len(examples.text)
    if count < 2:
        fix = "give at least two prompts, some of them to measure accuracy on"
        raise DataError("DATA-FEW", "noisy reward", f"{count} prompt", fix)
    order = torch.randperm(count, generator=keyed(seed, "noisy reward split"))
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[order[: min(count - 1, max(1, round(share * count)))]] = True
    apart = chosen[examples.prompt]
    return Split(train=(~apart).nonzero()[:, 0], held_out=apart.nonzero()[:, 0])


def heads_of(examples: Examples, rows: Tensor) -> tuple[HeadCard, ...]:
    """Mean and standard deviation of each reward over rows.

    Raises:
        DataError: a reward has one value only.
    """
    found = []
    for column, name in enumerate(examples.heads):
        known = examples.reward[rows, column][examples.valid[rows, column]].double()
        std = float(known.std(correction=0)) if len(known) else 0.0
        if not std > 0:
            what = f"{len(known)} samples, all with the same score"
            fix = "a head needs better and worse samples: draw more, or leave it out"
            raise DataError("DATA-FLAT", f"head `{name}`", what, fix)
        found.append(HeadCard(name=name, mean=float(known.mean()), std=std))
    return tuple(found)


@dataclass(kw_only=True, slots=True)
class Fit:
    """A network in training."""

    network: NoisyReward
    path: Path
    examples: Examples
    scaled: Tensor  # (N, K), rewards in standard deviations
    rows: Tensor  # (n,) that are learned from
    objective: Objective
    settings: NoisyTrainConfig
    seed: int
    device: torch.device


def new_network(card: Card, seed: int) -> NoisyReward:
    """A random network, from its own key; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(int(keyed(seed, "noisy reward start").initial_seed()))
        return NoisyReward(card)


def scaled_rewards(examples: Examples, heads: Sequence[HeadCard]) -> Tensor:
    """(r - mean) / std, (N, K)."""
    mean = torch.tensor([head.mean for head in heads])
    std = torch.tensor([head.std for head in heads])
    return (examples.reward - mean) / std


def train(fit: Fit, on_step: Callable[[int, float], None] | None = None) -> None:
    """All steps; `on_step` hears the loss of each.

    Raises:
        HealthError: the loss is not finite.
    """
    settings, network = fit.settings, fit.network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=DECAY
    )
    draw = pairs_of(fit.examples, fit.rows) if fit.objective.pairs else None
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm_cosine(step / settings.steps)
        key = keyed(fit.seed, "noisy reward", step=step)
        loss = batch_loss(fit, draw, key)
        if not bool(loss.isfinite()):
            fix = "lower train.learning_rate or objective.strength"
            raise HealthError("NON-FINITE", f"step {step}", "the loss is not finite", fix)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
        optimizer.step()
        if on_step is not None:
            on_step(step, float(loss.detach()))
    network.eval()


def warm_cosine(progress: float) -> float:
    """Share of the learning rate: up over the first twentieth, then half a cosine to 0."""
    if progress < WARMUP:
        return (progress + 1e-3) / (WARMUP + 1e-3)
    return 0.5 * (1.0 + math.cos(math.pi * (progress - WARMUP) / (1.0 - WARMUP)))


def batch_loss(fit: Fit, pairs: list[Tensor] | None, key: torch.Generator) -> Tensor:
    """The objective at states of random samples and levels; the two of a pair share a level."""
    half = fit.settings.batch_size // 2
    if pairs is None:
        rows = fit.rows[torch.randint(len(fit.rows), (2 * half,), generator=key)]
        t = torch.rand(2 * half, generator=key, dtype=torch.float64)
    else:
        chosen = torch.randint(len(pairs), (half,), generator=key).tolist()
        rows = torch.cat(
            [pairs[i][torch.randperm(len(pairs[i]), generator=key)[:2]] for i in chosen]
        )
        t = torch.rand(half, generator=key, dtype=torch.float64).repeat_interleave(2)
    low = fit.settings.mixed_precision == "bf16"
    with torch.autocast(fit.device.type, torch.bfloat16, enabled=low):
        h = answers(fit.network, fit.path, fit.examples, rows, t, key, fit.device).float()
    scaled, valid = fit.scaled[rows].to(h.device), fit.examples.valid[rows].to(h.device)
    return fit.objective(h, scaled, valid)


def answers(
    network: NoisyReward,
    path: Path,
    examples: Examples,
    rows: Tensor,
    t: Tensor,
    key: torch.Generator,
    device: torch.device,
) -> Tensor:
    """h (n, K) of the examples `rows`, noised at levels t (n,)."""
    x0 = examples.latents[rows]
    x = diffuse(path, x0, torch.randn(x0.shape, generator=key), t)
    text = examples.text[examples.prompt[rows]]
    return network(x.to(device), t.to(device), text.to(device))


def pairs_of(examples: Examples, rows: Tensor) -> list[Tensor]:
    """The rows of each prompt that has two or more.

    Raises:
        DataError: no prompt has.
    """
    owners = examples.prompt[rows]
    found = [rows[owners == prompt] for prompt in owners.unique()]
    found = [each for each in found if len(each) > 1]
    if not found:
        fix = "draw several samples of a prompt, or use objective soft_value"
        raise DataError("DATA-GROUPS", "noisy reward", "no prompt has two samples", fix)
    return found


@torch.no_grad()
def accuracy(fit: Fit, rows: Tensor) -> dict[str, dict[str, float | None]]:
    """How often the better of two samples of a prompt has the higher answer, by head and level.

    Pairs of equal reward do not count, equal answers count one half; None where no pair is.
    """
    found: dict[str, dict[str, float | None]] = {name: {} for name in fit.examples.heads}
    for place, level in enumerate(LEVELS):
        key = keyed(fit.seed, "noisy reward accuracy", step=place)
        t = torch.full((len(rows),), level, dtype=torch.float64)
        parts = [
            answers(fit.network, fit.path, fit.examples, rows[i], t[i], key, fit.device).cpu()
            for i in torch.arange(len(rows)).split(fit.settings.batch_size)
        ]
        h = torch.cat(parts)
        for column, name in enumerate(fit.examples.heads):
            known = fit.examples.valid[rows, column]
            right = ordered(
                h[known, column],
                fit.examples.reward[rows, column][known],
                fit.examples.prompt[rows][known],
            )
            found[name][f"{level:g}"] = right
    return found


def ordered(h: Tensor, reward: Tensor, prompt: Tensor) -> float | None:
    """Share of the pairs of one prompt, (n,) each, that `h` orders as `reward` does."""
    right, total = 0.0, 0
    for each in prompt.unique():
        own = prompt == each
        above = reward[own][:, None] > reward[own][None]
        sign = (h[own][:, None] - h[own][None]).sign()
        right += float((0.5 + 0.5 * sign)[above].sum())
        total += int(above.sum())
    return round(right / total, 4) if total else None


def network_card(examples: Examples, path: Path, network: NetworkCard, rows: Tensor) -> Card:
    """The card of a network for these examples."""
    return Card.model_validate(
        {
            "heads": [head.model_dump() for head in heads_of(examples, rows)],
            "latent_shape": tuple(examples.latents.shape[1:]),
            "path": type(path).__name__,
            "text": examples.text_card.model_dump(),
            "network": network.model_dump(),
        }
    )
