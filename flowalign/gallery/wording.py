"""Numbers as a reader of the page sees them. Torch-free."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"


def number(value: float) -> str:
    """Three digits after the point below 10, fewer above."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def short(value: float) -> str:
    """Two digits after the point below 10: the number under a picture."""
    form = ".2f" if abs(value) < 10 else ".1f" if abs(value) < 1e4 else ".3g"
    text = format(value, form)
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float) -> str:
    """`number` with its sign; an infinite end of an interval as such."""
    if math.isinf(value):
        return "+\N{INFINITY}" if value > 0 else f"{MINUS}\N{INFINITY}"
    text = number(value)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def duration(seconds: float) -> str:
    """For example `45 s`, `6 min 30 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
