"""Galleries: runs side by side on one static page. Torch-free.

The package can itself be called, so that `from flowalign import gallery` is a function whatever
was imported before: `gallery(["runs/first"], "gallery")`.
"""

import sys
from types import ModuleType

from flowalign.gallery.columns import parse_steps
from flowalign.gallery.page import build_gallery

__all__ = ["build_gallery", "parse_steps"]


class CallableModule(ModuleType):
    """A module whose call is `build_gallery`."""

    __call__ = staticmethod(build_gallery)


sys.modules[__name__].__class__ = CallableModule
