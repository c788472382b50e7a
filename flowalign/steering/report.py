"""The files of a steering job. They lie where those of an evaluation lie, so galleries read them.

RUN/eval/step-000000/   plain samples (the baseline)     RUN/eval/step-000001/   steered ones
    NNNN-K.png, scores.jsonl, ancestry.json, summary.json

Methods and budgets that are compared follow as step-000002 and so on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowalign.disk import write_file
from flowalign.media import save_media
from flowalign.steering.outcome import Population, Steered
from flowalign.steering.populations import numbers

BASELINE = 0  # its step; what is steered follows
SUFFIX = {"image": "png", "video": "mp4", "audio": "wav"}


def write_steered(
    folder: Path, steered: Steered, *, step: int, seed: int, steering_rewards: Sequence[str]
) -> None:
    """Write samples, scores, history and costs; the summary last, as the sign of completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(score_rows(folder, steered, step=step, seed=seed))
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_file(folder / "scores.jsonl", text.encode())
    write_json(folder / "ancestry.json", ancestry(steered))
    write_json(folder / "summary.json", summary(steered, step, list(steering_rewards)))


def score_rows(folder: Path, steered: Steered, *, step: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each returned sample, whose medium is written."""
    scores = {name: numbers(values) for name, values in steered.scores.items()}
    place = 0
    for number, group in enumerate(steered.populations):
        for order, particle in enumerate(group.returned):
            sample = group.samples[particle]
            name = f"{number:04d}-{order}.{SUFFIX[sample.modality]}"
            save_media(folder / name, sample)
            yield {
                "step": step,
                "prompt": group.prompt.text,
                "category": group.prompt.category,
                "prompt_id": group.prompt.prompt_id,
                "sample_id": sample_id(group, order),
                "particle": sample.sample_id,
                "seed": seed,
                "image": name,
                "scores": {reward: values[place] for reward, values in scores.items()},
            }
            place += 1


def sample_id(group: Population, order: int) -> int:
    """Counts the samples of a prompt, so that galleries put it beside the plain sample."""
    return group.repeat * len(group.returned) + order


def ancestry(steered: Steered) -> dict[str, Any]:
    """Who came from whom, with weights and rewards, one entry for each population."""
    return {
        "method": steered.method,
        "particles": steered.particles,
        "populations": [
            {
                "prompt": group.prompt.text,
                "prompt_id": group.prompt.prompt_id,
                "repeat": group.repeat,
                "looks": list(group.history),
                "reward": numbers(group.reward, group.valid),
                "log_weight": None if group.log_weight is None else numbers(group.log_weight),
                "log_z": group.log_z,
                "sample_ids": [sample.sample_id for sample in group.samples],
                "returned": list(group.returned),
            }
            for group in steered.populations
        ],
    }


def summary(steered: Steered, step: int, steering_rewards: list[str]) -> dict[str, Any]:
    """Costs, and mean, standard deviation and number of each score."""
    scores = {}
    for name, values in steered.scores.items():
        valid = values[values.isfinite()].double()
        if len(valid) > 1:
            std = float(valid.std(correction=1))
            scores[name] = {"mean": float(valid.mean()), "std": std, "n": len(valid)}
    log_z = [group.log_z for group in steered.populations if group.log_z is not None]
    return {
        "step": step,
        "samples": len(next(iter(steered.scores.values()))),
        "label": steered.label,
        "method": steered.method,
        "budget": steered.budget,
        "particles": steered.particles,
        "populations": len(steered.populations),
        "costs": steered.costs.as_dict(),
        "mean_log_z": math.fsum(log_z) / len(log_z) if log_z else None,
        "scores": scores,
        "trained": steering_rewards,
        "held_out": [name for name in steered.scores if name not in steering_rewards],
    }


def write_json(path: Path, value: object) -> None:
    """JSON in whole or not at all."""
    write_file(path, (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode())
