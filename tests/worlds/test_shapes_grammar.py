"""The grammar is a bijection between prompts and scenes, and its two splits share no content."""

import random
import subprocess
import sys

import pytest

from flowalign.worlds.shapes.corruptions import CORRUPTIONS, corrupt
from flowalign.worlds.shapes.grammar import (
    HELDOUT_FRACTION,
    SPLITS,
    caption,
    category,
    parse,
    prompts,
    split_of,
)
from flowalign.worlds.shapes.scene import CATEGORIES, COLOURS, SHAPES, Scene, Thing


@pytest.mark.parametrize("name", CATEGORIES)
def test_no_composition_is_in_both_splits(name: str) -> None:
    compositions = {split: {parse(p).composition for p in prompts(split, name)} for split in SPLITS}
    assert compositions["train"] and compositions["heldout"]
    assert not compositions["train"] & compositions["heldout"]
    # Negative control: two draws of one split do share compositions, so the comparison can fail.
    again = {parse(p).composition for p in prompts("train", name, seed=1)}
    assert compositions["train"] & again


def test_splits_of_all_categories_together_are_disjoint() -> None:
    train, heldout = ({parse(p).composition for p in prompts(split)} for split in SPLITS)
    assert not train & heldout
    assert len(heldout) / (len(train) + len(heldout)) == pytest.approx(HELDOUT_FRACTION, abs=0.01)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red circle and a blue square", "a blue square and a red circle"),
        ("a red circle left of a blue square", "a blue square right of a red circle"),
        ("a red circle above a blue square", "a blue square below a red circle"),
        ("a red circle", "a small red circle on a white background"),
        (
            "a red circle, a blue square and a green triangle",
            "a green triangle, a red circle and a blue square",
        ),
    ],
)
def test_phrasings_of_one_content_share_a_composition(one: str, other: str) -> None:
    assert parse(one).composition == parse(other).composition
    assert split_of(one) == split_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red circle left of a blue square", "a red circle right of a blue square"),
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("two red circles", "three red circles"),
    ],
)
def test_different_contents_have_different_compositions(one: str, other: str) -> None:
    assert parse(one).composition != parse(other).composition


@pytest.mark.parametrize("name", CATEGORIES)
def test_caption_undoes_parse(name: str) -> None:
    for split in SPLITS:
        for prompt in prompts(split, name, 400):
            assert caption(parse(prompt)) == prompt
            assert category(prompt) == name
            assert split_of(prompt) == split


def test_parse_undoes_caption_for_every_thing() -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            for size in (None, "small", "large"):
                thing = Thing(colour=colour, shape=shape, size=size)
                for count in (1, 2, 3, 4):
                    scene = Scene(things=(thing,) * count, background="gray")
                    assert parse(caption(scene)) == scene


def test_article_before_a_vowel() -> None:
    orange = Thing(colour="orange", shape="cross")
    assert caption(Scene(things=(orange,))) == "an orange cross"
    assert not [p for p in prompts("train") if "a orange" in p or "an red" in p]
    with pytest.raises(ValueError, match="an orange circle"):
        parse("a orange circle")


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("a crimson circle", "crimson"),
        ("a red blob", "blob"),
        ("five red circles", "five"),
        ("two red circle", "circle"),
        ("a red circle on a mauve background", "mauve"),
        ("a red circle left of the blue square", "the"),
        ("a red circle thing", "thing"),
        ("", "article"),
        ("a red", "shape"),
    ],
)
def test_parse_names_the_bad_word(prompt: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        parse(prompt)


def test_scene_refuses_unknown_words() -> None:
    with pytest.raises(ValueError, match="mauve"):
        Scene(things=(Thing(colour="mauve", shape="circle"),))
    with pytest.raises(ValueError, match="exactly two"):
        Scene(things=(Thing(colour="red", shape="circle"),), relation="above")


def test_prompts_are_distinct_deterministic_and_balanced() -> None:
    first = prompts("heldout", limit=50)
    assert first == prompts("heldout", limit=50)
    assert first == prompts("heldout", limit=100)[:50]
    assert first != prompts("heldout", limit=50, seed=1)
    assert len(set(first)) == 50
    assert [category(p) for p in first[:5]] == list(CATEGORIES)
    with pytest.raises(ValueError, match="validation"):
        prompts("validation")
    with pytest.raises(ValueError, match="quadruple"):
        prompts("train", "quadruple")


def test_prompts_need_no_torch() -> None:
    code = (
        "import sys; from flowalign.worlds.shapes.grammar import prompts; "
        "import flowalign.worlds.shapes as shapes; shapes.prompts('train', limit=5); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    control = code.replace("shapes.prompts('train', limit=5)", "shapes.verify")
    assert subprocess.run([sys.executable, "-c", control], check=False).returncode == 1


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_changes_the_scene(kind: str) -> None:
    rng = random.Random(0)
    pairs = [(parse(p), corrupt(parse(p), kind, rng)) for p in prompts("train", limit=300)]
    changed = [(scene, other) for scene, other in pairs if other is not None]
    assert changed
    for scene, other in changed:
        assert other != scene
        assert caption(other) != caption(scene)
