"""Post-training of diffusion and flow generators with rewards.

    from flowalign import finetune, gallery

The names below are loaded at first use, so that `import flowalign` stays cheap and imports no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowalign.api import export, finetune, gallery, sample, score

__version__ = "0.1.0"
__all__ = ["__version__", "export", "finetune", "gallery", "sample", "score"]

_LAZY = {name: "flowalign.api" for name in ("export", "finetune", "gallery", "sample", "score")}


def __getattr__(name: str) -> object:
    """The public functions, imported when they are asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(_LAZY[name]))[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
