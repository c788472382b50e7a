"""Level grids against diffusers, DanceGRPO and k-diffusion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowalign.levels import (
    diffusers_flow_levels,
    exponential_ratios,
    flow_levels,
    flux_levels,
    flux_mu,
    karras_ratios,
    vp_sde_ratios,
)
from tests.golden.vectors import Case, each


def grids(case: Case) -> list[tuple[Tensor, Tensor]]:
    """(ours, reference) pairs."""
    given, out, hyper = case.given, case.out, case.hyper
    if "image_seq_len" in given:
        ours = torch.tensor([flux_mu(int(n)) for n in given["image_seq_len"]])
        return [(ours.double(), out["mu"])]
    n = int(given["n"])
    if "karras" in out:
        low, high = float(given["sigma_min"]), float(given["sigma_max"])
        return [
            (karras_ratios(n, low, high), out["karras"][:-1]),
            (exponential_ratios(n, low, high), out["exponential"][:-1]),
            (exponential_ratios(n, low, high, rho=1.5), out["polyexponential"][:-1]),
            (vp_sde_ratios(n), out["vp"][:-1]),
        ]
    if "mu" in hyper:
        return [(flux_levels(n, hyper["mu"]), out["sigmas"])]
    if case.name.startswith("dancegrpo"):
        return [(flow_levels(n, hyper["shift"]), out["sigmas"])]
    return [(diffusers_flow_levels(n, hyper["shift"]), out["sigmas"])]


@each("schedules")
def test_grid_is_the_reference(case: Case) -> None:
    # flux_mu is a Python float rounded through torch's default float32.
    rtol = 1e-6 if "image_seq_len" in case.given else None
    for ours, expected in grids(case):
        case.close(ours, expected, rtol=rtol)


@each("schedules")
def test_a_shifted_grid_is_noticed(case: Case) -> None:
    """Negative control: one part in a thousand."""
    for ours, expected in grids(case):
        with pytest.raises(AssertionError):
            case.close(ours * 1.001, expected)
