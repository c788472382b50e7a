"""The proof at load time that the traced pieces are the pipeline.

The pipeline's own loop runs once over its own schedule, with its own encoders, listening. Then
every prediction is asked for again, alone, and the end is decoded again. All of it must come out
equal, else the pipeline is refused with what was seen. Differences are relative to the largest
value. The same pass on the same machine gives equal bits; a margin is left for devices that add
in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.errors import ConfigError
from flowalign.lora import lora_disabled
from flowalign.pipelines.traced import PROBES, TracedGenerator
from flowalign.protocols import Generator
from flowalign.types import Cond

# Of a repeated pass, and of a pass through other kernels (another batch, with a graph).
REPEATED = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
OTHERWISE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """One step of the pipeline's own loop."""

    x: Tensor
    timestep: Tensor
    output: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The largest differences that were measured."""

    prediction: float  # asked again alone, against the pipeline's own loop
    decoding: float  # decoded again, against what the loop decoded
    batch: float  # two prompts together, against each alone


def prove(generator: TracedGenerator, *, num_steps: int) -> Proof:
    """Compare the traced pieces with the pipeline's own loop.

    Raises:
        ConfigError: they differ, or no gradient reaches the prediction.
    """
    steps, media = own_loop(generator, num_steps)
    levels = generator.levels(num_steps)
    cond = generator.encode([PROBES[1]])
    allowed = REPEATED[coarsest(generator)]
    worst = 0.0
    for number, step in enumerate(steps):
        t = level_of(generator, levels, step, number)
        with torch.no_grad():
            output = generator.predict(step.x.float(), t, cond)
        seen = difference(generator.clock.sign * output, step.output)
        if not seen <= allowed:
            refuse(
                generator,
                f"asked again, the prediction of step {number + 1} of {len(steps)} differs by"
                f" {seen:.1e} of its size; it depends on more than state, level and prompt",
            )
        worst = max(worst, seen)
    prove_gradient(generator, steps[0], levels[0], cond)
    with torch.no_grad():
        again = generator.decode_raw(steps[-1].x)
    seen = difference(again, media)
    if not seen <= allowed:
        refuse(generator, f"decoded again, the result differs by {seen:.1e} of its size")
    return Proof(prediction=worst, decoding=seen, batch=prove_batch(generator, levels[0]))


def prove_gradient(generator: TracedGenerator, step: Heard, t: Tensor, cond: Cond) -> None:
    """Check that a prediction with a graph has one, and the same value."""
    x = step.x.detach().float().requires_grad_(True)
    with torch.enable_grad():
        output = generator.predict(x, t, cond)
    if not output.requires_grad:
        refuse(generator, "no gradient reaches the prediction")
    seen = difference(generator.clock.sign * output.detach(), step.output)
    if not seen <= OTHERWISE[coarsest(generator)]:
        refuse(generator, f"with a gradient, the prediction differs by {seen:.1e} of its size")


def coarsest(generator: TracedGenerator) -> torch.dtype:
    """The least precise type among the weights."""
    kinds = {p.dtype for module in generator.denoisers() for p in module.parameters()}
    return max(kinds & REPEATED.keys(), key=lambda kind: torch.finfo(kind).eps)


def prove_batch(generator: TracedGenerator, level: Tensor) -> float:
    """Compare the predictions for two prompts together with those for each alone.

    Where they differ because the network sees the padding of the shorter prompt, prompts of
    different length are kept apart from here on, which costs passes but is exact.
    """
    kind = coarsest(generator)
    seen = batch_difference(generator, level)
    ragged = any(each.kind == "ragged" for each in generator.plan.leaves)
    if ragged and not seen <= min(REPEATED[torch.bfloat16], OTHERWISE[kind]):
        generator.apart = True
        seen = batch_difference(generator, level)
    if not seen <= OTHERWISE[kind]:
        refuse(
            generator,
            f"the predictions for two prompts differ from those for each alone by {seen:.1e} of"
            " their size",
        )
    return seen


@torch.no_grad()
def batch_difference(generator: TracedGenerator, level: Tensor) -> float:
    """Largest relative difference between predictions together and alone."""
    cond = generator.encode(PROBES)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(len(PROBES), *generator.latent_shape, generator=random)
    together = generator.predict(x, level, cond)
    rows = [torch.tensor([i]) for i in range(len(PROBES))]
    alone = torch.cat([generator.predict(x[row], level, cond.select(row)) for row in rows])
    return difference(together, alone)


@torch.no_grad()
def own_loop(generator: TracedGenerator, num_steps: int) -> tuple[list[Heard], Tensor]:
    """The steps of the pipeline's loop and what it decodes; it ends where its last step began."""
    steps: list[Heard] = []

    def on_step(output: Tensor, timestep: Tensor, x: Tensor) -> Tensor:
        steps.append(Heard(x=x, timestep=timestep, output=output))
        last = len(steps) == len(generator.listener.timesteps)
        return x if last else x - 0.1 * output.to(x.dtype)

    generator.tune(None, on_step=on_step)
    encode_prompt = generator.pipe.encode_prompt  # type: ignore[attr-defined]
    media = generator.run([PROBES[1]], encode_prompt, num_steps=num_steps, output_type="pt")[0]
    return steps, media


def level_of(generator: TracedGenerator, levels: Tensor, step: Heard, number: int) -> Tensor:
    """The level whose timestep the loop gave to this step."""
    given = float(step.timestep)
    ours = [float(generator.clock.timestep(t)) for t in levels]
    index = min(range(len(ours)), key=lambda i: abs(ours[i] - given))
    if abs(ours[index] - given) > 1e-5 * max(1.0, abs(given)):
        refuse(
            generator,
            f"step {number + 1} has timestep {given:g}, and the levels have {ours[index]:g}",
        )
    return levels[index]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference relative to the largest value; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = float(theirs.abs().max())
    return float((ours.double() - theirs.double()).abs().max()) / max(scale, 1e-12)


def refuse(generator: TracedGenerator, what: str) -> None:
    """Raise the error of a failed proof."""
    raise ConfigError(
        "MODEL-PROOF",
        type(generator.pipe).__name__,
        what,
        "see `flowalign list pipelines` for classes and settings that are known to work",
    )


@torch.no_grad()
def prove_adapter(generator: Generator) -> None:
    """Check that a fresh adapter changes no bit of the base that it has when it is off.

    Raises:
        ConfigError: the prediction with the adapter differs from that without.
    """
    x = torch.randn(1, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = generator.levels(2)[0], generator.encode([PROBES[1]])
    x = x.to(next(generator.denoisers()[0].parameters()).device)
    with_adapter = generator.predict(x, t, cond)
    with lora_disabled(generator.denoisers()):
        without = generator.predict(x, t, cond)
    if not torch.equal(with_adapter, without):
        seen = difference(with_adapter, without)
        raise ConfigError(
            "MODEL-PROOF",
            "lora",
            f"a fresh adapter moves the prediction by {seen:.1e} of its size",
            "adapt other layers by lora.target_modules",
        )
