"""YAML 1.2 with line numbers: `1e-5` is a number, `no` a string, a key stands once.

The parser is ruamel.yaml's; scalars are resolved here by the core schema of YAML 1.2, so that no
tag, anchor, alias or merge key can add to what is written on the line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from flowalign.errors import ConfigError, SecurityError

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
KeyPath = tuple[str | int, ...]

_NULLS = frozenset({"null", "Null", "NULL", "~"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}|0o[0-7]{1,4000}|0x[0-9a-fA-F]{1,4000}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})
_TAG_PREFIX = "tag:yaml.org,2002:"
_CORE_TAGS = frozenset({"null", "bool", "int", "float", "str", "seq", "map"})
_MAX_DEPTH = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A parsed file."""

    value: dict[str, Value]
    lines: dict[KeyPath, int]  # 1-based line of each key and each item of a list


def plain_scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar by the core schema of YAML 1.2 (section 10.3.2)."""
    if text in _NULLS:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return float(text.replace(".", "", 1))
    return float("nan") if text in _NAN else text


def parse(text: str, *, source: str, expand: Callable[[str, str], str] | None = None) -> Document:
    """Parse one document whose root is a mapping.

    `source` is the file's name for messages. `expand(text, where)` is applied to every scalar
    before it is resolved (environment variables).
    """
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"control character U+{ord(text[error.position]):04X}"
        raise ConfigError("CFG-SYNTAX", f"{source}:{line}", what, "remove it") from None
    except MarkedYAMLError as error:
        raise _syntax_error(error, source) from None
    except RecursionError:
        what = f"lists or mappings nested deeper than {_MAX_DEPTH}"
        raise ConfigError("CFG-SYNTAX", source, what, "write a flat file") from None
    except YAMLError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            "CFG-SYNTAX", source, f"not YAML: {first}", "see yaml.org/spec/1.2.2"
        ) from None
    if root is None:
        what = "empty: it has no keys"
        raise ConfigError(
            "CFG-EMPTY", source, what, "start from a file of `flowalign list configs`"
        )
    builder = _Builder(source=source, text=text, expand=expand, lines={})
    value = builder.build(root, ())
    if not isinstance(value, dict):
        what = f"expected mapping of keys at the top, got {_kind(root)}"
        raise ConfigError("CFG-TYPE", builder.where(root), what, "write `key: value` lines")
    return Document(value=value, lines=builder.lines)


def dump(value: object) -> str:
    """Block-style YAML text; `parse` gives back an equal value."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.width = 1_000_000
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Text with control characters in double quotes: the plain style loses some line ends."""

    def represent_str(self, data: str) -> ScalarNode:
        style = None if data.isprintable() else '"'
        return self.represent_scalar(f"{_TAG_PREFIX}str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Builder:
    source: str
    text: str
    expand: Callable[[str, str], str] | None
    lines: dict[KeyPath, int]

    def where(self, node: Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def build(self, node: Node, path: KeyPath) -> Value:
        self._refuse_cleverness(node, path)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, SequenceNode):
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        return self._mapping(node, path)

    def _item(self, node: Node, path: KeyPath) -> Value:
        self.lines[path] = node.start_mark.line + 1
        return self.build(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            here, line = (*path, key), key_node.start_mark.line + 1
            if key in result:
                what = f"duplicate key, on lines {self.lines[here]} and {line}"
                where = f"{self.source}:{line}: {dotted(here)}"
                raise ConfigError("CFG-DUPLICATE-KEY", where, what, "keep one of the two")
            self.lines[here] = line
            result[key] = self.build(value_node, here)
        return result

    def _key(self, node: Node, path: KeyPath) -> str:
        self._refuse_cleverness(node, path)
        if not isinstance(node, ScalarNode):
            what = f"a {_kind(node)} as a key"
            raise ConfigError("CFG-SYNTAX", self.where(node), what, "keys are plain names")
        if node.value == "<<":
            what = "merge keys are not supported: nothing in a config is inherited"
            raise ConfigError("CFG-SYNTAX", self.where(node), what, "write the keys out")
        return node.value

    def _scalar(self, node: ScalarNode, path: KeyPath) -> Value:
        text = node.value
        if not text and node.style is None:
            what, fix = "has no value", "give one, write `null` for none, or remove the line"
            raise ConfigError("CFG-TYPE", f"{self._key_line(path)}: {dotted(path)}", what, fix)
        if self.expand is not None:
            text = self.expand(text, f"{self._key_line(path)}: {dotted(path)}")
        return plain_scalar(text) if node.style is None else text

    def _key_line(self, path: KeyPath) -> str:
        # The key's: an empty value begins wherever the next token stands.
        return f"{self.source}:{self.lines[path]}" if path in self.lines else self.source

    def _refuse_cleverness(self, node: Node, path: KeyPath) -> None:
        if node.anchor is not None:
            what = f"anchor or alias `{node.anchor}`: nothing in a config is inherited"
            raise ConfigError("CFG-SYNTAX", self.where(node), what, "write the value out")
        name = str(node.tag).removeprefix(_TAG_PREFIX)
        # A scalar that begins with `!` has a tag of its own; a mapping begins where its key does.
        start = node.start_mark.index
        tagged = isinstance(node, ScalarNode) and self.text[start : start + 1] == "!"
        if tagged or (not isinstance(node, ScalarNode) and name not in _CORE_TAGS):
            kind = ConfigError if name in _CORE_TAGS else SecurityError
            what = f"tag `{name}`: a config cannot name types, make objects or run code"
            raise kind("SEC-YAML-TAG", self.where(node), what, "remove the tag")
        if len(path) > _MAX_DEPTH:
            what = f"lists or mappings nested deeper than {_MAX_DEPTH}"
            raise ConfigError("CFG-SYNTAX", self.where(node), what, "write a flat file")


def dotted(path: KeyPath) -> str:
    """`("rewards", 0, "weight")` as `rewards.0.weight`."""
    return ".".join(str(part) for part in path)


def _kind(node: Node) -> str:
    if isinstance(node, SequenceNode):
        return "list"
    return "mapping" if isinstance(node, MappingNode) else f"'{node.value}'"


def _syntax_error(error: MarkedYAMLError, source: str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    where = source if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
    problem = error.problem or "not YAML"
    if "another document" in problem:
        return ConfigError("CFG-SYNTAX", where, "a second document starts here", "keep one `---`")
    if "\\t" in problem or "tab" in problem:
        return ConfigError(
            "CFG-SYNTAX", where, "a tab, which YAML does not allow here", "use spaces"
        )
    fix = "check indentation, colons and quotes on this line and the one before"
    return ConfigError("CFG-SYNTAX", where, f"not YAML: {problem}", fix)
