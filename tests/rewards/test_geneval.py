"""GenEval's clauses: truth tables with a detector that is told what it sees, and the real path."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flowalign.config.rewards_rules import GenEvalReward
from flowalign.detection.clauses import Check, Exclude, Include
from flowalign.detection.colours import OwnColours
from flowalign.detection.objects import Found, kept, overlap, relations
from flowalign.detection.shapes_objects import check_of
from flowalign.detection.verdict import count_part
from flowalign.errors import RewardError
from flowalign.reward_check import check_reward
from flowalign.rewards.geneval import GenEval, from_config
from flowalign.worlds.shapes import render
from flowalign.worlds.shapes.corruptions import corrupt
from flowalign.worlds.shapes.grammar import parse, prompts
from flowalign.worlds.shapes.scene import CATEGORIES
from flowalign.worlds.shapes.verifier import verify
from tests.rewards.world import sample, true_samples

CPU = torch.device("cpu")
BOXES = [(40.0 * i, 0.0, 40.0 * i + 20, 20.0) for i in range(6)]  # in a row


@dataclass(frozen=True, kw_only=True, slots=True)
class Fake:
    """Sees the same in every picture."""

    found: Sequence[Found]
    labels: frozenset[str] = frozenset({"dog", "cat"})

    def __call__(self, pictures: Sequence[Tensor]) -> list[list[Found]]:
        return [list(self.found) for _ in pictures]


def dogs(number: int, *, score: float = 0.95, colour: str = "red") -> list[Found]:
    return [Found(label="dog", box=BOXES[i], score=score, colour=colour) for i in range(number)]


def cat(place: int, **changes) -> Found:
    return Found(**({"label": "cat", "box": BOXES[place], "score": 0.9, "colour": "red"} | changes))


def score(check: Check, found: Sequence[Found], *, dense: bool = False, **settings) -> float:
    reward = GenEval(
        detector=Fake(found=found),
        colours=OwnColours(colours=("red", "blue")),
        checks=lambda prompt: check,
        dense=dense,
        **settings,
    )
    values, valid = reward([sample(torch.zeros(3, 32, 32))])
    assert valid.tolist() == [True]
    return float(values[0])


def include(**clause) -> Check:
    return Check(include=(Include(label="dog", **clause),))


def test_off_by_one_is_one_over_n() -> None:
    for n in range(1, 5):
        exact = Check(
            include=(Include(label="dog", count=n),), exclude=(Exclude(label="dog", count=n + 1),)
        )
        for number in range(6):
            right = number == n
            assert score(exact, dogs(number)) == float(right)
            expected = max(0.0, 1 - abs(number - n) / n)
            assert score(exact, dogs(number), dense=True) == pytest.approx(expected)
            # Without the clause that forbids them, more dogs are as good.
            free = include(count=n)
            assert score(free, dogs(number)) == float(number >= n)
            assert score(free, dogs(number), dense=True) == pytest.approx(min(number / n, 1.0))


def test_what_is_excluded_alone() -> None:
    check = Check(include=(), exclude=(Exclude(label="dog", count=2),))
    assert [score(check, dogs(n)) for n in range(4)] == [1.0, 1.0, 0.0, 0.0]
    assert [score(check, dogs(n), dense=True) for n in range(5)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_colour_counts_when_the_number_is_right() -> None:
    check = include(count=2, colour="red")
    table = {
        (): (0.0, 0.0),
        ("red",): (0.0, 0.25),  # count 1/2, colour not looked at
        ("red", "red"): (1.0, 1.0),
        ("red", "blue"): (0.0, 0.75),  # count 1, colour 1/2
        ("blue", "blue"): (0.0, 0.5),
        ("red", "red", "blue"): (1.0, 1.0),  # the two most confident ones
        ("blue", "red", "red"): (0.0, 0.75),
    }
    for colours, (strict, dense) in table.items():
        found = [
            Found(label="dog", box=BOXES[i], score=0.9 - 0.1 * i, colour=colour)
            for i, colour in enumerate(colours)
        ]
        assert score(check, found) == strict, colours
        assert score(check, found, dense=True) == pytest.approx(dense), colours


def test_position_needs_the_other_clause() -> None:
    def check(**first) -> Check:
        second = Include(label="cat", position=("right of", 0))
        return Check(include=(Include(label="dog", **first), second))

    assert score(check(), [*dogs(1), cat(1)]) == 1.0
    wrong = [Found(label="dog", box=BOXES[3], score=0.9, colour="red"), cat(1)]
    assert score(check(), wrong) == 0.0
    assert score(check(), wrong, dense=True) == pytest.approx(2 / 3)  # a wrong place is 0, not 1/2
    # The dog is there but blue: nothing is right of what was not found.
    blue = [*dogs(1, colour="blue"), cat(1)]
    assert score(check(colour="red"), blue, dense=True) == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert score(check(count=2), [*dogs(2), cat(2)]) == 1.0
    between = [*dogs(1), Found(label="dog", box=BOXES[4], score=0.9), cat(2)]
    assert score(check(count=2), between, dense=True) == pytest.approx((1 + 1 + 0.5) / 3)


def test_strict_is_dense_at_one() -> None:
    rng = random.Random(0)
    ones = 0
    for _ in range(600):
        clauses = (
            Include(label="dog", count=rng.randint(1, 2), colour=rng.choice([None, "red"])),
            Include(label="cat", position=rng.choice([None, ("right of", 0), ("left of", 0)])),
        )
        exclude = (Exclude(label="dog", count=rng.randint(1, 4)),) if rng.random() < 0.5 else ()
        check = Check(include=clauses, exclude=exclude)
        found = [
            Found(
                label=rng.choice(["dog", "dog", "cat"]),
                box=rng.choice(BOXES),
                score=rng.random(),
                colour=rng.choice(["red", "red", "blue"]),
            )
            for _ in range(rng.randint(0, 5))
        ]
        strict, dense = score(check, found), score(check, found, dense=True)
        assert 0 <= dense <= 1 and (strict == 1.0) == (dense == 1.0) and strict <= dense
        ones += strict == 1.0
    assert 20 < ones < 580


def test_confidence_is_stricter_for_counting() -> None:
    unsure = dogs(1, score=0.5)
    assert score(include(), unsure) == 1.0
    counting = Check(include=(Include(label="dog"),), tag="counting")
    assert score(counting, unsure) == 0.0 and score(counting, dogs(1, score=0.91)) == 1.0
    assert score(include(), dogs(1, score=0.3)) == 0.0  # above, not at


def test_the_best_of_those_that_overlap() -> None:
    same = [Found(label="dog", box=BOXES[0], score=s) for s in (0.6, 0.9, 0.7)]
    two = include(count=2)
    assert score(two, same) == 1.0 and score(two, same, nms=0.5) == 0.0
    assert [one.score for one in kept(same, confidence=0.3, max_objects=2, nms=1.0)] == [0.9, 0.7]
    assert overlap(BOXES[0], BOXES[0]) == 1.0 and overlap(BOXES[0], BOXES[1]) == 0.0
    assert overlap((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)  # whole pixels


def test_relations_are_opposite_and_leave_a_margin() -> None:
    opposite = {"left of": "right of", "above": "below"}
    for a, b in itertools.permutations(BOXES, 2):
        for one, other in opposite.items():
            assert (one in relations(a, b)) == (other in relations(b, a))
    assert relations(BOXES[0], BOXES[1]) == {"left of"}
    assert relations((0, 0, 10, 10), (30, 30, 40, 40)) == {"left of", "above"}
    assert relations((0, 0, 10, 10), (1, 0, 11, 10)) == frozenset()  # within the margin
    assert relations((0, 0, 10, 10), (1, 0, 11, 10), margin=0.0) == {"left of"}


def test_count_part() -> None:
    assert count_part(0, 2, None) == 0.0 and count_part(7, 2, None) == 1.0
    assert count_part(3, 2, 2) == 0.5 and count_part(9, 2, 2) == 0.0


# The whole path on the shapes world.


def shapes_reward(**settings) -> GenEval:
    return from_config(GenEvalReward(name="geneval", **settings), device=CPU)[0]


def plain_prompts(category: str, number: int) -> list[str]:
    """Without sizes and background, which GenEval's clauses cannot say."""
    found = (
        prompt
        for prompt in prompts("heldout", category)
        if not {"small", "large", "background"} & set(prompt.split())
    )
    return list(itertools.islice(found, number))


