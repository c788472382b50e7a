"""The traced generator: nothing is assumed, nothing is left changed, and the proof can fail."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
)
from torch import Tensor

from flowalign.errors import ConfigError, HealthError
from flowalign.paths import RectifiedFlow, VariancePreserving
from flowalign.pipelines.load import make_generator
from flowalign.pipelines.proof import prove
from flowalign.pipelines.traced import TracedGenerator
from flowalign.pipelines.trigonometric import Trigonometric
from flowalign.types import Cond
from tests.zoo.table import ZOO

PROMPTS = ["a red circle", "two cats and a dog"]


@functools.cache
def generator(name: str, guidance_scale: float | None = None) -> TracedGenerator:
    """A generator that no test changes."""
    return make_generator(ZOO[name].build(), ZOO[name].config(guidance_scale))


def states(g: TracedGenerator, seed: int = 7) -> Tensor:
    return torch.randn(len(PROMPTS), *g.latent_shape, generator=torch.Generator().manual_seed(seed))


# Levels: the pipeline's own schedule.


def test_flow_levels_are_the_schedulers_own_sigmas() -> None:
    """shift 3: sigma' = 3 sigma / (1 + 2 sigma) on the scheduler's grid."""
    levels = generator("sd3").levels(4)
    sigma = torch.linspace(1.0, 0.003 / 1.002, 4, dtype=torch.float64)  # it shifts its ends too
    assert levels.dtype == torch.float64
    assert levels[-1] == 0.0
    torch.testing.assert_close(levels[:-1], 3 * sigma / (1 + 2 * sigma), rtol=1e-6, atol=0)
    scheduler = copy.deepcopy(generator("sd3").pipe.scheduler)  # type: ignore[attr-defined]
    scheduler.set_timesteps(4)
    assert torch.equal(levels, scheduler.sigmas.double())


def test_levels_hold_the_shift_that_the_pipeline_computes_from_the_size() -> None:
    """Flux, 16 tokens: mu = 0.5 + 0.65 (16 - 256) / 3840, sigma' = e^mu / (e^mu + 1/sigma - 1)."""
    mu = torch.tensor(0.5 + 0.65 * (16 - 256) / (4096 - 256), dtype=torch.float64)
    sigma = torch.linspace(1.0, 0.25, 4, dtype=torch.float64)
    want = mu.exp() / (mu.exp() + 1 / sigma - 1)
    torch.testing.assert_close(generator("flux").levels(4)[:-1], want, rtol=1e-5, atol=0)


def test_inverted_sigmas_run_from_noise_to_data_here_too() -> None:
    g = generator("mochi")
    levels = g.levels(4)
    assert levels[0] == 1.0 and levels[-1] == 0.0
    assert bool((levels.diff() < 0).all())
    assert g.clock.sign == -1.0


def test_diffusion_levels_count_training_timesteps() -> None:
    """DDIM, 4 of 1000 steps, offset 1: timesteps 751, 501, 251, 1 are levels 0.752 ... 0."""
    want = torch.tensor([0.752, 0.502, 0.252, 0.002, 0.0], dtype=torch.float64)
    assert torch.equal(generator("sd15").levels(4), want)


def test_trigonometric_levels_are_angles_of_sigma() -> None:
    g = generator("stable_audio")
    scheduler = copy.deepcopy(g.pipe.scheduler)  # type: ignore[attr-defined]
    scheduler.set_timesteps(4)
    want = 2 / torch.pi * torch.atan(scheduler.sigmas.double())
    torch.testing.assert_close(g.levels(4), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sd15", VariancePreserving), ("sd3", RectifiedFlow), ("stable_audio", Trigonometric)],
)
def test_the_path_follows_from_the_scheduler(name: str, kind: type) -> None:
    assert isinstance(generator(name).path, kind)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (PNDMScheduler, {"skip_prk_steps": True}),
        (DDPMScheduler, {}),
        (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),  # fractional timesteps
    ],
)
def test_a_diffusion_model_keeps_its_prediction_under_any_of_its_schedulers(
    scheduler: Any, options: dict[str, Any]
) -> None:
    """The network sees the same state and timestep, also under Euler's sigma-space scheduler."""
    reference = generator("sd15")
    pipe = ZOO["sd15"].build()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)  # type: ignore[attr-defined]
    g = make_generator(pipe, ZOO["sd15"].config())
    x, t = states(reference), torch.tensor(0.502, dtype=torch.float64)
    cond = reference.encode(PROMPTS)
    with torch.no_grad():
        assert torch.equal(g.predict(x, t, cond), reference.predict(x, t, cond))
    levels = g.levels(10)
    assert len(levels) == 11 and bool((levels.diff() < 0).all())


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("cogvideox", CogVideoXDPMScheduler(prediction_type="v_prediction")),
        (
            "cogvideox",
            CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        ),
        (
            "sana",
            DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        ),
    ],
)
def test_the_schedulers_of_released_models_pass_the_proof(name: str, scheduler: Any) -> None:
    """Multistep schedulers only give the levels; each step is ours."""
    pipe: Any = ZOO[name].build()
    pipe.scheduler = scheduler
    g = make_generator(pipe, ZOO[name].config())
    levels = g.levels(5)
    assert len(levels) == 6 and levels[-1] == 0.0 and bool((levels.diff() < 0).all())


