"""Methods of steering at equal network evaluations on the built-in model, paired by seed.

    python -m benchmarks.steering_study --seeds 10 --reward shapes
    python -m benchmarks.steering_study --seeds 10 --reward clip --budgets 40
    python -m benchmarks.steering_study --seeds 10 --lora runs/first/lora

Each seed draws its own held-out prompts and noise; all methods of a seed share the prompts, and
start from the same noises as far as they have places for them. A row tells the mean over seeds of
each score, and the paired gains of the steered score over plain samples and over best-of-N at the
same budget, with 95 % Student-t intervals over seeds. With --lora the tuned model is steered as
well, and compared with the base. Finished cells are kept in --output and not repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from flowalign.config.jobs import STEER
from flowalign.config.load import mapping_for
from flowalign.config.steering import SteerConfig
from flowalign.pipelines.load import load_pipeline
from flowalign.statistics import mean_interval, paired_difference
from flowalign.steering.session import assemble_steering, run_method

FK = {"name": "fk", "strength": 10, "start": 0.1, "stop": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "best_of_n": {"name": "best_of_n"},
    "halving": {"name": "best_of_n", "halvings": 1, "start": 0.4, "stop": 0.4},
    "fk": FK,
    "fk max": {**FK, "potential": "max"},
    "fk linear": {**FK, "preview": "linear"},
    "svdd": {"name": "svdd", "strength": 100},
}
REWARDS = {
    "shapes": [{"name": "shapes"}],
    "clip": [{"name": "clip"}],
}
HELD_OUT = {
    "shapes": [{"name": "shapes", "mode": "strict", "label": "strict"}, {"name": "clip"}],
    "clip": [{"name": "shapes"}, {"name": "shapes", "mode": "strict", "label": "strict"}],
}
CLIP_STRENGTH = 100  # the cosine's spread within a prompt is a tenth of the verifier's


def job(
    args: argparse.Namespace, method: str, budget: int | None, seed: int, lora: str | None
) -> SteerConfig:
    """The config of one cell."""
    section = dict(METHODS[method])
    if args.reward == "clip" and "strength" in section:
        section["strength"] = CLIP_STRENGTH
    mapping: dict[str, Any] = {
        "output": "unused",
        "seed": seed,
        "device": "cpu",
        "model": {"name": "shapes", "call": {"max_sequence_length": 0}},
        "lora": None if lora is None else {"init_from": lora},
        "prompts": {
            "num_prompts": args.prompts,
            "categories": ["two", "count", "relation"],
        },
        "rewards": REWARDS[args.reward],
        "held_out_rewards": HELD_OUT[args.reward],
        "sampler": {"num_steps": 10, "noise_level": 1.0},
        "method": section,
        "budget": budget,
    }
    return mapping_for(STEER, mapping)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The built-in model, or a tuned one, and where its cells are kept."""

    pipe: DiffusionPipeline
    lora: str | None
    cells: Path


Row = dict[str, float]


def cell(args: argparse.Namespace, model: Model, method: str, budget: int | None, seed: int) -> Row:
    """Mean scores and costs of one method, budget and seed; read where they are known."""
    name = f"{args.reward}-{args.prompts}-{method}-{budget}-{seed}.json".replace(" ", "_")
    path = model.cells / name
    if path.exists():
        return json.loads(path.read_text())
    config = job(args, method, budget, seed, model.lora)
    found = run_method(assemble_steering(config, pipe=model.pipe), config.method, budget=budget)
    row = {score: found.mean(score) for score in found.scores}
    row |= {f"cost {key}": value for key, value in found.costs.as_dict().items()}
    row["particles"] = found.particles
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    return row


def told(name: str, rows: list[Row], others: dict[str, list[Row]]) -> None:
    """One line of the table, with paired gains of the steered score over other rows."""
    scores = [key for key in rows[0] if not key.startswith("cost") and key != "particles"]
    means = "  ".join(
        f"{score} {mean_interval([row[score] for row in rows]).mean:.3f}" for score in scores
    )
    gains = "".join(
        f"  over {other} {gain(rows, base)}" for other, base in others.items() if base is not rows
    )
    evaluations = sum(row["cost network_evaluations"] for row in rows)
    decodes = sum(row["cost decodes"] for row in rows)
    print(
        f"{name:22} k={rows[0]['particles']:<3.0f} {means}"
        f"  decodes/evaluations {decodes / evaluations:.2f}{gains}",
        flush=True,
    )


def gain(rows: list[Row], base: list[Row]) -> str:
    """The paired difference of the steered score with its interval over seeds."""
    if len(rows) < 2:
        return "needs more seeds"
    reward = next(iter(rows[0]))
    d = paired_difference([row[reward] for row in rows], [row[reward] for row in base])
    return f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def table(args: argparse.Namespace, model: Model, word: str) -> dict[str, list[Row]]:
    """All rows of one model, printed, by method and budget."""
    seeds = range(args.seeds)
    plain = [cell(args, model, "none", None, seed) for seed in seeds]
    rows = {f"{word} none": plain}
    told(f"{word} none", plain, {})
    for budget in args.budgets:
        found = {
            method: [cell(args, model, method, budget, seed) for seed in seeds]
            for method in args.methods
            if method != "none"
        }
        others = {"none": plain}
        if "best_of_n" in found:
            others["best_of_n"] = found["best_of_n"]
        for method, own in found.items():
            told(f"{word} {method} {budget}", own, others)
            rows[f"{word} {method} {budget}"] = own
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="methods of steering at equal budgets")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--reward", choices=REWARDS, default="shapes")
    parser.add_argument("--budgets", type=int, nargs="+", default=[40, 80])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", default="runs/steering_study")
    parser.add_argument("--lora", help="an adapter: steer the tuned model as well")
    parser.add_argument("--tuned-output", default="runs/steering_study_tuned")
    args = parser.parse_args()
    torch.set_num_threads(1)
    section = job(args, "none", None, 0, None).model
    base = Model(pipe=load_pipeline(section, "cpu"), lora=None, cells=Path(args.output))
    rows = table(args, base, "base")
    if args.lora is None:
        return 0
    pipe = load_pipeline(section, "cpu")
    tuned = table(args, Model(pipe=pipe, lora=args.lora, cells=Path(args.tuned_output)), "tuned")
    plain = tuned["tuned none"]
    for name, own in rows.items():
        print(f"tuned none over {name}: {gain(plain, own)}", flush=True)
        if (same := name.replace("base", "tuned")) != "tuned none":
            print(f"{same} over {name}: {gain(tuned[same], own)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
