"""A kill leaves what was written, flushed or not: only a power loss asks for fsync.

So these tests do without waiting for the disk; that fsync is called, on what and in which order,
is tested by itself.
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
