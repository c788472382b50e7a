"""Each kind of bad prompt file ends in exit 3 with its row; prompts are identity by bytes."""

from __future__ import annotations

import json
import logging
import tracemalloc
from pathlib import Path

import pytest

from flowalign.config.schema import PromptsConfig
from flowalign.errors import (
    MAX_LISTED,
    DataError,
    FlowalignError,
    FlowalignWarning,
    SecurityError,
)
from flowalign.prompts import Prompt, read_prompts, report_lengths, warn_overlap
from flowalign.worlds.shapes import grammar

KEEP = PromptsConfig()


def read(path: Path, **settings: object) -> list[Prompt]:
    config = PromptsConfig.model_validate(settings)
    return read_prompts(str(path), config=config, origin="prompts.train")


def written(content: str | bytes, name: str = "prompts.txt") -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


ROWS: dict[str, tuple[str, str | bytes, list[str]]] = {
    "D02 empty": ("a.txt", "", ["prompts.train: a.txt: 0 prompts in file;"]),
    "D03 blank": ("a.txt", "\n" * 12, ["0 prompts in file (12 blank lines)"]),
    "D05 white": (
        "a.txt",
        "good\n \t\n",
        ["a.txt:2", "line 2 is only white", "allow_empty_prompt"],
    ),
    "D05 jsonl": ("a.jsonl", '{"prompt": ""}', ["a.jsonl:1", "only white space"]),
    "D06 not JSON": ("a.jsonl", '{"prompt": "a"}\n{"prompt" 5}', ["a.jsonl:2:11", '{"prompt" 5}']),
    "D06 cut": ("a.jsonl", '{"prompt": "a', ["a.jsonl:1:12", "not JSON"]),
    "D06 list": ("a.jsonl", '["a"]', ["expected an object, got a list"]),
    "D06 text": ("a.jsonl", '"a"', ["expected an object, got text"]),
    "D06 twice": ("a.jsonl", '{"prompt": "a", "prompt": "b"}', ["`prompt` stands twice"]),
    "D06 deep": ("a.jsonl", "[" * 100_000, ["a.jsonl:1"]),
    "D08 promt": ("a.jsonl", '{"promt": "a"}', ["missing `prompt`", "for `promt`?"]),
    "D08 other": ("a.jsonl", '{"x": 1, "y": 2}', ["missing `prompt`; it has: x, y"]),
    "D09 number": ("a.jsonl", '{"prompt": 5}', ["`prompt`: expected string, got a number '5'"]),
    "D09 null": ("a.jsonl", '{"prompt": null}', ["expected string, got null"]),
    "D09 category": ("a.jsonl", '{"prompt": "a", "category": 5}', ["`category`: expected string"]),
    "D11 byte": ("a.txt", b"good\nbad\xff\n", ["a.txt:2:4: invalid UTF-8: byte 0xFF"]),
    "D11 UTF-16": ("a.txt", "a cat".encode("utf-16"), ["a.txt:1:1", "save the file as UTF-8"]),
    "D14 NUL": ("a.txt", "a\0b\n", ["a.txt:1", "control character U+0000", "'a\\x00b'"]),
    "D14 escaped": ("a.jsonl", '{"prompt": "a\\u0000b"}', ["control character U+0000"]),
    "D14 half a pair": ("a.jsonl", '{"prompt": "a\\ud800"}', ["U+D800"]),
    "D20 NaN": ("a.jsonl", '{"prompt": "a", "score": NaN}', ["`score` must be finite, got nan"]),
    "D20 nested": ("a.jsonl", '{"prompt": "a", "s": [{"t": -Infinity}]}', ["must be finite"]),
    "D21 1e999": ("a.jsonl", '{"prompt": "a", "score": 1e999}', ["must be finite, got inf"]),
    "D21 long": ("a.jsonl", '{"prompt": "a", "n": ' + "9" * 5000 + "}", ["a.jsonl:1"]),
    "D23 ESC": ("a.txt", "a\x1b[31mb\n", ["control character U+001B", "'a\\x1b[31mb'"]),
    "D24 mixed": (
        "a.jsonl",
        '{"prompt": "a", "s": 1}\n{"prompt": "b", "s": null}\n{"prompt": "c", "s": "1"}',
        ["a.jsonl:3: `s` is text here and a number on line 1"],
    ),
    "D24 truth": (
        "a.jsonl",
        '{"prompt": "a", "s": 1}\n{"prompt": "b", "s": true}',
        ["true/false here"],
    ),
    "long line": ("a.txt", b"x" * 1_000_001, ["a.txt:1: a line of 1000001 bytes"]),
    "other suffix": ("a.csv", "a", ["unknown kind of file `.csv`"]),
    "no category": ("a.txt", "a", ["0 prompts in file of these categories"]),
}


