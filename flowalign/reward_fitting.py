"""A reward of one's own from preference pairs: a linear head on a frozen CLIP's picture features.

minimise over w: mean over pairs of -log P(label | w (f_a - f_b)) + penalty / 2 |w|^2, with P of
Bradley and Terry, or of Rao and Kupper where people called ties (`flowalign.reward_losses`). The
problem is convex: one answer, whatever the start. Features have length 1, so a score reads the
picture alone, as reward `aesthetic` does, in whose form the head is written.

P pairs, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from flowalign.data.dataset import VALUES
from flowalign.data.layouts import Layout
from flowalign.data.media import load_media
from flowalign.data.read import rows_of
from flowalign.data.rows import Media, PairRow
from flowalign.disk import write_file
from flowalign.errors import ConfigError, DataError, FlowalignError, first_of
from flowalign.exemplars import unit_picture_features
from flowalign.randomness import generator
from flowalign.reward_losses import bradley_terry, bradley_terry_ties
from flowalign.reward_metrics import TieAccuracy, accuracy_with_ties, accuracy_without_ties
from flowalign.similarity import BATCH_SIZE, PictureTower

MAX_STEPS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Pairs of pictures as features, with what people said of them."""

    a: Tensor  # (P, D) float32, of length 1
    b: Tensor
    label: Tensor  # (P,) int64: 1 a is better, -1 b is, 0 tie
    prompt: Tensor  # (P,) int64, the number of the pair's prompt

    def rows(self, chosen: Tensor) -> Judged:
        """Those where `chosen` (P,) bool."""
        return Judged(
            a=self.a[chosen],
            b=self.b[chosen],
            label=self.label[chosen],
            prompt=self.prompt[chosen],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """How well a head agrees with people on prompts that it was not fitted to."""

    fitted: int  # pairs
    held_out: int
    ties: int  # of all pairs
    decided: float  # accuracy on the held-out pairs that people decided
    with_ties: TieAccuracy  # on all held-out pairs

    def lines(self) -> list[str]:
        """For people."""
        told = [
            f"fitted to {self.fitted} pairs; {self.held_out} pairs of other prompts held out; "
            f"{self.ties} ties in all",
            f"held out: {self.decided:.3f} of decided pairs are ordered as people do (chance .5)",
        ]
        if self.ties:
            told.append(
                f"held out: {self.with_ties.accuracy:.3f} of all pairs with ties, called at "
                f"score differences up to {max(self.with_ties.threshold, 0.0):.3g}"
            )
        return told


def read_judged(
    path: Path,
    towers: PictureTower,
    *,
    dimension: str | None = None,
    layout: Layout | None = None,
    media_folder: Path | None = None,
) -> Judged:
    """All judged pairs of a file of preferences; each picture is read and encoded once.

    Raises the first fault of the data; DataError for rows that are no pairs of pictures, and
    ConfigError when a pair has several dimensions and none is chosen.
    """
    found = list(rows_of(path, layout=layout, media_folder=media_folder))
    if faults := [row for row in found if isinstance(row, FlowalignError)]:
        raise first_of(faults)
    pairs = [row for row in found if isinstance(row, PairRow)]
    if not pairs:
        what = "holds no preference pairs" if found else "has no rows"
        raise DataError("DATA-KIND", str(path), what, "give pairs, for example from `collect`")
    name = _dimension(pairs[0], dimension, path)
    judged = [pair for pair in pairs if pair.preference[name] is not None]
    if not judged:
        what = f"none of the {len(pairs)} pairs is judged in `{name}`"
        raise DataError("DATA-FEW", str(path), what, "choose another dimension")
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(p.prompt for p in judged))}
    media = {(m.path, m.cell): (m, pair.where) for pair in judged for m in pair.media}
    features = dict(zip(media, _encoded(list(media.values()), towers), strict=True))
    answers = [VALUES[pair.preference[name] or "tie"] for pair in judged]
    return Judged(
        a=torch.stack([features[pair.a.path, pair.a.cell] for pair in judged]),
        b=torch.stack([features[pair.b.path, pair.b.cell] for pair in judged]),
        label=torch.tensor([int(first - second) for first, second in answers]),
        prompt=torch.tensor([numbers[pair.prompt] for pair in judged]),
    )


def _dimension(pair: PairRow, wanted: str | None, path: Path) -> str:
    names = list(pair.preference)
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return wanted
    what = f"the pairs of {path} are judged in {', '.join(names)}"
    raise ConfigError("CFG-DIMENSION", "--dimension", what, "name one of them")


@torch.no_grad()
def _encoded(media: Sequence[tuple[Media, str]], towers: PictureTower) -> Tensor:
    """(M, D) of M pictures, few of which are in memory at once."""
    parts = []
    for i in range(0, len(media), BATCH_SIZE):
        pictures = []
        for medium, where in media[i : i + BATCH_SIZE]:
            picture, modality, _ = load_media(medium, where)
            if modality != "image":
                what = f"{medium.name} is {modality}, and the head is on pictures"
                raise DataError("DATA-KIND", where, what, "give pairs of pictures")
            pictures.append(picture)
        parts.append(unit_picture_features(towers, pictures))
    return torch.cat(parts)


def fit_direction(judged: Judged, *, penalty: float) -> Tensor:
    """(D,) float64: the w that minimises the penalised loss, by L-BFGS from zero."""
    apart = (judged.a - judged.b).double()
    ties = bool((judged.label == 0).any())
    w = torch.zeros(apart.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w],
        max_iter=MAX_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        score = apart @ w
        losses = (
            bradley_terry_ties(score, judged.label) if ties else bradley_terry(score * judged.label)
        )
        loss = losses.mean() + penalty / 2.0 * w.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return w.detach()


def split_by_prompt(judged: Judged, *, share: float, seed: int) -> tuple[Judged, Judged]:
    """(to fit, held out): about `share` of the prompts are held out with all their pairs.

    Raises DataError where one of the two has no pair that people decided.
    """
    num = int(judged.prompt.max()) + 1
    out = torch.randperm(num, generator=generator(seed, "held-out prompts"))[: round(num * share)]
    held = torch.isin(judged.prompt, out)
    parts = judged.rows(~held), judged.rows(held)
    if any(not bool((part.label != 0).any()) for part in parts):
        what = f"{len(held)} pairs of {num} prompts leave a side without a decided pair"
        raise DataError("DATA-FEW", "pairs", what, "give more pairs, or another --held-out")
    return parts


def fit_head(
    judged: Judged, *, penalty: float, share: float, seed: int
) -> tuple[dict[str, Tensor], FitReport]:
    """(tensors of a head of reward `aesthetic`, report); scores have mean 0 on the fitted pairs."""
    fitted, held = split_by_prompt(judged, share=share, seed=seed)
    w = fit_direction(fitted, penalty=penalty)
    difference = (held.a - held.b).double() @ w
    report = FitReport(
        fitted=len(fitted.label),
        held_out=len(held.label),
        ties=int((judged.label == 0).sum()),
        decided=accuracy_without_ties(difference, held.label),
        with_ties=accuracy_with_ties(difference, held.label),
    )
    centre = torch.cat([fitted.a, fitted.b]).double().mean(0)
    tensors = {"layers.0.weight": w[None].float(), "layers.0.bias": -(centre @ w)[None].float()}
    return tensors, report


def write_head(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a head as safetensors, whole or not at all."""
    write_file(path, save(tensors))
