"""One optimiser step: accumulate the micro-batches, agree that all is finite, step, average.

A step whose loss or gradient is not finite on any process changes nothing on any process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowalign.config.schema import TrainConfig
from flowalign.errors import HealthError
from flowalign.policy import TrainedPolicy, average
from flowalign.processes import Processes
from flowalign.protocols import Algorithm
from flowalign.training_state import TrainingState

STREAK_LIMIT = 5


def learning_rate(config: TrainConfig, update: int, total_updates: int) -> float:
    """Step size of update 0, 1, ...: linear warm-up, then constant or half a cosine to 0."""
    if update < config.warmup_steps:
        return config.learning_rate * (update + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    span = max(1, total_updates - config.warmup_steps)
    progress = min(1.0, (update - config.warmup_steps) / span)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def adamw(policy: TrainedPolicy, config: TrainConfig) -> torch.optim.AdamW:
    """The optimiser; its step size is set before each update."""
    return torch.optim.AdamW(
        policy.parameters.values(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        foreach=False,
    )


def update(
    policy: TrainedPolicy,
    algorithm: Algorithm,
    batches: Sequence[Any],
    state: TrainingState,
    config: TrainConfig,
    *,
    processes: Processes,
    total_updates: int,
) -> dict[str, float]:
    """Apply one update and return its metrics, weighted over micro-batches and processes.

    Raises HealthError (exit 9) on a non-finite loss or gradient under `on_nonfinite: stop`, or
    when five updates in a row were skipped under `skip`.
    """
    totals: dict[str, Tensor] = {}
    weight = 0.0
    for batch in batches:
        with processes.accelerator.autocast():
            loss, metrics = algorithm.loss(policy, batch)
        (loss * batch.weight).backward()
        weight += batch.weight
        tally(totals, {"loss": loss.detach(), **metrics}, batch.weight)
    parameters = list(policy.parameters.values())
    processes.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm, foreach=False)
    loss_total = totals.get("loss", torch.zeros(()))
    bad = not (bool(torch.isfinite(norm)) and bool(torch.isfinite(loss_total)))
    metrics = _shared_metrics(totals, weight, processes)
    metrics["grad_norm"] = float(norm)
    if processes.worst(int(bad)):
        state.optimizer.zero_grad(set_to_none=True)
        _reject(state, config, metrics)
        return metrics
    rate = learning_rate(config, state.progress.updates, total_updates)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    # An update that nothing contributed to must change nothing, weight decay included.
    if float(norm) > 0:
        state.optimizer.step()
        policy.fresh = False
    state.optimizer.zero_grad(set_to_none=True)
    state.progress.updates += 1
    state.progress.bad_streak = 0
    if state.ema is not None and config.ema_decay is not None:
        average(state.ema, policy.parameters, config.ema_decay)
    metrics["learning_rate"] = rate
    return metrics


def is_extreme(name: str) -> bool:
    """Metrics called `..._max` are joined by their maximum, all others by weighted means."""
    return name.endswith("_max")


def tally(totals: dict[str, Tensor], metrics: Mapping[str, Tensor], weight: float) -> None:
    """Add a micro-batch's metrics."""
    for name, metric in metrics.items():
        value = metric.detach().float().cpu()
        before = totals.get(name, torch.zeros(()))
        totals[name] = torch.maximum(before, value) if is_extreme(name) else before + value * weight


def _shared_metrics(
    totals: Mapping[str, Tensor], weight: float, processes: Processes
) -> dict[str, float]:
    """Totals of all processes; every process asks for the same names in the same order."""
    # A process without samples knows no names; the main process always has the first chunk.
    names = processes.text_of_main(" ".join(sorted(totals))).split()
    values = torch.stack([*(totals.get(name, torch.zeros(())) for name in names), torch.zeros(())])
    largest = processes.largest(values)
    values[-1] = weight
    summed = processes.sum(values)
    share = max(float(summed[-1]), 1e-12)
    return {
        name: float(largest[i]) if is_extreme(name) else float(summed[i]) / share
        for i, name in enumerate(names)
    }


def _reject(state: TrainingState, config: TrainConfig, metrics: Mapping[str, float]) -> None:
    """Count a bad update; stop at once, or after five in a row."""
    progress = state.progress
    progress.bad_streak += 1
    progress.skipped += 1
    seen = f"loss {metrics.get('loss', math.nan)}, gradient norm {metrics['grad_norm']}"
    where = f"training step {progress.step + 1}"
    if config.on_nonfinite == "stop":
        raise HealthError(
            "NON-FINITE", where, seen, "lower the learning rate, or set train.on_nonfinite: skip"
        )
    if progress.bad_streak >= STREAK_LIMIT:
        raise HealthError(
            "NON-FINITE",
            where,
            f"{STREAK_LIMIT} updates in a row: {seen}",
            "lower the learning rate",
        )
