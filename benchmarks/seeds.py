"""Train configs with several seeds and print what held-out prompts say. Resumable.

    python benchmarks/seeds.py shapes_nft --seeds 0 1 2 --output runs/seeds
    python benchmarks/seeds.py shapes_grpo_decay shapes_grpo_constant --seeds 0 1 2 3 4 \
        --set train.steps=40

Two runs at a time, one thread each. A finished run is read, not repeated. With two configs the
runs are paired by seed: the same prompts, initial noise and step noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flowalign.statistics import mean_interval, sign_flip_test


def train(config: str, seed: int, folder: Path, sets: list[str]) -> None:
    """Run or resume one training; raises when it fails."""
    status = folder / "status.json"
    if status.exists() and json.loads(status.read_text())["state"] == "finished":
        return
    command = [sys.executable, "-m", "flowalign", "train", config]
    for item in (f"output={json.dumps(str(folder))}", f"seed={seed}", *sets):
        command += ["--set", item]
    if status.exists():
        command.append("--resume")
    log = folder.with_suffix(".log")
    with log.open("a") as lines:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, stdout=lines, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise SystemExit(f"{folder}: exit code {done.returncode}, see {log}")


def curve(folder: Path) -> list[dict]:
    """Summaries of a run's evaluations in order."""
    files = sorted((folder / "eval").glob("step-*/summary.json"))
    return [json.loads(file.read_text()) for file in files]


def told(config: str, seed: int, points: list[dict]) -> None:
    """One line a run: each score at every evaluation, and the seconds of training."""
    for name in points[0]["scores"]:
        values = " ".join(f"{point['scores'][name]['mean']:.3f}" for point in points)
        print(f"{config} seed {seed} {name:8s} {values}")
    seconds = " ".join(f"{point['train_seconds']:.0f}" for point in points)
    print(f"{config} seed {seed} seconds  {seconds}")


def shown(values: list[float]) -> str:
    """Mean and 95 % Student-t interval over seeds."""
    interval = mean_interval(values)
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}] n={interval.n}"


def main() -> None:
    """Train what is missing, print every curve, gains by config, and paired differences."""
    parser = argparse.ArgumentParser(description="Train configs with several seeds.")
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jobs = [(c, s, args.output / f"{Path(c).stem}-{s}") for s in args.seeds for c in args.configs]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(job[0], job[1], job[2], args.sets), jobs))
    finals: dict[tuple[str, str], list[float]] = {}
    gains: dict[tuple[str, str], list[float]] = {}
    for config, seed, folder in jobs:
        points = curve(folder)
        told(config, seed, points)
        for name, first in points[0]["scores"].items():
            last = points[-1]["scores"][name]["mean"]
            finals.setdefault((config, name), []).append(last)
            gains.setdefault((config, name), []).append(last - first["mean"])
    for (config, name), values in gains.items():
        worst = min(values)
        print(f"{config} {name}: gain {shown(values)}, smallest {worst:+.3f}")
    if len(args.configs) == 2:
        one, two = args.configs
        for name in dict.fromkeys(name for _, name in finals):
            pairs = zip(finals[one, name], finals[two, name], strict=True)
            differences = [a - b for a, b in pairs]
            p = sign_flip_test(differences)
            print(f"{one} - {two}, {name}: {shown(differences)}, sign-flip p {p:.3f}")


if __name__ == "__main__":
    main()
