"""Files of a run: read as text, checked against a form, blamed by file and line. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowalign.errors import DataError

MAX_LINE_BYTES = 1_000_000
MAX_NAME = 200

Number = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class FileModel(BaseModel):
    """A piece of a file; keys of later versions are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


Model = TypeVar("Model", bound=FileModel)


def lines(path: Path, notes: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """(file:line, text) of each line; with `notes` a last line without its end is left out."""
    *complete, last = read_text(path).split("\n")
    for number, line in enumerate([*complete, last], start=1):
        if not line:
            continue
        if notes is not None and number > len(complete):
            notes.append(f"the last line of {path.name} is cut off and left out")
            return
        if len(line) > MAX_LINE_BYTES:
            raise damaged(f"{path}:{number}", f"longer than {MAX_LINE_BYTES} characters")
        yield f"{path}:{number}", line


def read_text(path: Path) -> str:
    """A UTF-8 file's text; DataError with the line where it is not."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise damaged(str(path), f"cannot be read ({error.strerror})") from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise damaged(f"{path}:{line}", "is not UTF-8") from None


def parsed(model: type[Model], text: str, where: str) -> Model:
    """`text` as JSON of this form; DataError with the first key at fault."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise at_fault(error, where) from None


def checked(model: type[Model], value: object, where: str) -> Model:
    """The same for a value that was read before."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise at_fault(error, where) from None


def at_fault(error: ValidationError, where: str) -> DataError:
    """The first key that is wrong, and how."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return damaged(where, f"{key}: {first['msg']}" if key else first["msg"])


def damaged(where: str, what: str) -> DataError:
    """The error of a file of a run that is not as it was written."""
    return DataError("GAL-DAMAGED", where, what, "repair the file, or evaluate the run again")
