"""The built-in vision-language model: its questions are true, it was trained as it is used, and
what its card says."""

from __future__ import annotations

import random

import pytest
import torch

from flowalign.config.rewards_vlm import VQAScoreReward
from flowalign.rewards.vqascore import from_config
from flowalign.types import Sample
from flowalign.worlds.shapes.grammar import caption, parse, prompts, split_of, vocabulary
from flowalign.worlds.shapes.models import vlm_path
from flowalign.worlds.shapes.questions import KINDS, Facts, ask, describe, view, wrong
from flowalign.worlds.shapes.render import pictures, place, render
from flowalign.worlds.shapes.scene import Scene, Thing
from flowalign.worlds.shapes.training.install_vlm import accuracy
from flowalign.worlds.shapes.training.vlm import answers, build_vlm
from flowalign.worlds.shapes.training.vlm_data import facts_of, pack, pair_rows, single_rows
from flowalign.worlds.shapes.training.vlm_tokenizer import START, build_tokenizer, phrases
from flowalign.worlds.shapes.verifier import verify

FACTS = Facts(
    things=(
        Thing(colour="red", shape="circle", size="large"),
        Thing(colour="blue", shape="cross", size="small"),
    ),
    centres=((8.0, 16.0), (24.0, 16.0)),
    background="black",
)


def test_views_are_true_and_their_corruptions_false() -> None:
    """By the exact verifier, on drawn pictures."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    seen, true, false = [], [], []
    for text in prompts("train", limit=60):
        layout = place(parse(text), generator)
        told = view(facts_of(parse(text), layout), rng)
        seen.append(render([layout])[0])
        true.append(caption(told))
        false.append(caption(wrong(told, rng)))
    assert bool(verify(torch.stack(seen), true).strict.all())
    assert not bool(verify(torch.stack(seen), false).strict.any())


def test_questions_have_the_answer_that_was_asked_for() -> None:
    rng = random.Random(0)
    yes = {kind: {ask(FACTS, kind, True, rng) for _ in range(40)} for kind in KINDS}
    no = {kind: {ask(FACTS, kind, False, rng) for _ in range(40)} for kind in KINDS}
    assert all(not yes[kind] & (no[kind] - {None}) for kind in KINDS)
    assert yes["count"] == {"Are there exactly two things?"}
    assert yes["subject"] == {"Is there a red circle?", "Is there a blue cross?"}
    assert yes["relation"] == {
        "Is the red circle left of the blue cross?",
        "Is the blue cross right of the red circle?",
    }
    assert "Is there a blue circle?" in no["subject"]  # the other thing's colour
    assert describe(FACTS) == "two things on black, left large red circle, right small blue cross"
    assert all(split_of(text) == "train" for text in yes["prompt"] | no["prompt"] if text)


def test_the_tokenizer_makes_words_and_phrases_one_token() -> None:
    tokenizer = build_tokenizer()
    assert all(len(tokenizer.tokenize(phrase)) == 1 for phrase in phrases())
    words = [word for word in vocabulary() if word.isalpha()]
    assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in [*words, "yes", "no"])
    assert tokenizer.decode(tokenizer.encode("a xylophone of 7")) == "a xylophone of 7"
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()


@torch.no_grad()
@pytest.mark.parametrize("rows_of", [single_rows, pair_rows])
def test_packed_questions_are_answered_as_alone(rows_of) -> None:
    """What is trained is the model's own forward on each question by itself."""
    generator, tokenizer = torch.Generator().manual_seed(0), build_tokenizer()
    torch.manual_seed(0)
    vlm = build_vlm().eval()
    for parameter in vlm.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape))
    vlm.set_attn_implementation("eager")
    rows = rows_of(2, seed=0, generator=generator, tokenizer=tokenizer)
    images = rows.pictures.float() / 255
    packed, _ = answers(vlm, images, pack(rows, [0, 1]))
    alone = []
    for row, segments in enumerate(rows.segments):
        for text, answer in segments:
            ids = [vlm.config.image_token_id] * 64 * images.shape[1] + text
            given = {"input_ids": torch.tensor([ids]), "pixel_values": images[row] * 2 - 1}
            alone.append(vlm(**given).logits[0, -len(answer) :])
    assert torch.allclose(packed, torch.cat(alone), atol=1e-4)
    # Negative control: texts that look at each other give other answers.
    together = pack(rows, [0, 1])
    together.segment.clamp_(max=1)
    assert not torch.allclose(answers(vlm, images, together)[0], packed, atol=1e-3)


def test_pairs_differ_in_what_they_show() -> None:
    """The answer is yes when the first picture shows the prompt, by the verifier."""
    tokenizer = build_tokenizer()
    generator = torch.Generator().manual_seed(0)
    rows = pair_rows(40, seed=0, generator=generator, tokenizer=tokenizer)
    yes = tokenizer.convert_tokens_to_ids("Yes")
    for seen, segments in zip(rows.pictures.float() / 255, rows.segments, strict=True):
        for ids, answer in segments:
            words = str(tokenizer.decode(ids)).removesuffix(START)
            if '"' not in words:
                continue  # a description, where the prompt is held out
            first, second = verify(seen, [words.split('"')[1]] * 2).strict.tolist()
            assert (first, second) == ((True, False) if answer == [yes] else (False, True))


def test_installed_model_is_as_good_as_its_card_says() -> None:
    """Few held-out prompts, so the card's shares less three standard errors and more."""
    found = accuracy(3)
    for name, least in LEAST.items():
        share, number = found[name]
        assert share >= least, (name, share, number)


def test_reward_prefers_the_true_prompt() -> None:
    """And one with the pictures of another prompt does not."""
    texts = prompts("heldout", "single", 8) + prompts("heldout", "count", 8)
    seen = pictures([parse(text) for text in texts], torch.Generator().manual_seed(2))
    reward = from_config(VQAScoreReward(name="vqascore"), device=torch.device("cpu"))

    def mean(order: list[int]) -> float:
        samples = [
            Sample(
                prompt=texts[i],
                media=seen[j],
                modality="image",
                rate=None,
                prompt_id=i,
                sample_id=0,
                seed=0,
            )
            for i, j in enumerate(order)
        ]
        values, valid = reward(samples)
        assert bool(valid.all())
        return float(values.mean())

    straight = list(range(16))
    assert mean(straight) > 0.6 > 0.3 > mean(straight[1:] + straight[:1])


def test_it_is_small_and_holds_no_pickle() -> None:
    files = [path for path in vlm_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3e6
    assert {path.suffix for path in files} == {".json", ".jinja", ".safetensors"}


LEAST = {"colour": 0.85, "count": 0.85, "background": 0.85}


def test_a_scene_of_one_thing_cannot_lose_it() -> None:
    """`wrong` always finds something to change."""
    rng = random.Random(0)
    one = Scene(things=(Thing(colour="red", shape="circle"),))
    assert all(wrong(one, rng) != one for _ in range(50))
