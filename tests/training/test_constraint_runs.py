"""Constraints and ensembles in whole runs: resume and processes change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flowalign import trainer
from tests.toy_run import KILLED, dies, fingerprint, newest, rows, start, straight, toy

TWO = [{"name": "jpeg", "label": "red"}, {"name": "jpeg", "label": "green", "weight": 0.0}]
LIMITED: dict[str, Any] = {
    "constraints": [{"reward": "green", "threshold": 0.64, "kind": "equal"}],
    "multipliers": {"learning_rate": 3.0},
}
ENSEMBLE: dict[str, Any] = {
    "combine": "lower_bound",
    "rewards": [
        {"name": "range", "reward": "red", "low": 0.0, "high": 1.0},
        {"name": "range", "reward": "green", "low": 0.0, "high": 1.0},
    ],
}


@pytest.mark.parametrize("shaping", [LIMITED, ENSEMBLE], ids=["constraint", "ensemble"])
def test_resume_and_processes(tmp_path: Path, shaping: dict[str, Any]) -> None:
    """Six steps at once, or killed in the fifth and resumed: the same bytes. One step on two
    processes: the same memory and metrics as on one."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    rewards = TWO if shaping is LIMITED else [TWO[0], {"name": "jpeg", "label": "green"}]
    expected = straight(toy(whole, rewards=rewards, shaping=shaping, train={"steps": 6}))
    config = toy(halves, rewards=rewards, shaping=shaping, train={"steps": 6})
    assert start(config, change=dies(trainer, "update", 9)).wait() == [KILLED]
    assert straight(config, resume=True) == expected == fingerprint(whole)
    one, two = tmp_path / "one", tmp_path / "two"
    straight(toy(one, rewards=rewards, shaping=shaping, train={"steps": 1}))
    straight(toy(two, rewards=rewards, shaping=shaping, train={"steps": 1}), world=2)
    first, second = rows(one)[0], rows(two)[0]
    told = [name for name in first if name.startswith("shaping/")]
    assert told and all(first[name] == second[name] for name in told)
    if shaping is LIMITED:
        memories = [load_file(newest(path) / "memory.safetensors") for path in (one, two)]
        assert memories[0].keys() == memories[1].keys() == {"shaping.multiplier.green"}
        assert memories[0]["shaping.multiplier.green"].equal(
            memories[1]["shaping.multiplier.green"]
        )
        assert memories[0]["shaping.multiplier.green"].any()
