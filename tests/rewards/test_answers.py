"""An answer is a score for each sample, or an error that says what came instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flowalign.answers import read_answer
from flowalign.errors import RewardError

N = 4
WHERE = "reward `score`"

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "returned None, expected float32[4] (and optional mask)"),
    "one too few": (lambda: [0.1] * 3, "got 3 scores, expected 4"),
    "one too many": (lambda: torch.zeros(5), "got 5 scores, expected 4"),
    "empty": (lambda: [], "got 0 scores, expected 4"),
    "column": (lambda: torch.zeros(4, 1), "got shape (4, 1), expected (4,)"),
    "matrix": (lambda: torch.zeros(4, 4), "got shape (4, 4), expected (4,)"),
    "0-dim": (lambda: torch.tensor(0.5), "got shape (), expected (4,)"),
    "a number": (lambda: 0.5, "returned one number, 0.5"),
    "strings": (lambda: ["0.5"] * 4, "element 0 is a string '0.5', expected a number"),
    "string array": (lambda: np.array(["0.5"] * 4), "element 0 is a string '0.5'"),
    "object array": (lambda: np.array([None] * 4), "element 0 is a NoneType None"),
    "a string": (lambda: "0.5", "returned a str"),
    "None inside": (lambda: [0.1, 0.2, None, 0.4], "element 2 is a NoneType None"),
    "nested lists": (lambda: [[0.1]] * 4, "element 0 is a list"),
    "tensors inside": (lambda: [torch.tensor(0.1)] * 4, "element 0 is a Tensor"),
    "bool tensor": (lambda: torch.ones(4, dtype=torch.bool), "returned bools"),
    "bool list": (lambda: [True, False, True, True], "returned bools"),
    "bool array": (lambda: np.ones(4, dtype=bool), "returned bools"),
    "complex": (lambda: torch.zeros(4, dtype=torch.complex64), "dtype complex64"),
    "complex list": (lambda: [1j] * 4, "element 0 is a complex"),
    "int 2^60 + 1": (lambda: torch.full((4,), 2**60 + 1), "is not exact in float32"),
    "int list 2^60 + 1": (lambda: [2**60 + 1] * 4, f"value {2**60 + 1} is not exact"),
    "int beyond int64": (lambda: [2**64 - 1] * 4, f"value {2**64 - 1} is not exact"),
    "uint64 array": (lambda: np.full(4, 2**63 + 1, np.uint64), "is not exact in float32"),
    "beyond float32": (lambda: [1e300] * 4, "beyond the range of float32"),
    "requires grad": (lambda: torch.zeros(4, requires_grad=True), "requires grad"),
    "dict": (lambda: {"score": [0.1] * 4}, "returned a dict"),
    "generator": (lambda: (0.1 for _ in range(4)), "returned a generator"),
    "set": (lambda: {0.1, 0.2, 0.3, 0.4}, "returned a set"),
    "sparse": (lambda: torch.zeros(4).to_sparse(), "sparse"),
    "dates": (lambda: np.zeros(4, "datetime64[s]"), "is no number"),
    "triple": (lambda: (torch.zeros(4), torch.ones(4) > 0, {}), "returned a tuple of 3"),
    "pair of numbers": (lambda: (0.1, 0.2), "a tuple is (values, valid)"),
    "mask of another length": (
        lambda: (torch.zeros(4), torch.ones(3, dtype=torch.bool)),
        "the mask has shape (3,), expected (4,)",
    ),
    "mask (n, 1)": (
        lambda: (torch.zeros(4), torch.ones(4, 1, dtype=torch.bool)),
        "the mask has shape (4, 1)",
    ),
    "mask of floats": (lambda: (torch.zeros(4), torch.ones(4)), "the mask is torch.float32"),
    "mask of ints": (lambda: (torch.zeros(4), [1, 1, 0, 1]), "the mask is list, expected bool"),
    "mask None": (lambda: (torch.zeros(4), None), "the mask is NoneType"),
}

ACCEPTED: dict[str, tuple[Callable[[], Any], list[float]]] = {
    "float32 tensor": (lambda: torch.tensor([0.1, 0.2, 0.3, 0.4]), [0.1, 0.2, 0.3, 0.4]),
    "float64 tensor": (lambda: torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), [0.1, 0.2, 0.3, 0.4]),
    "numpy array": (lambda: np.array([0.1, 0.2, 0.3, 0.4]), [0.1, 0.2, 0.3, 0.4]),
    "list": (lambda: [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
    "pair": (
        lambda: ([0.1, 0.2, 0.3, 0.4], torch.tensor([True, False, True, True])),
        [0.1, 0.2, 0.3, 0.4],
    ),
    "exact integers": (lambda: torch.tensor([-3, 0, 2**24, 2**60]), [-3, 0, 2**24, 2**60]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_that_is_no_score_is_refused(kind: str) -> None:
    make, fragment = REFUSED[kind]
    with pytest.raises(RewardError) as caught:
        read_answer(make(), where=WHERE, num=N)
    assert caught.value.exit_code == 5
    assert fragment in caught.value.line()
    assert WHERE in caught.value.line()


@pytest.mark.parametrize("kind", ACCEPTED)
def test_scores_are_read_as_float32(kind: str) -> None:
    make, expected = ACCEPTED[kind]
    values, valid = read_answer(make(), where=WHERE, num=N)
    assert values.dtype == torch.float32 and values.shape == (N,)
    assert valid.dtype == torch.bool and valid.shape == (N,)
    assert torch.equal(values, torch.tensor(expected, dtype=torch.float32))
    assert valid.all() == (kind != "pair")


def test_the_catalogue_is_large_enough() -> None:
    assert len(REFUSED) >= 24 and len(ACCEPTED) == 6


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_a_trusting_reader_would_take_many_of_them() -> None:
    """Negative control: what `torch.as_tensor(...).flatten()` makes of the refused kinds."""
    taken = []
    for kind, (make, _) in REFUSED.items():
        try:
            torch.as_tensor(make()).flatten().float()
            taken.append(kind)
        except Exception:
            continue
    assert {"column", "bool tensor", "int 2^60 + 1", "matrix", "requires grad"} <= set(taken)


def test_non_finite_values_are_kept_for_the_policy() -> None:
    values, valid = read_answer([float("nan"), float("inf"), 1.0, 2.0], where=WHERE, num=4)
    assert values[0].isnan() and values[1].isinf() and valid.all()


@pytest.mark.parametrize("whole", [2**24, 2**53, 2**60, -(2**31)])
def test_integers_are_read_exactly_or_not_at_all(whole: int) -> None:
    values, _ = read_answer([whole], where=WHERE, num=1)
    assert int(values[0].item()) == whole
    with pytest.raises(RewardError, match="not exact"):
        read_answer([whole + 1 if whole > 0 else whole - 1], where=WHERE, num=1)
