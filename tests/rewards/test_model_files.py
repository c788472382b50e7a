"""Weights are data: nothing of a model folder runs, and pickles are never opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowalign.config.rewards import ClipReward, OpenClipReward, RewardConfig
from flowalign.errors import CheckpointError, ConfigError, FlowalignError, SecurityError
from flowalign.scoring import build_suite
from tests.rewards.world import write_tiny_clip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in original.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


# A pickle of protocol 0 that calls posix.system("touch canary").
BOMB = b"cposix\nsystem\n(S'touch canary'\ntR."


def add_code(folder: Path) -> None:
    (folder / "pipe.py").write_text("open('canary', 'w')")


def add_nested_code(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "modeling.py").write_text("open('canary', 'w')")


def add_auto_map(file: str):
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        content["auto_map"] = {"AutoModel": "evil--repo.Evil"}
        (folder / file).write_text(json.dumps(content))

    return change


def nest_auto_map(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["auto_map"] = {"AutoModel": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(content))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(BOMB)


TRICKS = {
    "code": (add_code, "holds code, `pipe.py`"),
    "nested code": (add_nested_code, "holds code, `sub/modeling.py`"),
    "auto_map of the model": (add_auto_map("config.json"), "`config.json` has an `auto_map`"),
    "auto_map of the tokenizer": (add_auto_map("tokenizer_config.json"), "auto_map"),
    "auto_map of the processor": (add_auto_map("preprocessor_config.json"), "auto_map"),
    "nested auto_map": (nest_auto_map, "auto_map"),
    "pickle only": (only_pickle, "`pytorch_model.bin` only"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_model_folder_runs_nothing(trick: str, folder: Path) -> None:
    config = ClipReward(name="clip", model=str(folder))
    build_suite([config])  # negative control: the folder is fine before the trick
    change, fragment = TRICKS[trick]
    change(folder)
    with pytest.raises(SecurityError) as caught:
        build_suite([config])
    assert caught.value.exit_code == 8 and fragment in caught.value.line()
    assert not Path("canary").exists()


def test_the_bomb_is_a_bomb() -> None:
    """Negative control of the canary: opening the pickle would have been seen."""
    Path("bomb").write_bytes(BOMB)
    subprocess.run([sys.executable, "-m", "pickle", "bomb"], check=True, capture_output=True)
    assert Path("canary").exists()


def test_a_pickle_beside_safetensors_is_ignored(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(BOMB)
    build_suite([ClipReward(name="clip", model=str(folder))])
    assert not Path("canary").exists()


def test_damaged_weights_are_a_checkpoint_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError) as caught:
        build_suite([ClipReward(name="clip", model=str(folder))])
    assert caught.value.exit_code == 4 and "\n" not in caught.value.line()


def test_missing_weights_are_not_replaced_by_random_ones(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing.*visual_projection"):
        build_suite([ClipReward(name="clip", model=str(folder))])


BAD: dict[str, tuple[RewardConfig, type[FlowalignError], str]] = {
    "no folder": (ClipReward(name="clip", model="nowhere"), CheckpointError, "no such folder"),
    "address": (
        ClipReward(name="clip", model="https://example.org/clip"),
        CheckpointError,
        "no such folder",
    ),
    "escape": (ClipReward(name="clip", model="../../etc"), CheckpointError, "no such folder"),
    "hub while offline": (ClipReward(name="clip", model="o/n"), CheckpointError, "cannot be read"),
    "unknown model": (
        OpenClipReward(name="open_clip", model="ViT-Z"),
        ConfigError,
        "is no model name of open_clip",
    ),
    "local-dir": (
        OpenClipReward(name="open_clip", model="local-dir:/tmp"),
        ConfigError,
        "is no model name of open_clip",
    ),
    "no weights": (
        OpenClipReward(name="open_clip", model="ViT-S-32"),
        ConfigError,
        "random weights are no reward",
    ),
    "pickled weights": (
        OpenClipReward(name="open_clip", model="ViT-S-32", pretrained="weights.pt"),
        SecurityError,
        "weights in .pt are never read",
    ),
    "missing weights": (
        OpenClipReward(name="open_clip", model="ViT-S-32", pretrained="gone.safetensors"),
        CheckpointError,
        "no such file",
    ),
    "unknown tag": (
        OpenClipReward(name="open_clip", model="ViT-B-32", pretrained="opennai"),
        ConfigError,
        "no weights are called 'opennai'",
    ),
    "tag while offline": (
        OpenClipReward(name="open_clip", model="ViT-B-32", pretrained="laion2b_s34b_b79k"),
        CheckpointError,
        "cannot be fetched",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_names_are_told_apart(kind: str) -> None:
    config, error, fragment = BAD[kind]
    with pytest.raises(error) as caught:
        build_suite([config])
    assert fragment in caught.value.line() and "\n" not in caught.value.line()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"logit_scale": torch.zeros(())}, tmp_path / "other.safetensors")
    file = str(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        build_suite([OpenClipReward(name="open_clip", model="ViT-S-32", pretrained=file)])
    assert len(caught.value.line()) < 600
