"""`flowalign reward check`: is a reward fit to be learned from?"""

from __future__ import annotations

import argparse

from flowalign.cli.options import Parser, count, option
from flowalign.cli.serve import wanted_rewards
from flowalign.cli.train import add_allow_code
from flowalign.config.rewards import is_set
from flowalign.errors import ConfigError

HELP = "check a reward: pure, independent of batch and order, gradients, range, speed"
EXAMPLE = """\
examples:
  flowalign reward check jpeg                                  # on built-in pictures
  flowalign reward check clip --media drawn                    # on a folder of `flowalign sample`
  flowalign reward check aesthetic --config run.yaml           # with the settings of a config
  flowalign reward check my.py:Sharpness --allow-code my.py --media a.png b.png

Exit code 0 when nothing is wrong, 5 with the findings otherwise.
"""
WHERE = "flowalign reward check"
NUM_SAMPLES = 20


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign reward check`."""
    parser.add_argument(
        "reward", metavar="NAME", help="of `flowalign list rewards`, file.py:Name, or a label"
    )
    parser.add_argument(
        "--media",
        nargs="+",
        default=(),
        metavar="FILE",
        help="media files, manifests, or folders with one; built-in pictures when absent",
    )
    option(parser, "--config", metavar="FILE", help="YAML with `rewards`, for the settings")
    option(
        parser,
        "--prompt",
        metavar="TEXT",
        help="the prompt of files that are named directly, or of the built-in pictures",
    )
    option(
        parser,
        "--samples",
        type=count,
        default=NUM_SAMPLES,
        metavar="N",
        help=f"number of built-in pictures; default {NUM_SAMPLES}",
    )
    option(parser, "--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:N")
    add_allow_code(parser)


def run(args: argparse.Namespace) -> int:
    """Print what was checked and what was found."""
    args.rewards = [args.reward]
    config = wanted_rewards(args, WHERE)[0]
    if is_set(config):
        what = f"`{args.reward}` scores whole sets, and the check is about single samples"
        raise ConfigError("CFG-SET-REWARD", WHERE, what, "name another reward")
    from flowalign.reward_report import built_in_samples, examine
    from flowalign.scoring import build_suite
    from flowalign.scoring_session import read_samples

    entry = build_suite([config], allow_code=args.allow_code, device=args.device).entries[0]
    if args.media:
        samples = read_samples(args.media, [config], prompt=args.prompt)
    else:
        samples = built_in_samples(args.samples, entry.reward.modality, prompt=args.prompt)
    report = examine(entry, samples)
    for line in report.lines():
        print(line)
    if (error := report.error()) is not None:
        raise error
    return 0
