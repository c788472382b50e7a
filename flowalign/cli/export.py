"""`flowalign export`: a run's adapter for plain diffusers."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowalign.cli.options import Parser, count, option
from flowalign.config.load import load_stored_config

HELP = "write a run's adapter in the format of pipe.load_lora_weights"
EXAMPLE = """\
example:
  flowalign export runs/first -o lora
  python -c "pipe.load_lora_weights('lora')"                 # plain diffusers, no flowalign
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign export`."""
    parser.add_argument("run", metavar="RUN", help="directory of a training run")
    option(parser, "--output", "-o", required=True, metavar="DIR", help="a new or empty directory")
    option(
        parser, "--step", type=count, metavar="N", help="this checkpoint; the newest when absent"
    )


def run(args: argparse.Namespace) -> int:
    """Write the adapter and say where it is."""
    load_stored_config(Path(args.run))  # a directory that is no run is told before torch loads
    from flowalign.api import export

    print(export(args.run, args.output, step=args.step))
    return 0
