"""Level grids against the schedulers of diffusers, and their common form."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from flowalign.levels import (
    diffusers_flow_levels,
    diffusion_levels,
    diffusion_timesteps,
    flow_levels,
    flux_levels,
    shifted,
)

Spacing = Literal["leading", "trailing", "linspace"]
SPACINGS: tuple[Spacing, ...] = ("leading", "trailing", "linspace")


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("num_steps", [1, 4, 28])
def test_flow_table_is_diffusers(num_steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    ours = diffusers_flow_levels(num_steps, shift)
    torch.testing.assert_close(
        ours.float(), torch.as_tensor(scheduler.sigmas), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 7, 10, 50])
def test_timesteps_are_diffusers(spacing: Spacing, num_steps: int) -> None:
    offset = 1 if spacing == "leading" else 0
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(num_steps)
    ours = diffusion_timesteps(num_steps, spacing=spacing, steps_offset=offset)
    expected = scheduler.timesteps.tolist()
    if spacing == "linspace" and num_steps == 1:
        assert expected == [0]  # numpy's linspace of one point is its start; ours is the noise
        return
    assert ours == expected


GRIDS = {
    "flow": flow_levels(10),
    "flow shift 3": flow_levels(10, 3.0),
    "diffusers": diffusers_flow_levels(10, 3.0),
    "flux": flux_levels(10, 0.8),
    "diffusion": diffusion_levels(diffusion_timesteps(10), 1000),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_grids_fall_from_noise_to_zero(grid: Tensor) -> None:
    assert grid.shape == (11,)
    assert grid.dtype == torch.float64
    assert grid[-1] == 0
    assert float(grid[0]) <= 1
    assert bool((grid[:-1] > grid[1:]).all())


def test_shift_composes_and_inverts() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shifted(shifted(t, 3.0), 1 / 3.0), t)
    torch.testing.assert_close(shifted(shifted(t, 2.0), 1.5), shifted(t, 3.0))
    # Negative control: shifts do not add.
    assert not torch.allclose(shifted(shifted(t, 2.0), 1.0), shifted(t, 3.0))
