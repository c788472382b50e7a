"""Checkpoints: one directory appears by one rename, its manifest names and hashes every file.

    RUN/checkpoints/step-000025/{<stem>.safetensors ..., state.json, manifest.json}

A kill at any moment leaves the earlier checkpoints and at most a `.tmp-` directory. Nothing in a
checkpoint can run code: tensors are safetensors, the rest is JSON. A checkpoint with non-finite
numbers is kept as `bad-000025` for inspection, one of a policy that games its reward as
`hacked-000025`; neither is ever resumed from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowalign import disk
from flowalign.errors import CheckpointError, HealthError, ResourceError, warn
from flowalign.manifest import (
    FILE_NAME,
    FORMAT,
    GOOD_NAME,
    FileEntry,
    Manifest,
    refuse,
    sha256,
    verify,
)
from flowalign.run_directory import library_versions
from flowalign.signals import uninterrupted


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A checkpoint whose every byte was verified."""

    path: Path
    step: int
    world_size: int
    tensors: Mapping[str, Mapping[str, Tensor]]  # {file stem: {name: tensor}}
    meta: Mapping[str, Any]

    def matching(self, stem: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of file `stem` with exactly the names, shapes and dtypes of `like`.

        Raises `CheckpointError` naming the first entry that is missing, unknown or different.
        """
        where = str(self.path / f"{stem}.safetensors")
        if stem not in self.tensors:
            refuse("CKPT-ENTRY", where, "is not part of the checkpoint")
        found = self.tensors[stem]
        missing, unknown = sorted(like.keys() - found.keys()), sorted(found.keys() - like.keys())
        if missing or unknown:
            what = f"{len(missing)} entries missing, {len(unknown)} unknown"
            refuse("CKPT-ENTRY", where, f"{what}, first {(missing or unknown)[0]!r}")
        for name, tensor in like.items():
            have, want = _kind(found[name]), _kind(tensor)
            if have != want:
                refuse("CKPT-SHAPE", where, f"{name!r} is {have}, this run has {want}")
        return {name: found[name] for name in like}

    def entry(self, key: str) -> Any:
        """`meta[key]`, or `CheckpointError` when the checkpoint does not have it."""
        if key not in self.meta:
            refuse("CKPT-ENTRY", str(self.path / "state.json"), f"has no entry {key!r}")
        return self.meta[key]


def save(
    run_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    *,
    keep_last: int,
    run_id: str,
    world_size: int,
    best: int | None = None,
    hacked: bool = False,
) -> Path:
    """Write checkpoint `step`, verify it from the disk, then remove all but the last `keep_last`.

    That of step `best` stays as well. With `hacked` it is only written, for inspection. Called on
    rank 0, which holds the run's lock. Tensors may be on any device; `meta` is JSON with finite
    numbers. Saving a step again that is already complete changes nothing.

    Raises:
        HealthError: a tensor is not finite; the checkpoint was kept as `bad-<step>`.
        ResourceError: no room, or the disk failed; the earlier checkpoints are untouched.
    """
    folder = run_dir / "checkpoints"
    bad = _non_finite(tensors)
    target = folder / f"{'bad' if bad else 'hacked' if hacked else 'step'}-{step:06d}"
    if not _is_complete(target, run_id, contents=True):
        staged = folder / f"{disk.TEMPORARY_PREFIX}step-{step:06d}-{os.getpid()}"
        needed = sum(t.nbytes for part in tensors.values() for t in part.values()) + 1_000_000
        disk.require_free(folder, needed, f"the checkpoint of step {step}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(staged, tensors, meta, run_id=run_id, step=step, world_size=world_size)
            _publish(staged, target)
        except (OSError, SafetensorError) as error:
            raise _not_written(target, error, needed) from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    if bad:
        raise HealthError(
            "CKPT-NON-FINITE",
            str(target),
            f"{bad} is not finite at step {step}",
            "--resume continues from the last good checkpoint; lower the learning rate",
        )
    if not hacked:
        verify(target, run_id=run_id)
        _prune(folder, keep=target, keep_last=keep_last, run_id=run_id, best=best)
    return target


def latest(run_dir: Path, *, run_id: str | None = None) -> Path | None:
    """The newest checkpoint that is complete and undamaged; None when there never was one.

    Newer ones that are not are skipped with a warning. Raises `CheckpointError` when there are
    checkpoints and none is usable.
    """
    found = _candidates(run_dir / "checkpoints")
    first: CheckpointError | None = None
    for path in found:
        try:
            verify(path, run_id=run_id)
        except CheckpointError as error:
            warn(error.where, f"{error.what}: checkpoint skipped", "nothing: an older one is used")
            first = first or error
        else:
            return path
    if first is not None:
        refuse(first.code, first.where, f"{first.what}, and no older checkpoint is usable")
    return None


def load(
    path: Path,
    *,
    run_id: str | None,
    world_size: int,
    allow_world_size_change: bool = False,
    device: str | torch.device = "cpu",
) -> Loaded:
    """The checkpoint at `path` after every size and hash was compared with its manifest.

    `run_id` None accepts a checkpoint of any run. Raises `CheckpointError`.
    """
    manifest = verify(path, run_id=run_id)
    if manifest.world_size != world_size and not allow_world_size_change:
        refuse(
            "CKPT-WORLD-SIZE",
            str(path),
            f"saved with {manifest.world_size} processes, resumed with {world_size}",
            f"start {manifest.world_size} processes, or allow it with --allow-world-size-change",
        )
    _compare_environment(path, manifest)
    stems = [Path(name).stem for name in manifest.files if name.endswith(".safetensors")]
    return Loaded(
        path=path,
        step=manifest.step,
        world_size=manifest.world_size,
        tensors={s: load_file(path / f"{s}.safetensors", device=str(device)) for s in stems},
        meta=json.loads((path / "state.json").read_bytes()),
    )


def _compare_environment(path: Path, manifest: Manifest) -> None:
    """Warn of what may change the last bits: the thread count and library versions."""
    then: dict[str, object] = {"threads": manifest.threads, **manifest.libraries}
    now: dict[str, object] = {"threads": torch.get_num_threads(), **library_versions()}
    changed = [
        f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]
    ]
    if changed:
        what = f"saved with another environment: {', '.join(changed)}"
        warn(str(path), what, "go back to it if the run must continue bit for bit")


def steps(run_dir: Path) -> list[int]:
    """Steps of all that is named like a good checkpoint, newest first."""
    return [_step_of(path) for path in _candidates(run_dir / "checkpoints")]


def set_aside(run_dir: Path, step: int) -> None:
    """Name every checkpoint after `step` `hacked-<step>`, newest first, so that none is resumed."""
    folder = run_dir / "checkpoints"
    for path in _candidates(folder):
        if _step_of(path) > step:
            target = path.with_name(f"hacked-{_step_of(path):06d}")
            if os.path.lexists(target):  # of the same state, from an attempt that was killed
                _remove(target)
            path.rename(target)
    disk.sync_directory(folder)


def remove_leftovers(run_dir: Path) -> list[Path]:
    """Delete what killed saves left behind. Only for the holder of the run's lock."""
    folder = run_dir / "checkpoints"
    found = sorted(folder.glob(f"{disk.TEMPORARY_PREFIX}*"))
    for path in found:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return found


def _write(
    staged: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    *,
    run_id: str,
    step: int,
    world_size: int,
) -> None:
    """Fill the new directory `staged`; the manifest is the last file in it."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    for stem, part in tensors.items():
        path = staged / f"{stem}.safetensors"
        assert FILE_NAME.fullmatch(path.name), f"not a plain file stem: {stem!r}"
        save_file(_portable(part), path)
        disk.sync_file(path)
    state = json.dumps(meta, indent=1, allow_nan=False)
    disk.write_new(staged / "state.json", state.encode())
    files = {
        path.name: FileEntry(bytes=path.stat().st_size, sha256=sha256(path))
        for path in sorted(staged.iterdir())
    }
    manifest = Manifest(
        format=FORMAT,
        run_id=run_id,
        step=step,
        world_size=world_size,
        threads=torch.get_num_threads(),
        libraries=library_versions(),
        files=files,
        seal="",
    ).sealed()
    disk.write_new(staged / "manifest.json", manifest.text())
    disk.sync_directory(staged)


def _not_written(target: Path, error: Exception, needed: int) -> ResourceError:
    free = disk.megabytes(disk.free_bytes(target.parent))
    return ResourceError(
        "CKPT-WRITE",
        str(target),
        f"cannot be written ({error}); needed {disk.megabytes(needed)}, {free} are free",
        "earlier checkpoints are intact: free some space and --resume",
    )


def _publish(staged: Path, target: Path) -> None:
    """Give the complete directory its name. A damaged namesake is moved out of the way first."""
    with uninterrupted():
        if os.path.lexists(target):
            target.rename(staged.with_name(f"{staged.name}-replaced"))
        staged.rename(target)
        disk.sync_directory(target.parent)
    _discard(staged.with_name(f"{staged.name}-replaced"))


def _prune(
    folder: Path, *, keep: Path, keep_last: int, run_id: str, best: int | None = None
) -> None:
    """Remove complete checkpoints older than the newest `keep_last`; `keep` was verified."""
    found = _candidates(folder)
    older = found[found.index(keep) + 1 :]
    good = [keep, *(path for path in older if _is_complete(path, run_id, contents=False))]
    for path in good[keep_last:]:
        if _step_of(path) != best:
            _remove(path)


def _remove(path: Path) -> None:
    """Renamed first: a kill while files are deleted leaves no half checkpoint behind."""
    doomed = path.with_name(f"{disk.TEMPORARY_PREFIX}{path.name}-{os.getpid()}-old")
    path.rename(doomed)
    _discard(doomed)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _candidates(folder: Path) -> list[Path]:
    """Everything named like a good checkpoint, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := GOOD_NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _is_complete(path: Path, run_id: str, *, contents: bool) -> bool:
    try:
        verify(path, run_id=run_id, contents=contents)
    except CheckpointError:
        return False
    return True


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies that share no storage, as safetensors needs them."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        out[name] = value
    return out


def _non_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """`stem/name` of the first tensor that holds a NaN or an infinity."""
    for stem, part in tensors.items():
        for name, tensor in part.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return f"{stem}/{name}"
    return None


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
