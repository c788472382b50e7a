"""`flowalign reward train-noisy`: a reward network on noisy latents, for `flow_nrg`."""

from __future__ import annotations

import argparse
import json

from flowalign.cli.options import Parser, count, option, seed
from flowalign.cli.train import add_allow_code, add_set
from flowalign.config.jobs import NOISY
from flowalign.config.load import dump_config, load_for
from flowalign.config.noisy_reward import NoisyRewardConfig

HELP = "train a reward network on noisy latents, for method flow_nrg"
EXAMPLE = """\
examples:
  flowalign reward train-noisy shapes_noisy_reward             # a shipped config by name
  flowalign reward train-noisy mine.yaml --set data.path=scored.jsonl --output rewards/mine
  flowalign steer mine_steer.yaml --set method.reward=rewards/mine
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign reward train-noisy`."""
    parser.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or the name of a shipped config"
    )
    add_set(parser)
    option(parser, "--output", metavar="DIR", help="the same as --set output=DIR")
    option(parser, "--seed", type=seed, metavar="N", help="the same as --set seed=N")
    option(parser, "--steps", type=count, metavar="N", help="the same as --set train.steps=N")
    option(parser, "--device", metavar="NAME", help="the same as --set device=NAME")
    add_allow_code(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or print what would be done."""
    config = loaded(args)
    if args.print_config:
        print(dump_config(config), end="")
        return 0
    from flowalign.noisy_reward.job import train_noisy

    card = train_noisy(config, allow_code=args.allow_code)
    print("held-out pairs in the right order, by level (0 is clean):")
    for name, found in card.trained["pairwise_accuracy_by_level"].items():
        shown = "  ".join(f"{t}: {'-' if v is None else f'{v:.2f}'}" for t, v in found.items())
        print(f"  {name}  {shown}")
    print(config.output)
    return 0


def loaded(args: argparse.Namespace) -> NoisyRewardConfig:
    """The config that the arguments describe."""
    given = (
        ("output", args.output),
        ("seed", args.seed),
        ("train.steps", args.steps),
        ("device", args.device),
    )
    sets = [f"{key}={json.dumps(value)}" for key, value in given if value is not None]
    return load_for(NOISY, args.config, [*args.set, *sets], args.allow_code).config
