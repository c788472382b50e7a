"""GenEval's own verdicts and relations, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowalign.detection.clauses import RELATIONS, read_check
from flowalign.detection.colours import OwnColours
from flowalign.detection.objects import Found, kept, relations
from flowalign.rewards.geneval import GenEval

HERE = Path(__file__).parent / "rewards"
SETTINGS = {"max_objects": 16, "nms": 0.5}


def arrays(name: str) -> dict[str, Any]:
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as found:
        return {key: found[key] for key in found.files}


def test_relations() -> None:
    given = arrays("geneval__relative_position")
    boxes, expected = given["in.boxes_xyxy"], given["out.relations"]
    seen = 0
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes):
            names = relations(tuple(a), tuple(b), margin=0.1)
            assert [name in names for name in RELATIONS] == expected[i, j].tolist(), (i, j)
            seen += len(names)
    assert seen == expected.sum() > 50


def detections(given: dict[str, Any]) -> list[Found]:
    """The reference gives the colours of the kept objects, the most confident first."""
    colours: dict[str, list[str]] = json.loads(str(given["in.colors_json"]))
    found = []
    for label in ("dog", "cat", "car", "apple"):
        rows = given[f"in.det_{label}"]
        plain = [Found(label=label, box=tuple(row[:4]), score=row[4]) for row in rows]
        order = kept(plain, confidence=0.3, **SETTINGS)
        for one in plain:
            place = order.index(one) if one in order else 0
            colour = colours[label][place] if label in colours else None
            found.append(Found(label=label, box=one.box, score=one.score, colour=colour))
    return found


@pytest.mark.parametrize("nms", [0.5, 1.0])
def test_verdicts(nms: float) -> None:
    given = arrays("geneval__evaluate_image__nms0.5")
    rows = json.loads(str(given["in.metas_json"]))
    found = detections(given)
    reward = GenEval(
        detector=lambda pictures: [],  # type: ignore[arg-type]
        colours=OwnColours(colours=("red", "green", "blue", "yellow")),
        checks=lambda prompt: None,
        nms=nms,
    )
    picture = torch.zeros(3, 96, 96)
    verdicts = [reward.score(picture, found, read_check(row, "meta")) == 1.0 for row in rows]
    # Without suppression the two dogs on one another are two: the control.
    assert (verdicts == given["out.correct"].tolist()) == (nms == 0.5)
