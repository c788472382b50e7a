"""Train the tiny SD3 transformer: `python -m flowalign.worlds.shapes.training.flow --minutes 55
--out DIR`.

Rectified flow on cached latents: x_t = (1 - t) x0 + t eps, target eps - x0, levels drawn towards
noise, because the layout of a picture is decided at t > 0.8. Needs DIR/vae.safetensors and
DIR/clip.safetensors.
Letters: B pictures, latents (B, 8, 8, 8), L = 16 text tokens.
"""

# diffusers and transformers declare tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import argparse
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from flowalign.worlds.shapes.training.checkpoint import (
    Budget,
    cosine,
    load_state,
    log_line,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)
from flowalign.worlds.shapes.training.latents import Latents, prepare
from flowalign.worlds.shapes.training.phantom import (
    BiasedJointAttention,
    draw_phantoms,
    phantom_bias,
)

CAPTION_DROPOUT = 0.1  # share of empty prompts, for classifier-free guidance
LEVEL_MEAN, LEVEL_STD = 0.8, 1.1  # t = sigmoid(normal): 24 % above 0.8... of noise
EMA_DECAY = 0.9995
SAVE_EVERY_SECONDS = 120


def build_transformer() -> SD3Transformer2DModel:
    """4 joint blocks of width 128 on 16 image tokens; 2.3 M parameters. Modulations and output
    start at zero."""
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=192,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (
            ".norm1" in name or name.startswith("norm_out") or name == "proj_out"
        ):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def flow_matching_loss(
    model: nn.Module, data: Latents, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the velocity for the pictures `rows` (B,)."""
    x0 = data.latents[rows].float()
    empty = torch.rand(len(rows), generator=generator) < CAPTION_DROPOUT
    caption = torch.where(empty, len(data.hidden) - 1, data.caption[rows])
    t = torch.sigmoid(LEVEL_MEAN + LEVEL_STD * torch.randn(len(rows), generator=generator))
    eps = torch.randn(x0.shape, generator=generator)
    level = t[:, None, None, None]
    # The pipeline has two text encoders, here twice the same one: features side by side. One zero
    # token at the end.
    hidden, pooled = (
        data.hidden[caption].float().repeat(1, 1, 2),
        data.pooled[caption].float().repeat(1, 2),
    )
    bias = phantom_bias(draw_phantoms(len(rows), generator), 16 + hidden.shape[1] + 1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(
            (1 - level) * x0 + level * eps, F.pad(hidden, (0, 0, 0, 1)), pooled, 1000 * t, bias
        )
    return (velocity.float() - (eps - x0)).square().mean()


class Denoiser(nn.Module):
    """The transformer with the attention bias as a plain argument, so that one compiled graph
    serves all steps."""

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        transformer.set_attn_processor(BiasedJointAttention())
        self.transformer = transformer

    def forward(
        self, x: Tensor, hidden: Tensor, pooled: Tensor, timestep: Tensor, bias: Tensor
    ) -> Tensor:
        """Velocity (B, 8, 8, 8)."""
        kwargs = {"attention_mask": bias}
        return self.transformer(
            x, hidden, pooled, timestep, joint_attention_kwargs=kwargs, return_dict=False
        )[0]


def build_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW at half its rate for the rest."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inside = (
            ".transformer_blocks." in f".{name}" and parameter.ndim == 2 and ".norm1" not in name
        )
        (matrices if inside else rest).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        rest, lr=learning_rate / 2, betas=(0.9, 0.98), weight_decay=0.0, foreach=True
    )
    return [muon, adam]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of Muon")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument(
        "--compile", action="store_true", help="needs a C++ compiler; about a minute to start"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train until the budget is spent; state with averaged weights in OUT/flow.safetensors."""
    data = prepare(arguments.out, number=arguments.pictures, seed=arguments.seed)
    model = build_transformer()
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizers = build_optimizers(model, arguments.learning_rate)
    base = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    state = arguments.out / "flow.safetensors"
    budget, step = Budget(steps=arguments.steps, minutes=arguments.minutes), 0
    if state.exists():
        groups, step, budget.seconds_before = load_state(state)
        model.load_state_dict(groups["model"])
        average = {name: groups["average"][name] for name in average}
        for optimizer, name in zip(optimizers, ("muon", "adam"), strict=True):
            restore_optimizer(optimizer, groups[name])
    # A resumed run draws new batches; the same seed and step always draw the same.
    generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
    denoiser = Denoiser(model)
    denoise = torch.compile(denoiser) if arguments.compile else denoiser
    running, saved = None, budget.seconds()
    while (progress := budget.progress(step)) < 1:
        for optimizer, rate in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = rate * cosine(progress, warmup=0.01, floor=0.01)
        rows = torch.randint(len(data.latents), (arguments.batch,), generator=generator)
        loss = flow_matching_loss(denoise, data, rows, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        # Short memory at first, so that early snapshots are not averages with the start.
        decay = min(EMA_DECAY, (step + 1) / (step + 20))
        torch._foreach_lerp_(
            list(average.values()), [p.detach() for p in model.parameters()], 1 - decay
        )
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0:
            print(
                log_line(step, running, budget),
                flush=True,
            )
        if budget.seconds() - saved > SAVE_EVERY_SECONDS:
            _save(state, model, average, optimizers, step, budget.seconds())
            saved = budget.seconds()
    _save(state, model, average, optimizers, step, budget.seconds())


def _save(
    path: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> None:
    muon, adam = (optimizer_tensors(optimizer) for optimizer in optimizers)
    tensors = {"model": model.state_dict(), "average": average, "muon": muon, "adam": adam}
    save_state(path, tensors, step=step, seconds=seconds)


if __name__ == "__main__":
    main()
