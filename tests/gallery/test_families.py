"""Family trees and costs of steering jobs: what is drawn is what was noted, damage is told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest

from flowalign.errors import DataError, SecurityError
from flowalign.gallery import build_gallery, page
from flowalign.gallery.ancestry import Population, family_of
from flowalign.gallery.collect import read_run
from flowalign.gallery.columns import align, choose_columns
from flowalign.gallery.compare import score_kinds, tables
from flowalign.gallery.family import LARGE, SMALL, fates_of, tree, x_at, y_at
from flowalign.gallery.records import Family
from flowalign.gallery.spending import spending
from tests.gallery.histories import FK, HISTORIES, write_job
from tests.gallery.payloads import PAYLOADS, Page
from tests.gallery.synthetic import write_run
from tests.gallery.test_escaping import assert_text_only

FILE = "eval/step-000001/ancestry.json"
Change = Callable[[dict[str, Any]], object]


def family(history: dict[str, Any]) -> Family:
    population = {"prompt": "a", "prompt_id": 0, "repeat": 0, **history}
    found = family_of(Population.model_validate(population), "here")
    assert found is not None
    return found


def ancestors(found: Family, ends: set[int]) -> set[tuple[int, int]]:
    """All particles from which these ends come, walked back one by one."""
    seen: set[tuple[int, int]] = set()
    for end in ends:
        at: tuple[int, int] | None = (len(found.generations) - 1, end)
        while at is not None:
            seen.add(at)
            at = found.generations[at[0]].particles[at[1]].parent
    return seen


@pytest.mark.parametrize("name", list(HISTORIES))
def test_fates_are_what_walking_back_finds(name: str) -> None:
    found = family(HISTORIES[name])
    count = len(found.generations[-1].particles)
    kin, alive = ancestors(found, set(found.returned)), ancestors(found, set(range(count)))
    told = {
        (step, k): fate for step, row in enumerate(fates_of(found)) for k, fate in enumerate(row)
    }
    assert {at for at, fate in told.items() if fate == "kin"} == kin
    assert {at for at, fate in told.items() if fate != "lost"} == alive
    assert any(fate == "lost" for fate in told.values())


def test_generations_of_each_method() -> None:
    """By hand: who came from whom."""
    parents = {
        name: [[p.parent for p in g.particles] for g in family(history).generations]
        for name, history in HISTORIES.items()
    }
    assert parents["fk"][2:] == [
        [(1, 1), (1, 1), (1, 1), (1, 2)],
        [(2, 0), (2, 1), (2, 2), (2, 3)],
    ]
    assert parents["halving"][2] == [(1, 1), (1, 3), (1, 4)]
    assert parents["svdd"] == [[None], [(0, 0)] * 2, [(1, 1)] * 2, [(2, 0)]]
    assert parents["rounds"] == [[None], [None, (0, 0)], [None, None], [(1, 1)]]
    assert parents["climb"] == [[None], [(0, 0)], [(1, 0)], [(1, 0)]]
    assert [g.note for g in family(FK).generations] == ["", "resampled", "", ""]
    assert [p.place for p in family(HISTORIES["halving"]).generations[-1].particles] == [1, 3, 4]


def test_a_tree_is_drawn_to_scale() -> None:
    drawn = tree(family(FK), 0.1, 0.9)
    best = next(dot for dot in drawn.dots if dot.text == "0.90")
    worst = next(dot for dot in drawn.dots if dot.text == "0.10")
    assert (best.radius, best.goodness, best.fate, best.returned) == (LARGE, 10, "kin", True)
    assert (worst.radius, worst.goodness, worst.fate) == (SMALL, 0, "lost")
    assert (best.x, best.y) == (x_at(3), y_at(2))
    assert best.title == "particle 3, end: reward 0.900, weight 0.45, returned"
    assert sum(dot.returned for dot in drawn.dots) == 1
    (blank,) = (dot for dot in drawn.dots if dot.text == "none")
    assert blank.goodness is None
    assert "no valid reward" in blank.title
    assert all(0 < dot.x < drawn.width and 0 < dot.y < drawn.height for dot in drawn.dots)
    assert dict(drawn.links)["kin"].count("M") == 3  # from the start over two looks to the end
    assert "resampled at step 2" in drawn.words
    assert "all ends come from 2 of 4 starts" in drawn.words


def test_the_page(tmp_path: Path) -> None:
    """A tree for each steered column and prompt, closed; columns are called by their methods."""
    text = build_gallery([write_job(tmp_path / "job", num_prompts=3)], tmp_path / "out").read_text()
    assert text.count('<details class="trees">') == 3
    assert text.count('aria-label="Family tree: ') == 6
    assert text.count(">returned</text>") == 6
    assert "base, fk and halving side by side" in text
    assert "budget 80" in text
    assert "Training curves" not in text
    assert ">steered by<" in text
    assert Page(text).findings == []


def test_training_runs_and_jobs_together(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "nft"), write_job(tmp_path / "job")]
    text = build_gallery(runs, tmp_path / "out").read_text()
    assert "Training curves" in text
    assert "Reward against budget" in text
    assert "halving, budget 80" in text


def test_costs_by_hand(tmp_path: Path) -> None:
    """480 evaluations of 12 populations are 40 each; a dot stands there."""
    run = read_run(write_job(tmp_path / "job", costs={"network_evaluations": 480, "odd": 6}), "job")
    columns = choose_columns([run], "auto")
    found = spending([run], columns, tables(score_kinds([run], columns), columns, align(columns)))
    assert found is not None
    assert found.titles == ("network evaluations", "odd")
    assert [bill.cells for bill in found.bills] == [("10", "0.125"), ("40", "0.5"), ("80", "1")]
    assert [name for _, name in found.legend] == ["base", "fk", "halving"]
    assert len(found.panels) == 3
    xs = [dot.x for series in found.panels[0].series for dot in series.dots]
    left, right, largest = 40.0, 346.0, 80 * 1.012  # dots of two methods stand beside each other
    assert xs == pytest.approx(
        [left + (right - left) * x / largest for x in (10, 40, largest)], abs=0.1
    )
    trained = read_run(write_run(tmp_path / "run"), "run")
    assert spending([trained], choose_columns([trained], "auto"), []) is None


DAMAGES: list[tuple[Change, str]] = [
    (lambda p: p["looks"][0].update(parents=[1, 1, 1, 4]), "looks.0.parents names no particle"),
    (lambda p: p["looks"][0].update(parents=[1, 1, 1, -1]), "parents.3"),
    (lambda p: p["looks"][0].update(parents=[1, 1]), "looks.0 is not of 4 particles"),
    (lambda p: p["looks"][1].update(reward=[0.1]), "looks.1 is not of 4 particles"),
    (lambda p: p["looks"][1].pop("parents"), "looks.1: parents: Field required"),
    (lambda p: p["looks"][0].update(reward=["high", 0, 0, 0]), "looks.0: reward.0"),
    (lambda p: p["looks"][0].update(reward=[float("nan"), 0, 0, 0]), "looks.0: reward.0"),
    (lambda p: p["looks"][0].update(step="2"), "looks.0: step"),
    (lambda p: p.update(looks=[3]), "populations.0.looks.0"),
    (lambda p: p.update(looks="none"), "populations.0.looks"),
    (
        lambda p: p.update(reward=[0.5], log_weight=None, returned=[0]),
        "reward is not of 4 particles",
    ),
    (lambda p: p.update(reward=[]), "populations.0.reward"),
    (lambda p: p.update(returned=[4]), "returned is no place"),
    (lambda p: p.update(returned=[2.5]), "populations.0.returned.0"),
    (lambda p: p.update(returned=[]), "populations.0.returned"),
    (lambda p: p.update(log_weight=[0.0]), "log_weight is not one for each particle"),
    (lambda p: p.update(prompt="another"), "is of a prompt that has no scores"),
    (lambda p: p.update(prompt_id=99), "is of a prompt that has no scores"),
    (lambda p: p.pop("prompt"), "populations.0.prompt: Field required"),
]
OTHERS: list[tuple[str, Change, str]] = [
    ("halving", lambda p: p["looks"][0].update(kept=[1, 9, 4]), "kept names no particle"),
    ("halving", lambda p: p["looks"][0].update(kept=[1, 1, 4]), "kept names one twice"),
    ("halving", lambda p: p["looks"][0].update(particles=[0, 10**9]), "not all places in order"),
    ("halving", lambda p: p.update(reward=[0.1], returned=[0]), "reward is not of 3 particles"),
    ("svdd", lambda p: p["looks"][1].update(chosen=2), "looks.1.chosen is no candidate"),
    ("svdd", lambda p: p["looks"][1].update(chosen=True), "looks.1: chosen"),
    ("rounds", lambda p: p["looks"][1].update(chosen=[2]), "looks.1.chosen is no try"),
    ("rounds", lambda p: [look.update(chosen=[]) for look in p["looks"]], "no try was chosen"),
    ("climb", lambda p: p["looks"][1].update(reward=[0.1, 0.2]), "looks.1: reward"),
]


def refused(job: Path, out: Path) -> str:
    """The error's line; nothing was written."""
    with pytest.raises(DataError) as caught:
        build_gallery([job], out)
    assert not out.exists()
    assert (caught.value.code, caught.value.exit_code) == ("GAL-DAMAGED", 3)
    assert FILE in caught.value.line()
    return caught.value.line()