def test_a_scheduler_of_another_kind_is_refused() -> None:
    pipe: Any = ZOO["sd15"].build()
    pipe.scheduler = IPNDMScheduler()
    with pytest.raises(ConfigError, match="neither a rectified flow nor"):
        make_generator(pipe, ZOO["sd15"].config())


def test_trigonometric_split_undoes_the_target() -> None:
    path = Trigonometric()
    x0, eps = torch.randn(2, 3), torch.randn(2, 3)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    alpha, sigma = path.alpha(t)[:, None].float(), path.sigma(t)[:, None].float()
    split = path.split(alpha * x0 + sigma * eps, path.target(x0, eps, t), t)
    torch.testing.assert_close(split[0], x0)
    torch.testing.assert_close(split[1], eps)


# Conditions: encoded once and alone.


def counted(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_text_encoders_run_once_for_each_distinct_prompt_and_never_later() -> None:
    pipe: Any = ZOO["sd3"].build()
    g = make_generator(pipe, ZOO["sd3"].config(guidance_scale=1.0))
    calls = counted(pipe.text_encoder)
    cond = g.encode(["a red circle", "a cat", "a red circle", "a cat"])
    assert len(calls) == 2
    assert cond.size == 4
    with torch.no_grad():
        g.predict(torch.zeros(4, *g.latent_shape), g.levels(2)[0], cond)
        g.decode(torch.zeros(4, *g.latent_shape))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "z_image", "audioldm2"])
def test_a_condition_does_not_depend_on_the_prompts_beside_it(name: str) -> None:
    g = generator(name)
    alone = g.encode([PROMPTS[0]])
    beside = g.encode([*PROMPTS, "a song"]).select(torch.tensor([0]))
    for key, value in alone.batched.items():
        for ours, theirs in zip(value, beside.batched[key], strict=True):
            assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "z_image", "audioldm2", "ace_step"])
def test_rows_of_a_condition_can_be_chosen_and_joined(name: str) -> None:
    g = generator(name)
    together = g.encode(PROMPTS)
    joined = Cond.cat([g.encode([p]) for p in PROMPTS]).select(torch.tensor([1, 0, 1]))
    x, t = states(g), g.levels(2)[0]
    with torch.no_grad():
        want = g.predict(x, t, together)
        ours = g.predict(x[[1, 0, 1]], t, joined)
    torch.testing.assert_close(ours, want[[1, 0, 1]], rtol=1e-4, atol=1e-5)


def test_guidance_is_the_pipelines_own() -> None:
    """Stable Diffusion 3: u + s (c - u), where u and c are the unguided predictions."""
    pipe = ZOO["sd3"].build()
    x, t = states(generator("sd3")), torch.tensor(0.7, dtype=torch.float64)
    preds = {}
    for scale in (1.0, 3.0):
        g = make_generator(pipe, ZOO["sd3"].config(guidance_scale=scale))
        preds[scale] = g.predict(x, t, g.encode(PROMPTS)).detach()
    unguided = make_generator(pipe, ZOO["sd3"].config(guidance_scale=1.0))
    empty = unguided.predict(x, t, unguided.encode(["", ""])).detach()
    torch.testing.assert_close(preds[3.0], empty + 3.0 * (preds[1.0] - empty), rtol=1e-4, atol=1e-5)


# Nothing is left changed.


def test_the_callers_pipeline_and_the_global_random_state_stay_as_they_are() -> None:
    pipe: Any = ZOO["sd15"].build()
    call = functools.partial(
        pipe, "a red circle", num_inference_steps=2, output_type="pt", guidance_scale=2.5
    )
    before = call(generator=torch.Generator().manual_seed(0)).images
    scheduler, config, state = pipe.scheduler, dict(pipe.config), torch.get_rng_state()
    g = make_generator(pipe, ZOO["sd15"].config())
    with torch.no_grad():
        g.predict(states(g), g.levels(2)[0], g.encode(PROMPTS))
        g.decode(states(g))
    assert torch.equal(torch.get_rng_state(), state)
    assert pipe.scheduler is scheduler and dict(pipe.config) == config
    assert torch.equal(call(generator=torch.Generator().manual_seed(0)).images, before)


