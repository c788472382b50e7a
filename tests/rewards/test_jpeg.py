"""JPEG size: the bytes of a real file, equal to what DDPO's own function gives."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, __version__

from flowalign.config.rewards import JpegReward
from flowalign.media import save_image
from flowalign.rewards.jpeg import JpegSize, jpeg_bytes
from flowalign.scoring import build_suite
from tests.rewards.world import noise_samples, sample

GOLDEN = Path(__file__).parents[1] / "golden" / "rewards" / "ddpo__jpeg_incompressibility.npz"


def test_reference_sizes() -> None:
    with np.load(GOLDEN, allow_pickle=False) as case:
        pictures, expected = torch.from_numpy(case["in.images"]), case["out.size_kb"]
    values, valid = JpegSize()([sample(picture) for picture in pictures])
    # Made with Pillow 13.0.0; another encoder's file may differ by 3 %.
    room = 1e-6 if __version__ == "13.0.0" else 0.03
    np.testing.assert_allclose(values.double().numpy(), expected, rtol=room)
    assert valid.all()
    # Negative control: another quality or a cut instead of a rounded level is seen.
    lower, _ = JpegSize(quality=75)([sample(picture) for picture in pictures])
    assert (lower - values).abs().max() > 0.03


def test_the_size_is_that_of_the_saved_file(tmp_path: Path) -> None:
    for given in noise_samples(3, side=24):
        save_image(tmp_path / "a.jpg", given.media, quality=95)
        assert (tmp_path / "a.jpg").stat().st_size == jpeg_bytes(given.media, 95)


def test_flat_pictures_are_small_and_noise_is_large() -> None:
    flat, noise = sample(torch.full((3, 64, 64), 0.5)), noise_samples(1, side=64)[0]
    sizes = JpegSize()([flat, noise])[0]
    assert sizes[0] < 1.0 < 5.0 < sizes[1]  # the card's direction: higher is less compressible
    low, _ = JpegSize(quality=10)([noise])
    assert low[0] < sizes[1] / 3


def test_values_are_rounded_to_eight_bits_and_cut() -> None:
    """round(255 x), not floor: 0.9999 is white; beyond [0, 1] is the nearest level."""
    picture = torch.full((3, 16, 16), 0.9999)
    assert jpeg_bytes(picture, 95) == jpeg_bytes(torch.ones(3, 16, 16), 95)
    assert jpeg_bytes(torch.full((3, 16, 16), 1.3), 95) == jpeg_bytes(torch.ones(3, 16, 16), 95)
    noise = noise_samples(1, side=16)[0].media
    floored = io.BytesIO()
    levels = (noise * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(levels).save(floored, "JPEG", quality=95)
    assert floored.getvalue() != b"" and floored.tell() != jpeg_bytes(noise, 95)


def test_a_negative_weight_asks_for_compressible_pictures() -> None:
    suite = build_suite([JpegReward(name="jpeg", weight=-1.0, quality=80)])
    assert suite.weights == {"jpeg": -1.0}
    scores = suite.score(noise_samples(2))
    assert (scores.terms["jpeg"] > 0).all()


@pytest.mark.parametrize("side", [8, 17, 33])
def test_any_size_of_picture_and_mixed_sizes(side: int) -> None:
    mixed = [*noise_samples(2, side=side), *noise_samples(2, side=40)]
    values, _ = JpegSize()(mixed)
    assert values.tolist() == [JpegSize()([s])[0].item() for s in mixed]
