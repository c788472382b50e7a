"""Killed at any time, on a full disk, between any two system calls: a good checkpoint is there."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowalign import checkpoint, disk
from flowalign.errors import CheckpointError, FlowalignWarning
from flowalign.metrics import MetricsLog, read_rows
from flowalign.run_directory import open_run
from tests.forked import fork

SAVE_EVERY = 2
STEPS = 24
KILLED = -9

Save = Callable[[Path, int, Tensor, int], object]


def safe_save(root: Path, step: int, state: Tensor, keep_last: int) -> None:
    tensors = {"weights": {"w": state}, "optimizer": {"w.exp_avg": state * 2, "w.step": state[0]}}
    checkpoint.save(
        root, step, tensors, {"step": step}, keep_last=keep_last, run_id="r", world_size=1
    )


def naive_save(root: Path, step: int, state: Tensor, keep_last: int) -> None:
    """The control: old ones first, then file by file under the final name (accelerate's order)."""
    assert keep_last == 1
    folder = root / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    safe_save(root / "elsewhere", step, state, 1)
    target = folder / f"step-{step:06d}"
    target.mkdir(parents=True)
    for file in sorted((root / "elsewhere/checkpoints" / target.name).iterdir(), reverse=True):
        disk.write_new(target / file.name, file.read_bytes())
        time.sleep(0.01)  # a slow disk


def latest(root: Path) -> Path | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowalignWarning)
        return checkpoint.latest(root)


def train(root: Path, keep_last: int, save: Save = safe_save) -> None:
    """A run whose every step depends on all earlier ones."""
    warnings.simplefilter("ignore", FlowalignWarning)
    run = open_run(root, "seed: 0", resume=(root / "run.json").exists())
    checkpoint.remove_leftovers(root)
    path = checkpoint.latest(root)
    step, state = 0, torch.linspace(0, 1, 4096)
    if path is not None:
        loaded = checkpoint.load(path, run_id=None, world_size=1)
        step, state = loaded.step, loaded.tensors["weights"]["w"]
    run.start(step=step)
    metrics = MetricsLog(run.metrics, resume_step=step)
    while step < STEPS:
        step += 1
        state = torch.sin(state * 1.5 + step)
        metrics.write(step, {"mean": float(state.mean())})
        if step % SAVE_EVERY == 0:
            save(root, step, state, keep_last)
    run.status("finished", step, exit_code=0)
    run.close()


def result(root: Path) -> tuple[bytes, bytes]:
    path = latest(root)
    assert path is not None
    return (path / "weights.safetensors").read_bytes(), (root / "metrics.jsonl").read_bytes()


def lost_steps(root: Path) -> int:
    """Steps done, as far as anybody saw, beyond the last loadable checkpoint."""
    path = latest(root)
    saved = 0 if path is None else checkpoint.load(path, run_id=None, world_size=1).step
    rows = read_rows(root / "metrics.jsonl") if (root / "metrics.jsonl").exists() else []
    return rows[-1]["step"] - saved if rows else 0


def kill_at_random(tmp_path: Path, kills: int, keep_last: int, save: Save, seed: int) -> int:
    """Kill runs at random moments until `kills` struck; each run ends as if never interrupted.

    Returns the number of restarts that began at a checkpoint.
    """
    begin = time.monotonic()
    train(tmp_path / "straight", keep_last)
    seconds = time.monotonic() - begin
    expected = result(tmp_path / "straight")
    rng = random.Random(seed)
    struck = restarts = 0
    for number in range(5 * kills):
        root = tmp_path / f"run-{number}"
        done = False
        while not done:
            child = fork(lambda root=root: train(root, keep_last, save))
            if struck < kills:
                time.sleep(rng.uniform(0, seconds))
                child.kill()
            code = child.wait()
            assert code in (0, KILLED)
            done = code == 0
            struck += not done
            assert lost_steps(root) <= SAVE_EVERY
            restarts += not done and latest(root) is not None
        assert result(root) == expected
        assert not list((root / "checkpoints").glob(".tmp-*"))
        if struck >= kills:
            break
    assert struck == kills
    return restarts


@pytest.mark.parametrize("keep_last", [2, 1])
def test_kill_9_at_any_time_loses_at_most_the_work_since_the_last_save(
    tmp_path: Path, keep_last: int
) -> None:
    """P10 (25 kills) and P12 (10 kills with one checkpoint kept)."""
    kills = 25 if keep_last == 2 else 10
    restarts = kill_at_random(tmp_path, kills, keep_last, safe_save, seed=keep_last)
    assert restarts >= kills // 3, "too few kills struck after the first save to mean anything"


def test_control_a_naive_save_does_not_survive_kills(tmp_path: Path) -> None:
    with pytest.raises((AssertionError, CheckpointError)):
        kill_at_random(tmp_path, 40, 1, naive_save, seed=1)


@pytest.mark.nightly
def test_kill_9_two_hundred_times(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 200, 1, safe_save, seed=7)


Call = Callable[..., Any]


