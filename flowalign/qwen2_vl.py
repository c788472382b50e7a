"""Qwen2-VL as a frozen reader: its hidden states at chosen tokens of a text about frames.

Qwen2-VL (arXiv 2409.12191). Frames are resized to sides that are multiples of patch times merge,
normalised, and cut into patches of `temporal` frames; merge x merge patches become one token.

Letters: B samples, F frames (T after pairing), P patches, L tokens, K chosen tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.sample_failures import SampleFault

MOST_ELONGATED = 200  # sides of a frame, long : short
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
# The conversation as the model was trained on it, with the system text of its own template.
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{medium}<|vision_end|>{text}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vision:
    """How a Qwen2-VL wants its frames."""

    patch: int  # pixels
    merge: int  # patches of a token, in height and in width
    temporal: int  # frames of a patch
    mean: tuple[float, ...]  # of the three channels, on [0, 1]
    std: tuple[float, ...]

    def size(self, height: int, width: int, *, least: int, most: int) -> tuple[int, int]:
        """(height, width) after resizing, in pixels: between `least` and `most` in area.

        Multiples of patch times merge that keep the proportions as well as they can. With least =
        most the area is as near as such sides come.
        """
        if max(height, width) > MOST_ELONGATED * min(height, width):
            raise SampleFault(f"{height} x {width} pixels are more elongated than 200 : 1")
        unit = self.patch * self.merge
        sides = round(height / unit) * unit, round(width / unit) * unit
        if sides[0] * sides[1] > most:
            scale = math.sqrt(most / (height * width))
            return _whole(height * scale, unit, math.floor), _whole(width * scale, unit, math.floor)
        if sides[0] * sides[1] < least:
            scale = math.sqrt(least / (height * width))
            return _whole(height * scale, unit, math.ceil), _whole(width * scale, unit, math.ceil)
        return sides

    def patches(self, frames: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int, int]]:
        """((P, 3 temporal patch^2), (T, rows, columns)) of frames (F, 3, H, W) in [0, 1].

        Differentiable, never clamped or rounded. An odd last frame is paired with itself. Patches
        of one token stand together: rows and columns of tokens, then those within a token.
        """
        if frames.shape[-2:] != size:
            frames = F.interpolate(frames, size, mode="bicubic", antialias=True)
        mean = torch.tensor(self.mean, dtype=frames.dtype, device=frames.device)
        std = torch.tensor(self.std, dtype=frames.dtype, device=frames.device)
        frames = (frames - mean[:, None, None]) / std[:, None, None]
        if missing := -len(frames) % self.temporal:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        p, m = self.patch, self.merge
        grid = len(frames) // self.temporal, size[0] // p, size[1] // p
        parts = frames.reshape(grid[0], self.temporal, 3, grid[1] // m, m, p, grid[2] // m, m, p)
        parts = parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return parts.reshape(math.prod(grid), -1), grid


def _whole(side: float, unit: int, rounding: Any) -> int:
    return max(rounding(side / unit), 1) * unit


def chosen_frames(num_frames: int, rate: float, *, fps: float, least: int = 4) -> Tensor:
    """Indices (F,) of the frames that are looked at: `fps` of them a second, evenly spread.

    F is even, at least `least` and at most 768, as far as the video has them; the first and the
    last frame are among them. A video of one frame gives that frame.
    """
    most = max(min(num_frames, 768) // 2 * 2, 1)
    wanted = min(max(num_frames / rate * fps, least), most)
    count = max(round(wanted / 2) * 2, 1) if most > 1 else 1
    return torch.linspace(0, num_frames - 1, count).round().long()


def at_tokens(states: Tensor, ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """(B, K, D): states (B, L, D) where `ids` (B, L) is each of `tokens`, in their order.

    Each of them stands exactly once in every row.
    """
    found = torch.stack([ids == token for token in tokens], dim=1)  # (B, K, L)
    assert bool((found.sum(-1) == 1).all()), "a reward token must stand once in each text"
    places = found.long().argmax(-1)
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenReader:
    """A frozen Qwen2-VL without its language head."""

    model: Any  # a `Qwen2VLModel` of transformers
    tokenizer: Any  # of any class of transformers; knows the reward's tokens
    vision: Vision
    tokens: tuple[str, ...]  # where the states are read
    positions: Literal["flat", "mrope"]
    device: torch.device

    def states(
        self, texts: Sequence[str], frames: Sequence[Tensor], *, least: int, most: int, video: bool
    ) -> Tensor:
        """(B, K, D) float32; `frames` (F, 3, H, W) of each sample, `least` and `most` pixels.

        Texts are padded on the right, so that no position depends on the other samples.
        """
        parts, grids = [], []
        for one in frames:
            one = one.to(self.device, torch.float32)
            size = self.vision.size(*one.shape[-2:], least=least, most=most)
            cut, grid = self.vision.patches(one, size)
            parts.append(cut)
            grids.append(grid)
        medium = VIDEO if video else IMAGE
        rows = [self._ids(text, grid, medium) for text, grid in zip(texts, grids, strict=True)]
        length = max(len(row) for row in rows)
        ids = torch.stack([F.pad(row, (0, length - len(row))) for row in rows]).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(length, device=self.device) < lengths[:, None]).long()
        grid = torch.tensor(grids, device=self.device)
        kind = "video" if video else "image"
        pixels = {
            "pixel_values_videos" if video else "pixel_values": torch.cat(parts),
            f"{kind}_grid_thw": grid,
        }
        read = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=self._places(ids, mask, grid, kind),
            use_cache=False,
            **pixels,
        )
        # Padding has id 0, which is a word; it is behind the end, where no token is looked for.
        seen = ids.masked_fill(mask == 0, -1)
        tokens = self.tokenizer.convert_tokens_to_ids(list(self.tokens))
        return at_tokens(read.last_hidden_state, seen, tokens).float()

    def refuse(self, prompt: str) -> str | None:
        """Why a prompt cannot be asked about: it holds a token that steers the model."""
        special = [token for token in self.tokenizer.get_added_vocab() if token in prompt]
        return f"the prompt contains the special token {special[0]}" if special else None

    def _ids(self, text: str, grid: tuple[int, int, int], medium: str) -> Tensor:
        """(L,) of the conversation; the medium's token once for each merged patch."""
        num = math.prod(grid) // self.vision.merge**2
        # Not `format`: prompt and template may hold braces.
        chat = CHAT.replace("{medium}", medium).replace("{text}", text)
        ids = torch.tensor(self.tokenizer(chat, add_special_tokens=False)["input_ids"])
        place = int((ids == self.tokenizer.convert_tokens_to_ids(medium)).nonzero()[0])
        return torch.cat([ids[:place], ids[place].repeat(num), ids[place + 1 :]])

    def _places(self, ids: Tensor, mask: Tensor, grid: Tensor, kind: str) -> Tensor:
        """(3, B, L) positions in time, height and width."""
        if self.positions == "flat":
            return torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        medium = self.tokenizer.convert_tokens_to_ids(VIDEO if kind == "video" else IMAGE)
        types = (ids == medium).int() * (2 if kind == "video" else 1)
        grids = {f"{kind}_grid_thw": grid}
        return self.model.get_rope_index(ids, types, attention_mask=mask, **grids)[0]