@pytest.mark.parametrize("row", ROWS)
def test_bad_file(row: str) -> None:
    name, content, fragments = ROWS[row]
    settings = {"categories": ("single",)} if row == "no category" else {}
    with pytest.raises(DataError) as caught:
        read(written(content, name), **settings)
    assert caught.value.exit_code == 3
    for fragment in fragments:
        assert fragment in caught.value.line()
    assert caught.value.line().isprintable()


def test_d01_missing_file() -> None:
    """The folder it was looked for in is shown, and the nearest file."""
    written("a", "prompts.txt")
    with pytest.raises(DataError) as caught:
        read(Path("promts.txt"))
    assert f"not found (in {Path.cwd()})" in caught.value.line()
    assert "did you mean prompts.txt?" in caught.value.line()


def test_directory() -> None:
    Path("folder.txt").mkdir()
    with pytest.raises(DataError, match="is a directory"):
        read(Path("folder.txt"))


PICKLES = {
    "a.pt": b"text",
    "a.PKL": b"text",
    "a.bin": b"",
    "a.npz": b"",
    "a.txt": b"\x80\x04\x95",
    "b.jsonl": b"PK\x03\x04",
    "c.txt": b"\x93NUMPY",
}


@pytest.mark.parametrize("name", PICKLES)
def test_d29_pickles_are_refused_by_name_and_by_content(name: str) -> None:
    with pytest.raises(SecurityError) as caught:
        read(written(PICKLES[name], name))
    assert caught.value.exit_code == 8


def test_d12_byte_order_mark_and_line_ends() -> None:
    assert [p.text for p in read(written(b"\xef\xbb\xbfa cat\r\n\r\na dog\r\n"))] == [
        "a cat",
        "a dog",
    ]


def test_json_lines_with_category_and_layout() -> None:
    """Line breaks inside a prompt are text; other fields may be anything of one type."""
    rows = [{"prompt": "a\nb", "category": "two", "n": 1}, {"prompt": "c", "n": 2.5}]
    found = read(written("\n".join(map(json.dumps, rows)), "a.jsonl"))
    assert [(p.text, p.category, p.prompt_id) for p in found] == [
        ("a\nb", "two", 0),
        ("c", None, 1),
    ]


def test_empty_prompts_when_allowed() -> None:
    path = written('{"prompt": ""}\n{"prompt": " "}\n', "a.jsonl")
    assert [p.text for p in read(path, allow_empty_prompt=True)] == ["", " "]


def test_d17_duplicates() -> None:
    """Kept with a warning, dropped, or refused with the rows."""
    path = written("a\nb\na\na\n")
    with pytest.warns(
        FlowalignWarning, match="2 duplicate prompts, for example 'a' on lines 1 and 3"
    ):
        assert [p.text for p in read(path)] == ["a", "b", "a", "a"]
    assert [p.text for p in read(path, duplicates="dedupe")] == ["a", "b"]
    with pytest.raises(DataError, match="duplicate of line 1") as caught:
        read(path, duplicates="fail")
    assert len(caught.value.earlier) == 2


