"""`python -m flowalign` is `flowalign`."""

from __future__ import annotations

import sys

from flowalign.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
