"""Search over noises: Ma et al., arXiv 2501.09732, with any sampler.

Random search draws fresh noises; zero-order search moves to a neighbour of the best noise so far
when that is better; search over paths takes half-finished samples back by noise, draws them on
anew, and keeps the best. The paper does not say how neighbours are drawn; ours keep the noise's
length, because a sampler knows noise of that length only.

G groups, M tries of each in a round, S survivors of each; *S the shape of one state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.gaussian import per_sample
from flowalign.protocols import Path
from flowalign.steering.protocols import Finish
from flowalign.steering.standings import Standing, best_places, joined, picked


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round tried."""

    reward: Tensor  # (G, n)
    valid: Tensor  # (G, n)
    chosen: Sequence[Sequence[int]]  # of each group, which of the n are among the best from now on


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The best of each group."""

    noise: Tensor  # (G, *S), or the end where there is no noise to draw it from
    place: Tensor  # (G,) number of the try, counted from the first round
    finish: Finish  # G
    history: Sequence[Round]


def neighbours(noise: Tensor, draws: Tensor, similarity: float) -> Tensor:
    """|n| (tau u + sqrt(1 - tau^2) w) (G, M, *S): u = n / |n|, w a random unit vector across it.

    `noise` (G, *S) is n and `draws` (G, M, *S) standard normal; `similarity` is tau, the cosine
    of a neighbour and n. Exact up to rounding: computed in float64, on the CPU, since not every
    device has it.
    """
    n, z = noise.cpu().double().flatten(1)[:, None], draws.cpu().double().flatten(2)
    length = n.norm(dim=2, keepdim=True)
    u = n / length
    across = z - (z * u).sum(dim=2, keepdim=True) * u
    w = across / across.norm(dim=2, keepdim=True)
    moved = length * (similarity * u + (1.0 - similarity**2) ** 0.5 * w)
    return moved.view(draws.shape).to(noise)


def renoised(path: Path, x: Tensor, eps: Tensor, t: Tensor, t_back: Tensor) -> Tensor:
    """rho x + sqrt(sigma'^2 - rho^2 sigma^2) eps, rho = alpha' / alpha: from t back to t' > t.

    A state with the marginal law of t gets that of t', on every path. Shapes (n, *S); t 0-dim.
    """
    alpha, alpha_back = path.alpha(t), path.alpha(t_back)
    sigma, sigma_back = path.sigma(t), path.sigma(t_back)
    rho = alpha_back / alpha
    fresh = (sigma_back.square() - (rho * sigma).square()).sqrt()
    return per_sample(rho, x) * x + per_sample(fresh, x) * eps.to(x.dtype)


def random_search(
    tries: Callable[[int], Tensor],
    draw: Callable[[Tensor, int], Finish],
    standing: Standing,
    *,
    rounds: int,
) -> Found:
    """The best of rounds x M fresh noises; all are compared at the end.

    `tries(k)` are the noises (G, M, *S) of a round, `draw` what becomes of them (G M, *S).
    """
    noises = [tries(number) for number in range(rounds)]
    groups, width = noises[0].shape[:2]
    parts = [draw(noise.flatten(0, 1), number) for number, noise in enumerate(noises)]
    finish = joined(parts)
    places = torch.arange(rounds * groups * width).view(rounds, groups, width).transpose(0, 1)
    places = places.flatten(1)  # (G, rounds M), in the order of the tries
    best = best_places(standing(finish, places), 1)
    tried = torch.cat(noises, dim=1)
    history = [
        told(
            part, groups, [[p - k * width] if p // width == k else [] for p in best[:, 0].tolist()]
        )
        for k, part in enumerate(parts)
    ]
    return Found(
        noise=tried[torch.arange(groups), best[:, 0]],
        place=best[:, 0],
        finish=picked(finish, places.gather(1, best)[:, 0]),
        history=history,
    )


def zero_order(
    first: Tensor,
    tries: Callable[[Tensor, int], Tensor],
    draw: Callable[[Tensor, int], Finish],
    standing: Standing,
    *,
    rounds: int,
) -> Found:
    """From `first` (G, *S), each round to the best of its M neighbours where that is better.

    `tries(noise, k)` are the neighbours (G, M, *S) in a round; `draw` as above, with round -1 for
    `first`. With the reward as standing, the reward never falls.
    """
    groups = len(first)
    noise, finish = first, draw(first, -1)
    place = torch.zeros(groups, dtype=torch.long)
    history = [told(finish, groups, [[0]] * groups)]
    for number in range(rounds):
        tried = tries(noise, number)
        width = tried.shape[1]
        found = draw(tried.flatten(0, 1), number)
        both = joined([finish, found])
        own = torch.arange(groups)[:, None]
        places = torch.cat([own, groups + own * width + torch.arange(width)], dim=1)
        best = best_places(standing(both, places), 1)  # a tie is not better: the old one is first
        candidates = torch.cat([noise[:, None], tried], dim=1)
        noise = candidates[torch.arange(groups), best[:, 0]]
        finish = picked(both, places.gather(1, best)[:, 0])
        moved = best[:, 0] > 0
        place = torch.where(moved, number * width + best[:, 0], place)
        history.append(told(found, groups, [[p - 1] if p else [] for p in best[:, 0].tolist()]))
    return Found(noise=noise, place=place, finish=finish, history=history)


def path_search(
    x: Tensor,
    go_on: Callable[[Tensor, int], tuple[Tensor, Finish]],
    standing: Standing,
    *,
    rounds: int,
) -> Found:
    """The best end of `rounds` rounds from half-finished samples `x` (G, S, *S).

    `go_on(x, k)` takes survivors (G, S, *S) back, draws M of each on to the end of round k, and
    returns these states (G, S M, *S) and what they promise or, in the last round, have become.
    """
    groups, survivors = x.shape[:2]
    own = torch.arange(groups)[:, None]
    history: list[Round] = []
    for number in range(rounds):
        x, finish = go_on(x, number)
        places = own * x.shape[1] + torch.arange(x.shape[1])
        last = number + 1 == rounds
        best = best_places(standing(finish, places), 1 if last else survivors)
        x = x[own, best]
        history.append(told(finish, groups, best.tolist()))
        if last:
            ended = picked(finish, places.gather(1, best)[:, 0])
            return Found(noise=x[:, 0], place=best[:, 0], finish=ended, history=history)
    raise AssertionError("there is at least one round")


def told(finish: Finish, groups: int, chosen: Sequence[Sequence[int]]) -> Round:
    """The record of a round."""
    reward, valid = finish.verdict.reward.view(groups, -1), finish.verdict.valid.view(groups, -1)
    return Round(reward=reward, valid=valid, chosen=chosen)
