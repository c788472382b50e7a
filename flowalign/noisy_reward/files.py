"""Noisy rewards on disk: `card.json` and `model.safetensors`, whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from flowalign.config.noisy_card import CARD, WEIGHTS, Card, read_card
from flowalign.disk import TEMPORARY_PREFIX, sync_directory, write_new
from flowalign.errors import CheckpointError
from flowalign.model_files import check_weights_file
from flowalign.noisy_reward.network import NoisyReward


def save_reward(
    folder: Path, network: nn.Module, card: Card, dtype: torch.dtype = torch.float32
) -> None:
    """Write a new folder; it appears when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(TEMPORARY_PREFIX + folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    tensors = {
        name: value.detach().cpu().to(dtype).contiguous()
        for name, value in network.state_dict().items()
    }
    write_new(unfinished / WEIGHTS, save(tensors))
    write_new(unfinished / CARD, (card.model_dump_json(indent=1) + "\n").encode())
    sync_directory(unfinished)
    unfinished.replace(folder)
    sync_directory(folder.parent)


def load_reward(name: str, device: torch.device) -> tuple[NoisyReward, Card]:
    """The frozen network of a reward, float32, and its card.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not those of the card.
    """
    card = read_card(name)
    path = Path(name) / WEIGHTS
    check_weights_file(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        what = f"cannot be read: {str(error).splitlines()[0][:200]}"
        raise CheckpointError("CKPT-MODEL", str(path), what, "copy or train it again") from error
    with torch.device("meta"):  # sizes only: a wrong card reserves no memory
        network = NoisyReward(card)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]
    if wrong:
        key = wrong[0]
        what = f"tensor `{key}` has shape {found.get(key, 'none')}, not {expected.get(key, 'none')}"
        fix = f"keep the {WEIGHTS} and the {CARD} of one training together"
        raise CheckpointError("CKPT-SHAPE", str(path), what, fix)
    broken = [key for key, value in tensors.items() if not bool(value.isfinite().all())]
    if broken:
        what = f"tensor `{broken[0]}` is not finite"
        raise CheckpointError("CKPT-MODEL", str(path), what, "copy or train it again")
    network.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return network.to(device).requires_grad_(False).eval(), card
