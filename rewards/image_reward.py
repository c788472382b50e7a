"""ImageReward: how much people like a picture of a prompt, from ranked pictures.

Measures   fit to the prompt, fidelity and harmlessness, as 137 thousand comparisons of people rank
           them: a head on the first state of BLIP's text encoder, which reads the prompt while it
           looks at the picture. It sees 35 tokens; the rest of a longer prompt is cut and told.
Range      about -2.3 to 2, mean 0 and deviation 1 over the training pictures; higher is better.
           No hard limits.
Source     ImageReward (arXiv 2304.05977): (z - mean) / std with z = 768-1024-128-64-16-1 of that
           state, all layers linear; its dropout acts in training only.
Differs    pictures are resized as tensors, antialiased, so the score has a gradient in the pixels;
           a batch is scored at once.
Licence    Apache-2.0.
Checkpoint `weights`: the tensors of THUDM/ImageReward's ImageReward.pt under their own names, saved
           once as safetensors in a place you trust; pickles are never read here. `tokenizer`:
           that of BERT, google-bert/bert-base-uncased.
Differentiable: yes, in the pixels. Group-only: no.
Cost       1.8 GB of weights; one ViT-L/16 pass and 35 tokens a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from flowalign.blip_weights import Blip, read_blip
from flowalign.config.rewards_heads import ImageRewardReward
from flowalign.errors import CheckpointError, warn
from flowalign.pretrained import model_source, read_tensors, readable
from flowalign.rewards.aesthetic import Layers, apply_head, head_of
from flowalign.similarity import Preprocessing, batches_by_size
from flowalign.types import Modality, Sample

MAX_TOKENS = 35  # begin and end included
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of z over the training pictures
CHANNEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pictures
CHANNEL_STD = (0.26862954, 0.26130258, 0.27577711)
BODY, HEAD = "blip.", "mlp."


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRewardScore:
    """(head(text state that has seen the picture) - mean) / std."""

    blip: Blip
    tokenizer: Any  # of any class of transformers
    head: Layers
    preprocessing: Preprocessing
    device: torch.device
    name: str = "image_reward"
    modality: Modality = "image"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (-torch.inf, torch.inf)
    truncated: dict[str, int] = field(default_factory=dict)  # lost tokens of each cut prompt

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(scores (N,), valid (N,)); valid everywhere, keeps the gradient of the media."""
        parts, order = [], []
        for rows in batches_by_size([sample.media for sample in samples]):
            pictures = torch.stack([samples[row].media for row in rows]).to(self.device)
            pixels = self.preprocessing(pictures.float())
            parts.append(self._scores(pixels, [samples[row].prompt for row in rows]).cpu())
            order.extend(rows)
        if not parts:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        scores = torch.cat(parts)[torch.tensor(order).argsort()]
        return scores, torch.ones(len(samples), dtype=torch.bool)

    def _scores(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) of preprocessed pixels (B, 3, s, s)."""
        seen = self.blip.vision(pixel_values=pixels).last_hidden_state
        read = self._tokens(prompts)
        states = self.blip.text(
            input_ids=read["input_ids"],
            attention_mask=read["attention_mask"],
            encoder_hidden_states=seen,
        ).last_hidden_state
        return (apply_head(self.head, states[:, 0]) - MEAN) / STD

    def _tokens(self, prompts: Sequence[str]) -> Any:
        """Ids and mask (B, 35); what is cut is counted, and the first cut prompt told."""
        for prompt in prompts:
            lost = len(self.tokenizer(prompt, verbose=False)["input_ids"]) - MAX_TOKENS
            if lost > 0 and not self.truncated:
                what = f"the model does not see the last {lost} tokens of {prompt[:80]!r}"
                fix = "shorten it; further long prompts are counted, not printed"
                warn("reward `image_reward`", what, fix)
            if lost > 0:
                self.truncated[prompt] = lost
        return self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)


def from_config(config: ImageRewardReward, *, device: torch.device) -> ImageRewardScore:
    """The reward of a config."""
    where = f"reward `image_reward`, weights `{config.weights}`"
    tensors = read_tensors(Path(config.weights), where)
    body = {n.removeprefix(BODY): t for n, t in tensors.items() if not n.startswith(HEAD)}
    head = {n.removeprefix(HEAD): t for n, t in tensors.items() if n.startswith(HEAD)}
    blip = read_blip(body, where)
    layers = head_of(head, blip.text.config.hidden_size, where)
    tokenizer = _read_tokenizer(config, blip.vocabulary)
    blip.vision.to(device)
    blip.text.to(device)
    return ImageRewardScore(
        blip=blip,
        tokenizer=tokenizer,
        head=[(weight.to(device), bias.to(device)) for weight, bias in layers],
        preprocessing=Preprocessing(side=blip.side, mean=CHANNEL_MEAN, std=CHANNEL_STD),
        device=device,
    )


def _read_tokenizer(config: ImageRewardReward, vocabulary: int) -> Any:
    where = f"reward `image_reward`, tokenizer `{config.tokenizer}`"
    source = model_source(config.tokenizer, where)
    with readable(where, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=config.revision or "main", trust_remote_code=False
        )
    if len(tokenizer) > vocabulary:
        what = f"has {len(tokenizer)} tokens, the weights know {vocabulary}"
        raise CheckpointError(
            "CKPT-SHAPE", where, what, "use that of google-bert/bert-base-uncased"
        )
    return tokenizer
