"""Reads the reference vectors: one case is one call of an independent implementation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Inputs and outputs of a call; `out` keeps only what the reference computed finitely."""

    name: str
    family: str
    hyper: Mapping[str, Any]
    rtol: float
    atol: float
    given: Mapping[str, Tensor]  # inputs
    out: Mapping[str, Tensor]  # outputs

    @property
    def single(self) -> bool:
        """Whether the reference computed in float32."""
        return self.rtol > 1e-6

    def close(self, actual: Tensor, expected: Tensor, *, rtol: float | None = None) -> None:
        """Assert equality within the case's tolerance, or within a looser `rtol`."""
        scale = 1.0 if rtol is None else max(1.0, rtol / self.rtol)
        torch.testing.assert_close(
            actual.double(),
            expected.double().reshape(actual.shape),
            rtol=self.rtol * scale,
            atol=self.atol * scale,
            msg=lambda text: f"{self.name}: {text}",
        )

    def close_log_prob(self, actual: Tensor, expected: Tensor) -> None:
        """As `close`; a float32 log-prob is a difference of large numbers, good to 2e-4."""
        self.close(actual, expected, rtol=2e-4 if self.single else None)


def _load(row: Mapping[str, Any]) -> Case:
    with np.load(HERE / row["file"], allow_pickle=False) as arrays:
        tensors = {name: torch.as_tensor(arrays[name]) for name in arrays.files}
    tolerance = row["tolerance"]
    return Case(
        name=row["name"],
        family=row["family"],
        hyper=row["hyper"],
        rtol=tolerance["rtol"],
        atol=tolerance["atol"],
        given={k.removeprefix("in."): v for k, v in tensors.items() if k.startswith("in.")},
        out={
            k.removeprefix("out."): v
            for k, v in tensors.items()
            if k.startswith("out.") and bool(torch.isfinite(v.double()).all())
        },
    )


def cases(*families: str) -> list[Case]:
    """All cases of the families."""
    index = json.loads((HERE / "index.json").read_text("utf-8"))
    return [_load(row) for row in index["cases"] if row["family"] in families]


def each(*families: str) -> pytest.MarkDecorator:
    """Parametrize a test by `case`."""
    found = cases(*families)
    assert found, families
    return pytest.mark.parametrize("case", found, ids=[case.name for case in found])
