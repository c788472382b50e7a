"""`flowalign reward`: what can be done with one reward besides scoring."""

from __future__ import annotations

import argparse
from types import ModuleType

from flowalign.cli import reward_check, reward_fit, reward_noisy
from flowalign.cli.options import Parser

HELP = "check a reward, fit one to preference pairs, train one on noisy latents"
EXAMPLE = """\
examples:
  flowalign reward check jpeg                                  # on built-in pictures
  flowalign reward check my.py:Sharpness --allow-code my.py    # your own
  flowalign reward fit pairs.jsonl -o head.safetensors         # a head for reward `aesthetic`
"""

ACTIONS: dict[str, ModuleType] = {
    "check": reward_check,
    "fit": reward_fit,
    "train-noisy": reward_noisy,
}


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign reward`: those of its actions."""
    found = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    for name, module in ACTIONS.items():
        command = found.add_parser(
            name, help=module.HELP, description=module.HELP, epilog=module.EXAMPLE
        )
        assert isinstance(command, Parser)
        module.add_options(command)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return ACTIONS[args.action].run(args)
