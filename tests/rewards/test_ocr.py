"""Text accuracy: closed forms with a reader that is told what to read, and real reading."""

from __future__ import annotations

import functools
import itertools
import socket
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowalign.catalog import resolve
from flowalign.config.rewards_rules import OCRReward
from flowalign.errors import ResourceError
from flowalign.reward_check import check_reward
from flowalign.rewards.ocr import (
    TextAccuracy,
    accuracy,
    distance,
    even_places,
    from_config,
    plain,
    target_of,
)
from tests.rewards.world import sample


def reads(text: str) -> Callable[[Tensor], str]:
    return lambda picture: text


def score(target: str, seen: str, *, strict: bool = False) -> float:
    reward = TextAccuracy(read=reads(seen), strict=strict)
    values, valid = reward([sample(torch.zeros(3, 8, 8), f'a sign that says "{target}"')])
    assert valid.tolist() == [True]
    return float(values[0])


@functools.cache
def by_definition(a: str, b: str) -> int:
    """The recursion itself."""
    if not a or not b:
        return len(a) + len(b)
    replaced = by_definition(a[1:], b[1:]) + (a[0] != b[0])
    return min(replaced, by_definition(a[1:], b) + 1, by_definition(a, b[1:]) + 1)


def test_distance_is_levenshteins() -> None:
    words = ["".join(letters) for n in range(5) for letters in itertools.product("ab", repeat=n)]
    for a, b in itertools.product(words, words):
        assert distance(a, b) == by_definition(a, b)
    assert distance("kitten", "sitting") == 3 and distance("saturday", "sunday") == 3


@pytest.mark.parametrize(
    ("target", "seen", "partial", "strict"),
    [
        ("OPEN", "OPEN", 1.0, 1.0),
        ("OPEN", "o p e n", 1.0, 1.0),  # case and space
        ("Open 24h", "open24H", 1.0, 1.0),
        ("OPEN", "SHUT", 0.0, 0.0),  # disjoint, of equal length
        ("OPEN", "", 0.0, 0.0),
        ("OPEN", "OPEM", 0.75, 0.75),
        ("OPEN", "OPN", 0.75, 0.75),
        ("OPEN", "OPEN OPEN", 1.0, 0.5),  # more text than asked for
        ("OPEN", "xxOPENxx", 1.0, 0.5),
        ("OPEN", "abcdefghij", 0.0, 0.1),  # e is right; the distance is capped at |t|
    ],
)
def test_accuracy(target: str, seen: str, partial: float, strict: float) -> None:
    assert score(target, seen) == pytest.approx(partial)
    assert score(target, seen, strict=True) == pytest.approx(strict)


def test_accuracy_is_a_share() -> None:
    words = ["".join(letters) for n in range(4) for letters in itertools.product("ab", repeat=n)]
    for target, seen in itertools.product(words[1:], words):
        strict = accuracy(target, seen, strict=True)
        assert 0 <= strict <= 1 and 0 <= accuracy(target, seen, strict=False) <= 1
        assert (strict == 1) == (target == seen)
        assert (accuracy(target, seen, strict=False) == 1) == (target in seen)


@pytest.mark.parametrize(
    ("prompt", "spans", "target"),
    [
        ('a sign "Hello World"', "all", "helloworld"),
        ("a sign \u201cHello\u201d and \u201cyou\u201d", "all", "helloyou"),
        ('a sign "Hello" above "you"', "first", "hello"),
        ('"" then "b"', "first", "b"),
        ("\uff21\uff22 without quotes", "all", ""),
        ('an empty "" sign', "all", ""),
        ('a blank "  " sign', "all", ""),
        ('one " alone', "all", ""),
        ('wide "\uff21\u00df"', "all", "ass"),
    ],
)
def test_targets(prompt: str, spans, target: str) -> None:
    assert target_of(prompt, spans) == target == plain(target)


def test_without_a_target_there_is_a_mask_and_nothing_is_read() -> None:
    def never(picture: Tensor) -> str:
        raise AssertionError("read")

    samples = [sample(torch.zeros(3, 8, 8), text) for text in ("a cat", 'an empty "" sign')]
    values, valid = TextAccuracy(read=never)(samples)
    assert valid.tolist() == [False, False] and values.isnan().all()


def test_a_video_is_the_mean_over_frames() -> None:
    """One legible frame of four is worth a quarter."""
    frames = torch.zeros(4, 3, 8, 8)
    frames[2] = 1.0

    def read(picture: Tensor) -> str:
        return "open" if picture.mean() > 0.5 else ""

    video = sample(frames, 'a sign "OPEN"')
    assert TextAccuracy(read=read, modality="video")([video])[0].item() == 0.25
    assert TextAccuracy(read=read, modality="video", frames=2)([video])[0].item() == 0.0


def test_places_are_even() -> None:
    assert even_places(4, 8) == [0, 1, 2, 3] and even_places(1, 8) == [0]
    assert even_places(16, 4) == [2, 6, 10, 14] and even_places(9, 1) == [4]
    for num, wanted in itertools.product(range(1, 30), range(1, 12)):
        places = even_places(num, wanted)
        assert len(set(places)) == min(num, wanted) and places[-1] < num


def written(*lines: str) -> Tensor:
    picture = Image.new("RGB", (160, 64), "white")
    for row, line in enumerate(lines):
        place, font = (8, 4 + 30 * row), ImageFont.load_default(22)
        ImageDraw.Draw(picture).text(place, line, fill=(20, 20, 120), font=font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_real_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn by Pillow, read by RapidOCR's own models, offline."""

    def refused(*address: object) -> None:
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket.socket, "connect", refused)
    reward = from_config(OCRReward(name="ocr", strict=True), device=torch.device("cpu"))
    samples = [
        sample(written("Hello", "World 42"), 'a sign "Hello World 42"'),
        sample(written("Hello", "World 42"), 'a sign "Goodbye"'),
        sample(torch.ones(3, 32, 32), 'a sign "Hello"'),
    ]
    values, valid = reward(samples)
    assert valid.all()
    assert values[0] == 1.0 and values[1] < 0.4 and values[2] == 0.0


def test_pure() -> None:
    reward = TextAccuracy(read=lambda picture: str(float(picture.mean()))[:4])
    samples = [sample(torch.full((3, 8, 8), i / 20), 'the "0.35"') for i in range(17)]
    assert check_reward(reward, samples) == []


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    monkeypatch.delitem(sys.modules, "flowalign.rewards.ocr")
    with pytest.raises(ResourceError, match=r"pip install .*\[ocr\]") as caught:
        resolve("rewards", "ocr")
    assert caught.value.exit_code == 7
