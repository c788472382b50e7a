"""Run directories made by hand: coloured shapes that get truer with training."""

from __future__ import annotations

import functools
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 200, 30),
    "purple": (130, 60, 190),
    "orange": (240, 130, 20),
}
FORMS = ("circle", "square", "triangle")
BACKGROUND = (236, 236, 232)
CONFIG = """\
output: runs/{name}
seed: 0
model:
  name: shapes
rewards:
  - name: shapes
    weight: 1.0
held_out_rewards:
  - name: shapes
    mode: strict
    label: strict
  - name: clip
algorithm:
  name: {algorithm}
train:
  steps: {steps}
"""


@functools.lru_cache(maxsize=4096)
def draw(things: tuple[tuple[str, str], ...], side: int = 32) -> bytes:
    """A PNG of (colour, form) from left to right."""
    picture = Image.new("RGB", (side * 4, side * 4), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    width = side * 4 / len(things)
    radius = min(width * 0.38, side * 1.3)
    for place, (colour, form) in enumerate(things):
        x, y = width * (place + 0.5), side * 2
        corners = (x - radius, y - radius, x + radius, y + radius)
        if form == "circle":
            pen.ellipse(corners, fill=COLOURS[colour])
        elif form == "square":
            pen.rectangle(corners, fill=COLOURS[colour])
        else:
            top, left, right = (x, corners[1]), (corners[0], corners[3]), (corners[2], corners[3])
            pen.polygon([top, left, right], fill=COLOURS[colour])
    return png(picture.resize((side, side), Image.Resampling.BOX))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def prompts(count: int, seed: int = 0) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(text, category, things)."""
    draw_of = random.Random(seed)
    found = []
    for k in range(count):
        number = (1, 2, 3)[k % 3]
        names = list(COLOURS)
        things = [(names[(k * 5 + j) % 6], draw_of.choice(FORMS)) for j in range(number)]
        text = " and ".join(f"a {colour} {form}" for colour, form in things)
        found.append((text, ("single", "two", "three")[number - 1], things))
    return found


def write_run(
    folder: Path,
    *,
    steps: tuple[int, ...] = (0, 20, 40),
    num_prompts: int = 12,
    samples: int = 1,
    skill: float = 0.5,
    algorithm: str = "nft",
    seed: int = 0,
    noise_seed: int = 7,
    pictures: int | None = None,
    edit: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    side: int = 32,
) -> Path:
    """A finished run; `skill` is the share of mistakes that the last step has unlearned.

    `pictures` samples of each evaluation get files; `edit` changes a row before it is written.
    """
    folder.mkdir(parents=True)
    config = CONFIG.format(name=folder.name, algorithm=algorithm, steps=steps[-1])
    (folder / "config.yaml").write_text(config)
    write_json(folder / "run.json", {"run_id": "0f3a", "version": "0.1.0", "created": "2026-01-01"})
    write_json(folder / "status.json", {"state": "finished", "step": steps[-1], "reason": None})
    for step in steps:
        learned = skill * step / max(1, steps[-1])
        _write_evaluation(
            folder / "eval" / f"step-{step:06d}",
            step,
            prompts(num_prompts, seed),
            samples,
            0.55 * (1 - learned),
            noise_seed,
            num_prompts * samples if pictures is None else pictures,
            edit,
            side,
        )
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps[-1] + 1):
            wiggle = 0.03 * random.Random(step * 31 + len(folder.name)).uniform(-1, 1)
            mean = 0.72 + 0.22 * skill * step / steps[-1] + wiggle
            row = {"step": step, "seconds": 6.2, "loss": 0.1, "reward/shapes": mean}
            file.write(json.dumps(row) + "\n")
    return folder


def _write_evaluation(
    folder: Path,
    step: int,
    wanted: list[tuple[str, str, list[tuple[str, str]]]],
    samples: int,
    mistakes: float,
    noise_seed: int,
    pictures: int,
    edit: Callable[[dict[str, Any]], Mapping[str, Any]] | None,
    side: int,
) -> None:
    folder.mkdir(parents=True)
    rows, scores = [], []
    for number, (text, category, things) in enumerate(wanted):
        for k in range(samples):
            chance = random.Random(f"{noise_seed}/{number}/{k}")
            wrong = [chance.random() < mistakes for _ in things]
            other = list(COLOURS)[(number + k + 3) % 6]
            shown = [
                (other if bad else colour, form)
                for (colour, form), bad in zip(things, wrong, strict=True)
            ]
            right = 1 - sum(wrong) / len(wrong)
            soft = round(right * (0.9 + 0.1 * chance.random()), 4)
            score = {
                "shapes": soft,
                "strict": float(not any(wrong)),
                "clip": round(0.24 + 0.06 * soft + 0.04 * chance.random(), 4),
            }
            name = f"{number:04d}-{k}.png" if number * samples + k < pictures else None
            if name is not None:
                (folder / name).write_bytes(draw(tuple(shown), side))
            row: dict[str, Any] = {
                "step": step,
                "prompt": text,
                "category": category,
                "prompt_id": number,
                "sample_id": k,
                "seed": noise_seed,
                "image": name,
                "scores": score,
            }
            rows.append(dict(edit(row)) if edit else row)
            scores.append(score)
    write_lines(folder / "scores.jsonl", rows)
    summary = {
        "step": step,
        "train_seconds": 6.2 * step,
        "samples": len(rows),
        "scores": {},
        "trained": ["shapes"],
        "held_out": ["strict", "clip"],
    }
    write_json(folder / "summary.json", summary)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
