"""Pictures with questions, packed: a picture is read once and all questions look back at it.

Letters: B rows, N pictures a row (1, or 2 in a comparison), S text tokens of a row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from flowalign.config.rewards_vlm import ANSWER, COMPARISON, PLACE, QUESTION
from flowalign.worlds.shapes.dataset import training_scenes
from flowalign.worlds.shapes.grammar import caption, split_of
from flowalign.worlds.shapes.questions import KINDS, Facts, ask, describe, view, wrong
from flowalign.worlds.shapes.render import Layout, place, render
from flowalign.worlds.shapes.scene import BACKGROUNDS, Scene, Thing
from flowalign.worlds.shapes.training.vlm_tokenizer import PAD, START

OTHER_KINDS = tuple(kind for kind in KINDS if kind != "prompt")
SEGMENTS = ("prompt",) * 4 + ("subject", "any", "any", "any")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Pictures as 8-bit, and for each row its segments: ids of a text, and the ids that are to
    follow the last `len(target)` of them."""

    pictures: Tensor  # (B, N, 3, 32, 32) uint8
    segments: list[list[tuple[list[int], list[int]]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """The texts of B rows side by side."""

    ids: Tensor  # (B, S)
    segment: Tensor  # (B, S), 1, 2, ...; 0 is the pictures, -1 is padding
    position: Tensor  # (B, S), from 0 in each segment
    target: Tensor  # (B, S), -100 where nothing is asked


def facts_of(scene: Scene, layout: Layout) -> Facts:
    """What a drawn scene shows. A thing of no stated size is drawn large."""
    level = round(255 * layout.background[0])
    ground = min(BACKGROUNDS, key=lambda name: abs(BACKGROUNDS[name][0] - level))
    return Facts(
        things=tuple(
            Thing(colour=t.colour, shape=t.shape, size=t.size or "large") for t in scene.things
        ),
        centres=tuple((placed.x, placed.y) for placed in layout.things),
        background=ground,
    )


def quoted(template: str, prompt: str) -> str:
    """A question of the rewards about `prompt`."""
    return template.replace(PLACE, f'"{prompt}"')


def worded(kind: str, text: str) -> str:
    """A question of any kind in full."""
    return quoted(QUESTION, text) if kind == "prompt" else f"{text} {ANSWER}"


def questions_of(facts: Facts, rng: random.Random) -> list[tuple[str, str]]:
    """Texts of SEGMENTS and a description, each with its answer."""
    found = []
    for kind in SEGMENTS:
        text, chosen, answer = None, kind, rng.random() < 0.5
        while text is None:
            chosen = rng.choice(OTHER_KINDS) if kind == "any" else kind
            answer = not answer
            text = ask(facts, chosen, answer, rng)
        found.append((worded(chosen, text), "Yes" if answer else "No"))
    return [*found, ("Describe.", describe(facts) + PAD)]


def single_rows(
    number: int, *, seed: int, generator: torch.Generator, tokenizer: PreTrainedTokenizerFast
) -> Rows:
    """`number` pictures of the training split with their questions."""
    rng = random.Random(f"vlm/{seed}")
    _, scenes = training_scenes(number, seed=seed)
    layouts = [place(scene, generator) for scene in scenes]
    texts = [
        questions_of(facts_of(scene, layout), rng)
        for scene, layout in zip(scenes, layouts, strict=True)
    ]
    return Rows(pictures=_bytes(render(layouts))[:, None], segments=_encode(texts, tokenizer))


def pair_rows(
    number: int, *, seed: int, generator: torch.Generator, tokenizer: PreTrainedTokenizerFast
) -> Rows:
    """`number` pairs: one picture shows the prompt, the other is wrong in one respect; and the
    question with the other's description."""
    rng = random.Random(f"vlm pairs/{seed}")
    _, scenes = training_scenes(number, seed=seed + 1)
    layouts, texts = [], []
    for scene in scenes:
        right = place(scene, generator)
        told = view(facts_of(scene, right), rng)
        other = wrong(told, rng)
        names = [caption(told), caption(other)]
        pair, first = [right, place(other, generator)], rng.random() < 0.5
        layouts += pair if first else pair[::-1]
        answers = ["Yes", "No"] if first else ["No", "Yes"]
        texts.append(
            [
                (quoted(COMPARISON, name), answer)
                for name, answer in zip(names, answers, strict=True)
                if split_of(name) == "train"
            ]
            or [("Describe.", "" + PAD)]
        )
    pictures = _bytes(render(layouts)).unflatten(0, (number, 2))
    return Rows(pictures=pictures, segments=_encode(texts, tokenizer))


def pack(rows: Rows, chosen: Sequence[int]) -> Packed:
    """The texts of the chosen rows."""
    columns = [_columns(rows.segments[i]) for i in chosen]
    length = max(len(column[0]) for column in columns)
    fills = (0, -1, 0, -100)
    parts = [
        torch.tensor([column[k] + [fill] * (length - len(column[k])) for column in columns])
        for k, fill in enumerate(fills)
    ]
    return Packed(ids=parts[0], segment=parts[1], position=parts[2], target=parts[3])


def allowed(segment: Tensor, prefix: int) -> Tensor:
    """(B, 1, P + S, P + S), 0 where one may look at another and -inf elsewhere. All look back at
    the prefix of P picture tokens, and text at its own segment only."""
    whole = torch.cat([segment.new_zeros(len(segment), prefix), segment], dim=1)
    same = whole[:, :, None] == whole[:, None, :]
    seen = same | (whole == 0)[:, None, :]
    seen &= torch.ones(seen.shape[1:], dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]


def _columns(segments: list[tuple[list[int], list[int]]]) -> tuple[list[int], ...]:
    ids: list[int] = []
    segment: list[int] = []
    position: list[int] = []
    target: list[int] = []
    for number, (text, answer) in enumerate(segments, start=1):
        ids += text
        segment += [number] * len(text)
        position += range(len(text))
        target += [-100] * (len(text) - len(answer)) + answer
    return ids, segment, position, target


def _encode(
    texts: list[list[tuple[str, str]]], tokenizer: PreTrainedTokenizerFast
) -> list[list[tuple[list[int], list[int]]]]:
    flat = [part for row in texts for part in row]
    asked = tokenizer([text + START for text, _ in flat])["input_ids"]
    answers = tokenizer([answer for _, answer in flat])["input_ids"]
    # The last token of an answer is only predicted; the others are read as well.
    pairs = iter(
        [(text + answer[:-1], answer) for text, answer in zip(asked, answers, strict=True)]
    )
    return [[next(pairs) for _ in row] for row in texts]


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)
