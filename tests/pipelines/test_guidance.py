"""Guidance with a constant unconditional half: three ways, one gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flowalign.config.schema import LoraConfig, ModelConfig
from flowalign.lora import add_lora, lora_parameters
from flowalign.pipelines.guidance import DetachedGuidance, find_halves
from flowalign.pipelines.load import make_generator
from flowalign.pipelines.traced import TracedGenerator
from flowalign.types import Cond, Rollout, Trajectory
from flowalign.unconditional import forgetting, known_output, remembering
from tests.zoo.image import sd3, sd15, sdxl

PROMPTS = ["a red circle", "the blue square", "two dogs"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A guided generator with a LoRA that is not zero, and one state."""

    generator: TracedGenerator
    parameters: dict[str, torch.nn.Parameter]
    x: Tensor
    t: Tensor
    cond: Cond

    def gradient(self, generator: DetachedGuidance | TracedGenerator, cond: Cond) -> Tensor:
        """Gradient of a fixed linear function of the prediction, flat."""
        pred = generator.predict(self.x, self.t, cond)
        weights = torch.linspace(-1, 1, pred.numel()).view_as(pred)
        grads = torch.autograd.grad((pred * weights).sum(), list(self.parameters.values()))
        return torch.cat([grad.flatten() for grad in grads])


def setting(name: str, guidance: float = 4.0) -> Setting:
    pipe = {"sd3": sd3, "sd15": sd15, "sdxl": sdxl}[name]()
    generator = make_generator(pipe, ModelConfig(name=name, guidance_scale=guidance))
    add_lora(generator.denoisers(), LoraConfig(rank=2), seed=0)
    parameters = lora_parameters(generator.denoisers())
    torch.manual_seed(1)
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.05)
    return Setting(
        generator=generator,
        parameters=parameters,
        x=torch.randn(len(PROMPTS), *generator.latent_shape),
        t=generator.levels(4)[1],
        cond=generator.encode(PROMPTS),
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def counted(setting: Setting) -> list[tuple[int, bool]]:
    """A list that grows by (rows, with a graph) at each pass through the denoiser's first layer."""
    passes: list[tuple[int, bool]] = []

    def note(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        passes.append((len(given[0]), torch.is_grad_enabled()))

    denoiser = setting.generator.denoisers()[0]
    layer = denoiser.conv_in if hasattr(denoiser, "conv_in") else denoiser.pos_embed
    layer.register_forward_pre_hook(note)  # type: ignore[union-attr]
    return passes


def rolled_out(setting: Setting, generator: DetachedGuidance) -> Cond:
    """The conditions of a rollout of one step that began at the setting's state."""
    with torch.no_grad(), generator.listening() as heard:
        pred = generator.predict(setting.x, setting.t, setting.cond)
    count = len(setting.x)
    trajectory = Trajectory(
        x=torch.stack([setting.x, pred], dim=1),
        t=torch.stack([setting.t, torch.zeros_like(setting.t)]),
        noise=torch.zeros(1, dtype=torch.float64),
        log_prob=torch.zeros(count, 1),
        stochastic=torch.zeros(1, dtype=torch.bool),
        mean=None,
        cond=setting.cond,
    )
    rollout = Rollout(
        trajectory=trajectory,
        samples=[],
        group=torch.zeros(count, dtype=torch.int64),
        reward=torch.zeros(count),
        valid=torch.ones(count, dtype=torch.bool),
        reward_terms={},
        term_valid={},
    )
    return remembering(rollout, heard).trajectory.cond


@pytest.mark.parametrize("name", ["sd3", "sd15", "sdxl"])
def test_same_gradient_with_less_work(name: str) -> None:
    """Plain, without graph and reused: the same to rounding; each does what it says."""
    s = setting(name)
    plain, split = DetachedGuidance(s.generator, without_graph=False), DetachedGuidance(s.generator)
    kept = rolled_out(s, split)
    passes, rows = counted(s), len(PROMPTS)
    expected = s.gradient(plain, s.cond)
    assert passes == [(2 * rows, True)]
    passes.clear()
    assert relative(s.gradient(split, s.cond), expected) < 1e-5
    assert sorted(passes) == [(rows, False), (rows, True)]
    passes.clear()
    assert relative(s.gradient(split, kept), expected) < 1e-5
    assert passes == [(rows, True)]


def test_full_gradient_is_another_one() -> None:
    """Negative control: the comparison tells the two gradients apart."""
    s = setting("sd3")
    detached = s.gradient(DetachedGuidance(s.generator), s.cond)
    assert relative(s.gradient(s.generator, s.cond), detached) > 0.1


def test_prediction_is_the_pipelines_own() -> None:
    s = setting("sd3")
    split = DetachedGuidance(s.generator)
    own = s.generator.predict(s.x, s.t, s.cond)
    assert relative(split.predict(s.x, s.t, s.cond), own) < 1e-5
    with torch.no_grad():
        assert torch.equal(split.predict(s.x, s.t, s.cond), own)


def test_kept_outputs_are_for_their_own_states_only() -> None:
    s = setting("sd3")
    kept = rolled_out(s, DetachedGuidance(s.generator))
    assert known_output(kept, s.x, s.t) is not None
    assert known_output(kept.select(torch.tensor([2, 0])), s.x[[2, 0]], s.t) is not None
    assert known_output(kept, s.x[[1, 0, 2]], s.t) is None
    assert known_output(kept, s.x, s.t * 0.9) is None
    assert known_output(forgetting(kept), s.x, s.t) is None
    assert set(forgetting(kept).batched) == set(s.cond.batched)


def test_nothing_changes_without_guidance() -> None:
    s = setting("sd3", guidance=1.0)
    split = DetachedGuidance(s.generator)
    assert split.halves.kind == "none"
    assert torch.equal(s.gradient(split, s.cond), s.gradient(s.generator, s.cond))


def test_the_unconditional_half_is_found() -> None:
    halves = find_halves(setting("sd3").generator)
    assert (halves.kind, halves.place) == ("doubled", 0)
    assert ("encoder_hidden_states",) in halves.batched


def test_the_wrong_half_is_seen() -> None:
    """Negative control: with the halves taken for each other, the gradient differs."""
    s = setting("sd3")
    right = DetachedGuidance(s.generator)
    expected = s.gradient(right, s.cond)
    right.halves = replace(right.halves, place=1)
    assert relative(s.gradient(right, s.cond), expected) > 0.1
