"""Last stage of the flow: steady under strong guidance.

    python -m flowalign.worlds.shapes.training.steady --steps 800 --out DIR

Diffusers' default guidance of 7 drags the state of a sampler off the noised pictures it was trained
on: by -6 times the integral of the difference between conditional and unconditional velocity. On
tiny pictures that breaks large things. Here a part of the training states is displaced in just that
direction, and the target still points to the picture, so both predictions lead back.
Letters as in `flow`: B pictures, latents (B, 8, 8, 8).
"""

# diffusers and transformers declare tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowalign.worlds.shapes.dataset import training_scenes
from flowalign.worlds.shapes.training.checkpoint import cosine, load_state, save_state
from flowalign.worlds.shapes.training.flow import (
    CAPTION_DROPOUT,
    LEVEL_MEAN,
    LEVEL_STD,
    Denoiser,
    build_transformer,
)
from flowalign.worlds.shapes.training.latents import Latents, prepare
from flowalign.worlds.shapes.training.phantom import draw_phantoms, phantom_bias

EXCESS = 6.0  # guidance 7 adds 6 times the difference
DISPLACED = 0.5  # share of pictures
LOWEST_LEVEL = 0.2  # below it the two predictions agree, and dividing by t would blow up
EMA_DECAY = 0.995


def steady_loss(
    model: nn.Module, data: Latents, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared velocity error of the pictures `rows` (B,), half of them displaced."""
    size = len(rows)
    x0 = data.latents[rows].float()
    last = len(data.hidden) - 1  # the empty prompt
    empty = torch.rand(size, generator=generator) < CAPTION_DROPOUT
    caption = torch.where(empty, last, data.caption[rows])
    t = torch.sigmoid(LEVEL_MEAN + LEVEL_STD * torch.randn(size, generator=generator))
    level = t[:, None, None, None]
    x = (1 - level) * x0 + level * torch.randn(x0.shape, generator=generator)
    count = draw_phantoms(size, generator)
    amount = EXCESS * torch.rand(size, generator=generator) * (1 - t)
    amount *= (torch.rand(size, generator=generator) < DISPLACED) & (t > LOWEST_LEVEL)
    with torch.no_grad():
        conditional = velocity(model, data, x, t, data.caption[rows], count)
        free = velocity(model, data, x, t, torch.full_like(caption, last), count)
    x = x - amount[:, None, None, None] * (conditional - free)
    target = (x - x0) / level
    return (velocity(model, data, x, t, caption, count) - target).square().mean()


def draw_rows(single: Tensor, batch: int, share: float, generator: torch.Generator) -> Tensor:
    """Pictures of a batch (B,): each one of `single` (N,) with probability `share`, else any."""
    any_row = torch.randint(len(single), (batch,), generator=generator)
    places = torch.nonzero(single).flatten()
    one = places[torch.randint(len(places), (batch,), generator=generator)]
    return torch.where(torch.rand(batch, generator=generator) < share, one, any_row)


def velocity(
    model: nn.Module, data: Latents, x: Tensor, t: Tensor, caption: Tensor, count: Tensor
) -> Tensor:
    """Prediction (B, 8, 8, 8) float32 for caption rows (B,) and `count` (B,) zero tokens."""
    hidden = data.hidden[caption].float().repeat(1, 1, 2)
    pooled = data.pooled[caption].float().repeat(1, 2)
    bias = phantom_bias(count, 16 + hidden.shape[1] + 1)
    with torch.autocast("cpu", torch.bfloat16):
        return model(x, F.pad(hidden, (0, 0, 0, 1)), pooled, 1000 * t, bias).float()


def main() -> None:
    """Fine-tune DIR/flow.safetensors in place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--singles", type=float, default=0.0, help="share of pictures of one thing")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """AdamW from the averaged weights, cosine to 0; the average is what ships."""
    data = prepare(arguments.out, number=arguments.pictures, seed=0)
    # Large single things are what strong guidance breaks; compositions shall stay hard.
    _, scenes = training_scenes(arguments.pictures, seed=1)
    single = torch.tensor([scene.category == "single" for scene in scenes])
    path = arguments.out / "flow.safetensors"
    groups, step_before, seconds = load_state(path)
    model = build_transformer()
    model.load_state_dict(groups["model"] | groups["average"])
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    denoiser = Denoiser(model)
    denoise = torch.compile(denoiser) if arguments.compile else denoiser
    generator = torch.Generator().manual_seed(arguments.seed)
    running = None
    for step in range(arguments.steps):
        rate = arguments.learning_rate * cosine(step / arguments.steps, warmup=0.05, floor=0.01)
        optimizer.param_groups[0]["lr"] = rate
        rows = draw_rows(single, arguments.batch, arguments.singles, generator)
        loss = steady_loss(denoise, data, rows, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(
            list(average.values()), [p.detach() for p in model.parameters()], 1 - EMA_DECAY
        )
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {running:.4f}", flush=True)
    tensors = {**groups, "model": model.state_dict(), "average": average}
    save_state(path, tensors, step=step_before + arguments.steps, seconds=seconds)


if __name__ == "__main__":
    main()
