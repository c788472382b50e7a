"""The verifier as a reward: right pictures high, wrong ones low, other prompts an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowalign.config.rewards import ShapesReward
from flowalign.errors import RewardError
from flowalign.rewards.shapes import ShapesScore, from_config, hierarchical
from flowalign.scoring import build_suite
from flowalign.worlds.shapes.grammar import parse
from flowalign.worlds.shapes.verifier import verify
from tests.rewards.world import noise_samples, true_samples

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def truth():
    return true_samples(60)


def shuffled(samples):
    """Each picture with the prompt of another."""
    prompts = [s.prompt for s in samples]
    return [
        replace(s, prompt=p)
        for s, p in zip(samples, prompts[7:] + prompts[:7], strict=True)
        if p != s.prompt
    ]


@pytest.mark.parametrize("mode", ["flat", "hierarchical", "strict"])
def test_right_pictures_score_high_and_wrong_ones_low(mode, truth) -> None:
    reward = ShapesScore(mode=mode)
    right, valid = reward(truth)
    wrong, _ = reward(shuffled(truth))
    assert valid.all() and right.mean() > 0.95
    low, high = reward.score_range
    assert right.min() >= low and right.max() <= high
    # The hierarchical mean keeps partial credit for what is right in a wrong picture.
    assert wrong.mean() < {"flat": 0.15, "strict": 0.03, "hierarchical": 0.6}[mode]


def test_noise_scores_below_what_the_card_says(truth) -> None:
    noise = noise_samples(40, side=32)
    given = [replace(s, prompt=t.prompt) for s, t in zip(noise, truth, strict=False)]
    assert ShapesScore(mode="flat")(given)[0].mean() < 0.15
    assert ShapesScore(mode="strict")(given)[0].max() == 0.0


def test_modes_are_the_verdicts_numbers(truth) -> None:
    verdict = verify(torch.stack([s.media for s in truth]), [s.prompt for s in truth])
    assert torch.equal(ShapesScore(mode="flat")(truth)[0], verdict.score)
    assert torch.equal(ShapesScore(mode="strict")(truth)[0], verdict.strict.float())


def test_a_prompt_without_a_relation_has_no_relation_level() -> None:
    levels = torch.tensor([[1.0, 1.0], [0.5, 0.5], [0.25, 0.25]])  # global, subject, relation
    has_relation = torch.tensor([True, False])
    weights = torch.tensor([1.0, 2.0, 3.0])
    score = hierarchical(levels, has_relation, weights)
    assert score[0] == pytest.approx((1 * 1.0 + 2 * 0.5 + 3 * 0.25) / 6)
    assert score[1] == pytest.approx((1 * 1.0 + 2 * 0.5) / 3)
    # Whatever stands in the level that is left out has no influence, NaN included.
    levels[2, 1] = torch.nan
    assert torch.equal(hierarchical(levels, has_relation, weights), score)
    # Negative control: counting it as 0 or as 1 gives another number.
    for filled in (0.0, 1.0):
        assert (1 * 1.0 + 2 * 0.5 + 3 * filled) / 6 != pytest.approx(score[1].item())


def test_hierarchical_weights_choose_the_level() -> None:
    truth = [s for s in true_samples(60) if parse(s.prompt).relation is not None]
    swapped = [replace(s, media=s.media.flip(1).flip(2)) for s in truth]  # relations are now wrong
    subject = ShapesScore(mode="hierarchical", global_weight=0, relation_weight=0)
    relation = ShapesScore(mode="hierarchical", global_weight=0, subject_weight=0)
    assert relation(truth)[0].mean() > 0.95 and relation(swapped)[0].mean() < 0.1
    # Only the relation is wrong: triangles upside down cost a little of the subjects.
    assert subject(swapped)[0].mean() > 0.75


def test_weights_without_a_level_for_every_prompt_are_refused() -> None:
    config = ShapesReward(name="shapes", mode="hierarchical", global_weight=0, subject_weight=0)
    with pytest.raises(RewardError, match="a prompt without a relation would have no score"):
        from_config(config, device=CPU)


@pytest.mark.parametrize(
    ("prompt", "fragment"),
    [
        ("a red car", "unknown shape 'car'"),
        ("a mauve circle", "unknown colour 'mauve'"),
        ("", "unknown article"),
        ("a photo of a cat", "a photo of a cat"),
        ("a red circle near a blue square", "near"),
    ],
)
def test_a_prompt_outside_the_grammar_is_an_error_and_not_a_zero(prompt, fragment) -> None:
    given = replace(true_samples(1)[0], prompt=prompt)
    with pytest.raises(RewardError) as caught:
        build_suite([ShapesReward(name="shapes")]).score([given])
    line = caught.value.line()
    assert caught.value.exit_code == 5
    assert "reward `shapes`" in line and repr(prompt) in line and fragment in line
    # Under `drop` it is masked and counted, and the others keep their scores.
    suite = build_suite([ShapesReward(name="shapes")], failure="drop")
    scores = suite.score([given, *true_samples(2)])
    assert scores.valid["shapes"].tolist() == [False, True, True]
    assert scores.dropped == {"shapes": 1}


def test_pictures_of_several_sizes_in_one_batch() -> None:
    small = true_samples(4)
    large = [
        replace(s, media=s.media.repeat_interleave(2, 1).repeat_interleave(2, 2)) for s in small
    ]
    mixed = [large[0], small[1], large[2], small[3]]
    reward = ShapesScore()
    expected = [reward([s])[0].item() for s in mixed]
    assert reward(mixed)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert min(expected) > 0.9
