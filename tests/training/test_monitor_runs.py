"""The monitor in whole runs: a planted hole ends the run with exit 9, an honest reward does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign import trainer
from flowalign.errors import HealthError
from flowalign.types import Sample
from tests.toy_run import KILLED, ToyReward, dies, newest, rows, start, straight, toy

SETTINGS: dict[str, Any] = {
    "rewards": [{"name": "jpeg", "label": "red"}],
    "rollout": {"num_prompts": 4, "group_size": 8, "batch_size": 16},
    "algorithm": {"name": "nft", "updates_per_rollout": 2},
    "train": {"steps": 10, "save_every": "never", "learning_rate": 3e-2, "ema_decay": None},
    "evaluation": {"every": 1, "num_prompts": 6, "samples_per_prompt": 8},
    "monitor": {"action": "stop"},
}


def against(sign: float, turn: float = 0.0) -> None:
    """The held-out reward becomes `sign` times the trained one, from `turn` on; before, it rises
    with it."""
    original = ToyReward.__call__

    def answer(self: ToyReward, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        values, valid = original(self, samples)
        if self.name == "blue":
            red = torch.stack([sample.media[0].mean() for sample in samples])
            values = torch.where(red > turn, turn + sign * (red - turn), red)
        return values, valid

    ToyReward.__call__ = answer  # type: ignore[method-assign]


def summaries(root: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(root.glob("eval/*/summary.json"))]


def test_a_planted_hole_stops_the_run_and_keeps_it(tmp_path: Path) -> None:
    """Exit code 9 before the end, with a checkpoint of that very step and the alarm on disk."""
    root = tmp_path / "hole"
    codes = start(toy(root, "nft", **SETTINGS), change=lambda: against(-1.0)).wait()
    assert codes == [HealthError.exit_code]
    told = summaries(root)
    step = told[-1]["step"]
    assert 3 <= step < 10 and newest(root).name == f"step-{step:06d}"
    assert "held-out rewards fall" in told[-1]["monitor"]["alarms"][0]
    assert all(not one["monitor"]["alarms"] for one in told[:-1])
    assert told[-1]["scores"]["red"]["mean"] > told[0]["scores"]["red"]["mean"]
    assert rows(root)[0]["reward_group_std"] > 0


def test_an_honest_reward_goes_to_the_end(tmp_path: Path) -> None:
    """Negative control: the same run with a held-out reward that rises with the trained one."""
    root = tmp_path / "honest"
    assert start(toy(root, "nft", **SETTINGS), change=lambda: against(1.0)).wait() == [0]
    alarms = [alarm for one in summaries(root) for alarm in one["monitor"]["alarms"]]
    assert not [alarm for alarm in alarms if "held-out" in alarm]
    assert summaries(root)[-1]["step"] == 10


def test_a_resumed_run_has_the_same_history(tmp_path: Path) -> None:
    """Killed after its sixth evaluation, resumed from step 4: tensors and alarms are the same."""
    settings = SETTINGS | {"monitor": {"action": "warn"}}
    settings["train"] = SETTINGS["train"] | {"save_every": 2}
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def hole() -> None:
        against(-1.0)

    def killed() -> None:
        hole()
        dies(trainer.Loop, "evaluate", 5, after=True)()

    expected = straight(toy(whole, "nft", **settings), change=hole)
    assert start(toy(halves, "nft", **settings), change=killed).wait() == [KILLED]
    assert straight(toy(halves, "nft", **settings), change=hole, resume=True) == expected
    told = [[one["monitor"] for one in summaries(root)] for root in (whole, halves)]
    assert told[0] == told[1]
    assert told[0][-1]["alarms"]


def test_off_is_off(tmp_path: Path) -> None:
    """Without the monitor nothing of it is written."""
    root = tmp_path / "off"
    few = {"steps": 1, "save_every": 1, "warmup_steps": 0}
    assert start(toy(root, train=few)).wait() == [0]
    assert "monitor" not in summaries(root)[0]
    assert not (newest(root) / "memory.safetensors").exists()
    assert "reward_group_std" not in rows(root)[0]


@pytest.fixture(autouse=True)
def untouched() -> None:
    """The exchanged reward lives in forked children only."""
    assert ToyReward.__call__.__qualname__ == "ToyReward.__call__"
