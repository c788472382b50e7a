"""Several methods and budgets from one config: what is refused, what is run, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowalign.config.compare_checks import entries
from flowalign.config.jobs import STEER
from flowalign.config.load import dump_config, load_for
from flowalign.errors import FlowalignError
from flowalign.steering.job import steer
from tests.cli.commands import fails, works
from tests.steering.test_job import NO_PIPELINE, read, rows, toy_parts

__all__ = ["toy_parts"]  # the toy pipeline and rewards, put into every job here

COMPARE = """\
output: run
device: cpu
prompts: [prompt 0, prompt 1, prompt 2]
rewards: [{name: jpeg, label: red}]
held_out_rewards: [{name: jpeg, label: blue}]
sampler: {num_steps: 6, noise_level: 1.0}
budget: 24
method: {name: fk, strength: 200}
compare:
  methods:
    - best_of_n
    - {label: halving, method: {name: best_of_n, halvings: 1}}
    - method: svdd
  budgets: [12]
"""
METHODS = ["fk", "best_of_n", "halving", "svdd"]


@pytest.fixture(autouse=True)
def compared(tmp_path: Path) -> None:
    Path("compare.yaml").write_text(COMPARE)


REFUSED: list[tuple[str, str]] = [
    ("compare.methods=[fk]", "compare.methods.0.label: two methods are called `fk`"),
    ("compare.methods=[svdd, svdd]", "compare.methods.1.label: two methods are called `svdd`"),
    ("compare.methods=[none]", "compare.methods.0.method.name: plain samples are the baseline"),
    (
        "method=none budget=null compare.budgets=[]",
        "method.name: plain samples are the baseline of a comparison",
    ),
    ("compare.methods.0.label=''", "compare.methods.0.label"),
    ("compare.methods.0.label='a\tb'", "is no title"),
    ("compare.budgets=[5]", "compare.budgets.0: 5 evaluations are not enough for one sample"),
    ("compare.budgets=[12, 24]", "compare.budgets.1: budget 24 stands twice"),
    ("compare.budgets=[0]", "compare.budgets.0: must be >= 1"),
    ("budget=null", "compare.budgets: these are further budgets"),
    ("compare.methods=[fkk]", "unknown method 'fkk'; did you mean `fk`?"),
    ("compare.methods=[{method: {name: fk, looks: 0}}]", "compare.methods.0.method.looks: must be"),
    (
        "compare.methods=[{method: {name: svdd, candidates: 3}}]",
        "compare.methods.0.method.candidates: 3 is given, and budget 24",
    ),
    (
        "compare.methods=[{label: b, method: {name: fk, tempering: 0.7}}]",
        "compare.methods.0.method.tempering: 0.7 is not below",
    ),
    ("compare.method=[fk]", "compare.method: unknown key"),
]


@pytest.mark.parametrize(("change", "fragment"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_refused_before_anything_is_loaded(change: str, fragment: str) -> None:
    with pytest.raises(FlowalignError) as caught:
        load_for(STEER, "compare.yaml", change.split(" ") if "=null" in change else [change])
    assert fragment in caught.value.line()
    assert caught.value.exit_code == 2


def test_a_problem_of_every_method_is_told_once() -> None:
    with pytest.raises(FlowalignError) as caught:
        load_for(STEER, "compare.yaml", ["sampler=ode"])
    told = [caught.value.line(), *caught.value.earlier]
    assert sum("sampler.name" in line for line in told) == 1  # not for each method and budget


def test_columns_and_their_order(tmp_path: Path) -> None:
    config = load_for(STEER, "compare.yaml").config
    found = entries(config)
    assert [(e.label, e.budget) for e in found] == [(m, b) for b in (12, 24) for m in METHODS]
    Path("again.yaml").write_text(dump_config(config))
    assert load_for(STEER, "again.yaml").config == config
    alone = load_for(STEER, "compare.yaml", ["compare={}"]).config
    assert [(e.label, e.budget) for e in entries(alone)] == [("fk", 24)]


def test_one_run_with_a_column_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """The table, and in the files what each method alone would have written."""
    told = works(capsys, ["steer", "compare.yaml"]).splitlines()
    head, *lines = told[-12:-2]
    assert head.split()[:5] == ["method", "budget", "k", "red", "blue"]
    assert [line.split()[0] for line in lines] == ["none", *METHODS, *METHODS]
    summaries: list[Any] = [read(f"run/eval/step-{k:06d}/summary.json") for k in range(9)]
    assert [s["label"] for s in summaries] == ["none", *METHODS, *METHODS]
    assert [s["budget"] for s in summaries] == [None] + [12] * 4 + [24] * 4
    for summary in summaries[1:]:
        assert 6 < summary["costs"]["network_evaluations"] / 3 <= summary["budget"]
    assert read("run/status.json")["step"] == 8
    sets = [part for text in ("compare={}", "budget=12") for part in ("--set", text)]
    works(capsys, ["steer", "compare.yaml", *sets, "--output", "alone"])
    one, two = (Path(f"{run}/eval/step-000001/scores.jsonl") for run in ("run", "alone"))
    assert one.read_bytes() == two.read_bytes()
    assert [row["scores"] for row in rows(5)] != [row["scores"] for row in rows(1)]


def test_the_budget_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    printed = works(capsys, ["steer", "compare.yaml", "--budget", "36", "--print-config"])
    assert "budget: 36" in printed.splitlines()
    fails(capsys, ["steer", "compare.yaml", "--budget", "12"], 2, "budget 12 stands twice")


def test_the_python_face() -> None:
    compare = {"methods": ["best_of_n"], "budgets": [12]}
    sampler = {"num_steps": 6, "noise_level": 1.0}
    rewards = [{"name": "jpeg", "label": "red"}]
    result = steer(
        NO_PIPELINE, ["a", "b"], rewards, budget=24, compare=compare, sampler=sampler, output="kept"
    )
    found = [(steered.label, steered.budget) for steered in result.columns]
    assert found == [("fk", 12), ("best_of_n", 12), ("fk", 24), ("best_of_n", 24)]
    assert result.steered is result.columns[2]
    assert len(list(Path("kept/eval").iterdir())) == 5
    costs = [json.loads(p.read_text())["costs"] for p in Path("kept/eval").glob("*/summary.json")]
    assert all(cost["network_evaluations"] > 0 for cost in costs)
