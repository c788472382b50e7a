"""What flow training reads: latents of rendered pictures and text embeddings of their captions,
computed once.

Letters: N pictures, K distinct captions, L = 16 tokens, latents (N, 8, 8, 8) scaled to unit
standard deviation.
"""

# diffusers and transformers declare tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from flowalign.worlds.shapes.dataset import training_scenes
from flowalign.worlds.shapes.render import pictures
from flowalign.worlds.shapes.training.checkpoint import load_state
from flowalign.worlds.shapes.training.clip import build_clip
from flowalign.worlds.shapes.training.tokenizer import build_tokenizer
from flowalign.worlds.shapes.training.vae import build_vae

CHUNK = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """The training set of the flow. Row K of the text tensors is the empty prompt."""

    latents: Tensor  # (N, 8, 8, 8) bfloat16, (encoded - shift) * scale
    caption: Tensor  # (N,) int64, row of the text tensors
    hidden: Tensor  # (K + 1, L, 96) bfloat16, the text tower's last layer but one
    pooled: Tensor  # (K + 1, 64) bfloat16
    shift_scale: Tensor  # (2,) float: the VAE's shift_factor and scaling_factor


def trained_vae(folder: Path) -> AutoencoderKL:
    """The VAE of a training folder, with the tuned decoder where there is one."""
    vae = build_vae()
    vae.load_state_dict(load_state(folder / "vae.safetensors")[0]["model"])
    if (folder / "vae_decoder.safetensors").exists():
        tuned = load_state(folder / "vae_decoder.safetensors")[0]["model"]
        vae.decoder.load_state_dict(
            {k.removeprefix("decoder."): v for k, v in tuned.items() if k.startswith("decoder.")}
        )
    return vae.eval()


def trained_clip(folder: Path) -> CLIPModel:
    """The CLIP of a training folder."""
    clip = build_clip()
    clip.load_state_dict(load_state(folder / "clip.safetensors")[0]["model"])
    return clip.eval()


@torch.no_grad()
def encode_text(clip: CLIPModel, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Token features (K, L, 96) and pooled projection (K, 64), as StableDiffusion3Pipeline takes
    them."""
    tokenizer = build_tokenizer()
    hidden, pooled = [], []
    for start in range(0, len(captions), CHUNK):
        tokens = tokenizer(
            captions[start : start + CHUNK],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        output = clip.text_model(input_ids=tokens, output_hidden_states=True)
        hidden.append(output.hidden_states[-2].bfloat16())
        pooled.append(clip.text_projection(output.pooler_output).bfloat16())
    return torch.cat(hidden), torch.cat(pooled)


@torch.no_grad()
def prepare(folder: Path, *, number: int, seed: int) -> Latents:
    """Render, encode and cache in FOLDER/latents.safetensors; read the cache where it exists."""
    cache = folder / "latents.safetensors"
    if cache.exists():
        return Latents(**load_file(cache))
    generator = torch.Generator().manual_seed(seed + 1)
    captions, scenes = training_scenes(number, seed=seed + 1)
    vae, clip = trained_vae(folder), trained_clip(folder)
    encoded = []
    for start in range(0, number, CHUNK):
        images = pictures(scenes[start : start + CHUNK], generator)
        encoded.append(vae.encode(images * 2 - 1).latent_dist.mean)
    raw = torch.cat(encoded)
    shift, scale = raw.mean(), 1 / raw.std()
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    hidden, pooled = encode_text(clip, [*rows, ""])
    data = {
        "latents": ((raw - shift) * scale).bfloat16(),
        "caption": torch.tensor([rows[caption] for caption in captions]),
        "hidden": hidden,
        "pooled": pooled,
        "shift_scale": torch.stack([shift, scale]),
    }
    save_file(data, cache)
    return Latents(**data)
