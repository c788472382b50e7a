"""Bars of the libraries are hidden inside and as before outside."""

from __future__ import annotations

import diffusers.utils.logging as diffusers_logging
import transformers.utils.logging as transformers_logging

from flowalign.progress_bars import hidden_bars


def test_bars_are_hidden_and_come_back() -> None:
    diffusers_logging.enable_progress_bar()
    transformers_logging.disable_progress_bar()
    with hidden_bars():
        assert not diffusers_logging.is_progress_bar_enabled()
        assert not transformers_logging.is_progress_bar_enabled()
    assert diffusers_logging.is_progress_bar_enabled()
    assert not transformers_logging.is_progress_bar_enabled()  # the user had hidden these
    transformers_logging.enable_progress_bar()
