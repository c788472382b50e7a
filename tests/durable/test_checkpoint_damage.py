"""A checkpoint that is not what was written is refused with the name of the file."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowalign import checkpoint, manifest
from flowalign.errors import CheckpointError, FlowalignWarning
from tests.checkpoints import edit, files, flip, load, names, same, save


def test_a_flipped_byte_is_detected_and_names_the_file(tmp_path: Path) -> None:
    """P14: 100 random flips over all files, each refused with exit 4."""
    path = save(tmp_path, 3)
    rng = random.Random(0)
    whole = sorted(path.iterdir())
    for _ in range(100):
        file = rng.choice(whole)
        data = file.read_bytes()
        flip(file, rng.randrange(len(data)), rng.randrange(1, 256))
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert caught.value.exit_code == 4 and file.name in caught.value.where
        file.write_bytes(data)
    load(path)


def test_control_without_hashes_a_flipped_weight_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 3)
    verify = checkpoint.verify
    monkeypatch.setattr(checkpoint, "verify", lambda p, run_id: verify(p, contents=False))
    flip(path / "weights.safetensors", -1)
    assert not same(load(path).tensors, files(3))


def incomplete_kinds() -> dict[str, Callable[[Path], object]]:
    def future(value: dict[str, Any]) -> None:
        value["format"] = manifest.FORMAT + 1

    def other_run(value: dict[str, Any]) -> None:
        value["run_id"] = "other"

    def link(path: Path) -> None:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")

    def file(path: Path) -> None:
        shutil.rmtree(path)
        path.write_text("x")

    weights, text = "weights.safetensors", "manifest.json"
    return {
        "no manifest": lambda p: (p / text).unlink(),
        "empty manifest": lambda p: (p / text).write_bytes(b""),
        "missing file": lambda p: (p / weights).unlink(),
        "extra file": lambda p: (p / ".tmp-weights").write_text("x"),
        "wrong size": lambda p: os.truncate(p / weights, 100),
        "wrong hash": lambda p: flip(p / weights, -1),
        "other run": lambda p: edit(p / text, other_run, seal=True),
        "future format": lambda p: edit(p / text, future, seal=True),
        "a link": link,
        "a file": file,
    }


@pytest.mark.parametrize("kind", list(incomplete_kinds()))
def test_incomplete_ones_are_skipped_with_a_warning_and_refused_by_name(
    tmp_path: Path, kind: str
) -> None:
    """P13: ten kinds."""
    good, newest = save(tmp_path, 1), save(tmp_path, 2)
    incomplete_kinds()[kind](newest)
    with pytest.warns(FlowalignWarning, match=r"step-000002.*checkpoint skipped"):
        assert checkpoint.latest(tmp_path, run_id="run") == good
    with pytest.raises(CheckpointError) as caught:
        load(newest)
    assert caught.value.exit_code == 4 and "step-000002" in caught.value.where


@pytest.mark.parametrize("kind", list(incomplete_kinds()))
def test_control_the_untouched_one_is_the_latest(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    incomplete_kinds()[kind](save(tmp_path / "another", 2))
    assert checkpoint.latest(tmp_path, run_id="run") == newest
    load(newest)


def test_without_any_good_one_the_newest_reason_is_told(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "manifest.json").unlink()
    with (
        pytest.warns(FlowalignWarning),
        pytest.raises(CheckpointError, match=r"step-000002.*and no older checkpoint is usable"),
    ):
        checkpoint.latest(tmp_path)


def test_a_run_killed_before_its_first_save_has_no_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / "checkpoints" / ".tmp-step-000001-7").mkdir(parents=True)
    assert checkpoint.latest(tmp_path) is None


def test_order_is_by_number_not_by_text(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step, keep_last=2)
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints/step-1000000"
    save(tmp_path, 1_000_001, keep_last=2)
    assert names(tmp_path) == ["step-1000000", "step-1000001"]


def broken_states(path: Path) -> dict[str, Callable[[], object]]:
    """Each file deleted, emptied, cut and exchanged; each manifest field removed and altered."""
    out: dict[str, Callable[[], object]] = {}
    for file in sorted(path.iterdir()):
        size = file.stat().st_size
        out[f"{file.name} deleted"] = file.unlink
        out[f"{file.name} empty"] = lambda f=file: f.write_bytes(b"")
        out[f"{file.name} cut"] = lambda f=file, n=size: os.truncate(f, n - 1)
        out[f"{file.name} longer"] = lambda f=file: f.write_bytes(f.read_bytes() + b" ")
    text = path / "manifest.json"
    for name, value in json.loads(text.read_bytes()).items():
        wrong = {"a": 1} if isinstance(value, dict) else f"{value}0"
        other = value + 1 if isinstance(value, int) else wrong
        for label, change in (
            ("removed", lambda v, n=name: v.pop(n)),
            ("of a wrong type", lambda v, n=name: v.update({n: [1]})),
            ("altered", lambda v, n=name, o=other: v.update({n: o})),
        ):
            out[f"{name} {label}"] = lambda c=change: edit(text, c, seal=False)
    out["unknown field"] = lambda: edit(text, lambda v: v.update(extra=1), seal=False)
    for name, content in (("null", b"null"), ("list", b"[]"), ("binary", b"\xff\x00")):
        out[f"manifest is {name}"] = lambda c=content: text.write_bytes(c)
    out["files swapped"] = lambda: swap(path / "weights.safetensors", path / "data.safetensors")
    return out


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def test_a_state_that_cannot_be_restored_stops_the_run(tmp_path: Path) -> None:
    """P04: every alteration is refused with exit 4, none continues."""
    save(tmp_path, 3)
    path = tmp_path / "checkpoints/step-000003"
    shutil.copytree(path, tmp_path / "kept")
    broken = broken_states(path)
    assert len(broken) >= 50
    for name, harm in broken.items():
        harm()
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert caught.value.exit_code == 4, name
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "kept", path)
    assert same(load(path).tensors, files(3)), "control: the untouched copy loads"


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    """K08: valid in itself, but not what the manifest promises."""
    mine, other = save(tmp_path / "a", 3), save(tmp_path / "b", 4)
    shutil.copy(other / "weights.safetensors", mine / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: hash mismatch"):
        load(mine)


def test_a_whole_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to run run, not mine"):
        load(save(tmp_path, 3), run_id="mine")
    load(save(tmp_path, 3), run_id=None)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    with pytest.raises(CheckpointError, match="its manifest says step 3"):
        load(path.rename(path.with_name("step-000004")))


def test_a_future_format_says_so(tmp_path: Path) -> None:
    """K09: also when a future manifest has fields this build does not know."""
    path = save(tmp_path, 3)
    (path / "manifest.json").write_text(json.dumps({"format": 99, "new": True}))
    with pytest.raises(CheckpointError, match="format 99 is newer than this build, which reads 1"):
        load(path)


def test_another_process_count_is_refused_unless_allowed(tmp_path: Path) -> None:
    """K12: both numbers and the option."""
    path = save(tmp_path, 3, world_size=2)
    with pytest.raises(
        CheckpointError,
        match=r"with 2 processes, resumed with 1; .*--allow-world-size-change",
    ):
        load(path)
    assert load(path, allow_world_size_change=True).world_size == 2


def test_a_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "checkpoints" / "step-000009")


@pytest.mark.parametrize("name", ["../../evil.json", "a/b.json", "/etc/x.json", "x.pt", "x.py"])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 3)

    def rename(value: dict[str, Any]) -> None:
        value["files"][name] = value["files"].pop("data.safetensors")

    edit(path / "manifest.json", rename, seal=True)
    with pytest.raises(CheckpointError, match="lists files that a checkpoint does not have"):
        load(path)


def test_links_inside_a_checkpoint_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    (path / "data.safetensors").rename(tmp_path / "moved")
    (path / "data.safetensors").symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        load(path)
