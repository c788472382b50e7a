"""How often a model trained by DRAGON beats its start on the set reward it was trained on.

    python -m benchmarks.dragon --seeds 1 --output runs/dragon

Trains `shapes_dragon_fd` once for each reward of sets, and draws pictures of held-out prompts from
equal noise before and after. The win rate (DRAGON, arXiv 2504.15217) is the share of random subsets
of prompts on which the trained model's set has the higher reward. The verifier tells what it cost.
Resumable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.seeds import train
from flowalign.config.jobs import STEER
from flowalign.config.load import load_config, mapping_for
from flowalign.protocols import SetReward
from flowalign.scoring import build_suite
from flowalign.statistics import paired_difference
from flowalign.steering.outcome import Steered
from flowalign.steering.session import assemble_steering, run_method

CONFIG = "shapes_dragon_fd"
REWARDS = {
    "vendi": {"name": "vendi"},
    "frechet": {"name": "frechet", "exemplars": "shapes:pictures"},
    "mmd": {"name": "mmd", "exemplars": "shapes:pictures"},
    "centroid": {"name": "centroid", "exemplars": "shapes:pictures"},
}
NUM_SUBSETS, SUBSET = 400, 96


def settings(name: str) -> list[str]:
    """Overrides that train on one set reward."""
    return [
        f"rewards=[{json.dumps(REWARDS[name])}]",
        'held_out_rewards=[{"name": "shapes"}]',
        "evaluation.num_prompts=32",
    ]


def drawn(num_prompts: int, seed: int, lora: str | None) -> Steered:
    """One picture of each held-out prompt, scored by the verifier."""
    mapping = {
        "output": "unused",
        "seed": seed,
        "device": "cpu",
        "model": {"name": "shapes", "call": {"max_sequence_length": 0}},
        "lora": None if lora is None else {"init_from": lora},
        "prompts": {"num_prompts": num_prompts, "categories": ["two", "count", "relation"]},
        "rewards": ["shapes"],
        "sampler": {"name": "ode", "num_steps": 10},
        "method": "none",
        "batch_size": 96,
    }
    config = mapping_for(STEER, mapping)
    return run_method(assemble_steering(config), config.method, budget=None)


def win_rate(reward: SetReward, ours: Tensor, theirs: Tensor, seed: int) -> float:
    """Share of subsets of prompts on which `ours` (n, D) has the higher reward, ties half."""
    key = torch.Generator().manual_seed(seed)
    wins = 0.0
    for _ in range(NUM_SUBSETS):
        rows = torch.randperm(len(ours), generator=key)[:SUBSET]
        one, other = reward.score(ours[rows]), reward.score(theirs[rows])
        wins += 0.5 if one == other else float(one > other)
    return wins / NUM_SUBSETS


def features(reward: SetReward, steered: Steered) -> Tensor:
    """(n, D); the encoder of the built-in world fails on no picture."""
    found, valid = reward.features(steered.samples)
    assert bool(valid.all()), "a picture without features"
    return found


def compared(name: str, seed: int, base: Steered, tuned: Steered) -> float:
    """Print one line, and return the win rate."""
    shipped = load_config(CONFIG, settings(name)).config
    reward = build_suite(shipped.rewards).sets[name]
    ours, theirs = features(reward, tuned), features(reward, base)
    rate = win_rate(reward, ours, theirs, seed)
    cost = paired_difference(tuned.scores["shapes"].tolist(), base.scores["shapes"].tolist())
    print(
        f"{name:9s} seed {seed}: win rate {rate:.3f}, all prompts {reward.score(theirs):.4f} ->"
        f" {reward.score(ours):.4f}, verifier {cost.mean:+.3f} [{cost.low:+.3f}, {cost.high:+.3f}]",
        flush=True,
    )
    return rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and print win rates."""
    parser = argparse.ArgumentParser(description="Win rates of DRAGON over its set rewards.")
    parser.add_argument("rewards", nargs="*", default=list(REWARDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--prompts", type=int, default=384)
    parser.add_argument("--output", type=Path, default=Path("runs/dragon"))
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    rates = []
    for seed in args.seeds:
        base = drawn(args.prompts, seed, None)
        for name in args.rewards:
            folder = args.output / f"{name}-{seed}"
            train(CONFIG, seed, folder, settings(name))
            tuned = drawn(args.prompts, seed, str(folder / "lora"))
            rates.append(compared(name, seed, base, tuned))
    print(f"mean win rate over {len(rates)} runs {sum(rates) / len(rates):.3f}")


if __name__ == "__main__":
    main()
