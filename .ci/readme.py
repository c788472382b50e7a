"""Run the bash and python blocks of the README in order, in one scratch directory.

A block after the comment `<!-- not run: REASON -->` is left out and the reason is printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\n+)?```(?P<kind>bash|python)\n(?P<text>.+?)```", re.S
)


def commands(readme: str) -> tuple[list[list[str]], list[str]]:
    """(commands to run, reasons of the blocks left out)."""
    wanted: list[list[str]] = []
    reasons: list[str] = []
    for block in BLOCK.finditer(readme):
        if block["reason"]:
            reasons.append(block["reason"])
        elif block["kind"] == "python":
            wanted.append([sys.executable, "-c", block["text"]])
        else:
            lines = block["text"].replace("\\\n", " ").splitlines()
            wanted += [["bash", "-c", line] for line in lines if line.strip()]
    return wanted, reasons


def main() -> int:
    wanted, reasons = commands(Path(sys.argv[1]).read_text())
    for reason in reasons:
        print(f"left out: {reason}")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as scratch:
        for command in wanted:
            begin = time.monotonic()
            print(f"$ {command[-1].strip()}", flush=True)
            done = subprocess.run(command, cwd=scratch, env=environment)
            if done.returncode:
                print(f"exit code {done.returncode}", file=sys.stderr)
                return 1
            print(f"  ({time.monotonic() - begin:.0f} s)", flush=True)
    if not wanted:
        print("the README has no command to run", file=sys.stderr)
    return 0 if wanted else 1


if __name__ == "__main__":
    raise SystemExit(main())
