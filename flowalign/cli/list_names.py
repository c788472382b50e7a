"""`flowalign list`: what ships, by its short names."""

from __future__ import annotations

import argparse
import textwrap

from flowalign.cards import card_of, facts_of
from flowalign.catalog import KINDS, Entry
from flowalign.cli.options import Parser, known_name
from flowalign.config.reference import default_of, meaning_of
from flowalign.config.tree import expected, keys
from flowalign.errors import ConfigError

HELP = "list algorithms, rewards, samplers, schedules, models, pipelines, configs or prompts"
EXAMPLE = """\
examples:
  flowalign list rewards
  flowalign list rewards ocr               # its card and its settings
  flowalign list rewards --long            # range, gradients, licence and cost of each
  flowalign list pipelines                 # classes of diffusers, and how each of them works
"""
WIDTH = 100


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign list`."""
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of them: all about it")
    parser.add_argument("--long", action="store_true", help="of rewards: the facts of their cards")


def run(args: argparse.Namespace) -> int:
    """Print a line for each name, or all about one."""
    known_name(args.kind, tuple(KINDS), "flowalign list", "kind")
    if args.long and (args.kind != "rewards" or args.name is not None):
        what, fix = "--long is for all rewards", "write `flowalign list rewards --long`"
        raise ConfigError("CLI-USAGE", "flowalign list", what, fix)
    entries = KINDS[args.kind]()
    if args.name is not None:
        known_name(
            args.name, [entry.name for entry in entries], f"flowalign list {args.kind}", "name"
        )
        entry = next(entry for entry in entries if entry.name == args.name)
        print(card_of(entry, entries).strip())
        if args.kind == "rewards":
            print_settings(entry)
        return 0
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        print(f"{entry.name:{width}}  {entry.doc}")
        if args.long:
            for name, text in facts_of(card_of(entry, entries)):
                start = f"  {name:14}  "
                print(textwrap.fill(f"{start}{text}", WIDTH, subsequent_indent=" " * len(start)))
    return 0


def print_settings(entry: Entry) -> None:
    """The keys of a reward in a config, as `flowalign config docs` has them."""
    print("\nSettings")
    for key in keys():
        if key.path[0] == "rewards" and key.variant and key.variant[1] == entry.name:
            default = default_of(key.field).strip("`")
            print(f"  {key.path[-1]} ({expected(key.field)}; {default})")
            print(textwrap.indent(textwrap.fill(meaning_of(key), WIDTH - 6), " " * 6))
