"""Ten guided steps of Flow-GRPO's and Flow-CPS' pipelines: levels, steps and log-probs at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowalign.gaussian import HALF_LOG_2PI
from flowalign.levels import diffusers_flow_levels, flow_levels
from flowalign.paths import RectifiedFlow
from flowalign.samplers import CPS, FlowSDE
from tests.golden.vectors import Case, cases

RUNS = [case for case in cases("trajectory") if "pooled" in case.given]


def velocity(case: Case, x: Tensor, sigma: Tensor) -> Tensor:
    """The toy network under batched classifier-free guidance."""

    def branch(prefix: str) -> Tensor:
        embeds, pooled = case.given[f"{prefix}prompt_embeds"], case.given[f"{prefix}pooled"]
        gain, shift = embeds.mean((1, 2)), pooled.mean(1)
        body = torch.tanh(0.8 * x) * (0.5 + sigma.float())
        return body + gain.reshape(-1, 1, 1, 1) * x + shift.reshape(-1, 1, 1, 1)

    conditional, scale = branch(""), case.hyper["cfg"]
    if scale <= 1:
        return conditional
    unconditional = branch("negative_")
    return unconditional + scale * (conditional - unconditional)


def follow(case: Case, t: Tensor) -> None:
    sampler = CPS() if case.hyper["sde"] == "flow_cps" else FlowSDE()
    noise = torch.tensor(case.hyper["noise_level"], dtype=torch.float64)
    x = case.given["latents0"]
    for i in range(case.hyper["steps"]):
        law = sampler.step(RectifiedFlow(), x, velocity(case, x, t[i]), t[i], t[i + 1], noise)
        x = law.sample(case.given["noise"][i])
        case.close(x, case.out["latents"][i + 1])
        if float(law.std) > 0:
            log_prob = law.log_prob(x)
            if case.hyper["sde"] == "flow_cps":  # its code reports the squared error
                log_prob = 2 * law.std.square() * (log_prob + law.std.log() + HALF_LOG_2PI)
            case.close(log_prob, case.out["log_probs"][i], rtol=1e-3)


@pytest.mark.parametrize("case", RUNS, ids=[case.name for case in RUNS])
def test_run_follows_the_reference(case: Case) -> None:
    follow(case, diffusers_flow_levels(case.hyper["steps"], case.hyper["shift"]))


@pytest.mark.parametrize("case", RUNS, ids=[case.name for case in RUNS])
def test_other_levels_are_noticed(case: Case) -> None:
    """Negative control: the grid without diffusers' double shift."""
    with pytest.raises(AssertionError):
        follow(case, flow_levels(case.hyper["steps"], case.hyper["shift"]))
