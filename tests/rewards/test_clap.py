"""CLAP on a random model of the real class: against transformers' own front end and pass."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from flowalign.clap_audio import resampled
from flowalign.config.rewards_heads import ClapReward
from flowalign.errors import CheckpointError, FlowalignWarning, RewardError
from flowalign.reward_check import check_reward
from flowalign.rewards import clap
from flowalign.rewards.clap import ClapScore
from flowalign.scoring import build_suite
from flowalign.types import Sample
from tests.rewards.world import true_samples, write_tiny_clip

CPU = torch.device("cpu")
RATE = 8000
WORDS = ["a", "dog", "barks", "rain", "on", "the", "roof", "piano"]


def write_tiny_clap(folder: Path, *, fused: bool = False) -> Path:
    """Hears 1 s at 8 kHz in 101 frames of 16 bands; reads 20 tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    level = Tokenizer(models.WordLevel(vocab=words, unk_token="<unk>"))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    level.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = ClapConfig(
        text_config={  # type: ignore[arg-type]
            "vocab_size": len(words),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 22,
        },
        audio_config={  # type: ignore[arg-type]
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [1, 2],
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "enable_fusion": fused,
        },
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClapModel(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    norm: Any = model.audio_model.audio_encoder.batch_norm
    norm.running_mean.fill_(-20.0)
    norm.running_var.fill_(100.0)
    model.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_max=4000,
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clap")
    write_tiny_clap(root / "plain")
    write_tiny_clap(root / "fused", fused=True)
    return root


def score(folder: Path, kind: str = "plain", **settings) -> ClapScore:
    config = ClapReward(name="clap", model=str(folder / kind), **settings)
    return clap.from_config(config, device=CPU)


def sounds(num: int, seconds: float = 1.0, *, rate: float = RATE, channels: int = 1):
    """Tones that rise, with noise; prompts in turn."""
    generator = torch.Generator().manual_seed(5)
    time = torch.arange(round(seconds * rate)) / rate
    prompts = ["a dog barks", "rain on the roof", "piano"]
    found = []
    for i in range(num):
        tone = torch.sin(2 * math.pi * (200 + 150 * i) * time * (1 + time))
        noise = torch.randn(channels, len(time), generator=generator)
        media = (0.5 * tone + 0.05 * noise).clamp(-1, 1)
        found.append(Sample(
            prompt=prompts[i % 3], media=media, modality="audio", rate=rate, prompt_id=i,
            sample_id=0, seed=0,
        ))  # fmt: skip
    return found


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_against_transformers(kind: str, folder: Path) -> None:
    """Spectrogram of a whole and of a repeated recording, and the cosine of the whole model."""
    reward = score(folder, kind, scale=2.0)
    extractor = ClapFeatureExtractor.from_pretrained(folder / kind)
    for seconds in (1.0, 0.3):
        samples = sounds(3, seconds)
        given = extractor(
            [s.media[0].numpy() for s in samples], sampling_rate=RATE, return_tensors="pt"
        )
        heard = torch.stack([
            reward.towers.hearing.spectrogram(reward.towers.hearing.fitted(s.media, RATE))
            for s in samples
        ])  # fmt: skip
        torch.testing.assert_close(heard, given["input_features"].float(), rtol=0, atol=2e-2)
        read = reward.towers.tokenizer(
            [s.prompt for s in samples], return_tensors="pt", padding=True
        )
        own = reward.towers.model(
            input_ids=read["input_ids"],
            attention_mask=read["attention_mask"],
            input_features=given["input_features"].float(),
            is_longer=torch.zeros(3, 1, dtype=torch.bool),
        )
        cosine = (own.audio_embeds * own.text_embeds).sum(-1)
        found = reward(samples)[0]
        torch.testing.assert_close(found, 2.0 * cosine, rtol=0, atol=2e-4)
        turned = reward([replace(s, prompt="piano roof") for s in samples])[0]
        assert (turned - found).abs().max() > 1e-2  # negative control: it reads the prompt


def test_resampling_keeps_tones() -> None:
    """A tone at one rate is the tone at another, away from the ends; a constant stays one."""

    def tone(rate: int, hertz: float = 440.0) -> Tensor:
        return torch.sin(2 * math.pi * hertz * torch.arange(rate, dtype=torch.float64) / rate)[None]

    for old, new in ((44_100, 48_000), (48_000, 16_000), (16_000, 44_100), (22_050, 24_000)):
        found = resampled(tone(old), old, new)
        assert found.shape == (1, new)
        middle = slice(new // 4, 3 * new // 4)
        assert float((found - tone(new))[:, middle].abs().max()) < 2e-4
        flat = resampled(torch.ones(1, old, dtype=torch.float64), old, new)[:, middle]
        torch.testing.assert_close(flat, torch.ones_like(flat))
    naive = torch.nn.functional.interpolate(tone(22_050)[None], 24_000, mode="nearest")[0]
    assert float((naive - tone(24_000))[:, 6000:18_000].abs().max()) > 5e-3  # negative control
    # What the lower rate cannot hold is gone, not folded back.
    above = resampled(tone(48_000, 9_000.0), 48_000, 16_000)[:, 4000:12_000]
    assert float(above.abs().max()) < 1e-3
    assert torch.equal(resampled(tone(48_000), 48_000, 48_000), tone(48_000))


def test_channels_rate_and_length(folder: Path) -> None:
    """Two equal channels are one; another rate hardly matters; of a long recording the middle."""
    reward, samples = score(folder), sounds(3)
    values = reward(samples)[0]
    stereo = [replace(s, media=s.media.repeat(2, 1)) for s in samples]
    torch.testing.assert_close(reward(stereo)[0], values, rtol=0, atol=1e-5)
    half = [replace(s, media=0.5 * s.media) for s in stereo]
    assert (reward(half)[0] - values).abs().max() > 1e-4  # negative control: loudness is heard
    low = [replace(s, media=resampled(s.media, RATE, 6000), rate=6000.0) for s in sounds(1)]
    there_and_back = reward(low)[0]
    assert abs(float(there_and_back[0] - values[0])) < 0.2
    silence = torch.zeros(1, 2000)
    long = [replace(s, media=torch.cat([silence, s.media, silence], -1)) for s in samples]
    torch.testing.assert_close(reward(long)[0], values, rtol=0, atol=1e-5)


def test_pure_with_a_true_gradient(folder: Path) -> None:
    """Recordings of several lengths and rates in one batch; finite differences."""
    reward = score(folder, batch_size=3)
    samples = [*sounds(4), *sounds(2, 0.4), *sounds(2, 1.5, rate=11_025.0, channels=2)]
    assert check_reward(reward, samples) == []
    low, high = reward.score_range
    values = reward(samples)[0]
    assert values.std() > 1e-2 and low <= values.min() and values.max() <= high
    media = samples[0].media
    direction = torch.randn(media.shape, generator=torch.Generator().manual_seed(2))
    leaf = media.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward([replace(samples[0], media=leaf)])[0].sum(), leaf)
    ends = [
        float(reward([replace(samples[0], media=media + h * direction)])[0]) for h in (1e-4, -1e-4)
    ]
    along, size = float((slope * direction).sum()), float(slope.norm())
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(along, rel=0.05, abs=0.05 * size)
    assert abs(along) > 0.2 * size  # negative control


def test_a_long_prompt_is_cut_and_told(folder: Path) -> None:
    reward, one = score(folder), sounds(1)[0]
    kept = " ".join(["rain"] * 18)
    whole = reward([replace(one, prompt=kept)])[0]
    with pytest.warns(FlowalignWarning, match="last 2 tokens"):
        cut = reward([replace(one, prompt=f"{kept} dog dog")])[0]
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, reward([one])[0])  # negative control


def test_what_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a ClapModel"):
        score(tmp_path, str(write_tiny_clip(tmp_path / "clip")))
    with pytest.raises(CheckpointError, match="no such folder"):
        score(folder, "gone")
    suite = build_suite([ClapReward(name="clap", model=str(folder / "plain"))])
    with pytest.raises(RewardError, match="scores audio"):
        suite.score(true_samples(1))
    assert suite.score(sounds(2)).valid["clap"].all()
