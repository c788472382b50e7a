"""The manifest of a checkpoint: what belongs to it, and whether that is still what was written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from flowalign.errors import CheckpointError

FORMAT = 1
GOOD_NAME = re.compile(r"step-(\d{6,})")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(safetensors|json)")


class FileEntry(BaseModel):
    """Size and SHA-256 (hex) of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What manifest.json says; `seal` is the SHA-256 of the canonical JSON of the other fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    format: int
    run_id: str
    step: int
    world_size: int
    threads: int  # torch.get_num_threads(): another count changes the last bits
    libraries: dict[str, str | None]
    files: dict[str, FileEntry]
    seal: str

    def sealed(self) -> Manifest:
        """The same with its own seal."""
        digest = hashlib.sha256(_canonical(self.model_dump(exclude={"seal"}))).hexdigest()
        return self.model_copy(update={"seal": digest})

    def text(self) -> bytes:
        """The only bytes a manifest.json with these values may have."""
        return _canonical(self.model_dump())


def verify(path: Path, *, run_id: str | None = None, contents: bool = True) -> Manifest:
    """The manifest of the complete checkpoint `path`; `contents` also compares every hash.

    Raises `CheckpointError` naming the file that is missing, damaged or not listed.
    """
    if path.is_symlink() or not path.is_dir():
        what = "no such checkpoint" if not os.path.lexists(path) else "is not a directory"
        refuse("CKPT-MISSING", str(path), what)
    match = GOOD_NAME.fullmatch(path.name)
    if match is None:
        refuse("CKPT-BAD", str(path), "is not named step-<number>: not a good checkpoint")
    manifest = _read_manifest(path / "manifest.json")
    if manifest.step != int(match[1]):
        refuse("CKPT-STEP", str(path), f"its manifest says step {manifest.step}")
    if run_id is not None and manifest.run_id != run_id:
        refuse("CKPT-OTHER-RUN", str(path), f"belongs to run {manifest.run_id}, not {run_id}")
    present = {entry.name for entry in path.iterdir()} - {"manifest.json"}
    for name in sorted(present ^ manifest.files.keys()):
        what = "is missing" if name in manifest.files else "is not in the manifest"
        refuse("CKPT-INCOMPLETE", str(path / name), what)
    for name, entry in manifest.files.items():
        _verify_file(path / name, entry, contents=contents)
    return manifest


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file() or path.is_symlink():
        refuse("CKPT-INCOMPLETE", str(path), "missing: the checkpoint is incomplete")
    data = path.read_bytes()
    try:
        raw = json.loads(data)
    except ValueError:
        what = "is not JSON" if data.strip() else "is empty: the checkpoint is incomplete"
        refuse("CKPT-INCOMPLETE", str(path), what)
    version = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT:
        what = f"format {version} is newer than this build, which reads {FORMAT}"
        refuse("CKPT-FORMAT", str(path), what, "update flowalign")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        refuse("CKPT-MANIFEST", str(path), f"{place}: {first['msg']}")
    if manifest.sealed().text() != data:
        refuse("CKPT-MANIFEST", str(path), "was changed after it was written (seal mismatch)")
    if not (
        manifest.files.keys() >= {"state.json"} and all(map(FILE_NAME.fullmatch, manifest.files))
    ):
        refuse("CKPT-MANIFEST", str(path), "lists files that a checkpoint does not have")
    return manifest


def _verify_file(path: Path, entry: FileEntry, *, contents: bool) -> None:
    if path.is_symlink() or not path.is_file():
        refuse("CKPT-INCOMPLETE", str(path), "is not a regular file")
    size = path.stat().st_size
    if size != entry.bytes:
        refuse("CKPT-DAMAGED", str(path), f"has {size} bytes, the manifest says {entry.bytes}")
    if contents and sha256(path) != entry.sha256:
        refuse("CKPT-DAMAGED", str(path), "hash mismatch: the file was damaged or exchanged")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def refuse(
    code: str, where: str, what: str, fix: str = "resume from another checkpoint"
) -> NoReturn:
    raise CheckpointError(code, where, what, fix)
