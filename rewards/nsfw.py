"""Safety: 1 minus the probability of the labels that are not wanted. A veto, not a goal.

Measures   what an image classifier says of the picture: 1 - P(labels). Meant as a gate, with a
           weight of 0, so that nothing else can make an unsafe picture good:
               rewards: [clip, {name: nsfw, weight: 0}]
               shaping: {gates: [{reward: nsfw, threshold: 0.5, value: -1}]}
           A classifier has blind spots; trained against for long, it is evaded. Watch the pictures.
Range      [0, 1], higher is safer.
Source     none: the classifier's softmax, summed over `labels`; of a multi-label classifier
           (`problem_type` in its config) the largest sigmoid of them.
Licence    of the checkpoint: Falconsai/nsfw_image_detection Apache-2.0.
Checkpoint `model`: a folder or Hub id of an image classifier of transformers in safetensors (ViT,
           SigLIP, ConvNeXt without `crop_pct`, ...); pin `revision`.
Differentiable: yes, in the pixels. Group-only: no.
Cost       one pass of the classifier a picture; a ViT-B/16 for the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from flowalign.config.rewards_rules import NSFWReward
from flowalign.config.suggest import did_you_mean
from flowalign.errors import ConfigError
from flowalign.exemplars import in_batches
from flowalign.pretrained import frozen_model, model_source, preprocessing_of, readable
from flowalign.similarity import Preprocessing
from flowalign.types import Modality, Sample

KIND = "an image classifier"


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """A frozen image classifier with L labels."""

    model: PreTrainedModel
    labels: Sequence[str]
    several: bool  # a picture may have several labels
    preprocessing: Preprocessing
    device: torch.device

    def picture_features(self, pixels: Tensor) -> Tensor:
        """Probabilities (B, L) of preprocessed pixels (B, 3, s, s)."""
        logits = self.model(pixel_values=pixels).logits
        return logits.sigmoid() if self.several else logits.softmax(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyScore:
    """1 - probability of the unwanted labels; of a video that of the worst frame."""

    classifier: Classifier
    unwanted: Sequence[int]  # places among the labels
    name: str = "nsfw"
    modality: Modality = "image"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(safety (N,), valid (N,)); valid everywhere, keeps the gradient of the media."""
        if not samples:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        frames = [sample.media.reshape(-1, *sample.media.shape[-3:]) for sample in samples]
        pictures = [picture for one in frames for picture in one]
        found = in_batches(self.classifier, pictures, self.classifier.picture_features)
        bad = found[:, list(self.unwanted)]
        safe = 1.0 - (bad.amax(1) if self.classifier.several else bad.sum(1))
        worst = [part.min() for part in safe.split([len(one) for one in frames])]
        return torch.stack(worst), torch.ones(len(samples), dtype=torch.bool)


def load_classifier(config: NSFWReward, device: torch.device) -> Classifier:
    """Read a classifier from a folder or the Hub: safetensors only, no code."""
    where = f"reward `nsfw`, model `{config.model}`"
    source, revision = model_source(config.model, where), config.revision or "main"
    model = frozen_model(
        AutoModelForImageClassification,
        source,
        revision=revision,
        where=where,
        kind=KIND,
        device=device,
        attention=config.attention,
    )
    with readable(where, KIND):
        pictures = AutoImageProcessor.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        settings = pictures.to_dict()
        if settings.get("crop_pct") is not None or settings.get("do_normalize") is False:
            raise ValueError("its pictures are prepared with `crop_pct` or without normalising")
        preprocessing = preprocessing_of(pictures)
    names = model.config.id2label
    return Classifier(
        model=model,
        labels=[names[place] for place in sorted(names)],
        several=model.config.problem_type == "multi_label_classification",
        preprocessing=preprocessing,
        device=device,
    )


def from_config(config: NSFWReward, *, device: torch.device) -> SafetyScore:
    """The reward of a config; every label must be the classifier's."""
    classifier = load_classifier(config, device)
    for label in config.labels:
        if label not in classifier.labels:
            what = f"the classifier has no label '{label}'"
            fix = did_you_mean(label, classifier.labels)
            raise ConfigError("CFG-VALUE", "reward `nsfw`, `labels`", what, fix)
    places = [classifier.labels.index(label) for label in dict.fromkeys(config.labels)]
    return SafetyScore(classifier=classifier, unwanted=places, modality=config.modality)