def test_a_sample_equals_the_pipelines_own_picture() -> None:
    """Euler steps on predictions and the decoder give what `pipe(prompt)` gives."""
    pipe: Any = ZOO["sd3"].build()
    g = make_generator(pipe, ZOO["sd3"].config(guidance_scale=2.5))
    start = torch.randn(1, *g.latent_shape, generator=torch.Generator().manual_seed(3))
    want = pipe(
        "a red circle",
        num_inference_steps=4,
        guidance_scale=2.5,
        latents=start.clone(),
        max_sequence_length=0,
        output_type="pt",
    ).images
    x, cond, levels = start, g.encode(["a red circle"]), g.levels(4)
    with torch.no_grad():
        for t, t_next in itertools.pairwise(levels):
            x = x + (t_next - t).float() * g.predict(x, t, cond)
        torch.testing.assert_close(g.decode(x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "cogvideox", "hunyuan_video"])
def test_a_pipeline_in_bfloat16_passes_its_proof(name: str) -> None:
    pipe = ZOO[name].build().to(dtype=torch.bfloat16)
    g = make_generator(pipe, ZOO[name].config())
    assert prove(g, num_steps=2).prediction == 0.0
    assert g.predict(states(g), g.levels(2)[0], g.encode(PROMPTS)).dtype == torch.float32


@pytest.mark.parametrize("name", ["sd3", "sd15", "wan21"])
def test_gradient_checkpointing_keeps_the_gradient(name: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        g = make_generator(ZOO[name].build(), ZOO[name].config())
        (module,) = g.denoisers()
        if checkpointed:
            module.enable_gradient_checkpointing()  # type: ignore[operator]
        pred = g.predict(states(g), g.levels(3)[1], g.encode(PROMPTS))
        wanted = [p for p in module.parameters() if p.requires_grad]
        found = torch.autograd.grad(pred.square().mean(), wanted, allow_unused=True)
        gradients.append(torch.cat([f.flatten() for f in found if f is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_a_picture_that_is_not_finite_is_an_error() -> None:
    g = generator("sd3")
    x0 = states(g)
    x0[1, 0, 0, 0] = float("nan")
    with pytest.raises(HealthError, match="not finite"):
        g.decode(x0)


# Negative controls: each protection of the proof is removed, and the proof must fail.


def wrong_sign(g: Any) -> None:
    inner = g.predict
    g.predict = lambda x, t, cond: -inner(x, t, cond)


def wrong_level(g: Any) -> None:
    inner = g.predict
    g.predict = lambda x, t, cond: inner(x, t * 0.99, cond)


def wrong_prompt(g: Any) -> None:
    inner = g.predict
    g.predict = lambda x, t, cond: inner(x, t, g.blank if cond.size == 1 else cond)


def mixed_rows(g: Any) -> None:
    inner = g.predict
    g.predict = lambda x, t, cond: inner(x, t, cond).flip(0)


def no_graph(g: Any) -> None:
    inner = g.predict
    g.predict = lambda x, t, cond: inner(x, t, cond).detach()


def wrong_decoder(g: Any) -> None:
    inner = g.decode_raw
    g.decode_raw = lambda x0: inner(1.01 * x0)


def wrong_clock(g: Any) -> None:
    inner = g.levels
    g.levels = lambda num_steps: inner(num_steps) * 0.999


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (wrong_sign, "prediction of step 1 of 3 differs"),
        (wrong_level, "prediction of step 1 of 3 differs"),
        (wrong_prompt, "prediction of step 1 of 3 differs"),
        (mixed_rows, "differ from those for each alone"),
        (no_graph, "no gradient"),
        (wrong_decoder, "decoded again"),
        (wrong_clock, "has timestep"),
    ],
)
def test_the_proof_fails_when_a_piece_is_wrong(
    break_it: Callable[[TracedGenerator], None], told: str
) -> None:
    g = make_generator(ZOO["sd3"].build(), ZOO["sd3"].config())
    break_it(g)
    with pytest.raises(ConfigError, match=told) as caught:
        prove(g, num_steps=3)
    assert caught.value.code == "MODEL-PROOF"
