"""Steering jobs made by hand: the scores of `synthetic`, with costs and histories beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gallery.synthetic import write_json, write_run

FK: dict[str, Any] = {
    "looks": [
        {
            "step": 2,
            "reward": [0.1, 0.5, 0.3, None],
            "log_weight": [-2.0, -0.5, -1.5, None],
            "strength": 10.0,
            "resampled": True,
            "parents": [1, 1, 1, 2],
        },
        {
            "step": 4,
            "reward": [0.6, 0.4, 0.5, 0.2],
            "log_weight": [-1.0, -1.5, -1.2, -2.2],
            "strength": 10.0,
            "resampled": False,
            "parents": [0, 1, 2, 3],
        },
    ],
    "reward": [0.7, 0.4, 0.9, 0.1],
    "log_weight": [-1.0, -2.0, -0.8, -3.0],
    "log_z": 1.5,
    "returned": [2],
}
HALVING: dict[str, Any] = {
    "looks": [
        {
            "step": 4,
            "particles": [0, 1, 2, 3, 4],
            "reward": [0.1, 0.9, 0.2, 0.8, 0.7],
            "kept": [1, 3, 4],
        }
    ],
    "reward": [0.8, 0.9, 0.6],
    "log_weight": None,
    "returned": [1],
}
SVDD: dict[str, Any] = {
    "looks": [
        {"step": 1, "reward": [0.1, 0.4], "chosen": 1},
        {"step": 2, "reward": [0.5, None], "chosen": 0},
    ],
    "reward": [0.6],
    "log_weight": None,
    "returned": [0],
}
ROUNDS: dict[str, Any] = {
    "looks": [
        {"round": 0, "reward": [0.2], "chosen": [0]},
        {"round": 1, "reward": [0.1, 0.5], "chosen": [1]},
        {"round": 2, "reward": [0.3, 0.4], "chosen": []},
    ],
    "reward": [0.5],
    "log_weight": None,
    "returned": [0],
}
CLIMB: dict[str, Any] = {
    "looks": [
        {"iteration": 0, "reward": [0.2], "objective": 0.1, "radius": 3.0},
        {"iteration": 1, "reward": [0.6], "objective": 0.5, "radius": 3.0},
        {"iteration": 2, "reward": [0.7], "objective": 0.4, "radius": 4.0},
    ],
    "reward": [0.6],
    "log_weight": None,
    "returned": [0],
}
HISTORIES = {"fk": FK, "halving": HALVING, "svdd": SVDD, "rounds": ROUNDS, "climb": CLIMB}
COSTS = {"network_evaluations": 480, "decodes": 240, "seconds": 3.5, "peak_memory_mib": 900.25}
PLAIN: dict[str, Any] = {"looks": [], "reward": [0.5], "returned": [0]}


def write_job(
    folder: Path,
    histories: Sequence[Mapping[str, Any]] = (FK, HALVING),
    *,
    labels: Sequence[str] = ("fk", "halving"),
    num_prompts: int = 12,
    edit: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    costs: Mapping[str, float] = COSTS,
) -> Path:
    """A finished job: plain samples, then one column for each history, the same for all prompts.

    Column k took k times `costs`, plain samples a quarter.
    """
    steps = tuple(range(len(histories) + 1))
    write_run(folder, steps=steps, num_prompts=num_prompts, algorithm="fk", edit=edit)
    (folder / "metrics.jsonl").unlink()
    for step, label in zip(steps, ["none", *labels], strict=True):
        place = folder / "eval" / f"step-{step:06d}"
        rows = [json.loads(line) for line in (place / "scores.jsonl").read_text().splitlines()]
        own = histories[step - 1] if step else PLAIN
        populations = [
            {"prompt": row["prompt"], "prompt_id": row["prompt_id"], "repeat": 0, **own}
            for row in rows
        ]
        told = {"method": label, "particles": 4, "populations": populations}
        write_json(place / "ancestry.json", told)
        summary = json.loads((place / "summary.json").read_text())
        summary |= {
            "method": "fk" if step else "none",
            "label": label,
            "budget": 40 * step or None,
            "particles": 4 if step else 1,
            "populations": num_prompts,
            "costs": {key: value * (step or 0.25) for key, value in costs.items()},
        }
        write_json(place / "summary.json", summary)
    return folder
