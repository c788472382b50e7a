"""A page says when a run was alarmed of reward hacking, and what held-out rewards did."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

from tests.gallery.test_page import build

ALARM = "the trained reward rises while held-out rewards fall"


def mean(run: Path, step: int, name: str) -> float:
    lines = (run / f"eval/step-{step:06d}/scores.jsonl").read_text().splitlines()
    return fmean(json.loads(line)["scores"][name] for line in lines)


def words(runs: Path, monitor: dict[str, object] | None) -> str:
    """The text of a page whose last evaluation was watched."""
    path = runs / "nft/eval/step-000040/summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | ({} if monitor is None else {"monitor": monitor})))
    return re.sub(r"\s+", " ", " ".join(build(runs, "nft").texts))


def test_alarm_and_held_out_drift_are_notes(runs: Path) -> None:
    text = words(runs, {"alarms": [ALARM], "best_held_out_step": 0, "drift": 1.5})
    assert f"nft: reward hacking alarm at step 40: {ALARM}" in text
    moves = [f"{mean(runs / 'nft', step, 'strict'):.3g}" for step in (0, 40)]
    assert f"were best at step 0 (strict {' -> '.join(moves)}, clip" in text


def test_without_an_alarm_nothing_is_said(runs: Path) -> None:
    """Negative control: a watched run without an alarm, and one that was not watched."""
    for monitor in ({"alarms": [], "best_held_out_step": 0}, None):
        assert "reward hacking" not in words(runs, monitor)
