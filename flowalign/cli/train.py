"""`flowalign train`: one config is one run."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flowalign.cli.options import Parser, count, option, seed
from flowalign.config.load import Loaded, dump_config, load_config, shipped_configs
from flowalign.errors import CheckpointError

if TYPE_CHECKING:
    from flowalign.api import TrainResult

HELP = "fine-tune a generator with rewards, as a config says"
EXAMPLE = """\
examples:
  flowalign train shapes_nft                                   # a shipped config by name
  flowalign train run.yaml --set train.learning_rate=1e-4 --set sampler.noise=cosine
  flowalign train run.yaml --dry-run                           # build all, one step, leave nothing
  flowalign train runs/first --resume                          # go on after an interruption
  flowalign train run.yaml --allow-code my_rewards.py          # reward `my_rewards.py:Sharpness`
  torchrun --nproc_per_node 2 -m flowalign train run.yaml      # two processes
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign train`."""
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="a YAML file, the name of a shipped config, or with --resume a run's directory",
    )
    add_set(parser)
    option(parser, "--output", metavar="DIR", help="the same as --set output=DIR")
    option(parser, "--seed", type=seed, metavar="N", help="the same as --set seed=N")
    option(parser, "--steps", type=count, metavar="N", help="the same as --set train.steps=N")
    option(parser, "--device", metavar="NAME", help="the same as --set device=NAME")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument(
        "--override-resume",
        action="append",
        default=[],
        metavar="KEY",
        help="with --resume: this key may differ from the interrupted run (repeatable)",
    )
    parser.add_argument(
        "--allow-world-size-change",
        action="store_true",
        help="with --resume: another number of processes than before",
    )
    add_allow_code(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="build everything, run one step, leave nothing"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )


def add_set(parser: Parser) -> None:
    """`--set`, as all commands that read a config have it."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key, for example --set rewards.0.weight=2 (repeatable)",
    )


def add_allow_code(parser: Parser) -> None:
    """`--allow-code`, as all commands that may run a user's reward have it."""
    parser.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file of yours that rewards may come from (repeatable)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, or print what would be trained."""
    config = loaded(args).config
    if args.print_config:
        print(dump_config(config), end="")
        return 0
    from flowalign.api import train

    result = train(
        config,
        resume=args.resume,
        dry_run=args.dry_run,
        allow_code=args.allow_code,
        override_resume=args.override_resume,
        allow_world_size_change=args.allow_world_size_change,
    )
    if os.environ.get("RANK", "0") == "0":
        tell(result, dry_run=args.dry_run)
    return 0


def tell(result: TrainResult, *, dry_run: bool) -> None:
    """Print each score before and after, and where the run is."""
    width = max(len(name) for name in result.scores) if result.scores else 0
    for name, score in result.scores.items():
        before = result.base_scores.get(name)
        print(f"{name:{width}}  {'' if before is None else f'{before:.4f} -> '}{score:.4f}")
    print("dry run passed" if dry_run else f"step {result.step}: {result.run}")


def loaded(args: argparse.Namespace) -> Loaded:
    """The config that the arguments describe."""
    sets = list(args.set)
    given = (
        ("output", args.output),
        ("seed", args.seed),
        ("train.steps", args.steps),
        ("device", args.device),
    )
    sets += [f"{key}={json.dumps(value)}" for key, value in given if value is not None]
    path = Path(args.config)
    if not args.resume or path.is_file() or args.config in shipped_configs():
        return load_config(args.config, sets, args.allow_code)
    if not (path / "config.yaml").is_file():
        what = "nothing to resume: " + ("it holds no run" if path.is_dir() else "no such directory")
        fix = "start it without --resume, or correct the path"
        raise CheckpointError("CKPT-NONE", args.config, what, fix)
    stored = load_config(path / "config.yaml", sets, args.allow_code)
    if args.output is None and Path(stored.config.output).resolve() != path.resolve():
        return load_config(
            path / "config.yaml", [*sets, f"output={json.dumps(args.config)}"], args.allow_code
        )
    return stored
