"""`flowalign gallery`: one static page that compares runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowalign.cli.options import Parser, option

HELP = "build one static page that compares runs, steps and the base model"
EXAMPLE = """\
example:
  flowalign gallery runs/nft runs/grpo_decay -o gallery      # then open gallery/index.html
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign gallery`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of training runs")
    option(parser, "--output", "-o", required=True, metavar="DIR", help="where the page goes")
    option(parser, "--title", metavar="TEXT", help="the page's title")


def run(args: argparse.Namespace) -> int:
    """Build the page and say where it is."""
    from flowalign.gallery.page import build_gallery

    runs = [Path(name) for name in args.runs]
    options = {} if args.title is None else {"title": args.title}
    print(build_gallery(runs, Path(args.output), **options))
    return 0
