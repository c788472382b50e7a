"""What a training epoch costs beyond the passes it cannot do without, and what is saved.

    python -m benchmarks.epoch                 # everything: some ten minutes
    python -m benchmarks.epoch --rounds 3 --sizes nano

Random StableDiffusion3 pipelines on the CPU, Flow-GRPO's recipe. "bare" is the same number of
transformer passes of the same shapes in a plain loop. Ratios are medians over interleaved pairs.
`must` is what we promise, `aim` what we would like; the exit code is 1 when a must is missed by
more than 5 percent.
"""

from __future__ import annotations

import argparse
import operator
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from benchmarks.models import NANO, SMALL
from benchmarks.training import (
    Recipe,
    bare_seconds,
    epoch_seconds,
    first_update,
    gradient,
    paired,
    passes_of,
    text_calls,
    training,
    update_seconds,
)

SIZES = {"nano": NANO, "small": SMALL}
SLACK = 1.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A number with its bounds; `at_most` says on which side it should be."""

    name: str
    what: str
    must: float
    aim: float
    at_most: bool

    def verdict(self, value: float) -> str:
        """aim reached, must held, within 5 percent, or missed."""
        better = operator.le if self.at_most else operator.ge
        slack = SLACK if self.at_most else 1 / SLACK
        if better(value, self.aim):
            return "aim reached"
        if better(value, self.must):
            return "must held"
        return "within 5 %" if better(value, self.must * slack) else "MISSED"


def report(goal: Goal, values: Sequence[float]) -> bool:
    """Print one line; whether the goal's must is held within the slack."""
    value = median(values)
    spread = f"[{min(values):.3g} .. {max(values):.3g}]" if len(values) > 1 else ""
    sign = "<=" if goal.at_most else ">="
    verdict = goal.verdict(value)
    print(
        f"{goal.name:4} {goal.what:58} {value:9.3g} {spread:18} "
        f"must {sign} {goal.must:<6g} aim {sign} {goal.aim:<6g} {verdict}",
        flush=True,
    )
    return verdict != "MISSED"


def overhead(size: str, rounds: int) -> bool:
    """C1, C2: our epoch against its passes alone."""
    with training(Recipe(size=SIZES[size])) as loop:
        passes = passes_of(loop)
        pairs = paired(lambda: epoch_seconds(loop), lambda: bare_seconds(loop, passes), rounds)
    print(f"     {size}: epoch {median(a for a, _ in pairs):.2f} s of CPU, {len(passes)} passes")
    goal = (
        Goal(name="C1", what="epoch / bare passes, small", must=1.05, aim=1.02, at_most=True)
        if size == "small"
        else Goal(name="C2", what="epoch / bare passes, nano", must=1.15, aim=1.08, at_most=True)
    )
    return report(goal, [a / b for a, b in pairs])


def speed_up(
    goal: Goal,
    plain: Recipe,
    faster: Recipe,
    seconds: Callable[..., float],
    rounds: int,
) -> bool:
    """C3 to C5: plain mode against a faster one."""
    with training(plain) as slow, training(faster) as fast:
        pairs = paired(lambda: seconds(slow), lambda: seconds(fast), rounds)
    return report(goal, [a / b for a, b in pairs])


def speed_ups(size: str, rounds: int) -> bool:
    """C3 to C5 on one size. The exact mode of C3 and C4 does without reuse."""
    exact = Recipe(size=SIZES[size], reuse=False)
    plain = replace(exact, exact=False)
    full = replace(exact, lora=False, beta=0.0)
    c3 = Goal(
        name="C3",
        what=f"epoch, plain / exact, LoRA beta 0.04, {size}",
        must=1.15,
        aim=1.22,
        at_most=False,
    )
    c4 = replace(
        c3, name="C4", what=f"epoch, plain / exact, full beta 0, {size}", must=1.25, aim=1.35
    )
    c5 = replace(
        c3, name="C5", what=f"on-policy update, plain / exact + reuse, {size}", must=1.4, aim=1.5
    )
    good = speed_up(c3, plain, exact, epoch_seconds, rounds)
    good &= speed_up(c4, replace(full, exact=False), full, epoch_seconds, rounds)
    for beta in (0.04, 0.0):
        goal = replace(c5, what=f"{c5.what}, LoRA beta {beta:g}")
        reuse = replace(exact, reuse=True, updates=1, beta=beta)
        slow = replace(plain, updates=1, beta=beta)
        good &= speed_up(goal, slow, reuse, update_seconds, rounds)
    return good


def equality(size: str) -> bool:
    """C6, C7: gradients of the three modes, and ratios at the first update."""
    with training(Recipe(size=SIZES[size], updates=1, clip_range=1e3)) as loop:
        batches = first_update(loop)
        plain = gradient(loop, batches, fresh=False, without_graph=False)
        exact = gradient(loop, batches, fresh=False, without_graph=True)
        reuse = gradient(loop, batches, fresh=True, without_graph=True)
        with torch.no_grad():
            offs = [
                float(loop.session.algorithm.loss(loop.session.policy, batch)[1]["ratio_off_max"])
                for batch in batches
            ]
    c6 = Goal(name="C6", what="", must=1e-5, aim=1e-6, at_most=True)
    good = True
    for name, other in (("exact", exact), ("exact + reuse", reuse)):
        goal = replace(c6, what=f"relative gradient difference to plain, {name}, {size}")
        good &= report(goal, [float((other - plain).norm() / plain.norm())])
    c7 = replace(c6, name="C7", what=f"max |ratio - 1| at the first update, {size}")
    return good & report(c7, [max(offs)])


def text(size: str) -> bool:
    """C10: calls of the text encoders in one epoch of 2 prompts."""
    with training(Recipe(size=SIZES[size])) as loop:
        counts = text_calls(loop)
    goal = Goal(
        name="C10", what="calls of a text encoder / distinct prompts", must=1, aim=1, at_most=True
    )
    return report(goal, [count / 2 for count in counts.values()])


def memory(size: str, exact: bool) -> None:
    """Print the peak memory of a process that trains one epoch."""
    with training(Recipe(size=SIZES[size], exact=exact)) as loop:
        loop.training_step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"     {size}, {'exact' if exact else 'plain'}: peak memory {peak:.0f} MiB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="cost of a training epoch")
    parser.add_argument("--rounds", type=int, default=7, help="counted pairs of each ratio")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", choices=("plain", "exact"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory is not None:
        memory(args.sizes[0], args.memory == "exact")
        return 0
    good = True
    for size in args.sizes:
        good &= overhead(size, args.rounds)
    for size in args.sizes:
        good &= equality(size)
        good &= text(size)
        for name in ("plain", "exact"):
            command = [sys.executable, "-m", "benchmarks.epoch", "--memory", name, "--sizes", size]
            subprocess.run(command, check=True)
    if "small" in args.sizes:
        good &= speed_ups("small", args.rounds)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
