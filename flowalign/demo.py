"""`flowalign demo`: two training runs side by side on two cores, then one gallery. Torch-free.

Each run is a process of its own, exactly what `flowalign train` would start.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flowalign.errors import ProcessError, ResourceError
from flowalign.gallery.page import build_gallery
from flowalign.statistics import Interval, paired_difference

RUNS = {"nft": "shapes_demo_nft", "grpo_decay": "shapes_demo_grpo"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A score of the tuned model against the base on the same prompts and seeds."""

    run: str
    score: str
    base: float
    tuned: float
    difference: Interval


def next_free(folder: Path) -> Path:
    """`folder`, or `folder-2`, `folder-3`, ... : the first that is absent or empty."""
    for number in itertools.count(1):
        found = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not found.exists() or (found.is_dir() and not any(found.iterdir())):
            return found
    raise AssertionError


def run_demo(
    output: str | Path, *, seed: int = 0, tell: Callable[[str], None] = print
) -> tuple[Path, list[Gain]]:
    """Train both demo configs, build the gallery, return its page and the gains.

    Raises ResourceError (exit 7) when `output` is not empty, ProcessError (exit 6) when a run
    fails; its own last line was printed before.
    """
    root = Path(output)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ResourceError(
            "RUN-OUTPUT", str(root), "exists and is not empty", "choose another --output"
        )
    commands = {
        name: [
            *(sys.executable, "-m", "flowalign", "train", config),
            *("--set", f"output={json.dumps(str(root / name))}", "--set", f"seed={seed}"),
        ]
        for name, config in RUNS.items()
    }
    run_together(commands, tell)
    page = build_gallery([root / name for name in RUNS], root / "gallery", title="flowalign demo")
    gains = [gain for name in RUNS for gain in gains_of(root / name, ("shapes", "strict"))]
    return page, gains


def run_together(commands: Mapping[str, Sequence[str]], tell: Callable[[str], None]) -> None:
    """Run the commands at once, one thread each; stop all when one fails or on Ctrl-C."""
    threads = str(max(1, (os.cpu_count() or 2) // len(commands)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    running: dict[str, subprocess.Popen[str]] = {}
    readers: list[threading.Thread] = []
    try:
        for name, command in commands.items():
            process = subprocess.Popen(
                list(command),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            running[name] = process
            assert process.stdout is not None
            reader = threading.Thread(target=relay, args=(name, process.stdout, tell), daemon=True)
            reader.start()
            readers.append(reader)
        failed = first_failure(running)
    except KeyboardInterrupt:
        stop(running)
        raise
    if failed is not None:
        stop(running)
    for reader in readers:
        reader.join()
    if failed is not None:
        code = running[failed].returncode
        raise ProcessError(
            "DEMO-RUN", f"run {failed}", f"ended with exit code {code}", "see its lines above"
        )


def first_failure(running: Mapping[str, subprocess.Popen[str]]) -> str | None:
    """Wait for all; the name of the first that fails, as soon as it does."""
    waiting = dict(running)
    while waiting:
        for name, process in list(waiting.items()):
            try:
                code = process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            del waiting[name]
            if code != 0:
                return name
    return None


def stop(running: Mapping[str, subprocess.Popen[str]]) -> None:
    """Ask the runs to save and stop, and wait for them."""
    for process in running.values():
        if process.poll() is None:
            process.terminate()
    for process in running.values():
        process.wait()


def relay(name: str, lines: IO[str], tell: Callable[[str], None]) -> None:
    """Pass a run's lines on, each with the run's name."""
    for line in lines:
        if line.strip():
            tell(f"[{name}] {line.rstrip()}")


def gains_of(run: Path, scores: Sequence[str]) -> list[Gain]:
    """Last evaluation against the first, paired by prompt and sample."""
    folders = sorted((run / "eval").glob("step-*"))
    base, tuned = read_scores(folders[0]), read_scores(folders[-1])
    gains = []
    for score in scores:
        keys = [k for k in base if base[k][score] is not None and tuned[k][score] is not None]
        before = [float(base[k][score] or 0.0) for k in keys]
        after = [float(tuned[k][score] or 0.0) for k in keys]
        gains.append(
            Gain(
                run=run.name,
                score=score,
                base=sum(before) / len(keys),
                tuned=sum(after) / len(keys),
                difference=paired_difference(after, before),
            )
        )
    return gains


def read_scores(folder: Path) -> dict[tuple[int, int], dict[str, float | None]]:
    """Scores by (prompt_id, sample_id)."""
    rows = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(row) for row in rows]
    return {(row["prompt_id"], row["sample_id"]): row["scores"] for row in parsed}
