"""Write a tiny random pipeline as a folder: `python -m tests.zoo.write NAME FOLDER`."""

from __future__ import annotations

import sys

from tests.zoo.table import ZOO


def main(name: str, folder: str) -> None:
    """Save the pipeline `name` of the zoo to `folder` in diffusers format."""
    ZOO[name].build().save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
