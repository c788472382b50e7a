"""One run per directory (P17): a second start is refused at once, a killed holder blocks nobody."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowalign import lock
from flowalign.errors import ResourceError
from tests.forked import Child, fork


def hold(path: Path) -> Child:
    """A child that holds the lock until it is killed; returns when it does."""
    begin, end = os.pipe()

    def body() -> None:
        lock.acquire(path)
        os.write(end, b".")
        time.sleep(60)

    child = fork(body)
    os.close(end)
    assert os.read(begin, 1) == b"."
    os.close(begin)
    return child


def test_a_second_start_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    child = hold(path)
    try:
        for _ in range(20):
            before = time.monotonic()
            with pytest.raises(ResourceError) as caught:
                lock.acquire(path)
            assert time.monotonic() - before < 2
            line = caught.value.line()
            assert caught.value.exit_code == 7
            assert f"pid {child.pid} on {socket.gethostname()}, started 2" in line
    finally:
        child.kill()
        child.wait()


def test_control_without_flock_both_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.fcntl, "flock", lambda descriptor, operation: None)
    first = lock.acquire(tmp_path / "run.lock")
    second = lock.acquire(tmp_path / "run.lock")
    assert first.descriptor != second.descriptor
    first.release()
    second.release()


def test_kill_frees_the_lock_at_once_and_the_stale_holder_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    for _ in range(20):
        child = hold(path)
        child.kill()
        child.wait()
        held = lock.acquire(path)
        assert held.stale is not None and f"pid {child.pid} on" in held.stale
        held.release()
        assert path.read_bytes() == b""


def test_a_proper_release_leaves_no_stale_holder(tmp_path: Path) -> None:
    lock.acquire(tmp_path / "run.lock").release()
    held = lock.acquire(tmp_path / "run.lock")
    assert held.stale is None
    held.release()
    held.release()


def orphan_keeps_lock(path: Path) -> bool:
    """Whether a grandchild that outlives the killed holder still blocks the directory."""
    begin, end = os.pipe()

    def body() -> None:
        lock.acquire(path)
        worker = fork(lambda: time.sleep(60))
        os.write(end, worker.pid.to_bytes(4, "little"))
        time.sleep(60)

    child = fork(body)
    os.close(end)
    worker = int.from_bytes(os.read(begin, 4), "little")
    os.close(begin)
    time.sleep(0.05)  # the worker's fork handler has run
    child.kill()
    child.wait()
    try:
        lock.acquire(path).release()
    except ResourceError:
        return True
    finally:
        os.kill(worker, 9)
    return False


def test_forked_workers_do_not_inherit_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not orphan_keeps_lock(tmp_path / "run.lock")
    # Control: without the fork handler's list the orphan blocks the next start.
    monkeypatch.setattr(lock, "_held", NeverRemembers())
    assert orphan_keeps_lock(tmp_path / "other.lock")


class NeverRemembers(set[int]):
    def add(self, element: int, /) -> None:
        pass


def test_a_lock_file_removed_by_its_last_holder_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes the file between our open and our lock: we must not lock a ghost."""
    path = tmp_path / "run.lock"
    first = lock.acquire(path)
    taken = lock._flock

    def flock_after_removal(at: Path, descriptor: int) -> None:
        first.release(remove=True)
        taken(at, descriptor)

    monkeypatch.setattr(lock, "_flock", flock_after_removal)
    held = lock.acquire(path)
    monkeypatch.setattr(lock, "_flock", taken)
    with pytest.raises(ResourceError, match=f"pid {os.getpid()}"):
        lock.acquire(path)
    held.release()


def test_a_damaged_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text("{]")
    held = lock.acquire(path)
    assert held.stale == "an unknown process"
    held.release()


def test_second_start_of_a_run_exits_before_torch_is_imported(tmp_path: Path) -> None:
    """As a command would: a whole interpreter, a locked directory, exit 7 within two seconds."""
    script = (
        "import sys\n"
        "from flowalign.errors import FlowalignError\n"
        "from flowalign.run_directory import open_run\n"
        "try:\n"
        "    open_run(sys.argv[1], 'seed: 0')\n"
        "except FlowalignError as error:\n"
        "    assert 'torch' not in sys.modules\n"
        "    print(error.line(), file=sys.stderr)\n"
        "    sys.exit(error.exit_code)\n"
    )
    child = hold(tmp_path / "run.lock")
    try:
        before = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
        )
        assert time.monotonic() - before < 2
    finally:
        child.kill()
        child.wait()
    assert done.returncode == 7
    assert re.match(rf"error\[RUN-LOCKED\] .*pid {child.pid} on", done.stderr)
