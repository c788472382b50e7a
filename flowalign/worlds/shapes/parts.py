"""Single parts of a verdict, for objectives that are weighed against each other. B pictures."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from flowalign.worlds.shapes.grammar import parse
from flowalign.worlds.shapes.verdict import Verdict


def colour_share(verdict: Verdict, prompts: Sequence[str]) -> Tensor:
    """Share (B,) in [0, 1] of the named things whose colour is there, each object counted once.

    Shapes, sizes and further objects do not matter.
    """
    shares = []
    for found, prompt in zip(verdict.found, prompts, strict=True):
        asked = Counter(thing.colour for thing in parse(prompt).things)
        there = asked & Counter(each.colour for each in found)
        shares.append(there.total() / asked.total())
    return torch.tensor(shares)


def right_count(verdict: Verdict, prompts: Sequence[str]) -> Tensor:
    """1 where as many objects are there as the prompt names, else 0, (B,)."""
    right = [
        len(found) == len(parse(prompt).things)
        for found, prompt in zip(verdict.found, prompts, strict=True)
    ]
    return torch.tensor(right).float()
