"""GRPO on a tiny Wan with VideoAlign's three scores: three terms, one pass of the reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowalign import finetune
from flowalign.qwen2_vl import QwenReader
from tests.rewards.tiny_qwen import write_base, write_video_reward
from tests.zoo.video import wan21


def test_vq_mq_and_ta_are_terms_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its metrics and its own normalisation; every batch is looked at once."""
    base = {
        "name": "video_reward",
        "model": str(write_base(tmp_path / "base")),
        "weights": str(write_video_reward(tmp_path / "video.safetensors")),
        "max_pixels": 784,
        "dtype": "float32",
    }
    looked: list[int] = []
    states = QwenReader.states

    def counted(self: QwenReader, texts, frames, **settings):
        looked.append(len(texts))
        return states(self, texts, frames, **settings)

    monkeypatch.setattr(QwenReader, "states", counted)
    names = ("VQ", "MQ", "TA")
    finetune(
        wan21(),
        ["a cat runs", "a red boat"],
        [base | {"label": name, "dimension": name} for name in names],
        evaluation_prompts=["a dog"],
        output=str(tmp_path / "run"),
        model={"resolution": 16, "num_frames": 5, "call": {"max_sequence_length": 16}},
        algorithm={"name": "grpo", "advantage": {"combine": "per_reward"}},
        sampler={"name": "ddim", "num_steps": 3},
        rollout={"num_prompts": 2, "group_size": 2, "batch_size": 4},
        train={"steps": 1, "learning_rate": 1e-3},
        evaluation={"num_prompts": 1},
    )
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert all(row[f"reward_std/{name}"] > 0 for name in names)
    assert row["grad_norm"] > 0
    # Evaluations of one sample before and after, a rollout of four between them.
    assert looked == [1, 4, 1]
