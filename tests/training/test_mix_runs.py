"""A rule and a model as one reward in a whole run: moving statistics survive a resume."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from flowalign import trainer
from tests.toy_run import KILLED, dies, fingerprint, newest, start, straight, toy

REWARDS = [{"name": "jpeg", "label": "red"}, {"name": "jpeg", "label": "green", "weight": 0.0}]
MIXED = {"mixes": [{"name": "hybrid", "rule": "red", "model": "green", "confidence": 0.25}]}


def test_resume(tmp_path: Path) -> None:
    """Six steps at once, or killed in the fifth and resumed: the same bytes."""
    whole, halves, plain = tmp_path / "whole", tmp_path / "halves", tmp_path / "plain"
    expected = straight(toy(whole, rewards=REWARDS, shaping=MIXED, train={"steps": 6}))
    config = toy(halves, rewards=REWARDS, shaping=MIXED, train={"steps": 6})
    assert start(config, change=dies(trainer, "update", 9)).wait() == [KILLED]
    assert straight(config, resume=True) == expected == fingerprint(whole)
    memory = load_file(newest(whole) / "memory.safetensors")
    assert list(memory) == ["shaping.mix.red"] and memory["shaping.mix.red"][0] > 0
    # The control: without the mix another policy comes out.
    assert straight(toy(plain, rewards=REWARDS, train={"steps": 6})) != expected
