"""Views under autocast: a cast made for one set of weights never stands in for another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.nn import Linear, Parameter

from flowalign.policy import Weights, exchanged


def grad_and_outputs(view) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Gradient of the current output, that output, and the output of zero weights, bf16.

    The other weights are seen first and without a graph, as an algorithm does with a reference.
    """
    torch.manual_seed(0)
    layer = Linear(4, 3, bias=False)
    parameters = dict(layer.named_parameters())
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), view(parameters, {"weight": torch.zeros(3, 4)}):
            other = layer(x)
        current = layer(x)
    loss = current.float().sum()
    if loss.requires_grad:
        loss.backward()
    return layer.weight.grad, current, other


@contextmanager
def unguarded(parameters: Mapping[str, Parameter], weights: Weights) -> Iterator[None]:
    """The exchange without the drop of casts."""
    kept = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = weights[name]
    yield
    for name, parameter in parameters.items():
        parameter.data = kept[name]


def test_a_view_leaves_no_cast_behind() -> None:
    grad, current, other = grad_and_outputs(exchanged)
    assert torch.equal(other, torch.zeros(2, 3, dtype=torch.bfloat16))
    assert current.abs().sum() > 0
    assert grad is not None and grad.abs().sum() > 0


def test_without_the_drop_the_gradient_is_lost() -> None:
    """Negative control: the cast of the other weights is used for the current ones."""
    grad, current, _ = grad_and_outputs(unguarded)
    assert grad is None or current.abs().sum() == 0
