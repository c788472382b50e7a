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
        for name, value in {"loss": loss.detach(), **metrics}.items():
            totals[name] = totals.get(name, torch.zeros(())) + value.float().cpu() * batch.weight
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


def _shared_metrics(
    totals: Mapping[str, Tensor], weight: float, processes: Processes
) -> dict[str, float]:
    """Weighted means over all processes; every process has the same names in the same order."""
    if processes.count == 1:
        return {name: float(value / max(weight, 1e-12)) for name, value in totals.items()}
    # A process without samples knows no names; the main process always has the first chunk.
    names = processes.text_of_main(" ".join(sorted(totals))).split()
    values = [totals.get(name, torch.zeros(())) for name in names]
    summed = processes.sum(torch.stack([*values, torch.tensor(weight)]))
    return {name: float(value / summed[-1]) for name, value in zip(names, summed, strict=False)}


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
            "NON-FINITE", where, f"{STREAK_LIMIT} updates in a row: {seen}", "lower the learning rate"
        )
