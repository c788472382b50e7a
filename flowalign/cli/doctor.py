"""`flowalign doctor`: what works here, what does not, and what helps."""

from __future__ import annotations

import argparse
import json

from flowalign.cli.options import Parser
from flowalign.doctor import as_json, as_text, examine

HELP = "tell versions, devices, attention kernels that truly work, and what is missing"
EXAMPLE = """\
examples:
  flowalign doctor
  flowalign doctor --json                                    # the same for programs
"""


def add_options(parser: Parser) -> None:
    """Arguments of `flowalign doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report; what is missing is no error of this command."""
    findings = examine()
    print(json.dumps(as_json(findings), indent=2) if args.json else as_text(findings), end="")
    return 0