def dies_at(count: int, half: bool) -> None:
    """In this (forked) process: end without a trace at the `count`-th call that changes the disk.

    With `half` a call that writes has written half of its bytes.
    """
    seen = 0

    def dying(call: Call, write_half: Call | None) -> Call:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            if seen == count:
                if half and write_half:
                    write_half(*args)
                os._exit(77)
            seen += 1
            return call(*args, **kwargs)

        return wrapper

    write = os.write
    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, dying(getattr(os, name), None))
    os.write = dying(write, lambda fd, data: write(fd, data[: len(data) // 2]))
    checkpoint.save_file = dying(save_file, half_file)


def half_file(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)
    os.truncate(path, path.stat().st_size // 2)


def unsafe_points(tmp_path: Path, save: Save, *, damaged_namesake: bool = False) -> tuple[int, int]:
    """(points tried, points after which no good checkpoint is left or no restart works)."""
    old, new = torch.zeros(512), torch.ones(512)
    start = tmp_path / "start"
    safe_save(start, 1, old, 1)
    if damaged_namesake:
        safe_save(start, 2, old, 2)
        (start / "checkpoints/step-000002/state.json").unlink()
    tried = unsafe = 0
    for half in (False, True):
        count, code = 0, 77
        while code == 77:
            root = tmp_path / f"{half}-{count}"
            shutil.copytree(start, root)

            def body(root: Path = root, at: int = count, half: bool = half) -> None:
                dies_at(at, half)
                save(root, 2, new, 1)

            code = fork(body).wait()
            assert code in (0, 77)
            tried += 1
            unsafe += not (is_good(root, old, new) and restarts(root, new))
            count += 1
    return tried, unsafe


def is_good(root: Path, old: Tensor, new: Tensor) -> bool:
    try:
        path = latest(root)
        assert path is not None
        loaded = checkpoint.load(path, run_id="r", world_size=1)
    except (AssertionError, CheckpointError):
        return False
    return torch.equal(loaded.tensors["weights"]["w"], {1: old, 2: new}[loaded.step])


def restarts(root: Path, new: Tensor) -> bool:
    checkpoint.remove_leftovers(root)
    safe_save(root, 2, new, 1)
    return [path.name for path in (root / "checkpoints").iterdir()] == ["step-000002"]


@pytest.mark.parametrize("damaged_namesake", [False, True])
def test_every_intermediate_disk_state_is_safe(tmp_path: Path, damaged_namesake: bool) -> None:
    """P11: stop before, and half way through, every call that changes the disk."""
    tried, unsafe = unsafe_points(tmp_path, safe_save, damaged_namesake=damaged_namesake)
    assert tried >= 40
    assert unsafe == 0


def test_control_a_naive_save_has_unsafe_states(tmp_path: Path) -> None:
    _, unsafe = unsafe_points(tmp_path, naive_save)
    assert unsafe >= 5


def order_of_calls(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(call, file name) of each save, fsync, rename and removal, in order."""
    calls: list[tuple[str, str]] = []
    fsync, rename, unlink = os.fsync, os.rename, os.unlink

    def logged_fsync(descriptor: int) -> None:
        calls.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def logged_rename(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target).name))
        rename(source, target)

    def logged_unlink(path: Any, **options: Any) -> None:
        calls.append(("unlink", Path(path).name))
        unlink(path, **options)

    def logged_save(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(("write", path.name))
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", logged_fsync)
        patch.setattr(os, "rename", logged_rename)
        patch.setattr(os, "unlink", logged_unlink)
        patch.setattr(checkpoint, "save_file", logged_save)
        safe_save(root, 2, torch.ones(8), 1)
    return calls


def check_order(calls: list[tuple[str, str]]) -> None:
    published = calls.index(("rename", "step-000002"))
    before, after = calls[:published], calls[published + 1 :]
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        assert ("fsync", name) in before, name
        assert name == "manifest.json" or before.index(("fsync", "manifest.json")) > before.index(
            ("fsync", name)
        ), "the manifest is last"
    assert before[-1][0] == "fsync" and before[-1][1].startswith(".tmp-step-000002")
    assert after[0] == ("fsync", "checkpoints")
    assert all(call not in ("unlink",) for call, _ in before), "removed before the new one stands"


def test_power_loss_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is on the disk before the name is, and the name before anything is removed."""
    safe_save(tmp_path, 1, torch.zeros(8), 1)
    check_order(order_of_calls(tmp_path, monkeypatch))


def test_control_without_fsync_the_order_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe_save(tmp_path, 1, torch.zeros(8), 1)
    monkeypatch.setattr(disk, "sync_file", lambda path: None)
    with pytest.raises(AssertionError):
        check_order(order_of_calls(tmp_path, monkeypatch))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_full_disk_leaves_the_old_checkpoint_and_says_how_much_is_needed(
    tmp_path: Path, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """P15: the disk refuses bytes after 10, 50 and 90 % of the weights' file."""
    state = torch.zeros(100_000)
    safe_save(tmp_path, 1, state, 1)

    def body() -> None:
        limit = int(state.nbytes * share)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        safe_save(tmp_path, 2, state, 1)

    assert fork(body).wait() == 7
    line = capfd.readouterr().err
    assert "step-000002: cannot be written" in line and "needed 1.8 MB" in line
    assert "MB are free" in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert latest(tmp_path) == tmp_path / "checkpoints/step-000001"


def test_control_without_the_limit_the_save_works(tmp_path: Path) -> None:
    state = torch.zeros(100_000)
    safe_save(tmp_path, 1, state, 1)
    assert fork(lambda: safe_save(tmp_path, 2, state, 1)).wait() == 0
    assert latest(tmp_path) == tmp_path / "checkpoints/step-000002"


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_disk_that_fills_at_the_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    safe_save(tmp_path, 1, torch.zeros(8), 1)
    write_new = disk.write_new

    def full(path: Path, data: bytes, *, sync: bool = True) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))
        write_new(path, data, sync=sync)

    monkeypatch.setattr(disk, "write_new", full)
    with pytest.raises(checkpoint.ResourceError, match=r"No space left.*intact"):
        safe_save(tmp_path, 2, torch.zeros(8), 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
