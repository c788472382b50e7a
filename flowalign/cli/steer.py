"""`flowalign steer`: better samples from a model as it is, as a config says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flowalign.cli.options import Parser, count, option, seed
from flowalign.cli.train import add_allow_code, add_set
from flowalign.config.jobs import STEER
from flowalign.config.load import dump_config, load_for
from flowalign.config.steering import SteerConfig

if TYPE_CHECKING:
    from flowalign.steering.outcome import Steered, SteerResult

HELP = "draw better samples by rewards at sampling time, without training"
EXAMPLE = """\
examples:
  flowalign steer shapes_steer_fk                              # a shipped config by name
  flowalign steer shapes_steer_fk --set method.particles=8 --set method.preview=linear
  flowalign steer shapes_steer_fk --budget 80 --set method=best_of_n --output runs/best
  flowalign steer shapes_steer_compare                  # several methods at one budget
  flowalign steer shapes_steer_fk --set lora.init_from=runs/first/lora    # a tuned model
  flowalign gallery runs/shapes_steer_fk runs/best -o gallery
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign steer`."""
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or the name of a shipped config"
    )
    add_set(parser)
    option(parser, "--output", metavar="DIR", help="the same as --set output=DIR")
    option(parser, "--seed", type=seed, metavar="N", help="the same as --set seed=N")
    option(parser, "--budget", type=count, metavar="N", help="the same as --set budget=N")
    option(parser, "--device", metavar="NAME", help="the same as --set device=NAME")
    add_allow_code(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Steer, or print what would be done."""
    config = loaded(args)
    if args.print_config:
        print(dump_config(config), end="")
        return 0
    from flowalign.steering.job import run_steering

    tell(run_steering(config, allow_code=args.allow_code))
    return 0


def loaded(args: argparse.Namespace) -> SteerConfig:
    """The config that the arguments describe."""
    given = (
        ("output", args.output),
        ("seed", args.seed),
        ("budget", args.budget),
        ("device", args.device),
    )
    sets = [f"{key}={json.dumps(value)}" for key, value in given if value is not None]
    return load_for(STEER, args.config, [*args.set, *sets], args.allow_code).config


def tell(result: SteerResult) -> None:
    """Print each score without and with steering, what it took, and where the files are."""
    if len(result.columns) > 1:
        found = [*([] if result.baseline is None else [result.baseline]), *result.columns]
        print("\n".join(comparison(found)))
    else:
        tell_one(result)
    if result.run is not None:
        print(result.run)


def tell_one(result: SteerResult) -> None:
    """Each score without and with steering, and what it took."""
    steered, baseline = result.steered, result.baseline
    width = max(len(name) for name in steered.scores)
    for name in steered.scores:
        before = "" if baseline is None else f"{baseline.mean(name):.4f} -> "
        print(f"{name:{width}}  {before}{steered.mean(name):.4f}")
    costs = steered.costs
    passes = costs.noisy_reward_passes
    guided = f"{passes} passes of the noisy reward, " if passes else ""
    print(
        f"{steered.method}, {steered.particles} particles: "
        f"{costs.network_evaluations} network evaluations, {guided}{costs.decodes} decodes, "
        f"{costs.reward_calls} reward calls, {costs.seconds:.1f} s, "
        f"{costs.peak_memory_mib:.0f} MiB at most"
    )


def comparison(found: Sequence[Steered]) -> Iterator[str]:
    """A table: a line for each method and budget, with mean scores and what a population took."""
    names = list(found[0].scores)
    head = ["method", "budget", "k", *names, "evaluations", "decodes", "rewards", "seconds", "MiB"]
    rows = [head, *(compared(steered, names) for steered in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells)
    yield "evaluations, decodes and rewards (calls) are those of one population, seconds of all"


def compared(steered: Steered, names: Sequence[str]) -> list[str]:
    """The cells of one line."""
    costs, count = steered.costs, len(steered.populations)
    spent = (costs.network_evaluations, costs.decodes, costs.reward_calls)
    return [
        steered.label,
        "-" if steered.budget is None else str(steered.budget),
        str(steered.particles),
        *(f"{steered.mean(name):.4f}" for name in names),
        *(f"{total / count:.4g}" for total in spent),
        f"{costs.seconds:.1f}",
        f"{costs.peak_memory_mib:.0f}",
    ]
