"""Who is best among finished samples, by the reward or by the ranks of several.

G groups of n samples; a standing (G, n) float64 is larger for the better one, -inf where there is
no valid reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from flowalign.steering.protocols import Finish, Verdict


class Standing(Protocol):
    """How samples of a group compare."""

    def __call__(self, finish: Finish, places: Tensor) -> Tensor:
        """Standings (G, n) of the samples at `places` (G, n) of `finish`."""
        ...


def by_reward(finish: Finish, places: Tensor) -> Tensor:
    """The combined reward."""
    reward, valid = finish.verdict.reward[places], finish.verdict.valid[places]
    return torch.where(valid, reward, -torch.inf)


def by_ranks(weights: Mapping[str, float]) -> Standing:
    """The weighted mean of each reward's rank in the group; the worst has rank 0.

    The verifier ensemble of arXiv 2501.09732, section 3.2, which weighs all alike. Scales of the
    rewards do not matter; equal values share their mean rank. Who is better of two can depend on
    the others they are ranked with.
    """
    used = {name: weight for name, weight in weights.items() if weight != 0}

    def standing(finish: Finish, places: Tensor) -> Tensor:
        valid = finish.verdict.valid[places]
        total = torch.zeros(places.shape, dtype=torch.float64)
        for name, weight in used.items():
            total += weight * ranks(finish.terms[name][places].double(), valid)
        return torch.where(valid, total / sum(map(abs, used.values())), -torch.inf)

    return standing


def ranks(values: Tensor, valid: Tensor) -> Tensor:
    """(G, n) number of valid values of the group that are smaller, and half of the equal others."""
    own, others = values[:, :, None], values[:, None, :]
    beaten = (others < own).double() + 0.5 * (others == own).double()
    return (beaten * valid[:, None, :]).sum(dim=2) - 0.5


def best_places(standing: Tensor, count: int) -> Tensor:
    """(G, count) places of the best in each group, the best first and ties in order."""
    return standing.sort(dim=1, descending=True, stable=True).indices[:, :count]


def joined(parts: Sequence[Finish]) -> Finish:
    """All finished samples one after another."""
    verdict = Verdict(
        reward=torch.cat([part.verdict.reward for part in parts]),
        valid=torch.cat([part.verdict.valid for part in parts]),
    )
    terms = {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms}
    samples = [sample for part in parts for sample in part.samples]
    return Finish(verdict=verdict, samples=samples, terms=terms)


def picked(finish: Finish, places: Tensor) -> Finish:
    """The finished samples at `places` (m,)."""
    verdict = Verdict(reward=finish.verdict.reward[places], valid=finish.verdict.valid[places])
    return Finish(
        verdict=verdict,
        samples=[finish.samples[place] for place in places.tolist()] if finish.samples else [],
        terms={name: values[places] for name, values in finish.terms.items()},
    )