def damaged(job: Path, change: Change) -> None:
    told = json.loads((job / FILE).read_text())
    change(told["populations"][0])
    (job / FILE).write_text(json.dumps(told))


@pytest.mark.parametrize(("change", "expected"), DAMAGES)
def test_damaged_histories_name_file_and_place(
    change: Change, expected: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "job", num_prompts=2)
    damaged(job, change)
    assert expected in refused(job, tmp_path / "out")


@pytest.mark.parametrize(("name", "change", "expected"), OTHERS)
def test_damage_of_the_other_methods(
    name: str, change: Change, expected: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path / "job", [HISTORIES[name]], labels=[name], num_prompts=2)
    build_gallery([job], tmp_path / "good")  # control
    damaged(job, change)
    assert expected in refused(job, tmp_path / "out")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"populations": 3}', b"\xff"]
)
def test_files_that_are_no_history(raw: bytes, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", num_prompts=2)
    (job / FILE).write_bytes(raw)
    refused(job, tmp_path / "out")


def test_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", num_prompts=2)
    (job / FILE).rename(tmp_path / "elsewhere.json")
    (job / FILE).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(SecurityError):
        build_gallery([job], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_drawn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older jobs have no history; one of a later version, and a giant family, are noted."""
    job = write_job(tmp_path / "job", num_prompts=2)
    damaged(job, lambda p: p.update(looks=[{"angle": 3}]))
    text = build_gallery([job], tmp_path / "later").read_text()
    assert "1 histories are of a kind that has no picture here" in text
    (job / FILE).unlink()
    assert build_gallery([job], tmp_path / "older").read_text().count('class="tree"') == 2
    giant, count = copy.deepcopy(FK), 4000
    for look in giant["looks"]:
        look.update(reward=[0.5] * count, log_weight=[-1.0] * count, parents=[0] * count)
    giant.update(reward=[0.5] * count, log_weight=[-1.0] * count)
    big = write_job(tmp_path / "big", [giant], labels=["fk"], num_prompts=2)
    text = build_gallery([big], tmp_path / "giant").read_text()
    assert "2 family trees are too large and not drawn" in text
    assert 'class="tree"' not in text
    monkeypatch.setattr("flowalign.gallery.ancestry.MAX_BYTES", 100)
    assert "ancestry.json is larger" in build_gallery([big], tmp_path / "huge").read_text()


def test_pages_stay_small(tmp_path: Path) -> None:
    """Trees count when prompts are dealt to pages."""
    wide, count = copy.deepcopy(FK), 1000
    for look in wide["looks"]:
        look.update(reward=[0.5] * count, log_weight=[-1.0] * count, parents=[0] * count)
    wide.update(reward=[0.5] * count, log_weight=[-1.0] * count)
    job = write_job(tmp_path / "job", [wide], labels=["fk"], num_prompts=8)
    build_gallery([job], tmp_path / "out")
    pages = list((tmp_path / "out").glob("*.html"))
    assert len(pages) > 1
    assert all(path.stat().st_size <= 5_000_000 for path in pages)


def test_nothing_becomes_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads as prompts, as names of methods, and as names of costs; control: not escaped."""
    labels = PAYLOADS[: len(HISTORIES)]
    costs = {"network_evaluations": 40.0, **dict.fromkeys(PAYLOADS, 1.0)}
    job = write_job(
        tmp_path / "job",
        list(HISTORIES.values()),
        labels=labels,
        num_prompts=len(PAYLOADS),
        edit=lambda row: row | {"prompt": PAYLOADS[row["prompt_id"]]},
        costs=costs,
    )
    assert_text_only(build_gallery([job], tmp_path / "out"), PAYLOADS)
    escaping = page._environment

    def careless() -> jinja2.Environment:
        environment = escaping()
        environment.autoescape = False
        return environment

    monkeypatch.setattr(page, "_environment", careless)
    assert Page(build_gallery([job], tmp_path / "careless").read_text()).findings
