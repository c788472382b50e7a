"""YAML 1.2 by the core schema, and writing that reads back."""

from __future__ import annotations

import math
import random
import warnings

import pytest
from ruamel.yaml import YAML

from flowalign.config.yaml12 import dump, parse, plain_scalar
from flowalign.errors import ConfigError, SecurityError

SCALARS = {
    "1e-5": 1e-5,
    "5E+3": 5000.0,
    ".5": 0.5,
    "5.": 5.0,
    "-0": 0,
    "+7": 7,
    "010": 10,  # not octal
    "0o10": 8,
    "0x1F": 31,
    "no": "no",
    "yes": "yes",
    "on": "on",
    "Off": "Off",
    "y": "y",
    "1_000": "1_000",
    "12:30": "12:30",  # not sexagesimal
    "2001-01-01": "2001-01-01",  # not a date
    "nan": "nan",
    "inf": "inf",
    ".inf": math.inf,
    "-.INF": -math.inf,
    "true": True,
    "TRUE": True,
    "tRue": "tRue",
    "false": False,
    "~": None,
    "Null": None,
    "nUll": "nUll",
    "1e": "1e",
    "-": "-",
    "0x": "0x",
}


@pytest.mark.parametrize("text", SCALARS)
def test_plain_scalars(text: str) -> None:
    """The value and its type; the specification's table 10.3.2."""
    value = plain_scalar(text)
    assert value == SCALARS[text]
    assert type(value) is type(SCALARS[text])


def test_nan() -> None:
    value = plain_scalar(".NaN")
    assert isinstance(value, float)
    assert math.isnan(value)


def test_control_yaml_1_1_reads_otherwise() -> None:
    """The table above tells the two versions apart: 1.1 has octals, truth words and dates."""
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 1)  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ruamel warns of floats without a dot
        values = {text: reader.load(text) for text in SCALARS}
    different = [text for text, value in SCALARS.items() if values[text] != value]
    assert {"no", "on", "010", "12:30", "1_000"} <= set(different)


def test_quotes_make_text() -> None:
    document = parse("a: '1e-5'\nb: \"no\"\nc: |\n  5\n", source="f")
    assert document.value == {"a": "1e-5", "b": "no", "c": "5\n"}


def test_lines_of_keys_and_items() -> None:
    document = parse("# first\na:\n  b: 1\n  c:\n    - x\n    - y: 2\n", source="f")
    assert document.lines == {
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "y"): 6,
    }


PIECES = (
    "no",
    "1e-5",
    "a: b",
    "- c",
    "#d",
    "\u00e9",
    "\n",
    "\t",
    "\x1b",
    "'",
    '"',
    " ",
    "~",
    "\u2028",
)
PIECES += (
    "null",
    "0x1f",
    "&a",
    "*b",
    "!c",
    "%d",
    "@e",
    "`f",
    "{",
    "[",
    "<<",
    "=",
    "\U0001f642",
    "\x85",
    ":",
)


def nested(draw: random.Random, depth: int = 0) -> object:
    """A random value of the kinds a config can hold."""
    kind = draw.randrange(8 if depth < 3 else 6)
    if kind < 2:
        return "".join(draw.choices(PIECES, k=draw.randrange(4)))
    if kind == 2:
        return draw.choice([0, -1, 10**20, 7])
    if kind == 3:
        return draw.choice([1e-5, 1e300, -0.5, 1.0, 3e-4, math.inf, 0.1 + 0.2])
    if kind < 6:
        return draw.choice([True, False, None])
    if kind == 6:
        return [nested(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {f"k{i}": nested(draw, depth + 1) for i in range(draw.randrange(4))}


def test_what_is_written_reads_back_equal() -> None:
    """500 random values, types included (True is not 1)."""
    draw = random.Random(0)
    for _ in range(500):
        value = {"root": nested(draw)}
        again = parse(dump(value), source="f").value
        assert repr(again) == repr(value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: !!python/object/apply:os.system [id]", SecurityError),
        ("a: !include b.yaml", SecurityError),
        ("!!python/name:os.system x: 1", SecurityError),
        ("a: !!float 1", ConfigError),
        ("a: ! 1", ConfigError),
        ("a: &x [1]\nb: *x", ConfigError),
        ("a: &x {b: *x}", ConfigError),
        ("[1, 2]", ConfigError),
        ("? [a]\n: 1", ConfigError),
        ("a: " + "[" * 5000, ConfigError),
        ("a: {b: 1, b: 1}", ConfigError),
        ("a: 1\na: 1", ConfigError),
    ],
)
def test_cleverness_is_refused(text: str, error: type[Exception]) -> None:
    """Nothing is made, shared, inherited or computed."""
    with pytest.raises(error):
        parse(text, source="f")


def test_long_integer_is_no_crash() -> None:
    """Python refuses to read integers of more than 4300 digits; they become infinite, not fatal."""
    assert parse("a: " + "9" * 5000, source="f").value["a"] == math.inf
