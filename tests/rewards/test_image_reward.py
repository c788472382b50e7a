"""ImageReward on a random BLIP of the real classes, against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowalign.config.rewards_heads import ImageRewardReward
from flowalign.errors import CheckpointError, FlowalignError, FlowalignWarning, SecurityError
from flowalign.reward_check import check_reward
from flowalign.rewards import image_reward
from flowalign.rewards.image_reward import CHANNEL_MEAN, CHANNEL_STD, ImageRewardScore
from flowalign.scoring import build_suite
from tests.rewards.tiny_blip import (
    SIDE,
    plain_score,
    released_tensors,
    write_image_reward,
    write_tokenizer,
)
from tests.rewards.world import noise_samples, sample, true_samples

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("blip")
    write_tokenizer(root / "tokenizer")
    write_image_reward(root / "weights.safetensors")
    return root


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageRewardScore:
    config = ImageRewardReward(
        name="image_reward",
        weights=str(folder / "weights.safetensors"),
        tokenizer=str(folder / "tokenizer"),
    )
    return image_reward.from_config(config, device=CPU)


def test_against_plain_torch(reward: ImageRewardScore) -> None:
    """Names, cross attention, padding, linear head and constants, of pictures of the own side."""
    samples = [*true_samples(3), *noise_samples(2, side=SIDE)]
    samples[1] = replace(samples[1], prompt="the red thing")
    mean, std = (torch.tensor(v)[:, None, None] for v in (CHANNEL_MEAN, CHANNEL_STD))
    expected = []
    for s in samples:
        ids = torch.tensor(reward.tokenizer(s.prompt)["input_ids"])
        z = plain_score(released_tensors(), (s.media - mean) / std, ids)
        expected.append((z - 0.16717362830052426) / 1.0333394966054072)
    found = reward(samples)[0].double()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    others = [replace(s, prompt="some other thing") for s in samples]
    assert (reward(others)[0] - found).abs().max() > 1e-2  # negative control: it reads the prompt


def test_pure_with_a_true_gradient(reward: ImageRewardScore) -> None:
    generator = torch.Generator().manual_seed(1)
    media = torch.rand(3, 40, 50, generator=generator)
    samples = [*true_samples(4), sample(media), *noise_samples(2, side=SIDE)]
    assert check_reward(reward, samples) == []
    direction = torch.randn(3, 40, 50, generator=generator)
    leaf = media.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward([sample(leaf)])[0].sum(), leaf)
    ends = [float(reward([sample(media + h * direction)])[0]) for h in (1e-3, -1e-3)]
    along = float((slope * direction).sum())
    size = float(slope.norm())
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(along, rel=0.05, abs=0.02 * size)
    assert abs(along) > 0.1 * size  # negative control


def test_a_long_prompt_is_its_first_35_tokens(reward: ImageRewardScore) -> None:
    """Begin, 33 words, end; the cut is told once."""
    words = ["red", "circle", "and"] * 11
    picture = true_samples(1)[0].media
    whole = reward([sample(picture, " ".join(words))])[0]
    with pytest.warns(FlowalignWarning, match="last 2 tokens"):
        cut = reward([sample(picture, " ".join([*words, "blue", "square"]))])[0]
    assert torch.equal(whole, cut)
    shorter = reward([sample(picture, " ".join(words[:-1]))])[0]
    assert not torch.equal(whole, shorter)  # negative control
    assert list(reward.truncated.values()) == [2]


def changed(change: Callable[[dict[str, Tensor]], object]):
    def settings(_: Path, tmp: Path) -> dict[str, str]:
        tensors = released_tensors()
        change(tensors)
        save_file(tensors, tmp / "changed.safetensors")
        return {"weights": str(tmp / "changed.safetensors")}

    return settings


KEY = "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"
BAD: dict[str, tuple[Callable, type[FlowalignError], str]] = {
    "pickle": (lambda *_: {"weights": "ImageReward.pt"}, SecurityError, ".pt are never read"),
    "no file": (lambda *_: {"weights": "gone.safetensors"}, CheckpointError, "no such file"),
    "no cross attention": (
        changed(lambda t: t.pop(KEY)),
        CheckpointError,
        "1 weights are missing, for example `encoder.layer.0.crossattention.self.key.weight`",
    ),
    "shape": (
        changed(lambda t: t.update({KEY: torch.zeros(64, 64)})),
        CheckpointError,
        "has shape (64, 64)",
    ),
    "unknown": (
        changed(lambda t: t.update({"blip.visual_encoder.more": torch.zeros(1)})),
        CheckpointError,
        "unknown, for example `more`",
    ),
    "no eye": (
        changed(lambda t: [t.pop(n) for n in list(t) if "visual" in n]),
        CheckpointError,
        "is no BLIP",
    ),
    "no head": (
        changed(lambda t: [t.pop(n) for n in list(t) if n.startswith("mlp.")]),
        CheckpointError,
        "is no such head",
    ),
    "few words": (
        changed(
            lambda t: t.update(
                {"blip.text_encoder.embeddings.word_embeddings.weight": torch.zeros(9, 64)}
            )
        ),
        CheckpointError,
        "the weights know 9",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read(name: str, folder: Path, tmp_path: Path) -> None:
    settings, kind, words = BAD[name]
    given = {"tokenizer": str(folder / "tokenizer"), **settings(folder, tmp_path)}
    with pytest.raises(kind) as caught:
        build_suite([ImageRewardReward(name="image_reward", **given)])
    assert words in caught.value.line()