@pytest.mark.parametrize("category", CATEGORIES)
def test_agrees_with_the_verifier(category: str) -> None:
    """On true pictures and on each way of being wrong that clauses can say: every verdict."""
    rng = random.Random(0)
    asked: list[str] = []
    scenes = []
    for prompt in plain_prompts(category, 40):
        scene = parse(prompt)
        wrong = [corrupt(scene, kind, rng) for kind in ("colour", "shape", "count", "binding")]
        wrong.append(corrupt(scene, "relation", rng))
        for one in (scene, *(one for one in wrong if one is not None)):
            asked.append(prompt)
            scenes.append(one)
    drawn = render.pictures(scenes, torch.Generator().manual_seed(0))
    truth = verify(drawn, asked).strict
    given = [sample(drawn[i], asked[i]) for i in range(len(asked))]
    values, valid = shapes_reward()(given)
    assert valid.all() and torch.equal(values == 1.0, truth)
    assert 6 <= int(truth.sum()) < len(asked)  # both verdicts are there
    dense, _ = shapes_reward(dense=True)(given)
    assert torch.equal(dense == 1.0, truth)


def test_what_a_prompt_of_the_world_asks_for() -> None:
    check = check_of("a red circle left of a blue circle")
    assert check.include == (
        Include(label="blue circle"),
        Include(label="red circle", position=("left of", 0)),
    )
    assert check_of("two red circles").tag == "counting"
    assert check_of("a red circle").include == (Include(label="circle", colour="red"),)
    with pytest.raises(ValueError, match="unknown"):
        check_of("a brown dog")


def test_pure() -> None:
    for dense in (False, True):
        assert check_reward(shapes_reward(dense=dense), true_samples(17, split="heldout")) == []


def test_an_unknown_prompt_is_an_error_or_a_mask() -> None:
    given = [sample(torch.zeros(3, 32, 32), "a brown dog"), *true_samples(1, split="heldout")]
    with pytest.raises(RewardError, match="no metadata"):
        shapes_reward()(given)
    values, valid = shapes_reward(unknown="mask")(given)
    assert valid.tolist() == [False, True] and values[0].isnan() and values[1] == 1.0
