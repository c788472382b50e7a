"""`flowalign reward fit`: a reward of one's own from preference pairs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from flowalign.cli.options import Parser, option
from flowalign.data.layouts import LAYOUTS, layout_named
from flowalign.errors import ConfigError

HELP = "a reward from preference pairs: a linear head on a CLIP, for reward `aesthetic`"
EXAMPLE = """\
examples:
  flowalign reward fit data/pairs.jsonl -o head.safetensors      # pairs of `flowalign collect`
  flowalign reward fit votes.jsonl -o head.safetensors --model openai/clip-vit-large-patch14

Then `rewards: [{name: aesthetic, model: shapes, head: head.safetensors}]`.
"""
WHERE = "flowalign reward fit"


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign reward fit`."""
    parser.add_argument("pairs", metavar="PAIRS", help="as for `flowalign data check`")
    option(
        parser,
        "--output",
        "-o",
        required=True,
        metavar="FILE",
        help="the head, a .safetensors file",
    )
    option(
        parser,
        "--model",
        default="shapes",
        metavar="NAME",
        help="the CLIP: `shapes` (default), a folder or a Hub id",
    )
    option(parser, "--revision", metavar="COMMIT", help="of the Hub repository")
    option(parser, "--dimension", metavar="NAME", help="where pairs are judged in several")
    option(
        parser,
        "--held-out",
        type=_share,
        default=0.2,
        metavar="SHARE",
        help="of the prompts, to measure the accuracy on; default 0.2",
    )
    option(
        parser,
        "--penalty",
        type=_positive,
        default=1e-3,
        metavar="X",
        help="of the squared length of the head; default 0.001",
    )
    option(parser, "--seed", type=int, default=0, metavar="N", help="of the split; default 0")
    names = ", ".join(layout.name for layout in LAYOUTS)
    option(parser, "--layout", metavar="NAME", help=f"{names}; found out when absent")
    option(parser, "--media-folder", metavar="DIR", help="media paths are relative to it")
    option(parser, "--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:N")


def run(args: argparse.Namespace) -> int:
    """Fit, write the head, print the accuracies."""
    output = Path(args.output)
    if output.suffix != ".safetensors":
        what = f"`{output}` is no .safetensors file"
        raise ConfigError("CLI-USAGE", f"{WHERE} --output", what, "name it head.safetensors")
    if not output.parent.is_dir():
        raise ConfigError(
            "CLI-USAGE", f"{WHERE} --output", f"no folder `{output.parent}`", "make it"
        )
    layout = None if args.layout is None else layout_named(args.layout)

    from flowalign.processes import usable_device
    from flowalign.reward_fitting import fit_head, read_judged, write_head
    from flowalign.rewards.clip import load_towers

    device = usable_device(args.device)
    towers = load_towers(args.model, args.revision or "main", device, reward="aesthetic")
    judged = read_judged(
        Path(args.pairs),
        towers,
        dimension=args.dimension,
        layout=layout,
        media_folder=None if args.media_folder is None else Path(args.media_folder),
    )
    tensors, report = fit_head(judged, penalty=args.penalty, share=args.held_out, seed=args.seed)
    write_head(output, tensors)
    for line in report.lines():
        print(line)
    print(f"wrote {output}: rewards: [{{name: aesthetic, model: {args.model}, head: {output}}}]")
    return 0


def _share(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
