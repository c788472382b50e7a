"""`flowalign gallery`: one static page that compares runs."""

from __future__ import annotations

import argparse

from flowalign.cli.options import Parser, option

HELP = "build one static page that compares runs, steps and the base model"
EXAMPLE = """\
example:
  flowalign gallery runs/nft runs/grpo_decay -o gallery      # then open gallery/index.html
  flowalign gallery runs/shapes_steer_compare -o gallery     # methods of steering, family trees
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign gallery`."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="directories of training runs and steering jobs"
    )
    option(parser, "--output", "-o", required=True, metavar="DIR", help="where the page goes")
    option(parser, "--title", metavar="TEXT", help="the page's title")
    parser.add_argument(
        "--name", action="append", metavar="TEXT", help="name of a run, in their order (repeatable)"
    )
    option(
        parser,
        "--steps",
        default="auto",
        metavar="WHICH",
        help="auto (default), all, ends, or numbers with commas: 0,50,100",
    )
    parser.add_argument(
        "--strict", action="store_true", help="a missing picture is an error, not a gap"
    )


def run(args: argparse.Namespace) -> int:
    """Build the page and say where it is."""
    from flowalign.gallery import build_gallery, parse_steps

    page = build_gallery(
        args.runs,
        args.output,
        title=args.title,
        names=args.name,
        steps=parse_steps(args.steps),
        strict=args.strict,
    )
    print(page)
    return 0
