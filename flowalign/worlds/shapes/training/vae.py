"""Train the tiny VAE: `python -m flowalign.worlds.shapes.training.vae --minutes 4 --out DIR`.

Two stages. First the whole autoencoder; then, with `--decoder-only`, the decoder alone on noisy
latents, so that it repairs the small errors that a generator makes. The encoder, and so every
cached latent, stays as it was.
Letters: B pictures, (B, 3, 32, 32) in [-1, 1]; latents (B, 8, 8, 8).
"""

# diffusers and transformers declare tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from flowalign.worlds.shapes.dataset import training_scenes
from flowalign.worlds.shapes.render import pictures
from flowalign.worlds.shapes.training.checkpoint import (
    Budget,
    cosine,
    load_state,
    log_line,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)

KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.5
LATENT_NOISE = 0.08  # of the latent's standard deviation, decoder stage


def build_vae() -> AutoencoderKL:
    """4x downsampling to 8 channels. Group norm over all channels: over few channels it erases
    flat colour."""
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=1,
        sample_size=32,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    # The encoder starts almost without noise (log variance -6), else noise hides the signal for
    # hundreds of steps.
    torch.nn.init.constant_(vae.encoder.conv_out.bias[8:], -6.0)
    return vae


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + squared error + L1 of the differences between neighbours, which keeps edges sharp."""
    error = output - target
    edges = sum((error - error.roll(1, dims=axis)).abs().mean() for axis in (2, 3))
    return error.abs().mean() + error.square().mean() + EDGE_WEIGHT * edges


def step_loss(
    vae: AutoencoderKL, images: Tensor, decoder_only: bool, generator: torch.Generator
) -> Tensor:
    """The loss of one batch."""
    if decoder_only:
        with torch.no_grad():
            mean = vae.encode(images).latent_dist.mean
            # Half of the pictures stay exact, so that reconstruction does not get worse.
            scale = (
                LATENT_NOISE
                * mean.std()
                * (torch.rand(len(mean), 1, 1, 1, generator=generator) * 2 - 1).clamp_min(0)
            )
            latents = mean + scale * torch.randn(mean.shape, generator=generator)
        return reconstruction_loss(vae.decode(latents).sample, images)
    posterior = vae.encode(images).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(
        posterior.mean.shape, generator=generator
    )
    return (
        reconstruction_loss(vae.decode(latents).sample, images) + KL_WEIGHT * posterior.kl().mean()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument(
        "--decoder-only",
        action="store_true",
        help="start from OUT/vae.safetensors, keep its encoder",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train until the budget is spent; state in OUT/vae[_decoder].safetensors, loss log beside
    it."""
    generator = torch.Generator().manual_seed(arguments.seed)
    images = (
        pictures(training_scenes(arguments.pictures, seed=arguments.seed)[1], generator) * 2 - 1
    )
    vae = build_vae()
    state = arguments.out / (
        "vae_decoder.safetensors" if arguments.decoder_only else "vae.safetensors"
    )
    if arguments.decoder_only and not state.exists():
        vae.load_state_dict(load_state(arguments.out / "vae.safetensors")[0]["model"])
    parameters = list((vae.decoder if arguments.decoder_only else vae).parameters())
    optimizer = torch.optim.Adam(parameters, lr=arguments.learning_rate, betas=(0.9, 0.99))
    budget, step = Budget(steps=arguments.steps, minutes=arguments.minutes), 0
    if state.exists():
        groups, step, budget.seconds_before = load_state(state)
        vae.load_state_dict(groups["model"])
        restore_optimizer(optimizer, groups["optimizer"])
    running = None
    while (progress := budget.progress(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * cosine(progress)
        batch = images[torch.randint(len(images), (arguments.batch,), generator=generator)]
        loss = step_loss(vae, batch, arguments.decoder_only, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            line = log_line(step, running, budget)
            print(line, flush=True)
        if step % 500 == 0:
            _save(state, vae, optimizer, step, budget.seconds())
    _save(state, vae, optimizer, step, budget.seconds())


def _save(
    path: Path, vae: AutoencoderKL, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    tensors = {"model": vae.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    save_state(path, tensors, step=step, seconds=seconds)


if __name__ == "__main__":
    main()
