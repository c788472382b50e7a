"""The parser of the command line: strict, with the nearest name, and errors as everywhere else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from flowalign.config.problems import show
from flowalign.config.suggest import did_you_mean, nearest
from flowalign.errors import ConfigError

BEHIND_DASHES = "; a path that starts with `-` goes behind ` -- `"


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are `ConfigError`s (exit 2)."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Usage, then one error line."""
        usage = self.format_usage().strip().splitlines()
        fix = f"see `{self.prog} --help`"
        if "required" in message:
            fix += BEHIND_DASHES
        raise ConfigError("CLI-USAGE", self.prog, message, fix, usage)

    def options(self) -> list[str]:
        """Every option string."""
        return [name for action in self._actions for name in action.option_strings]

    def refuse_unknown(self, extra: Sequence[str]) -> None:
        """ConfigError for arguments that no option took."""
        if not extra:
            return
        name = extra[0].split("=")[0]
        if not name.startswith("-"):
            self.error(f"unexpected argument {show(extra[0])}")
        near = nearest(name, self.options(), cutoff=0.7)
        fix = f"did you mean {near}?" if near else f"see `{self.prog} --help`"
        if not name.startswith("--"):
            fix += BEHIND_DASHES
        raise ConfigError("CLI-USAGE", self.prog, f"unknown option {name}", fix)


class Once(argparse.Action):
    """An option with one value; a second one is an error instead of a silent winner."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the value, unless there is one already."""
        given = namespace.__dict__.setdefault("given", set())
        if self.dest in given:
            what, fix = f"{option_string} given twice", "keep one of the two"
            raise ConfigError("CLI-TWICE", parser.prog, what, fix)
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def option(parser: argparse.ArgumentParser, *names: str, help: str, **settings: Any) -> None:
    """An option with a value that may be given once."""
    parser.add_argument(*names, action=Once, help=help, **settings)


def count(text: str) -> int:
    """An integer >= 1."""
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {value}")
    return value


def seed(text: str) -> int:
    """An integer in [0, 2^63)."""
    value = _integer(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be >= 0 and < 2**63, got {value}")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {show(text)}") from None


def known_name(name: str, names: Sequence[str], prog: str, kind: str) -> None:
    """ConfigError with the nearest name when `name` is none of them."""
    if name not in names:
        fix = did_you_mean(name, names)
        raise ConfigError("CLI-USAGE", prog, f"unknown {kind} {show(name)}", fix)
