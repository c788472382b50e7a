"""The verifier: right about rendered pictures, sharp on wrong ones, a function of each alone."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.worlds.shapes.grammar import parse, prompts
from flowalign.worlds.shapes.render import pictures
from flowalign.worlds.shapes.scene import CATEGORIES
from flowalign.worlds.shapes.verdict import Verdict
from flowalign.worlds.shapes.verifier import verify

NUMBER = 150


def draw(texts: Sequence[str], seed: int = 0) -> Tensor:
    """Ground truth (B, 3, 32, 32)."""
    return pictures([parse(text) for text in texts], torch.Generator().manual_seed(seed))


def texts_of(name: str) -> list[str]:
    return (prompts("train", name, NUMBER) + prompts("heldout", name, NUMBER // 2))[:NUMBER]


def strict(verdict: Verdict) -> float:
    return float(verdict.strict.float().mean())


@pytest.mark.parametrize("name", CATEGORIES)
def test_ground_truth_is_right(name: str) -> None:
    texts = texts_of(name)
    verdict = verify(draw(texts), texts)
    assert strict(verdict) >= 0.99
    assert verdict.score.mean() > 0.95
    assert bool(verdict.has_relation.all()) == (name == "relation")
    # The objects found are the things that were drawn.
    for text, found in zip(texts, verdict.found, strict=True):
        drawn = sorted((thing.colour, thing.shape) for thing in parse(text).things)
        assert sorted((thing.colour, thing.shape) for thing in found) == drawn


@pytest.mark.parametrize("name", CATEGORIES)
def test_other_prompts_of_the_category_are_wrong(name: str) -> None:
    """Shuffled prompts: what remains is the chance that another prompt says the same or less."""
    texts = texts_of(name)
    shuffled = list(texts)
    random.Random(1).shuffle(shuffled)
    moved = torch.tensor([parse(a) != parse(b) for a, b in zip(texts, shuffled, strict=True)])
    verdict = verify(draw(texts), shuffled)
    assert verdict.score[moved].mean() < 0.15
    # "a red circle" is true of a picture for "a small red circle on a white background".
    assert verdict.strict[moved].float().mean() <= (0.05 if name in ("single", "count") else 0.02)


@pytest.mark.parametrize("name", CATEGORIES)
@pytest.mark.parametrize("disturbance", ["noise", "blur", "both"])
def test_small_disturbances_do_not_matter(name: str, disturbance: str) -> None:
    texts = texts_of(name)
    images = draw(texts)
    if disturbance != "noise":
        line = torch.tensor([0.15, 0.7, 0.15])
        kernel = (line[:, None] * line[None, :]).expand(3, 1, 3, 3)
        images = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    if disturbance != "blur":
        images = images + 0.03 * torch.randn(
            images.shape, generator=torch.Generator().manual_seed(1)
        )
    verdict = verify(images.clamp(0, 1), texts)
    assert strict(verdict) >= 0.98
    assert verdict.score.mean() > 0.75


def test_strong_noise_does_matter() -> None:
    """Negative control of the robustness proof."""
    texts = texts_of("two")
    noise = 0.4 * torch.randn(len(texts), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert strict(verify((draw(texts) + noise).clamp(0, 1), texts)) < 0.1


def test_verdict_is_a_function_of_the_picture_alone() -> None:
    texts = prompts("heldout", limit=90)
    wrong = texts[1:] + texts[:1]
    images = draw(texts).repeat(2, 1, 1, 1)
    asked = texts + wrong
    whole = verify(images, asked)
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0))
    permuted = verify(images[order], [asked[i] for i in order])
    alone = [verify(images[i : i + 1], asked[i : i + 1]) for i in range(0, len(asked), 7)]
    for name in ("score", "strict", "global_score", "subject", "relation"):
        value = getattr(whole, name)
        torch.testing.assert_close(getattr(permuted, name), value[order], rtol=0, atol=1e-6)
        single = torch.cat([getattr(verdict, name) for verdict in alone])
        torch.testing.assert_close(single, value[::7], rtol=0, atol=1e-6)
    assert permuted.found[0] == whole.found[int(order[0])]
    # Negative control: the scores are not all alike, so a wrong order would show.
    assert whole.score.std() > 0.2


def test_verdict_ignores_global_random_state() -> None:
    texts = prompts("heldout", limit=20)
    torch.manual_seed(0)
    images, before = draw(texts), torch.get_rng_state()
    first = verify(images, texts)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(verify(draw(texts), texts).score, first.score)
    assert not torch.equal(draw(texts, seed=1), images)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.01, 1.01])
def test_impossible_pictures_are_refused(bad: float) -> None:
    images = draw(["a red circle"])
    verify(images, ["a red circle"])
    images[0, 1, 3, 4] = bad
    with pytest.raises(ValueError, match=r"finite|\[0, 1\]"):
        verify(images, ["a red circle"])


@pytest.mark.parametrize("shape", [(1, 3, 31, 31), (1, 1, 32, 32), (2, 3, 32, 32), (3, 32, 32)])
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="picture"):
        verify(torch.zeros(shape), ["a red circle"])


def test_unknown_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="dodecagon"):
        verify(draw(["a red circle"]), ["a red dodecagon"])


def test_larger_pictures_are_reduced() -> None:
    texts = prompts("heldout", limit=50)
    images = F.interpolate(draw(texts), scale_factor=2, mode="nearest")
    torch.testing.assert_close(verify(images, texts).score, verify(draw(texts), texts).score)


def test_score_is_graded() -> None:
    """Each mistake lowers the score, and a worse mistake lowers it more."""
    image = draw(["a red circle and a blue square"])
    asked = {
        "right": "a red circle and a blue square",
        "one shape wrong": "a red circle and a blue triangle",
        "one colour wrong": "a red circle and a green square",
        "one more asked": "a red circle, a blue square and a green triangle",
        "one less asked": "a red circle",
        "swapped": "a blue circle and a red square",
        "all wrong": "a green cross and a yellow diamond",
    }
    scores = {name: float(verify(image, [text]).score) for name, text in asked.items()}
    assert scores["right"] > 0.95
    assert 0.25 < scores["one colour wrong"] < scores["one shape wrong"] < 0.45
    assert scores["one colour wrong"] < scores["one more asked"] < 0.6
    assert 0.4 < scores["one less asked"] < 0.7
    assert scores["all wrong"] < scores["swapped"] < 0.1
    assert scores["all wrong"] < 0.01


def test_relation_is_judged_by_position() -> None:
    """Under the converse relation the subject score stays and the relation score goes."""
    texts = prompts("train", "relation", 80)
    swap = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    converse = [t.replace(r, s, 1) for t in texts for r, s in swap.items() if r in t]
    images = draw(texts)
    right, wrong = verify(images, texts), verify(images, converse)
    torch.testing.assert_close(right.subject, wrong.subject)
    assert right.relation.mean() > 0.9 and wrong.relation.max() < 0.05
    assert wrong.score.mean() < 0.35 and not wrong.strict.any()


def test_size_word_is_judged() -> None:
    for small, large in [
        ("a small red circle", "a large red circle"),
        ("three small blue crosses", "three large blue crosses"),
    ]:
        images = draw([small] * 10)
        assert verify(images, [small] * 10).strict.all()
        verdict = verify(images, [large] * 10)
        assert not verdict.strict.any() and verdict.score.max() < 0.5


def test_empty_and_flat_pictures_score_nothing() -> None:
    images = torch.stack([torch.full((3, 32, 32), value) for value in (0.0, 0.5, 1.0)])
    verdict = verify(images, ["a red circle"] * 3)
    assert verdict.score.max() == 0 and verdict.found == ((), (), ())
