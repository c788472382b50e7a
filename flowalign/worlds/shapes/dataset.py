"""Captioned pictures of the training split, in the mixture of categories that the built-in models
were trained on."""

import random

from flowalign.worlds.shapes.grammar import parse, prompts
from flowalign.worlds.shapes.scene import Scene

# Compositions of several things are harder, and single things are needed to learn shapes and
# colours at all.
MIXTURE = {"single": 0.25, "two": 0.25, "count": 0.2, "relation": 0.2, "three": 0.1}


def training_scenes(number: int, *, seed: int) -> tuple[list[str], list[Scene]]:
    """`number` captions drawn from the training split by MIXTURE (repeats occur), and their
    scenes."""
    rng = random.Random(f"training/{seed}")
    pools = {category: prompts("train", category) for category in MIXTURE}
    drawn = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()), k=number)
    captions = [rng.choice(pools[category]) for category in drawn]
    return captions, [parse(caption) for caption in captions]
