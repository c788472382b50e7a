"""Methods that are compared: each is checked as if it were the only one, then all together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from flowalign.config.checks import conflict
from flowalign.config.problems import Problem
from flowalign.config.steering import CompareConfig, MethodConfig, NoneConfig, SteerConfig
from flowalign.config.yaml12 import KeyPath

Rule = Callable[[SteerConfig], Iterator[Problem]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One method at one budget: a column of the job's results."""

    label: str
    method: MethodConfig
    budget: int | None


def entries(config: SteerConfig) -> tuple[Entry, ...]:
    """All that a job runs beside plain samples: budgets from the smallest, methods in order."""
    methods = [(config.method.name, config.method)]
    methods += [
        (entry.label or entry.method.name, entry.method) for entry in config.compare.methods
    ]
    budgets = [config.budget] if config.budget is None else [config.budget, *config.compare.budgets]
    return tuple(
        Entry(label=label, method=method, budget=budget)
        for budget in sorted(budgets, key=lambda budget: budget or 0)
        for label, method in methods
    )


def every_method(*rules: Rule) -> Rule:
    """The rules for `method`, and for each compared method and budget at its own place."""

    def rule(config: SteerConfig) -> Iterator[Problem]:
        found: dict[tuple[KeyPath, str], Problem] = {}
        for method_at, budget_at, single in singles(config):
            for problem in (problem for each in rules for problem in each(single)):
                moved = relocated(problem, method_at, budget_at)
                found.setdefault((moved.path, moved.fix), moved)
        yield from found.values()

    return rule


def singles(config: SteerConfig) -> Iterator[tuple[KeyPath, KeyPath, SteerConfig]]:
    """(where the method stands, where the budget stands, the job of these two alone)."""
    methods: list[tuple[KeyPath, MethodConfig]] = [(("method",), config.method)]
    for place, entry in enumerate(config.compare.methods):
        if not isinstance(entry.method, NoneConfig):  # refused by `compare_rule`
            methods.append((("compare", "methods", place, "method"), entry.method))
    budgets: list[tuple[KeyPath, int | None]] = [(("budget",), config.budget)]
    for place, budget in enumerate(config.compare.budgets):
        budgets.append((("compare", "budgets", place), budget))
    for method_at, method in methods:
        for budget_at, budget in budgets:
            alone = {"method": method, "budget": budget, "compare": CompareConfig()}
            yield method_at, budget_at, config.model_copy(update=alone)


def relocated(problem: Problem, method_at: KeyPath, budget_at: KeyPath) -> Problem:
    """The problem at the key that the single job's `method` or `budget` came from."""
    head, *rest = problem.path
    places = {"method": method_at, "budget": budget_at}
    return replace(problem, path=(*places.get(str(head), (head,)), *rest))


def compare_rule(config: SteerConfig) -> Iterator[Problem]:
    """Titles and budgets differ, and plain samples are drawn once, as the baseline."""
    compare = config.compare
    if isinstance(config.method, NoneConfig) and compare.methods:
        what = "plain samples are the baseline of a comparison"
        yield conflict(("method", "name"), what, "choose a method that steers")
    seen = Counter({config.method.name: 1})
    for place, entry in enumerate(compare.methods):
        at, label = ("compare", "methods", place), entry.label or entry.method.name
        if isinstance(entry.method, NoneConfig):
            what = "plain samples are the baseline, drawn once whatever the budget"
            yield conflict((*at, "method", "name"), what, "remove it; `baseline: true` draws them")
        if not label.isprintable() or not label.strip():
            yield conflict((*at, "label"), f"{label!r} is no title", "use printable characters")
        seen[label] += 1
        if seen[label] == 2:
            yield conflict((*at, "label"), f"two methods are called `{label}`", "give it another")
    if compare.budgets and config.budget is None:
        what = "these are further budgets, and there is no `budget`"
        yield conflict(("compare", "budgets"), what, "give the first of them as `budget`")
    counted = Counter([config.budget])
    for place, budget in enumerate(compare.budgets):
        counted[budget] += 1
        if counted[budget] == 2:
            what = f"budget {budget} stands twice"
            yield conflict(("compare", "budgets", place), what, "name each once")