def test_d18_unicode_forms_are_kept_apart(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flowalign"):
        found = read(written("caf\u00e9\ncafe\u0301\n"))
    assert len({p.text for p in found}) == 2
    assert "NFC or NFD" in caplog.text


SPACES = ("a cat ", " a cat", "a  cat", "a\tcat", "a\u00a0cat", "a\u2009cat", "a\u3000cat", "acat")
LETTERS = (
    "A cat",
    "a Cat",
    "a cat.",
    "a c\u0430t",
    "\uff41 cat",
    "a c\u00e0t",
    "a cat\n",
    "a c\u0251t",
)
MARKS = "\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\ufeff\u00ad\u034f\ufe0f\u061c"
LOOKALIKES = [("a cat", other) for other in (*SPACES, *LETTERS)]
LOOKALIKES += [("a cat", f"a {mark}cat") for mark in MARKS]
LOOKALIKES += [("\u00e9", "e\u0301"), ("\ufb01", "fi"), ("\u2126", "\u03a9"), ("\u1e9e", "SS")]
LOOKALIKES += [("\u0130", "I\u0307"), ("\uff21", "A"), ("2\u00b2", "22"), ("\u212b", "\u00c5")]
LOOKALIKES += [("word " * 77 + "cat", "word " * 77 + "dog"), ("x" * 5000, "x" * 4999 + "y")]


@pytest.mark.parametrize("pair", LOOKALIKES)
def test_prompts_that_look_alike_stay_two(pair: tuple[str, str]) -> None:
    """Only equal bytes are equal: case, spaces, marks without width, forms, ends of long ones."""
    assert len(LOOKALIKES) >= 40
    rows = "\n".join(json.dumps({"prompt": text}) for text in pair)
    assert [p.text for p in read(written(rows, "a.jsonl"), duplicates="fail")] == list(pair)


def test_control_equal_bytes_are_one() -> None:
    """The negative control of the pairs: an equal pair is seen, in whatever spelling of JSON."""
    path = written('{"prompt": "\\u00e9"}\n{"prompt": "\u00e9"}', "a.jsonl")
    with pytest.raises(DataError, match="duplicate"):
        read(path, duplicates="fail")


def test_d26_overlap() -> None:
    train = [Prompt(text=t, category=None, prompt_id=i) for i, t in enumerate("abc")]
    held_out = [Prompt(text=t, category=None, prompt_id=i) for i, t in enumerate("cbx")]
    with pytest.warns(FlowalignWarning, match="2 prompts are in prompts.train as well"):
        warn_overlap(train, held_out, strict=False)
    with pytest.raises(DataError, match="for example 'c'"):
        warn_overlap(train, held_out, strict=True)
    warn_overlap(train, held_out[2:], strict=True)  # control: no overlap, no error


def test_d15_long_prompts() -> None:
    """Which prompt loses how many tokens, as a warning or an error."""
    prompts, lengths = ["short", "x" * 10_000], [3, 5002]
    with pytest.warns(
        FlowalignWarning, match="77-token text encoder cuts 1 of 2.*loses 4925 tokens"
    ):
        report_lengths(prompts, lengths, 77, strict=False, encoder="text encoder")
    with pytest.raises(DataError, match="loses 4925 tokens"):
        report_lengths(prompts, lengths, 77, strict=True, encoder="text encoder")
    report_lengths(prompts, lengths, 5002, strict=True, encoder="text encoder")  # control


def test_at_most_twenty_rows_and_the_total() -> None:
    path = written("\n".join(["{}"] * 50), "a.jsonl")
    with pytest.raises(DataError, match="one of 50 problems") as caught:
        read(path)
    assert len(caught.value.earlier) == MAX_LISTED + 1
    assert caught.value.earlier[-1] == "... 30 more"


def test_built_in_prompts() -> None:
    """All of them, with their categories; the two splits share none."""
    held_out = read(Path("shapes:heldout"))
    assert sorted(p.text for p in held_out) == sorted(grammar.prompts("heldout"))
    assert all(p.category == grammar.category(p.text) for p in held_out[:200])
    assert [p.prompt_id for p in held_out] == list(range(len(held_out)))
    assert [p.category for p in held_out[:5]] == ["single", "two", "count", "relation", "three"]
    warn_overlap(read(Path("shapes:train")), held_out, strict=True)
    only = read(Path("shapes:heldout"), categories=("two", "count"))
    assert {p.category for p in only} == {"two", "count"}
    with pytest.raises(DataError, match="no split 'test'"):
        read(Path("shapes:test"))


def test_a_large_file_with_planted_faults() -> None:
    """All of 60 faults in 3,000 rows, none besides, and memory in proportion to the text."""
    bad = {row * 50 + 7: kind for row, kind in enumerate(["{}", "[1]", '{"prompt": 5}'] * 20)}
    rows = [bad.get(i, json.dumps({"prompt": f"prompt {i}", "n": i})) for i in range(3000)]
    path = written("\n".join(rows), "a.jsonl")
    tracemalloc.start()
    with pytest.raises(FlowalignError, match="one of 60 problems") as caught:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    told = [line.split(":")[1] for line in caught.value.earlier[:-1]]
    assert told == [str(row + 1) for row in sorted(bad)][:MAX_LISTED]
