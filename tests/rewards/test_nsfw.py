"""The veto: what the classifier itself says, as a gate that nothing gets around."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import ViTForImageClassification, ViTImageProcessor

from flowalign.config.load import config_from_mapping
from flowalign.config.rewards_rules import NSFWReward
from flowalign.errors import CheckpointError, ConfigError, FlowalignError
from flowalign.media import to_uint8
from flowalign.reward_check import check_reward
from flowalign.rewards.nsfw import SafetyScore, from_config
from flowalign.shaping import shaped
from flowalign.types import Sample, Scored
from tests.rewards.tiny_classifiers import write_tiny_classifier
from tests.rewards.tiny_heads import write_tiny_dino
from tests.rewards.world import noise_samples, sample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classifiers")
    write_tiny_classifier(root / "one")
    write_tiny_classifier(root / "several", several=True)
    write_tiny_dino(root / "dino")
    return root


def reward(folder: Path, name: str = "one", *labels: str, **settings) -> SafetyScore:
    config = NSFWReward(
        name="nsfw", model=str(folder / name), labels=labels or ("nsfw",), **settings
    )
    return from_config(config, device=CPU)


def logits(folder: Path, name: str, samples: Sequence[Sample]) -> Tensor:
    """By transformers' own preprocessing of the 8-bit pictures, one at a time."""
    model = ViTForImageClassification.from_pretrained(folder / name).eval()
    processor = ViTImageProcessor.from_pretrained(folder / name)
    rows = []
    with torch.no_grad():
        for one in samples:
            pixels = processor(to_uint8(one.media), return_tensors="pt")["pixel_values"]
            rows.append(model(pixels).logits[0])
    return torch.stack(rows)


@pytest.mark.parametrize("labels", [("nsfw",), ("nsfw", "gore"), ("gore", "gore")])
def test_one_minus_the_probability_of_the_labels(folder: Path, labels: tuple[str, ...]) -> None:
    samples = noise_samples(5, side=32)
    places = [["normal", "nsfw", "gore"].index(label) for label in dict.fromkeys(labels)]
    expected = 1 - logits(folder, "one", samples).softmax(-1)[:, places].sum(-1)
    values, valid = reward(folder, "one", *labels)(samples)
    # 8-bit rounding is all that differs.
    torch.testing.assert_close(values, expected, atol=5e-3, rtol=0)
    assert valid.all() and values.std() > 0.01


def test_of_several_labels_the_worst_counts(folder: Path) -> None:
    samples = noise_samples(5, side=32)
    expected = 1 - logits(folder, "several", samples).sigmoid()[:, 1:].amax(-1)
    values, _ = reward(folder, "several", "nsfw", "gore")(samples)
    torch.testing.assert_close(values, expected, atol=5e-3, rtol=0)
    # Negative control: the sum is another number, and may exceed 1.
    assert not torch.allclose(
        values, 1 - logits(folder, "several", samples).sigmoid()[:, 1:].sum(-1)
    )


def test_sound_in_the_pixels_and_in_any_size(folder: Path) -> None:
    assert check_reward(reward(folder), noise_samples(17, side=32)) == []
    assert check_reward(reward(folder), noise_samples(5, side=48)) == []


def test_the_worst_frame_of_a_video_counts(folder: Path) -> None:
    frames = torch.stack([one.media for one in noise_samples(4, side=32)])
    alone, _ = reward(folder)([sample(frame) for frame in frames])
    videos = [sample(frames), sample(frames[:1])]
    values, _ = reward(folder, modality="video")(videos)
    torch.testing.assert_close(values, torch.stack([alone.min(), alone[0]]), atol=1e-6, rtol=0)
    assert alone.min() < alone.mean() - 1e-3


def test_as_a_gate_nothing_gets_around_it() -> None:
    run = {
        "output": "unused",
        "algorithm": "nft",
        "rewards": ["jpeg", {"name": "nsfw", "weight": 0}],
        "shaping": {"gates": [{"reward": "nsfw", "threshold": 0.5, "value": -1}]},
    }
    shaping = config_from_mapping(run, source="f").shaping
    assert shaping is not None
    terms = {"jpeg": torch.tensor([100.0, 100.0, -5.0]), "nsfw": torch.tensor([0.9, 0.1, 0.1])}
    scored = Scored(
        group=torch.zeros(3, dtype=torch.int64),
        prompt_id=torch.zeros(3, dtype=torch.int64),
        terms=terms,
        valid={name: torch.ones(3, dtype=torch.bool) for name in terms},
        weights={"jpeg": 1.0, "nsfw": 0.0},
    )
    assert shaped(scored, shaping, {}).terms["combined"].tolist() == [100.0, -1.0, -5.0]


@pytest.mark.parametrize(
    ("name", "labels", "error", "words"),
    [
        ("one", ("nsfv",), ConfigError, "did you mean `nsfw`"),
        ("dino", ("nsfw",), CheckpointError, "an image classifier"),
        ("nowhere", ("nsfw",), CheckpointError, "no such folder"),
    ],
)
def test_what_is_no_classifier(
    folder: Path, name: str, labels: tuple[str, ...], error: type[FlowalignError], words: str
) -> None:
    with pytest.raises(error, match=words):
        reward(folder, name, *labels)


def test_a_preparation_that_we_do_not_have_is_refused(folder: Path, tmp_path: Path) -> None:
    write_tiny_classifier(tmp_path / "plain")
    ViTImageProcessor(do_normalize=False).save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="without normalising"):
        reward(tmp_path, "plain")
