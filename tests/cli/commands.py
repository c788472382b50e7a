"""Calling the command line in this process, as a shell would."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowalign.cli.main import main

RUN = (Path(__file__).parent / "data" / "run.yaml").read_text(encoding="utf-8")


def edited(folder: Path, *edits: tuple[str, str], name: str = "run.yaml") -> Path:
    """The data's run.yaml with pieces of text replaced, written into `folder`."""
    text = RUN
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def fails(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *fragments: str
) -> str:
    """Run a command that must end with `code` and a last line with all `fragments`."""
    assert main(arguments) == code
    error = capsys.readouterr().err.splitlines()
    assert error, "nothing was said"
    assert error[-1].startswith("error["), error
    assert "Traceback" not in "\n".join(error)
    for fragment in fragments:
        assert fragment in error[-1], (fragment, error[-1])
    return error[-1]


def works(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that must end well and return what it printed."""
    code = main(arguments)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out
