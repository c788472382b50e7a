"""Ensembles of rewards: identities of mean, median and lower bound, and what counts."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flowalign.config.shaping import ShapingConfig
from flowalign.ensembles import disagreement, lower_bound, mean_of, middle, shares_of
from flowalign.shaping import shaped
from flowalign.types import Scored

F64 = torch.float64
ROWS = torch.rand(5, 40, generator=torch.Generator().manual_seed(2), dtype=F64)
EQUAL = torch.full((5,), 0.2, dtype=F64)


def test_against_numpy() -> None:
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=F64)
    shares, rows = shares_of(weights), ROWS.numpy()
    mean = np.average(rows, axis=0, weights=weights.numpy())
    std = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weights.numpy()))
    assert np.allclose(mean_of(ROWS, shares), mean, atol=1e-14)
    assert np.allclose(disagreement(ROWS, shares), std, atol=1e-14)
    assert np.allclose(lower_bound(ROWS, shares, 1.5), mean - 1.5 * std, atol=1e-14)
    assert np.allclose(middle(ROWS), np.median(rows, axis=0), atol=1e-14)
    assert np.allclose(middle(ROWS[:4]), np.median(rows[:4], axis=0), atol=1e-14)
    assert not np.allclose(disagreement(ROWS, EQUAL), std, atol=1e-3)


def test_identities() -> None:
    """No penalty is the mean; agreement costs nothing; the worst member lies within reach."""
    assert torch.equal(lower_bound(ROWS, EQUAL, 0.0), mean_of(ROWS, EQUAL))
    same = ROWS[:1].expand(5, -1)
    for one in (mean_of(same, EQUAL), middle(same), lower_bound(same, EQUAL, 9.0)):
        assert torch.allclose(one, ROWS[0], atol=1e-12)
    # Samuelson: no member lies more than sqrt(K - 1) standard deviations below the mean.
    assert (lower_bound(ROWS, EQUAL, 2.0) <= ROWS.amin(dim=0) + 1e-12).all()
    assert (lower_bound(ROWS, EQUAL, 0.1) > ROWS.amin(dim=0)).any()
    # One mad member moves the median less than a step in its order, the mean without bound.
    mad = torch.cat([ROWS[:4], torch.full((1, 40), 1e6, dtype=F64)])
    ordered = ROWS[:4].sort(dim=0).values
    assert torch.equal(middle(mad), ordered[2])
    assert (mean_of(mad, EQUAL) > 1e5).all()
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.allclose(lower_bound(ROWS[order], EQUAL, 1.0), lower_bound(ROWS, EQUAL, 1.0))


def test_the_shaped_reward_and_its_disagreement() -> None:
    """A member on [0, 10] and one on [0, 1] meet on one scale; a masked member masks the sample."""
    first, second = ROWS[0], ROWS[1]
    terms = {"a": (10 * first).float(), "b": second.float()}
    valid = {name: torch.ones(40, dtype=torch.bool) for name in "ab"}
    valid["b"][3], terms["b"][3] = False, math.nan
    group = torch.arange(40) // 4
    weights = {"a": 1.0, "b": 1.0}
    data = Scored(group=group, prompt_id=group, terms=terms, valid=valid, weights=weights)
    ranges = [
        {"name": "range", "reward": "a", "low": 0.0, "high": 10.0},
        {"name": "range", "reward": "b", "low": 0.0, "high": 1.0},
    ]
    keys: dict[str, object] = {"combine": "lower_bound", "uncertainty": 2.0, "rewards": ranges}
    result = shaped(data, ShapingConfig.model_validate(keys), {})
    counts = valid["b"]
    apart = (first - second).abs() / 2
    expected: Tensor = (first + second) / 2 - 2 * apart
    assert torch.equal(result.valid["combined"], counts)
    assert torch.allclose(result.terms["combined"][counts].double(), expected[counts], atol=1e-6)
    assert torch.allclose(result.terms["disagreement"][counts].double(), apart[counts], atol=1e-6)
    assert {name: w for name, w in result.weights.items() if w} == {"combined": 1.0}
    loose = shaped(data, ShapingConfig.model_validate(keys | {"uncertainty": 0.0}), {})
    assert not torch.allclose(loose.terms["combined"][counts].double(), expected[counts], atol=1e-2)
