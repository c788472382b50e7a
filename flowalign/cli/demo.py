"""`flowalign demo`: train, compare, look, in some minutes on two cores."""

from __future__ import annotations

import argparse

from flowalign.cli.options import Parser, option, seed

HELP = "fine-tune the built-in model in two ways and open a gallery: minutes on a laptop"
EXAMPLE = """\
example:
  flowalign demo -o runs/demo                                # then open the page it names
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign demo`."""
    option(parser, "--output", "-o", metavar="DIR", help="default runs/demo, runs/demo-2, ...")
    option(parser, "--seed", type=seed, default=0, metavar="N", help="default 0")


def run(args: argparse.Namespace) -> int:
    """Run the demo; print what was gained and where the page is."""
    from pathlib import Path

    from flowalign.demo import next_free, run_demo

    output = args.output or next_free(Path("runs/demo"))
    page, gains = run_demo(output, seed=args.seed)
    for gain in gains:
        interval = gain.difference
        print(
            f"{gain.run}: {gain.score} {gain.base:.3f} -> {gain.tuned:.3f}, "
            f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
        )
    print(f"open {page.resolve().as_uri()}")
    return 0
