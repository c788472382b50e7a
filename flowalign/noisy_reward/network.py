"""A small network that reads a noisy latent, its level and a prompt, and answers K rewards.

Letters: B samples, *S the latent's shape, (C, h, w) or (N, C); P tokens of the latent, L of the
prompt, W their width, K heads. VideoAlign (arXiv 2501.13918) starts from the generator's
early layers; ours starts from nothing, so it fits every generator, whatever its layers are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowalign.config.noisy_card import Card
from flowalign.errors import CheckpointError

FREQUENCIES = 16  # of the level's embedding
SHARPNESS = 2.0  # of the words' attention
GROWTH = 2  # of a block's hidden layer


class Block(nn.Module):
    """Attention among all tokens, then two layers of each token alone; both on normed inputs.

    The attention is written out, because for so few tokens the backward pass of the fused kernels
    is slower on a CPU.
    """

    def __init__(self, width: int, attention_heads: int) -> None:
        super().__init__()
        self.attention_heads = attention_heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, GROWTH * width), nn.Linear(GROWTH * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, W) of (B, P, W)."""
        qkv = self.qkv(self.before(x)).unflatten(-1, (3, self.attention_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.after(x))))


class NoisyReward(nn.Module):
    """h(x_t, t, y) (B, K), in standard deviations of each reward.

    Every word asks the latent whether and where there is what it names. The answers are the
    logarithm of the attention's normaliser, which is what a softmax throws away, and what was
    attended to. Without the first, a plain transformer of this size and cost takes several times
    as many steps before it compares words with pictures at all.
    """

    def __init__(self, card: Card) -> None:
        super().__init__()
        sizes, width = card.network, card.network.width
        tokens, features = patches_of(card.latent_shape, sizes.patch)
        self.patch, self.attention_heads = sizes.patch, sizes.attention_heads
        self.latent, self.level = nn.Linear(features, width), nn.Linear(2 * FREQUENCIES, width)
        self.place = nn.Parameter(0.3 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(Block(width, self.attention_heads) for _ in range(sizes.layers))
        self.norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(card.text.width)
        self.ask, self.word = (nn.Linear(card.text.width, width) for _ in range(2))
        self.show = nn.Linear(width, width)
        self.join = nn.Linear(2 * width + self.attention_heads, width)
        self.reader = Block(width, self.attention_heads)
        self.whole = nn.Linear(width, width)
        self.last = nn.Linear(2 * width, width)
        self.answer = nn.Linear(width, len(card.heads))

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """(B, K) of states x (B, *S), levels t (B,) in [0, 1] and text (B, L, D), float32."""
        latent = self.latent(patched(x, self.patch)) + self.place + self.level(waves(t))[:, None]
        for block in self.blocks:
            latent = block(latent)
        latent = self.norm(latent)
        read = self.text_norm(text)
        words = functional.gelu(
            self.join(torch.cat([self.word(read), *self.seen(read, latent)], -1))
        )
        words = self.reader(words).mean(1)
        whole = functional.gelu(self.whole(latent)).mean(1)
        return self.answer(functional.gelu(self.last(torch.cat([words, whole], dim=-1))))

    def seen(self, read: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """What each word attends to (B, L, W), and log sum exp of its scores (B, L, heads)."""
        heads = self.attention_heads
        q = self.ask(read).unflatten(-1, (heads, -1)).transpose(1, 2)
        k = latent.unflatten(-1, (heads, -1)).transpose(1, 2)
        v = self.show(latent).unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = SHARPNESS * (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return attended, torch.logsumexp(scores, dim=-1).transpose(1, 2) / SHARPNESS


def waves(t: Tensor) -> Tensor:
    """Cosines and sines (B, 32) of levels (B,), of periods from 2 to 1/4."""
    exponents = torch.linspace(0.0, 1.0, FREQUENCIES, device=t.device)
    angles = t.float()[:, None] * math.pi * 8.0**exponents
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def patches_of(shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """(tokens P, features of each) of latents (C, h, w), or (N, C) with patch 1.

    Raises:
        CheckpointError: latents of this shape have no such patches.
    """
    if len(shape) == 2 and patch == 1:
        return shape
    if len(shape) == 3 and shape[1] % patch == 0 and shape[2] % patch == 0:
        return shape[1] * shape[2] // patch**2, shape[0] * patch**2
    what = f"latents of shape {shape} cannot be cut into patches of {patch}"
    fix = "they have to be (C, h, w), h and w multiples of the patch, or (N, C) with patch 1"
    raise CheckpointError("CKPT-SHAPE", "noisy reward", what, fix)


def patched(x: Tensor, patch: int) -> Tensor:
    """Tokens (B, P, features) of latents."""
    return x if x.ndim == 3 else functional.unfold(x, patch, stride=patch).transpose(1, 2)
