"""Loading without the libraries' own progress bars: they would tear our one line apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging
import transformers.utils.logging


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Inside, diffusers and transformers draw no bars; afterwards as the user had it."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
