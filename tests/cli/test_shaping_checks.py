"""Shaping that cannot work with the rest of a config is told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowalign.config.load import load_config
from flowalign.errors import ConfigError
from tests.cli.commands import edited

GOOD = [
    "shaping.rewards=[{name: par, reward: clip, scale: 50}, {name: range, reward: shapes}]",
    "shaping.gates=[{reward: shapes, threshold: 0.5}]",
    "shaping.combine=product",
]


def test_control_a_good_shaping_is_accepted(tmp_path: Path) -> None:
    """Negative control: none of the refusals below comes from the form."""
    shaping = load_config(edited(tmp_path), GOOD).config.shaping
    assert shaping is not None and len(shaping.rewards) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("shaping.rewards=[{name: par, reward: clap}]", "no reward of single samples"),
        ("shaping.gates=[{reward: jpeg, threshold: 1}]", "no reward of single samples"),
        ("shaping.rewards=[{name: par, reward: clip}, {name: range, reward: clip}]", "2 entries"),
        ("shaping.rewards=[{name: range, reward: clip, low: 1, high: 1}]", "not below high"),
        ("shaping.rewards=[{name: moving, reward: clip}]", "negative numbers"),
        ("shaping.rewards=[{name: par, reward: clip, references: 32}]", "take fewer"),
        ("algorithm.advantage.combine=per_reward", "needs several"),
        ("rewards.0.label=combined", "that of a term"),
    ],
)
def test_refused(tmp_path: Path, change: str, words: str) -> None:
    key = change.partition("=")[0]
    others = [one for one in GOOD if one.partition("=")[0] != key]
    with pytest.raises(ConfigError) as caught:
        load_config(edited(tmp_path), [*others, change])
    assert words in "\n".join(caught.value.lines())


ENSEMBLE = [
    "rewards.1.weight=1",
    "shaping.rewards=[{name: par, reward: clip, scale: 50}, {name: range, reward: shapes}]",
    "shaping.combine=median",
]
LIMIT = ["rewards.0.weight=0", "shaping.constraints=[{reward: shapes, threshold: 0.8}]"]


@pytest.mark.parametrize("good", [ENSEMBLE, LIMIT, [*LIMIT, "rewards.1.weight=0"]])
def test_control_ensembles_and_constraints_are_accepted(tmp_path: Path, good: list[str]) -> None:
    """Negative control of the next test; constraints alone are a signal."""
    assert load_config(edited(tmp_path), good).config.shaping is not None


@pytest.mark.parametrize(
    ("good", "change", "words"),
    [
        (ENSEMBLE, "shaping.rewards=[{name: range, reward: shapes}]", "not brought to a common"),
        (ENSEMBLE, "shaping.rewards.0={name: moving, reward: clip}", "their scales differ"),
        (ENSEMBLE, "rewards.0.weight=-1", "a weight is negative"),
        (ENSEMBLE, "rewards.0.weight=2", "a median has no weights"),
        (ENSEMBLE, "rewards.0.weight=0", "and there is one"),
        (ENSEMBLE, "rewards.0.label=disagreement", "that of a term"),
        (LIMIT, "rewards.0.weight=0.5", "a multiplier for a weight"),
        (LIMIT, "shaping.rewards=[{name: range, reward: shapes}]", "has a shape"),
        (LIMIT, "shaping.constraints.0.reward=clap", "no reward of single samples"),
    ],
)
def test_ensembles_and_constraints_refused(
    tmp_path: Path, good: list[str], change: str, words: str
) -> None:
    key = change.partition("=")[0]
    others = [one for one in good if one.partition("=")[0] != key]
    with pytest.raises(ConfigError) as caught:
        load_config(edited(tmp_path), [*others, change])
    assert words in "\n".join(caught.value.lines())


def test_rollback_needs_a_held_out_reward(tmp_path: Path) -> None:
    """Nothing else says which checkpoint is the best; the other actions do without."""
    for action in ("stop", "rollback"):
        keys = [f"monitor.action={action}", "held_out_rewards=[]"]
        if action == "rollback":
            with pytest.raises(ConfigError, match="highest held-out rewards"):
                load_config(edited(tmp_path), keys)
        else:
            assert load_config(edited(tmp_path), keys).config.monitor.action == "stop"
