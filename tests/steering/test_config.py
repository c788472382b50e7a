"""The config of a steering job: ranges, conflicts, short forms, and whose config a file is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowalign.catalog import METHODS
from flowalign.config.jobs import STEER, command_of
from flowalign.config.load import dump_config, load_any, load_config, load_for, shipped_configs
from flowalign.config.noise_methods import NoiseOptimizationConfig, NoiseSearchConfig
from flowalign.config.steering import (
    BestOfNConfig,
    FKConfig,
    NoneConfig,
    SteerConfig,
    SteerPromptsConfig,
    SVDDConfig,
)
from flowalign.config.tree import Key, is_numeric, keys, variant_names
from flowalign.errors import ConfigError, FlowalignError

JOB = """\
output: unused
prompts: shapes:heldout
rewards: [shapes]
method: {method}
"""
OWN = (
    SteerConfig,
    SteerPromptsConfig,
    NoneConfig,
    BestOfNConfig,
    FKConfig,
    SVDDConfig,
    NoiseSearchConfig,
    NoiseOptimizationConfig,
)
SEARCH, ASCENT = "method={name: noise_search}", "method={name: noise_optimization}"
CALM = ("sampler=ode", "rewards=clip")
VALUES = ("-1", "0", "1e400", ".nan", ".inf", "abc", "true", "null", "[]")
ACCEPTED = {
    "0": {
        "seed",
        "method.halvings",
        "method.start",
        "method.stop",
        "method.strength",
        "method.similarity",
        "method.momentum",
        "method.regularisation",
    },
    "null": {
        "prompts.num_prompts",
        "method.candidates",
        "method.particles",
        "method.tempering",
        "method.rounds",
        "method.search_steps",
        "method.iterations",
        "budget",
    },
}
# Impossible with the other keys' defaults, though possible by itself.
WITH_DEFAULTS = {("0", "method.stop"), ("0", "method.start")}


def job(folder: Path, method: str = "fk", extra: str = "") -> Path:
    path = folder / "job.yaml"
    path.write_text(JOB.format(method=method) + extra)
    return path


def numeric() -> Iterator[Key]:
    found = (k for k in keys(SteerConfig) if is_numeric(k.field) and k.owner in OWN)
    return (key for key in found if key.path[0] != "compare")


def runs(path: Path, *sets: str) -> bool:
    try:
        load_for(STEER, path, sets)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("value", VALUES)
def test_numeric_keys(value: str, tmp_path: Path) -> None:
    """Each is exit 2, or accepted as documented above."""
    path = job(tmp_path)
    surprises = []
    for key in numeric():
        sets = [f"method={{name: {key.variant[1]}}}"] if key.variant else []
        sets += CALM if key.owner is NoiseOptimizationConfig else ()
        if (value, key.dotted) in WITH_DEFAULTS:
            sets += ["method.start=0", "method.stop=0"]
            sets.remove(f"{key.dotted}=0")
        ran = runs(path, *sets, f"{key.dotted}={value}")
        if ran is not (key.dotted in ACCEPTED.get(value, set())):
            surprises.append((key.dotted, key.variant, ran))
    assert not surprises


def test_the_table_names_existing_keys() -> None:
    names = {key.dotted for key in numeric()}
    assert len(names) > 12
    assert set().union(*ACCEPTED.values()) <= names


CONFLICTS: list[tuple[list[str], str]] = [
    (["sampler=ode"], "sampler.name: sampler ode with fk needs noise"),
    (["sampler.noise_level=0"], "sampler.noise_level: fk needs noise"),
    (["sampler.num_steps=1"], "sampler.num_steps: the last step has no noise"),
    (["method=svdd", "sampler=ode"], "sampler ode with svdd needs noise"),
    (["sampler.noise_level=1.5"], "must be <= 1 for sampler ddim"),
    (["method.start=0.9"], "method.start: start 0.9 is after stop 0.8"),
    (["method.tempering=0.5"], "method.tempering: 0.5 is not below ess_threshold 0.5"),
    (["budget=40", "method.particles=4"], "method.particles: 4 is given, and budget 40"),
    (["budget=40", "method={name: svdd, candidates: 3}"], "method.candidates: 3 is given"),
    (["budget=9"], "budget: 9 evaluations are not enough for one sample"),
    (["budget=40", "method=none"], "budget: method none takes one sample"),
    (["prompts.source=shapes:tests"], "prompts.source: the shapes world has no prompts"),
    (["prompts.source=[]"], "prompts.source: names no prompts"),
    (["prompts.categories=[twoo]"], "unknown category 'twoo'"),
    (["rewards.0.weight=0"], "rewards: all weights are 0"),
    (["rewards=[clip, clip]"], "duplicate name `clip`"),
    (["rewards=[vendi]"], "vendi scores whole sets"),
    (["device=gpu"], "unknown device 'gpu'"),
    (["sampler.noise={schedule: first_k, k: 20}"], "noise in the first 20 steps of 10"),
    (["method=fkk"], "unknown method 'fkk'; did you mean `fk`?"),
    (["method.potential=maxx"], "unknown value 'maxx'; did you mean `max`?"),
    (["method.candidates=4"], "belongs to `name: best_of_n`"),
    (["method.particels=4"], "unknown key; did you mean `particles`?"),
    (["train.steps=3"], "train: unknown key"),
    ([SEARCH, "method.back=0.3"], "method.back: belongs to kind paths, and kind is zero_order"),
    ([SEARCH, "method.kind=random", "method.similarity=0.5"], "method.similarity: belongs to"),
    ([SEARCH, "method.kind=paths", "method.search_steps=5"], "method.search_steps: belongs to"),
    ([SEARCH, "method.kind=paths", "method.forward=0.5"], "method.back: 0.78 of the steps back"),
    ([SEARCH, "method.search_steps=11"], "method.search_steps: 11 are more than"),
    (
        [SEARCH, "method.search_steps=2", "sampler.noise=first_k"],
        "method.search_steps: sampler.noise does not fit 2 steps",
    ),
    ([SEARCH, "method.combine=rank"], "method.combine: rank with one reward"),
    ([SEARCH, "method.rounds=2", "budget=90"], "method.rounds: 2 is given, and budget 90"),
    ([SEARCH, "budget=49"], "budget: 49 evaluations, and noise_search takes 50 for one of its"),
    ([ASCENT], "rewards.0: noise_optimization follows gradients, and shapes has none"),
    ([ASCENT, "rewards=clip"], "sampler.name: noise_optimization needs a deterministic sampler"),
    ([ASCENT, *CALM, "method.iterations=2", "budget=90"], "method.iterations: 2 is given"),
    ([ASCENT, *CALM, "budget=49"], "budget: 49 evaluations, and noise_optimization takes 50"),
    (["method.strength=true"], "method.strength: expected number >= 0, got true"),
]


@pytest.mark.parametrize(("sets", "fragment"), CONFLICTS, ids=lambda value: str(value)[:60])
def test_conflicts(sets: list[str], fragment: str, tmp_path: Path) -> None:
    with pytest.raises(FlowalignError) as caught:
        load_for(STEER, job(tmp_path), sets)
    assert fragment in caught.value.line()
    assert caught.value.exit_code == 2


def test_control_the_job_itself_is_good(tmp_path: Path) -> None:
    for method in ("none", "best_of_n", "fk", "svdd", "noise_search"):
        assert load_for(STEER, job(tmp_path, method)).config.method.name == method
    assert runs(job(tmp_path), "budget=40")
    assert runs(job(tmp_path), "method.tempering=0.4")
    assert runs(job(tmp_path), "sampler=ode", "method=best_of_n")
    assert runs(job(tmp_path), SEARCH, "budget=50")
    assert runs(job(tmp_path), SEARCH, "rewards=[shapes, clip]", "method.combine=rank")
    assert runs(job(tmp_path), SEARCH, "method.kind=paths", "method.forward=0.8")
    assert runs(job(tmp_path), ASCENT, *CALM, "budget=50")


def test_short_forms_and_stored_configs(tmp_path: Path) -> None:
    """What is stored beside the results loads to an equal config."""
    long = load_for(STEER, job(tmp_path), ["method={name: fk}", "prompts={source: [a, b]}"]).config
    short = load_for(STEER, job(tmp_path), ["prompts=[a, b]"]).config
    assert short == long
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(short))
    assert load_for(STEER, again).config == short
    again.write_text(dump_config(load_for(STEER, job(tmp_path), ["budget=80"]).config))
    assert load_for(STEER, again).config.budget == 80


def test_whose_config_a_file_is(tmp_path: Path) -> None:
    """Each command names the other one; a file that says neither is told what is missing."""
    with pytest.raises(ConfigError, match="is a config of `flowalign steer`"):
        load_config(job(tmp_path))
    with pytest.raises(ConfigError, match="is a config of `flowalign train`"):
        load_for(STEER, "shapes_nft")
    assert isinstance(load_any(job(tmp_path)).config, SteerConfig)
    neither = tmp_path / "neither.yaml"
    neither.write_text("output: unused\nrewards: [jpeg]\n")
    for load, key in ((lambda p: load_for(STEER, p), "method"), (load_config, "algorithm")):
        with pytest.raises(ConfigError, match=f"{key}: is missing"):
            load(neither)
    assert command_of({"method": "grpo"}) is None
    assert command_of({"method": ["fk"]}) is None


@pytest.mark.parametrize(
    "name", [name for name in shipped_configs() if name.startswith("shapes_steer_")]
)
def test_shipped_jobs(name: str) -> None:
    config: Any = load_any(name).config
    assert isinstance(config, SteerConfig)
    assert config.output == f"runs/{name}"


def test_the_catalog_lists_the_methods() -> None:
    field = SteerConfig.model_fields["method"]
    assert [entry.name for entry in METHODS] == list(variant_names(field.annotation))
