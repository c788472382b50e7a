"""Transition kernels: one way to go from x at t to x_next at t_next, one file each."""

from __future__ import annotations

from flowalign.protocols import Sampler
from flowalign.samplers.cps import CPS
from flowalign.samplers.dance import Dance
from flowalign.samplers.ddim import DDIM
from flowalign.samplers.flow_sde import FlowSDE
from flowalign.samplers.ode import ODE

__all__ = ["CPS", "DDIM", "ODE", "Dance", "FlowSDE", "sampler"]

SAMPLERS: dict[str, Sampler] = {
    "ode": ODE(),
    "ddim": DDIM(),
    "flow_sde": FlowSDE(),
    "cps": CPS(),
    "dance": Dance(),
}


def sampler(name: str) -> Sampler:
    """The kernel named in a config, at its published settings."""
    return SAMPLERS[name]
