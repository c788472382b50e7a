"""The stochastic and deterministic rectified-flow steps against eight other implementations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowalign.gaussian import HALF_LOG_2PI, Gaussian
from flowalign.paths import RectifiedFlow
from flowalign.protocols import Sampler
from flowalign.samplers import CPS, DDIM, ODE, Dance, FlowSDE
from tests.golden.vectors import Case, cases

SAMPLERS: dict[str, Sampler] = {
    "flow_sde": FlowSDE(),
    "flow_cps": CPS(),
    "dance_sde": Dance(),
    "flow_ode": ODE(),
    "flow_ddim": DDIM(),
}
STEPS = [case for case in cases(*SAMPLERS) if "z0" not in case.given]
RUNS = [case for case in cases(*SAMPLERS) if "z0" in case.given]
STOCHASTIC = [case for case in STEPS if "noise_level_0" not in case.name]

# Peers that report the SDE's coefficient without its factor sqrt(-dt).
BARE_STD = {
    "flow_sde": ("flow_grpo", "flow_factory", "genrl", "verl_omni"),
    "dance_sde": ("flow_factory",),
}


def levels(case: Case) -> tuple[Tensor, Tensor]:
    if "sigma" in case.given:
        return case.given["sigma"].double(), case.given["sigma_next"].double()
    i = case.hyper["step_index"]
    return case.given["sigmas"][i].double(), case.given["sigmas"][i + 1].double()


def noise_level(case: Case) -> Tensor:
    if case.family == "flow_ode":
        return torch.zeros((), dtype=torch.float64)
    level = case.hyper.get("noise_level", case.hyper.get("eta"))
    return torch.tensor(level, dtype=torch.float64)


def law(case: Case, pred: Tensor, noise: Tensor) -> Gaussian:
    t, t_next = levels(case)
    sampler = SAMPLERS[case.family]
    return sampler.step(RectifiedFlow(), case.given["x"], pred, t, t_next, noise)


def reference_log_prob(case: Case, law: Gaussian, log_prob: Tensor) -> Tensor:
    """The exact log-density as this reference would report it.

    verl-omni's `nonorm` leaves out the two constants, MixGRPO's Dance step loses them by a
    misplaced parenthesis, and CPS codes report -mean((x_next - mean)^2).
    """
    constants = law.std.log() + HALF_LOG_2PI
    if case.family == "flow_cps":
        return 2.0 * law.std.square() * (log_prob + constants)
    if "nonorm" in case.name or case.name.startswith("mixgrpo__dance"):
        return log_prob + constants
    return log_prob


@pytest.mark.parametrize("case", STEPS, ids=[case.name for case in STEPS])
def test_step_has_the_reference_mean_std_and_sample(case: Case) -> None:
    step = law(case, case.given["v"], noise_level(case))
    deterministic = case.hyper.get("deterministic", False)
    if "mean" in case.out:
        case.close(step.mean, case.out["mean"])
    if deterministic:
        zero = torch.zeros((), dtype=torch.float64)
        case.close(law(case, case.given["v"], zero).mean, case.out["x_next"])
    elif "noise" in case.given:
        case.close(step.sample(case.given["noise"]), case.out["x_next"])
    stds = [case.out[k] for k in ("std", "std_dev_t", "noise_scale") if k in case.out]
    if stds and case.family != "flow_ode":
        t, t_next = levels(case)
        bare = case.name.startswith(BARE_STD.get(case.family, ("-",)))
        scale = (t - t_next).sqrt() if bare else torch.ones((), dtype=torch.float64)
        case.close(step.std.expand(stds[0].shape), stds[0] * scale)


@pytest.mark.parametrize("case", STOCHASTIC, ids=[case.name for case in STOCHASTIC])
def test_step_has_the_reference_log_prob_and_gradient(case: Case) -> None:
    v = case.given["v"].clone().requires_grad_()
    step = law(case, v, noise_level(case))
    if float(step.std) == 0:  # the last CPS step, and the ODE
        with pytest.raises(AssertionError):
            step.log_prob(case.given["x"])
        return
    sampled = case.out.get("x_next", case.given.get("x_next"))
    assert sampled is not None
    pairs = [(sampled, case.out["log_prob"])]
    if "log_prob_of_given" in case.out:
        pairs.append((case.given["x_next_given"], case.out["log_prob_of_given"]))
    for x_next, expected in pairs:
        ours = reference_log_prob(case, step, step.log_prob(x_next))
        case.close_log_prob(ours, expected)
    for name, x_next in (
        ("dlogprob_dv", sampled),
        ("dlogprob_given_dv", case.given.get("x_next_given")),
    ):
        if name in case.out and x_next is not None:
            total = reference_log_prob(case, step, step.log_prob(x_next)).sum()
            (gradient,) = torch.autograd.grad(total, v, retain_graph=True)
            case.close_log_prob(gradient, case.out[name])


@pytest.mark.parametrize("case", RUNS, ids=[case.name for case in RUNS])
def test_a_whole_run_follows_the_reference(case: Case) -> None:
    sigmas, eta = (
        case.given["sigmas"].double(),
        torch.tensor(case.hyper["eta"], dtype=torch.float64),
    )
    x = case.given["z0"]
    for i in range(len(sigmas) - 1):
        step = SAMPLERS[case.family].step(
            RectifiedFlow(), x, case.given["v"][i], sigmas[i], sigmas[i + 1], eta
        )
        x = step.sample(case.given["noise"][i])
        case.close(x, case.out["z"][i + 1])
        if "log_prob" in case.out:
            constants = step.std.log() + HALF_LOG_2PI
            lost = constants if case.family == "dance_sde" else 0.0
            case.close_log_prob(step.log_prob(x) + lost, case.out["log_prob"][i])


SAMPLED = [case for case in STOCHASTIC if "noise" in case.given and "x_next" in case.out]


@pytest.mark.parametrize("wrong", ["mean", "std"])
def test_a_changed_kernel_is_noticed(wrong: str) -> None:
    """Negative control: 1 % off in the mean or the std fails every sample that has noise."""
    for case in SAMPLED:
        step = law(case, case.given["v"], noise_level(case))
        if float(step.std) == 0 or case.hyper.get("deterministic", False):
            continue
        changed = Gaussian(
            mean=step.mean * (1.01 if wrong == "mean" else 1.0),
            std=step.std * (1.01 if wrong == "std" else 1.0),
        )
        with pytest.raises(AssertionError):
            case.close(changed.sample(case.given["noise"]), case.out["x_next"])


@pytest.mark.parametrize("case", STEPS, ids=[case.name for case in STEPS])
def test_noise_level_zero_is_the_ode(case: Case) -> None:
    zero = torch.zeros((), dtype=torch.float64)
    t, t_next = levels(case)
    euler = case.given["x"] + (t_next - t).to(case.given["x"].dtype) * case.given["v"]
    case.close(law(case, case.given["v"], zero).mean, euler)
