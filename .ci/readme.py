"""Run the commands of the README's bash blocks, each block in order in one scratch directory.

A block after the comment `<!-- not run: REASON -->` is left out and the reason is printed. Paths of
the checkout that a command names are links in the scratch directory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n+)?```bash\n(?P<lines>.+?)```", re.S)
ROOT = Path(__file__).resolve().parents[1]


def commands(readme: str) -> tuple[list[str], list[str]]:
    """(commands to run, reasons of the blocks left out)."""
    wanted: list[str] = []
    reasons: list[str] = []
    for block in BLOCK.finditer(readme):
        if block["reason"]:
            reasons.append(block["reason"])
            continue
        joined = block["lines"].replace("\\\n", " ")
        lines = (line.partition(" #")[0].strip() for line in joined.splitlines())
        wanted += [line for line in lines if line and not line.startswith("#")]
    return wanted, reasons


def main() -> int:
    wanted, reasons = commands(Path(sys.argv[1]).read_text())
    for reason in reasons:
        print(f"left out: {reason}")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("configs", "samples"):
            (Path(scratch) / name).symlink_to(ROOT / name)
        for command in wanted:
            begin = time.monotonic()
            print(f"$ {command}", flush=True)
            done = subprocess.run(
                ["bash", "-c", command], cwd=scratch, env=environment, timeout=600
            )
            if done.returncode:
                print(f"exit {done.returncode}: {command}", file=sys.stderr)
                return 1
            print(f"  {time.monotonic() - begin:.0f} s", flush=True)
    if not wanted:
        print("the README has no command to run", file=sys.stderr)
    return 0 if wanted else 1


if __name__ == "__main__":
    raise SystemExit(main())
