"""The cards of what ships: read from the sources' own first words, so that they cannot differ.

A reward's card is the docstring of its file. Nothing is imported but empty packages: torch-free.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowalign.catalog import Entry

# The facts that every reward's card has, in the order in which they are told.
FACTS = ("Range", "Differentiable", "Group-only", "Licence", "Cost")
_FIELDS = (
    "Measures",
    "Range",
    "File",
    "Source",
    "Licence",
    "Checkpoint",
    "Weights",
    "Masks",
    "Refuses",
    "Needs",
    "Cost",
    "Failures",
    "Privacy",
    "Set reward",
    "Differentiable",
    "Group-only",
)
# At the start of a line, before two spaces (`Checkpoint` fills its column) or a colon; the two
# yes/no facts also in the middle of a line.
_STARTS = re.compile(
    rf"^({'|'.join(_FIELDS)})(?:(?<=Checkpoint) |  +|: )|(?<=\s)(Differentiable|Group-only):\s+",
    re.MULTILINE,
)


def card_of(entry: Entry, entries: Sequence[Entry]) -> str:
    """The card of one of `entries`: its file's docstring, or its own where they share a file."""
    if entry.target is None:
        return entry.doc
    module, attribute = entry.target.split(":")
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, module
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    text: str | None = None
    shared = [other for other in entries if (other.target or "").startswith(f"{module}:")]
    if len(shared) > 1:
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
                text = ast.get_docstring(node)
    return text or ast.get_docstring(tree) or entry.doc


def fields_of(card: str) -> Mapping[str, str]:
    """What a reward's card says under each of its headings, on one line each."""
    starts = list(_STARTS.finditer(card))
    fields: dict[str, str] = {}
    ends = [start.start() for start in starts[1:]] + [len(card)]
    for start, end in zip(starts, ends, strict=False):
        text = " ".join(card[start.end() : end].split("\n\n")[0].split())
        fields.setdefault(start[1] or start[2], text)
    return fields


def facts_of(card: str) -> list[tuple[str, str]]:
    """(heading, text) of the facts that users choose by; a set reward says that it is one."""
    fields = fields_of(card)
    names = ("Set reward", *FACTS) if "Set reward" in fields else FACTS
    return [(name, fields[name]) for name in names if name in fields]
