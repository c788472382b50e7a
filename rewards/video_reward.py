"""VideoReward (VideoAlign): visual quality, motion quality and text alignment of a video.

Measures   VQ (clear, rich in detail, pleasing, free of faults), MQ (stable, natural, smooth, and
           that something moves) and TA (shows what the prompt says), by a head on Qwen2-VL 2B,
           trained on 182 thousand judged pairs. VQ and MQ stand before the prompt in the text, so
           they cannot depend on it. A score of motion can leak colour: hold another reward out.
Range      each dimension is (raw - mean) / std over the training videos, so about -3 to 3; higher
           is better. `overall` is the sum of the three. No hard limits.
Source     VideoAlign (arXiv 2501.13918): hidden states at three added tokens, one linear layer
           D -> 3 without bias, and of the 3 x 3 numbers the diagonal.
Differs    positions are pinned as in reward `hpsv3`. Frames are taken from the tensor as the
           release takes them from the file: 2 a second, evenly spread, at least 4, an even number;
           and resized as in `hpsv3`.
           The words of the instruction are ours: for published scores give the authors' own text
           as `template`, with `{prompt}` where the prompt stands.
Licence    the code is MIT; see the checkpoint's card for the weights.
Checkpoint `model`: Qwen/Qwen2-VL-2B-Instruct (sizes, tokenizer, preprocessing); `weights`: the
           tensors of KwaiVGI/VideoReward's model.pth under their own names, saved once as
           safetensors in a place you trust. Its adapters are merged here.
Several    rewards that differ in `dimension`, `label` and `weight` alone share one model in memory
           and, without gradients, one pass over each batch.
Differentiable: yes, in the pixels. Group-only: no.
Cost       5 GB of weights in bfloat16; one pass of about 260 tokens for each pair of frames.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowalign.config.rewards_heads import VideoRewardReward
from flowalign.qwen2_vl import QwenReader, chosen_frames
from flowalign.qwen2_vl_questions import answer, read_template, states_of
from flowalign.qwen2_vl_weights import head_layers, read_model
from flowalign.types import Modality, Sample

DIMENSIONS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{name}_reward|>" for name in DIMENSIONS)
MEAN = (3.6757, 1.1646, 2.8105)  # of the raw scores over the training videos
STD = (2.2476, 1.3811, 2.5121)
INSTRUCTION = (
    "Judge this generated video in three respects, each for itself.\n"
    "Visual quality: is it clear, rich in detail, pleasing and free of faults?\n"
    f"Rating: {TOKENS[0]}\n"
    "Motion quality: is the motion stable, natural and smooth, and is there motion at all?\n"
    f"Rating: {TOKENS[1]}\n"
    "Text alignment: does it show what this description says?\n"
    "Description: {prompt}\n"
    f"Rating: {TOKENS[2]}"
)
Pass = tuple[Tensor, Tensor, dict[int, str]]  # scores (M, 3), rows (M,), reasons by row
Key = list[tuple[weakref.ref[Tensor], int, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered:
    """One pass, for each of the rewards that share it once: who asks again wants a new one."""

    key: Key
    found: Pass
    served: set[tuple[int, ...]]  # columns of the rewards


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class Judge:
    """The model with its head; remembers its last pass for the rewards that share it."""

    reader: QwenReader
    head: Tensor  # (3, D) float32
    template: str
    fps: float
    least: int  # pixels of a frame
    most: int
    batch_size: int
    last: list[Remembered] = field(default_factory=list)  # one at most

    def scores(self, samples: Sequence[Sample], columns: tuple[int, ...]) -> Pass:
        """Normalised VQ, MQ and TA of the M samples that can be asked about.

        `columns` are those that the reward reads; they tell the rewards apart.
        """
        if torch.is_grad_enabled() and any(sample.media.requires_grad for sample in samples):
            return self._pass(samples)  # a graph serves one backward pass
        for one in self.last:
            if columns not in one.served and _same(one.key, samples):
                one.served.add(columns)
                return one.found
        found = self._pass(samples)
        self.last[:] = [Remembered(key=_key(samples), found=found, served={columns})]
        return found

    def _pass(self, samples: Sequence[Sample]) -> Pass:
        states, rows, reasons = states_of(
            self.reader,
            samples,
            self._look,
            template=self.template,
            batch_size=self.batch_size,
            least=self.least,
            most=self.most,
            video=True,
        )
        if not len(rows):
            return torch.zeros(0, 3), rows, reasons
        # The diagonal: dimension k is output k at token k.
        raw = torch.einsum("nkd,kd->nk", states, self.head)
        return (raw - raw.new_tensor(MEAN)) / raw.new_tensor(STD), rows, reasons

    def _look(self, sample: Sample) -> Tensor:
        if sample.modality == "image":
            return sample.media[None]
        assert sample.rate is not None, "a video has a frame rate"
        return sample.media[chosen_frames(len(sample.media), sample.rate, fps=self.fps)]


def _key(samples: Sequence[Sample]) -> Key:
    """What a pass depends on; media are held weakly and their changes in place are seen."""
    return [(weakref.ref(s.media), s.media._version, s.prompt) for s in samples]


def _same(key: Key, samples: Sequence[Sample]) -> bool:
    return len(key) == len(samples) and all(
        media() is s.media and version == s.media._version and prompt == s.prompt
        for (media, version, prompt), s in zip(key, samples, strict=True)
    )


_JUDGES: weakref.WeakValueDictionary[str, Judge] = weakref.WeakValueDictionary()


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRewardScore:
    """One dimension, or the sum of the three."""

    judge: Judge
    columns: tuple[int, ...]  # of DIMENSIONS
    modality: Modality
    name: str = "video_reward"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (-torch.inf, torch.inf)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(scores (N,), valid (N,)); keeps the gradient of the media.

        Raises SampleFailuresError for prompts with the model's own tokens, and for frames more
        elongated than 200 : 1.
        """
        scores, rows, reasons = self.judge.scores(samples, self.columns)
        return answer(scores[:, list(self.columns)].sum(-1), rows, dict(reasons), len(samples))


def from_config(config: VideoRewardReward, *, device: torch.device) -> VideoRewardScore:
    """The reward of a config."""
    own = {"dimension", "label", "weight", "modality"}
    key = f"{device} {config.model_dump_json(exclude=own)}"
    judge = _JUDGES.get(key)
    if judge is None:
        judge = _JUDGES[key] = _read_judge(config, device)
    wanted = DIMENSIONS if config.dimension == "overall" else (config.dimension,)
    columns = tuple(DIMENSIONS.index(name) for name in wanted)
    return VideoRewardScore(judge=judge, columns=columns, modality=config.modality)


def _read_judge(config: VideoRewardReward, device: torch.device) -> Judge:
    reward = "reward `video_reward`"
    template = read_template(config.template, INSTRUCTION, TOKENS, reward)
    reader, tensors = read_model(config, config.model, TOKENS, reward="video_reward", device=device)
    widths = (reader.model.config.text_config.hidden_size, len(DIMENSIONS))
    (head,) = head_layers(tensors, widths, f"{reward}, weights `{config.weights}`")
    return Judge(
        reader=reader,
        head=head,
        template=template,
        fps=config.fps,
        least=config.max_pixels // 2,
        most=config.max_pixels,
        batch_size=config.batch_size,
    )
