"""Means, pairs, columns and curves against values worked out by hand."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from flowalign.gallery.collect import read_runs
from flowalign.gallery.columns import Column, align, choose_columns, notes_on
from flowalign.gallery.compare import ScoreKind, gain, score_kinds, tables
from flowalign.gallery.curves import MAX_POINTS, nice_step, panels, with_margin
from flowalign.gallery.media import MAX_PIXELS, MediaShelf, Missing, clip_type, smaller
from flowalign.gallery.records import Evaluation, PromptKey, Run, SampleKey, Score, Steps
from flowalign.gallery.wording import duration, listed, number, short, signed
from flowalign.statistics import paired_difference
from tests.gallery.synthetic import png, write_run

Values = dict[tuple[str, int], float | None]  # (prompt, seed) -> score


def evaluation(step: int, values: Values) -> Evaluation:
    samples: dict[SampleKey, Score] = {}
    for (prompt, seed), value in values.items():
        key: PromptKey = (prompt, 0)
        samples[key, (seed, 0)] = Score(
            prompt=prompt,
            occurrence=0,
            category=prompt[0],
            prompt_id=ord(prompt[-1]),
            sample_id=0,
            seed=seed,
            media=None,
            scores={"s": value},
            negative_prompt="",
            rationale={},
        )
    return Evaluation(
        step=step,
        folder=Path(),
        samples=samples,
        train_seconds=None,
        trained=("s",),
        held_out=(),
    )


def compared(before: Values, after: Values) -> tuple[list[Column], list[ScoreKind]]:
    base, tuned = evaluation(0, before), evaluation(9, after)
    columns = [
        Column(index=0, name="base", detail="", run=0, series=0, evaluation=base, base=None),
        Column(index=1, name="run", detail="", run=0, series=0, evaluation=tuned, base=0),
    ]
    kind = ScoreKind(
        index=0,
        name="s",
        role="",
        trained=True,
        steered=False,
        low=0,
        high=1,
        lower_is_better=False,
    )
    return columns, [kind]


def test_samples_of_a_prompt_are_averaged_before_prompts() -> None:
    before: Values = {("ax", 1): 0.0, ("ax", 2): 0.2, ("ay", 1): 0.5, ("bz", 1): 0.1}
    after: Values = {("ax", 1): 0.4, ("ax", 2): 0.4, ("ay", 1): 0.6, ("bz", 1): 0.1}
    columns, kinds = compared(before, after)
    (table,) = tables(kinds, columns, align(columns))
    base, tuned = table.results
    assert base.mean == pytest.approx((0.1 + 0.5 + 0.1) / 3) and base.difference is None
    expected = paired_difference([0.4, 0.6, 0.1], [0.1, 0.5, 0.1])
    assert tuned.difference is not None and tuned.n == 3
    assert tuned.difference.mean == pytest.approx(expected.mean)
    assert tuned.difference.low == pytest.approx(expected.low)
    names = [(name, results[1].n) for name, results in table.categories]
    assert names == [("a", 2), ("b", 1)]
    assert [gain(row, columns[1], "s") for row in align(columns)] == pytest.approx([0.3, 0.1, 0])


def test_only_what_both_sides_have_is_compared() -> None:
    """Missing is no number: other seeds, other prompts and invalid scores leave the pairs."""
    before: Values = {("ax", 1): 0.0, ("ay", 1): None, ("az", 1): 0.3, ("aw", 7): 0.9}
    after: Values = {("ax", 1): 0.4, ("ay", 1): 0.6, ("av", 1): 1.0, ("aw", 8): 0.1}
    columns, kinds = compared(before, after)
    rows = align(columns)
    (table,) = tables(kinds, columns, rows)
    difference = table.results[1].difference
    assert difference is not None and (difference.n, difference.mean) == (1, 0.4)
    assert table.results[1].base_mean == 0.0
    assert [row.key[0] for row in rows] == ["ax", "ay", "az", "aw", "av"]
    notes = notes_on(columns, rows)
    assert "2 of 5 prompts were not sampled by every column" in notes[0]
    assert "only samples of equal seed" in notes[1]


def test_other_prompt_ids_are_said() -> None:
    columns, _ = compared({("ax", 1): 0.0}, {("ax", 1): 1.0})
    assert notes_on(columns, align(columns)) == []
    ((key, score),) = columns[1].evaluation.samples.items()
    moved = replace(columns[1].evaluation, samples={key: replace(score, prompt_id=5)})
    pair = [columns[0], replace(columns[1], evaluation=moved)]
    assert "other ids" in notes_on(pair, align(pair))[0]


def names(runs: list[Run], steps: Steps) -> list[str]:
    return [f"{c.name} {c.detail} {c.base}" for c in choose_columns(runs, steps)]


def test_columns(stored_runs: Path, tmp_path: Path) -> None:
    nft, grpo = read_runs([stored_runs / "nft", stored_runs / "grpo"], None)
    assert names([nft], "auto") == ["base before training None", "nft step 20 0", "nft step 40 0"]
    assert names([nft], "ends") == ["base before training None", "nft step 40 0"]
    assert names([nft], (40,)) == ["base before training None", "nft step 40 0"]
    # Two runs with the same base share its column, ...
    both = ["base before training None", "nft step 40 0", "grpo step 40 0"]
    assert names([nft, grpo], "auto") == both
    # ... a third with another base has its own beside it.
    other = read_runs([write_run(tmp_path / "other", noise_seed=8)], None)
    assert names([nft, grpo, *other], "auto") == [
        *("base of nft, grpo None", "nft step 40 0", "grpo step 40 0"),
        *("base of other None", "other step 40 3"),
    ]
    many = read_runs([write_run(tmp_path / "m", steps=tuple(range(13)), num_prompts=1)], None)
    assert [c.evaluation.step for c in choose_columns(many, "auto")] == [0, 3, 6, 9, 12]
    assert len(choose_columns(many, "all")) == 13


def test_scores_are_ordered_trained_first(stored_runs: Path) -> None:
    runs = read_runs([stored_runs / "nft"], None)
    kinds = score_kinds(runs, choose_columns(runs, "auto"))
    assert [(k.name, k.role) for k in kinds] == [
        ("shapes", "trained"),
        ("strict", "held out"),
        ("clip", "held out"),
    ]
    assert (kinds[0].low, kinds[0].high) == (0, 1)
    assert 0.2 < kinds[2].low < kinds[2].high < 0.4  # a narrow score is stretched


def test_colours_turn_for_costs() -> None:
    size = ScoreKind(
        index=0,
        name="kB",
        role="",
        trained=True,
        steered=False,
        low=2,
        high=6,
        lower_is_better=True,
    )
    assert (size.place(3), size.goodness(3)) == (0.25, 0.75)
    assert (size.place(9), size.goodness(9)) == (1, 0)


def test_curves_hold_every_evaluation_and_stay_inside(tmp_path: Path) -> None:
    steps = tuple(range(0, 301, 50))
    runs = read_runs([write_run(tmp_path / "r", steps=steps, num_prompts=4)], None)
    kinds = score_kinds(runs, choose_columns(runs, "auto"))
    found = panels(runs, kinds, [0])
    assert [(p.kind.name, p.axis) for p in found] == [
        (name, axis) for axis in ("step", "time") for name in ("shapes", "strict", "clip")
    ]
    for panel in found:
        (series,) = panel.series
        assert len(series.dots) == len(steps) and series.dots[0].bar is None
        assert len(series.training) <= MAX_POINTS
        places = [float(text) for text in re.findall(r"[\d.]+", series.path)]
        assert all(40 <= x <= 346 for x in places[::2])
        assert all(10 <= y <= 186 for y in places[1::2])
        assert len(panel.x_ticks) >= 3 and len(panel.y_ticks) >= 3
    title = found[0].series[0].dots[-1].title
    assert re.fullmatch(
        r"r, step 300, 31 min 00 s: shapes 0\.\d{3} \(\+0\.\d{3} from base\)", title
    )


@pytest.mark.parametrize(
    ("rough", "nice"), [(0.013, 0.02), (0.2, 0.2), (0.21, 0.5), (3, 5), (70, 100), (1, 1)]
)
def test_nice_steps(rough: float, nice: float) -> None:
    assert nice_step(rough) == pytest.approx(nice)


def test_a_flat_curve_has_a_range() -> None:
    for value in (0.0, 0.7, -3.0):
        low, high = with_margin(value, value)
        assert low < value < high


def test_numbers_in_words() -> None:
    assert [number(v) for v in (0.12345, -0.12345, -0.0001, 12.345, 1234.56)] == [
        *("0.123", "\N{MINUS SIGN}0.123", "0.000", "12.35", "1234.6")
    ]
    assert [signed(v) for v in (0.5, -0.5, 0.0, float("inf"))] == [
        *("+0.500", "\N{MINUS SIGN}0.500", "0.000", "+\N{INFINITY}")
    ]
    assert [short(v) for v in (0.005, -0.001, 25.04, 123456.0)] == [
        "0.01",
        "0.00",
        "25.0",
        "1.23e+05",
    ]
    assert [duration(v) for v in (59.4, 59.6, 3599.7, 7500)] == [
        *("59 s", "1 min 00 s", "1 h 00 min", "2 h 05 min")
    ]
    assert [listed(list(v)) for v in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


def test_media_are_told_by_their_bytes(tmp_path: Path) -> None:
    assert clip_type(b"\0\0\0\x20ftypisom") == ("video", "video/mp4", "mp4")
    assert clip_type(b"\0\0\0\x20ftypM4A ") == ("audio", "audio/mp4", "m4a")
    assert clip_type(b"\0\0\0\x20ftypavif") is None
    assert clip_type(b"fLaC....") == ("audio", "audio/flac", "flac")
    assert clip_type(png(Image.new("RGB", (2, 2)))) is None
    shelf = MediaShelf()
    for name, content in {
        "script.png": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "page.png": b"<script>alert(1)</script>",
        "cut.png": png(Image.effect_noise((64, 64), 50))[:-400],
        "empty.png": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        found = shelf.take(tmp_path, name)
        assert isinstance(found, Missing) and found.what.startswith("not a picture")
    assert len(shelf.missing) == 4


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    found = MediaShelf().take(tmp_path, "bomb.png")
    assert isinstance(found, Missing) and found.what == "larger than 64 MP"


def test_large_clips_lie_beside_the_page(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(300_000))
    shelf = MediaShelf()
    found = shelf.take(tmp_path, "a.mp4")
    assert not isinstance(found, Missing) and found.kind == "video"
    assert list(shelf.assets) == [found.src] and re.fullmatch(
        r"assets/[0-9a-f]{24}\.mp4", found.src
    )


def test_previews_fit_their_limit() -> None:
    noisy = Image.effect_noise((600, 400), 90)
    for limit in (60_000, 15_000):
        raw = smaller(noisy, limit)
        assert len(raw) <= limit
        assert Image.open(io.BytesIO(raw)).format == "WEBP"
