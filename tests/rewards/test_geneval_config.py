"""GenEval's metadata, a detector of one's own, and what configs refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flowalign.config.load import config_from_mapping
from flowalign.config.rewards_rules import GenEvalReward
from flowalign.detection.clauses import Check, Exclude, Include, read_checks
from flowalign.errors import ConfigError, DataError, RewardError, SecurityError
from flowalign.rewards.geneval import GenEval, from_config
from flowalign.scoring import build_suite
from flowalign.worlds.shapes import render
from flowalign.worlds.shapes.grammar import parse
from tests.rewards.world import sample

ROW = {"prompt": "a", "include": [{"class": "dog"}]}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_metadata(tmp_path: Path) -> None:
    full = {
        "tag": "position",
        "prompt": "b",
        "include": [
            {"class": "dog", "count": 2, "color": "red"},
            {"class": "cat", "position": ["above", 0]},
        ],
        "exclude": [{"class": "dog", "count": 3}],
        "extra": 1,
    }
    checks = read_checks(written(tmp_path / "m.jsonl", ROW, full, ROW))
    assert checks["a"] == Check(include=(Include(label="dog"),))
    assert checks["b"].include[0] == Include(label="dog", count=2, colour="red")
    assert checks["b"].include[1] == Include(label="cat", position=("above", 0))
    assert checks["b"].exclude == (Exclude(label="dog", count=3),) and checks["b"].tag == "position"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"include": [{"class": "dog"}]}, "missing `prompt`"),
        ({"prompt": "a"}, "neither `include` nor `exclude`"),
        ({"prompt": "a", "include": {"class": "dog"}}, "expected a list"),
        ({"prompt": "a", "include": [{"clas": "dog"}]}, "did you mean `class`"),
        ({"prompt": "a", "include": [{"class": "dog", "count": 0}]}, "whole number >= 1"),
        ({"prompt": "a", "include": [{"class": "dog", "count": True}]}, "whole number >= 1"),
        ({"prompt": "a", "exclude": [{"class": "dog"}]}, "missing `count`"),
        ({"prompt": "a", "include": [{"class": "dog", "position": ["on", 0]}]}, "unknown relation"),
        ({"prompt": "a", "include": [{"class": "d", "position": ["above", 0]}]}, "only earlier"),
        ({"prompt": "a", "include": [{"class": "d", "position": "above"}]}, "is no pair"),
        ({"prompt": "a", "include": [{"class": "cat"}]}, "another check"),
        (["dog"], "expected an object"),
    ],
)
def test_bad_metadata_is_told_by_line(tmp_path: Path, row: object, words: str) -> None:
    path = written(tmp_path / "m.jsonl", ROW, row)
    with pytest.raises(DataError, match=r"m\.jsonl:2") as caught:
        read_checks(path)
    assert words in caught.value.line()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found"):
        read_checks(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no prompt"):
        read_checks(written(tmp_path / "empty.jsonl"))
    with pytest.raises(SecurityError):
        read_checks(tmp_path / "meta.pkl")


def by_metadata(path: Path) -> GenEval:
    config = GenEvalReward(name="geneval", metadata=str(path))
    return from_config(config, device=torch.device("cpu"))[0]


def test_metadata_in_the_place_of_the_prompt(tmp_path: Path) -> None:
    row = {"prompt": "anything", "include": [{"class": "circle", "color": "red"}]}
    path = written(tmp_path / "m.jsonl", row)
    drawn = render.pictures([parse("a red circle"), parse("a blue circle")], torch.Generator())
    values, _ = by_metadata(path)([sample(one, "anything") for one in drawn])
    assert values.tolist() == [1.0, 0.0]
    for row, words in (
        ({"class": "circl"}, "did you mean `circle`"),
        ({"class": "circle", "color": "rad"}, "did you mean `red`"),
    ):
        path = written(tmp_path / "m.jsonl", {"prompt": "a", "include": [row]})
        with pytest.raises(ConfigError, match=words):
            by_metadata(path)


CODE = """
from flowalign.detection.objects import Found


class Corner:
    labels = frozenset({"light"})

    def __call__(self, pictures):
        return [
            [Found(label="light", box=(0, 0, 8, 8), score=float(p[:, :8, :8].mean()))]
            for p in pictures
        ]


class Numbers(Corner):
    def __call__(self, pictures):
        return [[1.0] for _ in pictures]


class Nowhere(Corner):
    def __call__(self, pictures):
        return [[Found(label="light", box=(0, 0, 8, 8), score=float("nan"))] for _ in pictures]


class Short(Corner):
    def __call__(self, pictures):
        return []


class Broken:
    def __init__(self):
        raise ValueError("no weights")


def function(pictures):
    return []
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(CODE)
    return written(Path("m.jsonl"), {"prompt": "a", "include": [{"class": "light"}]})


def own(name: str) -> GenEvalReward:
    return GenEvalReward(
        name="geneval", detector="code", target=f"my.py:{name}", metadata="m.jsonl"
    )


def test_a_detector_of_ones_own(code: Path) -> None:
    suite = build_suite([own("Corner")], allow_code=["my.py"])
    given = [sample(torch.full((3, 16, 16), level), "a") for level in (0.1, 0.8)]
    assert suite.score(given).terms["geneval"].tolist() == [0.0, 1.0]
    assert list(suite.digests) == [str(Path("my.py").resolve())]  # for the run's record


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Broken", "no weights"),
        ("function", "is no detector"),
        ("Absent", "has no attribute"),
        ("Numbers", "answered a float as an object"),
        ("Nowhere", "answered nan for a box"),
        ("Short", "for 1 pictures"),
    ],
)
def test_a_detector_that_is_none(code: Path, name: str, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        build_suite([own(name)], allow_code=["my.py"]).score([sample(torch.ones(3, 16, 16), "a")])


def test_code_runs_only_when_allowed(code: Path) -> None:
    with pytest.raises(SecurityError, match="not allowed"):
        build_suite([own("Corner")])
    run = {"output": "unused", "algorithm": "nft", "rewards": [own("Corner").model_dump()]}
    with pytest.raises(SecurityError, match="add --allow-code"):
        config_from_mapping(run, source="f", allow_code=[])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"detector": "transformers", "metadata": "m"}, "needs `model`"),
        ({"detector": "transformers", "model": "m"}, "needs `metadata`"),
        ({"detector": "torchvision", "model": "m", "metadata": "m"}, "needs `weights`"),
        ({"detector": "code", "metadata": "m"}, "needs `target`"),
        ({"model": "facebook/detr-resnet-50"}, "`model` does nothing with `detector: shapes`"),
        ({"weights": "w.safetensors"}, "use `detector: torchvision`"),
    ],
)
def test_keys_that_do_not_fit(keys: dict[str, str], words: str) -> None:
    for section in ("rewards", "held_out_rewards"):
        run = {"output": "unused", "algorithm": "nft", "rewards": ["clip"]}
        run[section] = [{"name": "geneval", **keys}]
        with pytest.raises(ConfigError, match=words):
            config_from_mapping(run, source="f")
