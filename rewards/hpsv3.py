"""HPSv3: how much people like a picture and how well it fits the prompt.

Measures   the mean mu of the score that a head on Qwen2-VL 7B gives to picture and prompt, trained
           on 1.17 million pairs of HPDv3. Its second output, log sigma, is no calibrated
           uncertainty (see `flowalign.reward_losses.hpsv3_compat`) and is not read.
Range      no hard limits; generated pictures reach 0 to 15 times `scale`, higher is better.
Source     HPSv3 (arXiv 2508.03789): the hidden state at one added token, `<|Reward|>`, after the
           prompt, then D-1024-16-2 with ReLU in float32.
Differs    positions are pinned: the released code runs the text model on embeddings alone and so
           counts 0, 1, 2, ... on all three axes of M-RoPE; `positions: mrope` is another function.
           Pictures are resized in floating point; the release rounds to bytes and cuts what
           bicubic filters overshoot, which moves sharp edges a little. The words of the
           instruction are ours: for published scores give the authors' own text as `template`.
Licence    Apache-2.0 by the model's card.
Checkpoint `model`: Qwen/Qwen2-VL-7B-Instruct (sizes, tokenizer, preprocessing); `weights`: the file
           HPSv3.safetensors of MizzenAI/HPSv3.
Differentiable: yes, in the pixels. Group-only: no.
Cost       17 GB of weights in bfloat16; one pass of about 400 tokens a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.config.rewards_heads import HPSv3Reward
from flowalign.qwen2_vl import QwenReader
from flowalign.qwen2_vl_questions import answer, read_template, states_of
from flowalign.qwen2_vl_weights import head_layers, read_model
from flowalign.types import Modality, Sample

TOKEN = "<|Reward|>"
HIDDEN = (1024, 16)
OUTPUTS = 2  # mu, log sigma
INSTRUCTION = (
    "Rate this generated picture for how people would like it: is it well made, without faults in "
    "bodies and objects, pleasing, and true to its description?\n"
    "Description: {prompt}\n"
    f"Rating: {TOKEN}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HPSv3Score:
    """scale * mu."""

    reader: QwenReader
    head: Sequence[Tensor]  # weight (out, in) and bias (out,) of each layer in turn, float32
    template: str
    scale: float
    pixels: int
    batch_size: int
    name: str = "hpsv3"
    modality: Modality = "image"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (-torch.inf, torch.inf)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(scores (N,), valid (N,)); keeps the gradient of the media.

        Raises SampleFailuresError for prompts with the model's own tokens, and for pictures more
        elongated than 200 : 1.
        """
        states, rows, reasons = states_of(
            self.reader,
            samples,
            lambda sample: sample.media[None],
            template=self.template,
            batch_size=self.batch_size,
            least=self.pixels,
            most=self.pixels,
            video=False,
        )
        mean = apply_head(self.head, states[:, 0])[:, 0] if len(rows) else torch.zeros(0)
        return answer(self.scale * mean, rows, reasons, len(samples))


def apply_head(head: Sequence[Tensor], states: Tensor) -> Tensor:
    """(N, outputs) of states (N, D): linear layers with ReLU between them."""
    x = states
    for i in range(0, len(head), 2):
        x = F.linear(F.relu(x) if i else x, head[i], head[i + 1])
    return x


def from_config(config: HPSv3Reward, *, device: torch.device) -> HPSv3Score:
    """The reward of a config."""
    template = read_template(config.template, INSTRUCTION, (TOKEN,), "reward `hpsv3`")
    reader, tensors = read_model(config, config.model, (TOKEN,), reward="hpsv3", device=device)
    widths = (reader.model.config.text_config.hidden_size, *HIDDEN, OUTPUTS)
    where = f"reward `hpsv3`, weights `{config.weights}`"
    return HPSv3Score(
        reader=reader,
        head=head_layers(tensors, widths, where),
        template=template,
        scale=config.scale,
        pixels=config.pixels,
        batch_size=config.batch_size,
    )
