"""RewardDance and question lists: identities, files, and what configs refuse.

A judge with known answers stands in for the model, so that each score can be computed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign.config.load import config_from_mapping
from flowalign.config.rewards_vlm import QuestionsReward, RewardDanceReward
from flowalign.errors import ConfigError, DataError, SecurityError
from flowalign.media import save_image
from flowalign.rewards.questions import Questions, _source, level_mean
from flowalign.rewards.rewarddance import RewardDance, both_orders
from flowalign.sample_failures import SampleFailuresError
from flowalign.vlm.asking import Picture, Question, picture
from flowalign.vlm.question_lists import YesNoQuestion, read_questions, shapes_questions
from flowalign.vlm.reading import Reading
from flowalign.vlm.reference_pictures import read_examples, references_by_prompt
from flowalign.vlm.tokens import Answers
from tests.rewards.world import sample


class Judge:
    """Log-odds of yes by a function of the question; remembers what it was asked."""

    def __init__(self, gap: Callable[[Question], float], mass: float = 1.0) -> None:
        self.gap, self.mass, self.seen = gap, mass, []

    def answers(self, questions: Sequence[Question]) -> Answers:
        self.seen += questions
        gap = torch.tensor([self.gap(question) for question in questions])
        whole = torch.logaddexp(gap, torch.zeros(())) - torch.tensor(self.mass).log()
        return Answers(yes=gap, no=torch.zeros_like(gap), whole=whole)


def pictures_of(question: Question) -> list[Picture]:
    return [part for part in question[-1].parts if not isinstance(part, str)]


def text_of(question: Question) -> str:
    return str(question[-1].parts[-1])


def level(shown: Picture) -> float:
    """Brightness in [0, 1]."""
    return sum(shown.image.convert("L").tobytes()) / (255.0 * 64)


def gray(value: float) -> Tensor:
    return torch.full((3, 8, 8), value)


def dance(judge: Judge, references: Sequence[Tensor], **more: Any) -> RewardDance:
    shown = [picture(media) for media in references]
    return RewardDance(
        vlm=judge,  # type: ignore[arg-type]
        references=lambda prompt: shown,
        question="better for {prompt}?",
        reading=Reading(),
        **more,
    )


def brighter_and_first(question: Question) -> float:
    """A judge that likes light, and the first picture twice as much."""
    first, second = pictures_of(question)
    return 3.0 * (level(first) - level(second)) + 2.0


def test_a_sample_that_is_the_reference_gets_exactly_one_half() -> None:
    judge = Judge(brighter_and_first)
    values, valid = dance(judge, [gray(0.3)])([sample(gray(0.3)), sample(gray(0.8))])
    assert float(values[0]) == 0.5 and bool(valid.all())
    one_order = torch.sigmoid(torch.tensor(judge.gap(judge.seen[0])))
    assert float(one_order) > 0.8  # without the second order, the place would be the score
    better, worse = (torch.sigmoid(torch.tensor(gap)) for gap in (2 + 1.5, 2 - 1.5))
    assert float(values[1]) == pytest.approx(float(0.5 + (better - worse) / 2), abs=2e-3)


def test_both_orders_turn_a_preference_around() -> None:
    """Symmetrised scores of (x, y) and (y, x) add to 1, and rise with the gap of logits."""
    a, b = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(both_orders(a, b) + both_orders(b, a), torch.ones(9))
    gaps = torch.linspace(-4, 4, 17)
    assert bool((both_orders(torch.sigmoid(gaps + 1), torch.sigmoid(1 - gaps)).diff() > 0).all())


def test_several_references_are_averaged() -> None:
    """Each alone, and both: the mean."""
    alone = [
        dance(Judge(brighter_and_first), [media])([sample(gray(0.5))])[0]
        for media in (gray(0.2), gray(0.9))
    ]
    both = dance(Judge(brighter_and_first), [gray(0.2), gray(0.9)])([sample(gray(0.5))])[0]
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=0.05)


def test_the_context_is_shown_before_the_question(tmp_path: Path) -> None:
    for name, value in (("a.png", 0.1), ("b.png", 0.9)):
        save_image(tmp_path / name, gray(value))
    row = {"prompt": "p", "candidate": "b.png", "reference": "a.png", "answer": "yes"}
    file = _written(tmp_path / "e.jsonl", row | {"reasoning": "It is lighter."})
    judge = Judge(brighter_and_first)
    reward = dance(judge, [gray(0.3)], instruction="Light.", examples=read_examples(str(file)))
    reward([sample(gray(0.5), 'a "q"')])
    first, second = judge.seen
    assert [turn.role for turn in first] == ["user", "assistant", "user"]
    assert first[0].parts[-1] == 'Light.\nbetter for "p"?'
    assert first[1].parts == ("yes. It is lighter.",)
    assert text_of(first) == 'Light.\nbetter for "a \\"q\\""?'
    assert [p.digest for p in pictures_of(second)] == [p.digest for p in pictures_of(first)][::-1]


def test_references_of_a_manifest(tmp_path: Path) -> None:
    for name, value in (("a.png", 0.1), ("b.png", 0.5), ("c.png", 0.9)):
        save_image(tmp_path / name, gray(value))
    rows = [{"prompt": p, "image": f"{n}.png"} for p, n in (("x", "a"), ("y", "b"), ("x", "c"))]
    _written(tmp_path / "manifest.jsonl", *rows)
    found = references_by_prompt(str(tmp_path), 2)
    assert [round(level(shown), 1) for shown in found("x")] == [0.1, 0.9]
    assert len(references_by_prompt(str(tmp_path / "manifest.jsonl"), 1)("x")) == 1
    with pytest.raises(DataError, match="no reference picture for the prompt 'z'") as error:
        found("z")
    assert 'add a line {"prompt": ...' in error.value.fix
    _written(tmp_path / "bad.jsonl", {"prompt": "x", "image": "../a.png"}, {"prompt": "x"})
    with pytest.raises((SecurityError, DataError)) as error:
        references_by_prompt(str(tmp_path / "bad.jsonl"), 1)
    assert any("missing `image`" in line for line in error.value.lines())


def test_references_of_the_built_in_world_are_the_same_each_time() -> None:
    first, again = (references_by_prompt("shapes", 2)("a red circle") for _ in range(2))
    assert [p.digest for p in first] == [p.digest for p in again]
    assert first[0].digest != first[1].digest
    with pytest.raises(DataError, match="unknown article"):
        references_by_prompt("shapes", 2)("dogs")


def listed(*questions: tuple[str, str, bool]) -> list[YesNoQuestion]:
    return [YesNoQuestion(level=where, text=text, wanted=good) for where, text, good in questions]


def asking(judge: Judge, questions: Sequence[YesNoQuestion], **weights: float) -> Questions:
    return Questions(
        vlm=judge,  # type: ignore[arg-type]
        questions_of=lambda prompt: questions,
        weights={"global": 1.0, "subject": 1.0, "relation": 1.0} | weights,
        reading=Reading(least_mass=0.1),
    )


def test_levels_are_means_of_right_answers() -> None:
    """By hand: global 1 question, subject 2 (one wants no), relation absent."""
    gaps = {"g": 2.0, "s": -1.0, "n": -3.0, "r": 9.0}
    judge = Judge(lambda question: gaps[text_of(question)])
    questions = listed(("global", "g", True), ("subject", "s", True), ("subject", "n", False))
    sigma = {name: float(torch.sigmoid(torch.tensor(gap))) for name, gap in gaps.items()}
    subject = (sigma["s"] + 1 - sigma["n"]) / 2
    plain = asking(judge, questions)([sample(gray(0.5)), sample(gray(0.1))])[0]
    assert plain.tolist() == pytest.approx([(sigma["g"] + subject) / 2] * 2, abs=1e-6)
    weighed = asking(judge, questions, subject=3.0)([sample(gray(0.5))])[0]
    assert float(weighed) == pytest.approx((sigma["g"] + 3 * subject) / 4, abs=1e-6)
    judge.seen.clear()
    alone = asking(judge, questions, subject=0.0)([sample(gray(0.5))])[0]
    assert float(alone) == pytest.approx(sigma["g"], abs=1e-6)
    assert [text_of(question) for question in judge.seen] == ["g"]  # nothing is asked in vain


def test_a_wrong_answer_lowers_its_level_only() -> None:
    """With one relation wrong the score falls by its share of the weights."""
    levels = ["global", "subject", "subject", "relation"]
    weights = {"global": 1.0, "subject": 2.0, "relation": 1.0}
    whole = level_mean([1.0, 1.0, 1.0, 1.0], levels, weights)
    assert whole == 1.0
    assert level_mean([1.0, 1.0, 1.0, 0.0], levels, weights) == pytest.approx(0.75)
    assert level_mean([1.0, 0.0, 1.0, 1.0], levels, weights) == pytest.approx(0.75)


def test_an_answer_that_is_none_fails_its_own_sample() -> None:
    judge = Judge(lambda question: 1.0, mass=0.05)
    with pytest.raises(SampleFailuresError, match="something else") as error:
        asking(judge, listed(("global", "g", True)))([sample(gray(0.5)), sample(gray(0.1))])
    assert sorted(error.value.reasons) == [0, 1]


def test_questions_of_a_file(tmp_path: Path) -> None:
    row = {"prompt": "p", "global": ["A?"], "relation": [{"question": "B?", "answer": "no"}]}
    found = read_questions(_written(tmp_path / "q.jsonl", row))
    assert found == {"p": tuple(listed(("global", "A?", True), ("relation", "B?", False)))}
    config = QuestionsReward(name="questions", questions=str(tmp_path / "q.jsonl"))
    source = _source(config)
    assert source("p")[0].text == "A? Please answer yes or no."
    with pytest.raises(DataError, match="no questions for the prompt 'x'") as error:
        source("x")
    assert "missing: prompt" in error.value.fix
    other = _source(config.model_copy(update={"missing": "prompt"}))
    assert other("x")[0].text == 'Does this figure show "x"? Please answer yes or no.'


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"global": ["A?"]}, "missing `prompt`"),
        ({"prompt": "a"}, "no question"),
        ({"prompt": "a", "globl": ["A?"]}, "unknown key `globl`"),
        ({"prompt": "a", "global": "A?"}, "expected a list"),
        ({"prompt": "a", "global": [3]}, "expected a question, got a number"),
        ({"prompt": "a", "global": [{"question": "A?", "answer": "maybe"}]}, "yes or no"),
        ({"prompt": "p", "global": ["A?"]}, "again"),
    ],
)
def test_bad_rows_are_told_with_their_line(tmp_path: Path, row: dict, words: str) -> None:
    file = _written(tmp_path / "q.jsonl", {"prompt": "p", "global": ["A?"]}, row)
    with pytest.raises(DataError, match=words) as error:
        read_questions(file)
    assert error.value.where.endswith("q.jsonl:2")


def test_questions_of_the_built_in_world() -> None:
    asked = shapes_questions("a red circle left of an orange cross on a black background")
    assert [(q.level, q.text) for q in asked] == [
        ("global", "Are there exactly two things?"),
        ("global", "Is the background black?"),
        ("subject", "Is there a red circle?"),
        ("subject", "Is there an orange cross?"),
        ("relation", "Is the red circle left of the orange cross?"),
    ]
    assert [q.text for q in shapes_questions("three small blue squares")] == [
        "Are there exactly three things?",
        "Is there a blue square?",
    ]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"name": "vqascore", "least_mass": 0.2}, "does not read it"),
        ({"name": "vqascore", "frames": 4}, "a picture has no frames"),
        ({"name": "vqascore", "revision": "abc"}, "is no repository"),
        ({"name": "rewarddance", "modality": "video"}, "draws pictures"),
        (
            {"name": "questions", "global_weight": 0, "subject_weight": 0, "relation_weight": 0},
            "weight 0",
        ),
    ],
)
def test_keys_that_nobody_hears_are_refused(reward: dict, words: str) -> None:
    run = {"output": "o", "algorithm": "grpo", "rewards": [reward]}
    with pytest.raises(ConfigError) as error:
        config_from_mapping(run, source="here")
    assert any(words in line for line in error.value.lines())


def test_defaults_are_the_built_in_world() -> None:
    assert RewardDanceReward(name="rewarddance").references == "shapes"
    run = {"output": "o", "algorithm": "grpo", "rewards": ["vqascore", "rewarddance", "questions"]}
    assert len(config_from_mapping(run, source="here").rewards) == 3


def _written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
