"""CLAP score: how close CLAP finds sound and prompt.

Measures   the cosine of CLAP's audio and text features. Knows instruments, genres, animals and
           rooms; weak on order in time, counts and words that are sung or spoken.
Range      [-1, 1] times `scale`, higher is better; generated sound reaches .1 to .5.
Source     CLAP (arXiv 2211.06687).
Differs    nothing is random: of a recording longer than the model hears (10 s) the middle is taken,
           where the release draws a piece; fused models get it as a short one. Spectrogram and
           resampling are in torch, so the score has a gradient in the samples.
Licence    of the checkpoint; see its card.
Checkpoint laion/larger_clap_general, or another `ClapModel` in safetensors (for music
           laion/larger_clap_music); pin `revision`. Always float32: half precision breaks the batch
           norms of its audio tower.
Differentiable: yes, in the samples. Group-only: no.
Cost       0.8 GB of weights; one pass of the audio tower a recording. Prompts are encoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from flowalign.clap_audio import Hearing
from flowalign.config.rewards_heads import ClapReward
from flowalign.pretrained import frozen_model, model_source, model_type, readable
from flowalign.similarity import unit_text
from flowalign.types import Modality, Sample

KIND = "a ClapModel"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClapTowers:
    """A frozen `ClapModel` with its tokenizer."""

    model: Any  # a `ClapModel`
    tokenizer: Any  # of any class of transformers
    max_tokens: int  # of the text tower, begin and end included
    hearing: Hearing
    device: torch.device

    def audio_features(self, sounds: Sequence[tuple[Tensor, float]]) -> Tensor:
        """(N, D) of recordings (C, L) with their rates in Hz, of unit length."""
        fitted = [self.hearing.fitted(sound.to(self.device), rate) for sound, rate in sounds]
        heard = torch.stack([self.hearing.spectrogram(mono) for mono in fitted])
        longer = torch.zeros(len(heard), 1, dtype=torch.bool, device=self.device)
        found = self.model.get_audio_features(input_features=heard, is_longer=longer)
        return F.normalize(found.pooler_output.float(), dim=-1)

    def text_features(self, prompt: str) -> Tensor:
        """(D,) of one prompt; it is cut at the model's length."""
        read = self.tokenizer(
            [prompt], truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        found = self.model.get_text_features(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"]
        )
        return found.pooler_output[0]

    def lost_tokens(self, prompt: str) -> int:
        """Tokens beyond the text tower's length."""
        return max(len(self.tokenizer(prompt, verbose=False)["input_ids"]) - self.max_tokens, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClapScore:
    """scale * cos(sound, prompt)."""

    towers: ClapTowers
    scale: float
    batch_size: int
    name: str = "clap"
    modality: Modality = "audio"
    differentiable: bool = True
    group_only: bool = False
    texts: dict[str, Tensor] = field(default_factory=dict)  # unit features (D,) of each prompt
    truncated: dict[str, int] = field(default_factory=dict)  # lost tokens of each cut prompt

    @property
    def score_range(self) -> tuple[float, float]:
        """Hard limits; real scores fill a small part of them."""
        return -self.scale, self.scale

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(scores (N,), valid (N,)); valid everywhere, keeps the gradient of the media."""
        parts = []
        for i in range(0, len(samples), self.batch_size):
            rows = samples[i : i + self.batch_size]
            heard = self.towers.audio_features([_recording(sample) for sample in rows])
            asked = torch.stack([self._text(sample.prompt) for sample in rows])
            parts.append(self.scale * (heard * asked).sum(-1).cpu())
        scores = torch.cat(parts) if parts else torch.zeros(0)
        return scores, torch.ones(len(samples), dtype=torch.bool)

    def _text(self, prompt: str) -> Tensor:
        return unit_text(self.towers, prompt, self.texts, self.truncated, reward=self.name)


def _recording(sample: Sample) -> tuple[Tensor, float]:
    assert sample.rate is not None, "sound has a rate"
    return sample.media, sample.rate


def from_config(config: ClapReward, *, device: torch.device) -> ClapScore:
    """The reward of a config."""
    where = f"reward `clap`, model `{config.model}`"
    source, revision = model_source(config.model, where), config.revision or "main"
    with readable(where, KIND):
        if (found := model_type(source, revision, where, KIND)) != "clap":
            raise ValueError(f"its architecture is {found}")
    model = frozen_model(
        ClapModel,
        source,
        revision=revision,
        where=where,
        kind=KIND,
        device=device,
        attention="eager",  # the only one its audio tower has
    )
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    with readable(where, KIND):
        tokenizer = AutoTokenizer.from_pretrained(source, **given)
        extractor = ClapFeatureExtractor.from_pretrained(source, revision=revision)
    fused = extractor.truncation == "fusion"  # decides the filters, as the release has it
    text = model.config.text_config
    towers = ClapTowers(
        model=model,
        tokenizer=tokenizer,
        max_tokens=text.max_position_embeddings - text.pad_token_id - 1,  # as RoBERTa counts
        hearing=Hearing(
            rate_hz=extractor.sampling_rate,
            length=extractor.nb_max_samples,
            window=extractor.fft_window_size,
            hop=extractor.hop_length,
            mel=torch.tensor(extractor.mel_filters if fused else extractor.mel_filters_slaney),
            copies=4 if model.config.audio_config.enable_fusion else 1,
        ),
        device=device,
    )
    return ClapScore(towers=towers, scale=config.scale, batch_size=config.batch_size)
