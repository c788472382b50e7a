"""Schemas of the steering methods that choose the initial noise, and their prices. Torch-free."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section

Count = Annotated[int, Field(ge=1)] | None
Share = Annotated[float, Field(ge=0, le=1)]


class NoiseSearchConfig(Section):
    """Search over noises by the reward of what becomes of them (arXiv 2501.09732)."""

    name: Literal["noise_search"]
    kind: Literal["random", "zero_order", "paths"] = "zero_order"
    """Fresh noises; neighbours of the best so far; or partly noised samples, drawn on anew.
    zero_order wants `sampler: ode`: what a sampler draws on its way hides the initial noise."""
    rounds: Count = None
    """Rounds of the search; when absent what `budget` pays, 4 without one."""
    neighbours: Annotated[int, Field(ge=1)] = 4
    """Noises tried in a round (paths: for each survivor)."""
    similarity: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """zero_order: cosine of a neighbour and the noise that it comes from; 0 is orthogonal."""
    search_steps: Count = None
    """random, zero_order: steps while searching; the winner is drawn again with
    `sampler.num_steps`. The same steps when absent."""
    survivors: Annotated[int, Field(ge=1)] = 2
    """paths: samples that go on after each round."""
    forward: Share = 0.89
    """paths: share of the steps before the first round."""
    back: Share = 0.78
    """paths: share of the steps that a round takes back by noise."""
    combine: Literal["sum", "rank"] = "sum"
    """Several rewards: their weighted sum, or the weighted mean of their ranks."""


class NoiseOptimizationConfig(Section):
    """Gradient ascent on the initial noise of a few-step model (ReNO, arXiv 2406.04312)."""

    name: Literal["noise_optimization"]
    iterations: Count = None
    """Gradient steps; when absent what `budget` pays, 50 without one."""
    learning_rate: Annotated[float, Field(gt=0)] = 5.0
    """Of the noise; the paper's 5, and 10 for its Hyper-SD."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov's."""
    clip_norm: Annotated[float, Field(gt=0)] = 0.1
    """Largest norm of a sample's gradient."""
    regularisation: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the noise's log-density of radius, which keeps it as long as real noise is."""
    checkpointing: bool = True
    """Keep no activations between steps: the memory of one step, for one more evaluation each."""


NoiseMethod = NoiseSearchConfig | NoiseOptimizationConfig

DEFAULT_ROUNDS, DEFAULT_ITERATIONS = 4, 50
BACKWARD = 2  # evaluations that the backward pass of one takes


def path_marks(
    method: NoiseSearchConfig, num_steps: int, rounds: int
) -> tuple[int, list[tuple[int, int]]]:
    """Steps before the first round; and of each round the step it begins at, once noised, and the
    step it ends before.

    The ends are evenly spaced from share `forward` of the steps to the last one.
    """
    back, first = (max(1, round(share * num_steps)) for share in (method.back, method.forward))
    ends = [first + round(k * (num_steps - first) / rounds) for k in range(rounds + 1)]
    return first, [(before - back, end) for before, end in pairwise(ends)]


def noises_tried(method: NoiseSearchConfig, rounds: int) -> int:
    """Noises of one population, the first ones included."""
    match method.kind:
        case "random":
            return rounds * method.neighbours
        case "zero_order":
            return 1 + rounds * method.neighbours
        case "paths":
            return method.survivors * (1 + rounds * method.neighbours)


def search_price(method: NoiseSearchConfig, num_steps: int, rounds: int) -> int:
    """Network evaluations of one population."""
    if method.kind == "paths":
        first, marks = path_marks(method, num_steps, rounds)
        walked = sum(end - begin for begin, end in marks)
        return method.survivors * (first + method.neighbours * walked)
    steps = method.search_steps or num_steps
    again = 0 if steps == num_steps else num_steps
    return noises_tried(method, rounds) * steps + again


def optimisation_price(method: NoiseOptimizationConfig, num_steps: int, iterations: int) -> int:
    """Network evaluations of one sample: every iteration goes forward and back, the last forward.

    With checkpointing the backward pass goes forward once more.
    """
    once = 1 + BACKWARD + method.checkpointing
    return num_steps * (once * iterations + 1)


def affordable(method: NoiseMethod, num_steps: int, budget: int) -> int:
    """Most rounds or iterations that `budget` pays; 0 when it does not pay one."""
    count = 0
    while price(method, num_steps, count + 1) <= budget:
        count += 1
    return count


def price(method: NoiseMethod, num_steps: int, count: int) -> int:
    """Network evaluations of one population after `count` rounds or iterations."""
    if isinstance(method, NoiseSearchConfig):
        return search_price(method, num_steps, count)
    return optimisation_price(method, num_steps, count)
