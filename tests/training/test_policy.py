"""Views of one network: what is exchanged comes back, and an average is an average."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Linear, Parameter

from flowalign.policy import average, copied, exchanged


def make() -> tuple[Linear, dict[str, Parameter]]:
    torch.manual_seed(0)
    layer = Linear(3, 2)
    return layer, dict(layer.named_parameters())


def test_exchanged_weights_act_inside_and_only_inside() -> None:
    layer, parameters = make()
    x = torch.randn(4, 3)
    before = layer(x)
    other = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with exchanged(parameters, other):
        assert torch.equal(layer(x), torch.zeros(4, 2))
    assert torch.equal(layer(x), before)


def test_exchange_ends_also_after_an_error() -> None:
    _, parameters = make()
    kept = copied(parameters)
    other = {name: torch.zeros_like(value) for name, value in parameters.items()}
    with pytest.raises(RuntimeError), exchanged(parameters, other):
        raise RuntimeError
    assert all(torch.equal(parameters[name], kept[name]) for name in kept)


def test_gradient_of_a_graph_built_before_an_exchange_is_unchanged() -> None:
    layer, parameters = make()
    x = torch.randn(4, 3)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), [parameters["weight"]])
    loss = layer(x).square().sum()
    other = {name: torch.ones_like(value) for name, value in parameters.items()}
    with exchanged(parameters, other), torch.no_grad():
        layer(x)
    loss.backward()
    grad = parameters["weight"].grad
    assert grad is not None and torch.equal(grad, expected)


def test_a_copy_has_storage_of_its_own() -> None:
    """A copy that aliases would follow the training (the trap of `.cpu()` on a CPU tensor)."""
    _, parameters = make()
    copy = copied(parameters)
    alias = {name: value.detach().cpu() for name, value in parameters.items()}
    with torch.no_grad():
        parameters["weight"].add_(1.0)
    assert not torch.equal(copy["weight"], parameters["weight"])
    assert torch.equal(alias["weight"], parameters["weight"])  # negative control


def test_average_is_the_geometric_sum() -> None:
    """After n steps of constant source s from start a: d^n a + (1 - d^n) s."""
    target = {"w": torch.tensor([2.0], dtype=torch.float64)}
    source = {"w": torch.tensor([-1.0], dtype=torch.float64)}
    for _ in range(7):
        average(target, source, 0.9)
    expected = 0.9**7 * 2.0 - (1 - 0.9**7)
    assert target["w"].item() == pytest.approx(expected, rel=1e-12)
