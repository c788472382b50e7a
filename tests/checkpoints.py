"""Checkpoints of tensors of every kind, and ways to harm them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowalign import checkpoint, manifest

Files = dict[str, dict[str, Tensor]]
META = {"step": 3, "loss": 0.1 + 0.2, "names": ["a", None], "big": 2**62}


def files(step: int) -> Files:
    """Tensors of every kind that a training state has, different at each step."""
    g = torch.Generator().manual_seed(step)
    weight = torch.randn(8, 5, generator=g)
    return {
        "weights": {"w": weight, "w.t": weight.t(), "half": weight.bfloat16(), "row": weight[1]},
        "optimizer": {
            "w.step": torch.tensor(float(step)),
            "w.exp_avg": torch.randn(8, 5, generator=g),
            "tiny": torch.tensor([1e-45, -0.0, 3.4e38]),
        },
        "data": {
            "cursor": torch.tensor([2**62, -1]),
            "seen": torch.tensor([True, False]),
            "none": torch.zeros(0, 3),
        },
        "empty": {},
    }


def bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def same(a: Any, b: Any) -> bool:
    return (
        a.keys() == b.keys()
        and all(a[stem].keys() == b[stem].keys() for stem in a)
        and all(
            a[s][n].dtype == b[s][n].dtype
            and a[s][n].shape == b[s][n].shape
            and bits(a[s][n]) == bits(b[s][n])
            for s in a
            for n in a[s]
        )
    )


def save(root: Path, step: int, **options: Any) -> Path:
    options = {"keep_last": 3, "run_id": "run", "world_size": 1} | options
    return checkpoint.save(root, step, files(step), META, **options)


def load(path: Path, **options: Any) -> checkpoint.Loaded:
    return checkpoint.load(path, **({"run_id": "run", "world_size": 1} | options))


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def flip(path: Path, position: int, mask: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, seal: bool) -> None:
    """Rewrite manifest.json; with `seal` as somebody would who knows how it is sealed."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(manifest._canonical(value))
    if seal:
        path.write_bytes(manifest.Manifest.model_validate(value).sealed().text())
