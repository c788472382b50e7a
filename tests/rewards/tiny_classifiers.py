"""Random classifiers and detectors of the real classes, made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

SIDE = 32


def write_tiny_classifier(folder: Path, *, several: bool = False) -> Path:
    """A ViT of side 32 with the labels normal, nsfw, gore."""
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        id2label={0: "normal", 1: "nsfw", 2: "gore"},
        label2id={"normal": 0, "nsfw": 1, "gore": 2},
        problem_type="multi_label_classification" if several else None,
    )
    spread(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder)
    return folder


def spread(model):
    """The default start is so small that all pictures look equal."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def write_tiny_detector(folder: Path) -> Path:
    """A YOLOS of side 32 with the labels dog, cat, car."""
    config = YolosConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[SIDE, SIDE],
        patch_size=8,
        num_detection_tokens=6,
        id2label={0: "dog", 1: "cat", 2: "car"},
        label2id={"dog": 0, "cat": 1, "car": 2},
    )
    spread(YolosForObjectDetection(config)).save_pretrained(folder)
    YolosImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_pad=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    return folder
