"""What a reward asks a Qwen2-VL about samples, and the states with which it answers.

N samples, K reward tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flowalign.errors import ConfigError
from flowalign.qwen2_vl import QwenReader
from flowalign.sample_failures import SampleFailuresError, SampleFault
from flowalign.types import Sample

PLACE = "{prompt}"


def read_template(path: str | None, own: str, tokens: Sequence[str], where: str) -> str:
    """The text of a file, or `own`; it holds the prompt's place and each token exactly once."""
    if path is None:
        return own
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"`template: {path}` cannot be read: {str(error)[:200]}"
        raise ConfigError("CFG-FILE", where, what, "name a text file") from error
    for part in (PLACE, *tokens):
        if text.count(part) != 1:
            what = f"`template: {path}` holds `{part}` {text.count(part)} times"
            fix = f"let it hold {', '.join((PLACE, *tokens))} once each"
            raise ConfigError("CFG-CONFLICT", where, what, fix)
    return text


def states_of(
    reader: QwenReader,
    samples: Sequence[Sample],
    look: Callable[[Sample], Tensor],
    *,
    template: str,
    batch_size: int,
    least: int,
    most: int,
    video: bool,
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """(states (M, K, D) of the M samples that can be asked about, their rows (M,), reasons by row).

    `look` gives the frames (F, 3, H, W) that are shown, in [0, 1].
    """
    frames, texts, rows, reasons = [], [], [], {}
    for row, sample in enumerate(samples):
        shown = look(sample)
        try:
            reader.vision.size(*shown.shape[-2:], least=least, most=most)
        except SampleFault as fault:
            reasons[row] = str(fault)
            continue
        if reason := reader.refuse(sample.prompt):
            reasons[row] = reason
            continue
        frames.append(shown)
        texts.append(template.replace(PLACE, sample.prompt))
        rows.append(row)
    parts = [
        reader.states(
            texts[i : i + batch_size],
            frames[i : i + batch_size],
            least=least,
            most=most,
            video=video,
        )
        for i in range(0, len(rows), batch_size)
    ]
    states = torch.cat(parts) if parts else torch.zeros(0)
    return states, torch.tensor(rows, dtype=torch.long), reasons


def answer(
    scores: Tensor, rows: Tensor, reasons: dict[int, str], num: int
) -> tuple[Tensor, Tensor]:
    """(values (N,), valid (N,)) on the CPU from `scores` (M,) of the samples `rows`."""
    if not reasons:
        return scores.cpu(), torch.ones(num, dtype=torch.bool)
    values, valid = torch.full((num,), torch.nan), torch.zeros(num, dtype=torch.bool)
    if len(rows):
        values = values.index_put((rows,), scores.cpu())
        valid[rows] = True
    raise SampleFailuresError(values, valid, reasons)
