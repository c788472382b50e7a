"""Gradient steering of real pipeline classes: with guidance, on epsilon and on a velocity."""

from __future__ import annotations

from typing import Any

import pytest

from flowalign import steer
from tests.zoo.table import ZOO

METHODS: dict[str, dict[str, Any]] = {
    "guidance": {"name": "guidance", "strength": 60.0, "start": 0.2},
    "twisted": {
        "name": "fk",
        "strength": 60.0,
        "particles": 2,
        "proposal": "gradient",
        "looks": "every_step",
    },
}


@pytest.mark.parametrize("name", ["sd15", "sd3"])
@pytest.mark.parametrize("method", METHODS)
def test_the_reward_rises_through_decoder_and_network(name: str, method: str) -> None:
    """Against the same method of strength 0 from the same noise, for every prompt."""
    specimen = ZOO[name]
    pipe = specimen.build()
    scores = []
    for strength in (0.0, 60.0):
        found = steer(
            pipe,
            ["a red circle", "two blue squares"],
            "clip",
            method={**METHODS[method], "strength": strength},
            model=specimen.config().model_dump(),
            sampler={"num_steps": 5, "noise_level": 0.0 if method == "guidance" else 0.7},
        )
        scores.append(found.steered.scores["clip"])
    assert bool((scores[1] > scores[0] + 1e-4).all())
