"""`monitor: {action: rollback}` in whole runs: the best state is the result, nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowalign import launch
from flowalign.errors import HealthError
from tests.toy_run import KILLED, dies, newest, start, straight, toy
from tests.training.test_monitor_runs import SETTINGS, against, summaries

STATES = ("weights.safetensors", "optimizer.safetensors", "memory.safetensors")
ROLLBACK: dict[str, Any] = SETTINGS | {"monitor": {"action": "rollback"}}


def hole() -> None:
    """The held-out reward rises with the trained one to 0.6, and falls beyond."""
    against(-4.0, turn=0.6)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def status(root: Path) -> dict[str, Any]:
    return json.loads((root / "status.json").read_text())


def state(root: Path, name: str) -> list[bytes]:
    return [(root / "checkpoints" / name / file).read_bytes() for file in STATES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`warned` keeps every state of the run; `back` is the same run with a rollback."""
    folder = tmp_path_factory.mktemp("rollback")
    keep = SETTINGS["train"] | {"save_every": 1, "keep_last": 20}
    settings = ROLLBACK | {"monitor": {"action": "warn"}, "train": keep}
    straight(toy(folder / "warned", "nft", **settings), change=hole)
    codes = start(toy(folder / "back", "nft", **ROLLBACK), change=hole).wait()
    assert codes == [HealthError.exit_code]
    return folder


def test_the_best_state_is_the_result_and_later_ones_are_kept(runs: Path) -> None:
    """The newest checkpoint is, byte for byte, that of the highest held-out mean before the alarm;
    the alarmed state lies beside it under its own name."""
    back, warned = runs / "back", runs / "warned"
    told = summaries(back)
    alarmed = told[-1]["step"]
    means = {one["step"]: one["scores"]["blue"]["mean"] for one in told[:-1]}
    best = max(means, key=lambda step: means[step])
    assert 0 < best < alarmed < 10 and told[-1]["monitor"]["alarms"]
    assert newest(back).name == f"step-{best:06d}"
    assert state(back, f"step-{best:06d}") == state(warned, f"step-{best:06d}")
    assert state(back, f"hacked-{alarmed:06d}") == state(warned, f"step-{alarmed:06d}")
    assert state(back, f"hacked-{alarmed:06d}") != state(back, f"step-{best:06d}")
    assert all(name <= f"step-{best:06d}" for name in names(back) if name.startswith("step-"))
    ended = status(back)
    assert ended["exit_code"] == HealthError.exit_code
    assert f"rolled back to step {best}" in ended["reason"] and "HACKING" in ended["reason"]


def test_the_run_goes_on_from_there_bit_for_bit(runs: Path, tmp_path: Path) -> None:
    """Resumed with the alarm off, it ends in the very state of the run that was only warned."""
    back = tmp_path / "back"
    start(toy(back, "nft", **ROLLBACK), change=hole).wait()
    config = toy(back, "nft", **(ROLLBACK | {"monitor": {"action": "warn"}}))
    straight(config, change=hole, resume=True, override_resume=["monitor"])
    assert state(back, "step-000010") == state(runs / "warned", "step-000010")


def after_one_rename() -> None:
    """A process that ends after the first later checkpoint got its new name."""
    rename = Path.rename

    def once(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if self.name.startswith("step-") and target.name.startswith("hacked-"):
            os._exit(KILLED)
        return result

    Path.rename = once  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "killed",
    [
        after_one_rename,
        dies(launch, "export_lora_of", 0),
    ],
    ids=["between", "unexported"],
)
def test_a_kill_at_any_moment_ends_in_the_same_state(
    killed: Callable[[], object], runs: Path, tmp_path: Path
) -> None:
    root = tmp_path / "back"
    settings = ROLLBACK | {"train": ROLLBACK["train"] | {"save_every": 1}}

    def change() -> None:
        hole()
        killed()

    assert start(toy(root, "nft", **settings), change=change).wait() == [KILLED]
    again = start(toy(root, "nft", **settings), change=hole, resume=True).wait()
    assert again == [HealthError.exit_code]
    best = newest(runs / "back").name
    assert newest(root).name == best and state(root, best) == state(runs / "back", best)
    alarmed = [name for name in names(runs / "back") if name.startswith("hacked-")][-1]
    assert state(root, alarmed) == state(runs / "back", alarmed)


def test_two_processes_go_back_together(runs: Path, tmp_path: Path) -> None:
    """Both end with the alarm's code, from and at the steps of one process."""
    root = tmp_path / "two"
    codes = start(toy(root, "nft", **ROLLBACK), world=2, change=hole).wait()
    assert codes == [HealthError.exit_code] * 2
    assert names(root) == names(runs / "back")
    assert status(root)["reason"] == status(runs / "back")["reason"]


def test_an_honest_reward_is_left_alone(tmp_path: Path) -> None:
    """Negative control: no alarm, the last state is the result and nothing is set aside."""
    root = tmp_path / "honest"
    straight(toy(root, "nft", **ROLLBACK), change=lambda: against(1.0))
    assert newest(root).name == "step-000010"
    assert not [name for name in names(root) if name.startswith("hacked-")]
