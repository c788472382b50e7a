"""The command `flowalign`: finds the command, runs it, and turns every fault into one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

from flowalign import __version__
from flowalign.cli import (
    collect,
    config_files,
    data,
    demo,
    doctor,
    export,
    gallery,
    list_names,
    reward,
    sample,
    score,
    serve,
    steer,
    train,
)
from flowalign.cli.options import Parser, known_name
from flowalign.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    ConfigError,
    FlowalignError,
    FlowalignWarning,
    StopRequested,
    escape,
)
from flowalign.redaction import redact

EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell shows it

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "train": train,
    "steer": steer,
    "sample": sample,
    "score": score,
    "reward": reward,
    "serve": serve,
    "gallery": gallery,
    "export": export,
    "collect": collect,
    "data": data,
    "list": list_names,
    "doctor": doctor,
    "config": config_files,
}

DEBUG = "show the traceback of an error"
EXAMPLE = """\
example:
  flowalign demo                      # train, compare, open a gallery: minutes on a laptop
  flowalign train shapes_nft --set output=runs/first
  flowalign gallery runs/first -o gallery
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    with messages_on_one_line():
        try:
            code = run(arguments)
            sys.stdout.flush()
            return code
        except FlowalignError as error:
            return told(error, debug)
        except StopRequested as request:
            say(str(request))
            return request.exit_code
        except KeyboardInterrupt:
            say("interrupted")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader is gone: nothing may be written when Python closes its streams.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        except Exception as error:
            return unexpected(error, debug)


def run(arguments: list[str]) -> int:
    """Parse and run; argparse's own exits (--help, --version) become their code."""
    parser, commands = build()
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None:
        known_name(first, list(commands), parser.prog, "command")
    try:
        args, extra = parser.parse_known_args(arguments)
    except SystemExit as done:
        return int(done.code or EXIT_OK)
    if args.command is None:
        parser.print_help()
        return EXIT_OK if not arguments else 2
    commands[args.command].refuse_unknown(extra)
    return COMMANDS[args.command].run(args)


def build() -> tuple[Parser, dict[str, Parser]]:
    """The parser and those of the commands."""
    parser = Parser(
        prog="flowalign",
        description="Post-training and steering of diffusion and flow generators.",
        epilog=EXAMPLE,
    )
    parser.add_argument("--debug", action="store_true", help=DEBUG)
    parser.add_argument("--version", action="version", version=f"flowalign {__version__}")
    found = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands: dict[str, Parser] = {}
    for name, module in COMMANDS.items():
        command = found.add_parser(
            name, help=module.HELP, description=module.HELP, epilog=module.EXAMPLE
        )
        assert isinstance(command, Parser)
        module.add_options(command)
        command.add_argument("--debug", action="store_true", help=DEBUG)
        commands[name] = command
    return parser, commands


def told(error: FlowalignError, debug: bool) -> int:
    """Print the error's lines; a mistake all processes see is told by the first of them."""
    if debug:
        traceback.print_exception(error)
    if not (isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0"):
        say(*error.lines())
    return error.exit_code


def unexpected(error: Exception, debug: bool) -> int:
    """One line for a fault of ours."""
    if debug:
        traceback.print_exception(error)
    text = escape(redact(f"{type(error).__name__}: {error}"))
    say(f"error[INTERNAL] flowalign: {text}; run again with --debug and report it")
    return 1


def say(*lines: str) -> None:
    """Lines on stderr, as far as somebody still listens."""
    with contextlib.suppress(BrokenPipeError):
        for line in lines:
            print(line, file=sys.stderr)
        sys.stderr.flush()


@contextlib.contextmanager
def messages_on_one_line() -> Iterator[None]:
    """Our warnings as `warning: ...`, our notes as `note: ...`, both on stderr."""
    shown = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):
        if issubclass(category, FlowalignWarning):
            say(f"warning: {message}")
        else:
            shown(message, category, filename, lineno, file, line)

    logger, handler = logging.getLogger("flowalign"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("always", FlowalignWarning)
        warnings.showwarning = show
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
