"""Train the tiny CLIP: `python -m flowalign.worlds.shapes.training.clip --minutes 6 --out DIR`.

Contrastive learning with hard negatives: each caption also comes with copies that are wrong in one
colour, shape, number or binding. Wrong relations are left out on purpose, so that the built-in
proxy reward has a blind spot, as large CLIP models have. Letters: B pictures (B, 3, 32, 32) in [0,
1], K captions, L = 16 tokens, D = 64 features.
"""

# diffusers and transformers declare tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from flowalign.worlds.shapes.corruptions import corrupt
from flowalign.worlds.shapes.dataset import training_scenes
from flowalign.worlds.shapes.grammar import caption
from flowalign.worlds.shapes.render import pictures
from flowalign.worlds.shapes.scene import Scene
from flowalign.worlds.shapes.training.checkpoint import (
    Budget,
    cosine,
    load_state,
    log_line,
    optimizer_tensors,
    restore_optimizer,
    save_state,
)
from flowalign.worlds.shapes.training.tokenizer import MAX_LENGTH, build_tokenizer

HARD_NEGATIVES = ("colour", "shape", "shape", "count", "binding", "background", "size")
NEGATIVES_PER_CAPTION = 2
NOISE = (
    0.05  # standard deviation of pixel noise at most, so that generated pictures are not foreign
)


def build_clip() -> CLIPModel:
    """Width 96, 3 heads; text 3 layers, vision 3 layers on 4-pixel patches; 64 features.

    Quick GELU, pre-norm, class token and end-of-text pooling: the arithmetic of open_clip's ViT as
    well.
    """
    tokenizer = build_tokenizer()
    shared = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 64,
    }
    vision = {"image_size": 32, "patch_size": 4, "projection_dim": 64}
    return CLIPModel(
        CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=64)
    )


def features(clip: CLIPModel, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Unit image features (B, D) of pictures in [0, 1] and unit text features (K, D) of token ids
    (K, L)."""
    image = clip.get_image_features(pixel_values=(images - 0.5) / 0.5).pooler_output
    text = clip.get_text_features(input_ids=tokens).pooler_output
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def contrastive_loss(
    scale: Tensor, image: Tensor, text: Tensor, hard: Tensor, same: Tensor
) -> Tensor:
    """Symmetric cross-entropy of image features (B, D) against texts (B, D) and hard negatives (B,
    M, D).

    `same` (B, B) marks captions of other pictures that show the same things: they are no negatives.
    """
    logits = scale * image @ text.T
    logits = logits.masked_fill(same & ~torch.eye(len(image), dtype=torch.bool), float("-inf"))
    hard_logits = scale * (image[:, None] * hard).sum(-1)
    target = torch.arange(len(image))
    from_image = F.cross_entropy(torch.cat([logits, hard_logits], dim=1), target)
    # Only against the picture's own corrupted captions: strong signal that in-batch negatives would
    # drown.
    own = F.cross_entropy(
        torch.cat([logits.diagonal()[:, None], hard_logits], dim=1), torch.zeros_like(target)
    )
    return (from_image + F.cross_entropy(logits.T, target)) / 2 + own


class Captions:
    """Token ids of captions and of their hard negatives, made once; and an id of the things that a
    scene shows."""

    def __init__(self, captions: list[str], scenes: list[Scene], *, seed: int) -> None:
        rng = random.Random(seed)
        tokenizer = build_tokenizer()
        wrong = [
            caption(_wrong(scene, rng)) for scene in scenes for _ in range(NEGATIVES_PER_CAPTION)
        ]
        encoded = tokenizer(
            captions + wrong, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        self.tokens = encoded[: len(captions)]
        self.hard = encoded[len(captions) :].reshape(len(captions), NEGATIVES_PER_CAPTION, -1)
        ids: dict[tuple[str, ...], int] = {}
        names = [tuple(sorted(f"{t.colour} {t.shape}" for t in scene.things)) for scene in scenes]
        self.content = torch.tensor([ids.setdefault(name, len(ids)) for name in names])


def _wrong(scene: Scene, rng: random.Random) -> Scene:
    while True:
        if (wrong := corrupt(scene, rng.choice(HARD_NEGATIVES), rng)) is not None:
            return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--pictures", type=int, default=40_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Train until the budget is spent; state in OUT/clip.safetensors."""
    generator = torch.Generator().manual_seed(arguments.seed)
    captions, scenes = training_scenes(arguments.pictures, seed=arguments.seed)
    images = (pictures(scenes, generator) * 255).round().to(torch.uint8)
    data = Captions(captions, scenes, seed=arguments.seed)
    clip = build_clip()
    optimizer = torch.optim.AdamW(
        clip.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    state = arguments.out / "clip.safetensors"
    budget, step = Budget(steps=arguments.steps, minutes=arguments.minutes), 0
    if state.exists():
        groups, step, budget.seconds_before = load_state(state)
        clip.load_state_dict(groups["model"])
        restore_optimizer(optimizer, groups["optimizer"])
    running = None
    while (progress := budget.progress(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * cosine(progress, warmup=0.04)
        rows = torch.randint(len(images), (arguments.batch,), generator=generator)
        loss = _batch_loss(clip, images[rows].float() / 255, data, rows, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.6)
        step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(
                log_line(step, running, budget),
                flush=True,
            )
        if step % 250 == 0:
            _save(state, clip, optimizer, step, budget.seconds())
    _save(state, clip, optimizer, step, budget.seconds())


def _batch_loss(
    clip: CLIPModel, images: Tensor, data: Captions, rows: Tensor, generator: torch.Generator
) -> Tensor:
    size = len(images)
    level = NOISE * torch.rand(size, 1, 1, 1, generator=generator)
    images = images + level * torch.randn(images.shape, generator=generator)
    tokens = torch.cat([data.tokens[rows], data.hard[rows].flatten(0, 1)])
    with torch.autocast("cpu", torch.bfloat16):
        image, text = features(clip, images, tokens)
    content = data.content[rows]
    same = content[:, None] == content[None, :]
    return contrastive_loss(
        clip.logit_scale.exp(),
        image,
        text[:size],
        text[size:].reshape(size, -1, text.shape[-1]),
        same,
    )


def _save(
    path: Path, clip: CLIPModel, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    tensors = {"model": clip.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    save_state(path, tensors, step=step, seconds=seconds)


if __name__ == "__main__":
    main()
