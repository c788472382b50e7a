"""The variance-preserving DDIM step against DDPO, D3PO, DanceGRPO, SPO and adjoint matching."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowalign.gaussian import Gaussian
from flowalign.levels import diffusion_levels, diffusion_timesteps
from flowalign.paths import VariancePreserving
from flowalign.samplers import DDIM
from tests.golden.vectors import Case, cases, each

FK = next(case for case in cases("trajectory") if case.name.startswith("fk_t2i"))


def law(case: Case, pred: Tensor) -> Gaussian:
    """The step between two entries of abar: levels 1 and 1/2 of a table of two."""
    table = torch.stack([case.given["alpha_bar_prev"][0], case.given["alpha_bar_t"][0]])
    kind = case.hyper.get("prediction_type", "epsilon")
    path = VariancePreserving(alphas_cumprod=table, prediction_type=kind)
    eta = torch.tensor(case.hyper["eta"], dtype=torch.float64)
    ones = torch.ones(len(case.given["x"]), dtype=torch.float64)
    return DDIM().step(path, case.given["x"], pred, ones, ones / 2, eta)


@each("ddim")
def test_step_is_the_reference(case: Case) -> None:
    name = "eps" if "eps" in case.given else "model_output"
    pred = case.given[name].clone().requires_grad_()
    step = law(case, pred)
    if "num_candidates" in case.hyper:  # SPO draws several next states from one prediction
        drawn = [step.sample(noise) for noise in case.given["noise"]]
        case.close(torch.stack(drawn), case.out["x_next"])
        return
    case.close(step.sample(case.given["noise"]), case.out["x_next"])
    if "log_prob" in case.out:
        case.close_log_prob(step.log_prob(case.out["x_next"]), case.out["log_prob"])
        given = step.log_prob(case.given["x_next_given"])
        case.close_log_prob(given, case.out["log_prob_of_given"])
        (gradient,) = torch.autograd.grad(given.sum(), pred)
        case.close_log_prob(gradient, case.out["dlogprob_given_dmodel"])
    if "mean_diff" in case.out:
        initial = law(case, case.given["eps_init"])
        case.close(step.mean - initial.mean, case.out["mean_diff"])
        case.close(step.std.reshape(case.out["std"].shape), case.out["std"])


def stable_diffusion_table() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32).square()
    return (1.0 - betas).cumprod(0)


def steered_run(final_alpha: float) -> list[Tensor]:
    """States of the reference's guided DDIM run, resampled where and as it resampled."""
    path = VariancePreserving(
        alphas_cumprod=stable_diffusion_table(), final_alpha_cumprod=final_alpha
    )
    timesteps = diffusion_timesteps(10, steps_offset=1)
    t = diffusion_levels(timesteps, 1000)
    prompt, negative = (
        FK.given[name].mean((1, 2)).reshape(-1, 1, 1, 1)
        for name in ("prompt_embeds", "negative_prompt_embeds")
    )
    rows = dict(zip((2, 4, 6, 8), FK.given["resample_indices"], strict=True))
    x, states = FK.given["latents0"], []
    for i, k in enumerate(timesteps):
        conditional, unconditional = (
            0.8 * torch.tanh(x) + mean * x * k / 1000 for mean in (prompt, negative)
        )
        eps = unconditional + FK.hyper["cfg"] * (conditional - unconditional)
        eta = torch.tensor(FK.hyper["eta"], dtype=torch.float64)
        x = DDIM().step(path, x, eps, t[i], t[i + 1], eta).sample(FK.given["noise"][i])
        x = x[rows[i]] if i in rows else x
        states.append(x)
    return states


def test_whole_run_with_guidance_and_final_alpha() -> None:
    final_alpha = float(stable_diffusion_table()[0])
    for ours, expected in zip(steered_run(final_alpha), FK.out["latents_after_step"], strict=True):
        FK.close(ours, expected)


def test_another_final_alpha_is_noticed() -> None:
    """Negative control: only the last step reads it, and there it matters."""
    states = steered_run(1.0)
    FK.close(states[-2], FK.out["latents_after_step"][-2])
    with pytest.raises(AssertionError):
        FK.close(states[-1], FK.out["latents_after_step"][-1])
