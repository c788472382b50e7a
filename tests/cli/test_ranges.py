"""Every numeric key against nine values that are rarely meant.

`ACCEPTED` is the documentation of what is allowed on purpose; everything else is exit 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowalign.config.load import load_config
from flowalign.config.rewards import TAKE_EXEMPLARS
from flowalign.config.tree import Key, is_numeric, keys
from flowalign.errors import ConfigError
from tests.cli.commands import edited

VALUES = ("-1", "0", "1e400", ".nan", ".inf", "abc", "true", "null", "[]")
ACCEPTED = {
    # A negative weight asks for less of a reward.
    "-1": {
        "rewards[].weight",
        "held_out_rewards[].weight",
        "algorithm.levels.mean",
        "algorithm.levels.scale",
        "shaping.gates[].threshold",  # in a reward's own units
        "shaping.gates[].value",
        "shaping.rewards[].low",
        "shaping.rewards[].high",
        "shaping.mixes[].mean",
        "shaping.mixes[].neutral",
        "shaping.mixes[].offset",
        "shaping.constraints[].threshold",
    },
    "0": {
        "seed",
        "model.guidance_scale",
        "evaluation.guidance_scale",
        "evaluation.save_images",
        "rewards[].weight",  # with another reward that has a weight
        "held_out_rewards[].weight",
        "rewards[].global_weight",
        "rewards[].subject_weight",
        "rewards[].relation_weight",
        "held_out_rewards[].global_weight",
        "held_out_rewards[].subject_weight",
        "held_out_rewards[].relation_weight",
        "rewards[].confidence",  # of a detector and of read text: all is taken
        "held_out_rewards[].confidence",
        "rewards[].counting_confidence",
        "held_out_rewards[].counting_confidence",
        "rewards[].least_mass",
        "held_out_rewards[].least_mass",
        "rewards[].position_margin",
        "held_out_rewards[].position_margin",
        "rewards[].alpha",
        "held_out_rewards[].alpha",
        "rewards[].retries",
        "held_out_rewards[].retries",
        "sampler.noise.eta_min",
        "sampler.noise.start",
        "algorithm.beta",  # of the algorithms in `KL_OPTIONAL`
        "algorithm.margin",
        "algorithm.kl_weight",
        "algorithm.sft_weight",
        "algorithm.label_smoothing",
        "algorithm.prompt_dropout",
        "algorithm.running_decay",
        "algorithm.levels.mean",
        "algorithm.levels.scale",
        "algorithm.min_std",
        "algorithm.old_decay_rate",
        "algorithm.old_decay_max",
        "shaping.gates[].threshold",
        "shaping.gates[].value",
        "shaping.rewards[].low",
        "shaping.rewards[].high",
        "shaping.rewards[].margin",
        "shaping.mixes[].confidence",
        "shaping.mixes[].mean",
        "shaping.mixes[].neutral",
        "shaping.mixes[].offset",
        "shaping.constraints[].threshold",
        "shaping.multipliers.momentum",
        "shaping.uncertainty",
        "train.warmup_steps",
        "train.beta1",
        "train.beta2",
        "train.weight_decay",
    },
    "null": {
        "model.resolution",
        "model.num_frames",
        "prompts.max_train",
        "data.max_rows",
        "algorithm.best",
        "train.ema_decay",
        "evaluation.guidance_scale",
        "shaping.gates[].value",
        "shaping.rewards[].low",
        "shaping.rewards[].high",
        "shaping.mixes[].confidence",
        "rewards[].opponents",
        "held_out_rewards[].opponents",
        "rewards[].bandwidth",
        "held_out_rewards[].bandwidth",
    },
}
SETS = ("vendi", "frechet", "mmd", "centroid")  # rewards that only dragon takes
KL_OPTIONAL = ("grpo", "ddpo")  # elsewhere beta is a scale, which cannot be 0
REQUIRED = {"code": ["rewards.0.target=a.py:F", "held_out_rewards.0.target=a.py:F"]}


def numeric() -> Iterator[Key]:
    """All but those of a reward that no config may hold out."""
    found = (key for key in keys() if is_numeric(key.field))
    refused = ("held_out_rewards", ("name", "recorded"))
    return (key for key in found if (key.path[0], key.variant) != refused)


def overrides(key: Key, value: str) -> list[str]:
    """Options that choose the variants around the key and set the key."""
    sets: list[str] = []
    if key.path[0] == "data":
        sets += ["data.path=x.jsonl", "rewards=[]", "algorithm=sft"]
    if key.path[:2] == ("shaping", "gates"):
        sets.append("shaping.gates=[{reward: first, threshold: 0.5}]")
    if key.path[0] == "shaping":
        unweighted = "{name: clip, label: second, weight: 0}"
        sets.append(f"rewards=[{{name: shapes, label: first}}, {unweighted}]")
    if key.path[0] == "shaping" and key.path[1] in ("constraints", "multipliers"):
        sets.append("shaping.constraints=[{reward: second, threshold: 0.5}]")
    for choice in key.choices:
        section = ".".join(part if part != "[]" else "0" for part in choice.place)
        label = ", label: first" if choice.place[-1] == "[]" else ""
        if section == "shaping.rewards.0":
            sets.append(f"shaping.rewards=[{{name: {choice.value}, reward: first}}]")
            continue
        if section == "shaping.mixes.0":
            known = ", mean: 0, std: 1" if choice.value == "hybrid" else ""
            mix = f"name: {choice.value}, rule: first, model: second{known}"
            sets.append(f"shaping.mixes=[{{{mix}}}]")
            continue
        sets.append(f"{section}={{{choice.discriminator}: {choice.value}{label}}}")
        if choice.value == "code":
            sets.append(f"{section}.target=a.py:F")
        if choice.value in ("judge", "remote"):
            sets.append(f"{section}.url=http://127.0.0.1:8000")
        if choice.value in ("judge", "hpsv2"):
            sets.append(f"{section}.model=m")
        if choice.value in ("hpsv3", "image_reward", "video_reward"):
            sets.append(f"{section}.weights=w.safetensors")
        if key.path[-1] == "frames" and choice.value in ("vqascore", "rewarddance", "questions"):
            sets.append(f"{section}.modality=video")
            if choice.value == "rewarddance":  # the built-in world has pictures only
                sets.append(f"{section}.references=references.jsonl")
            if choice.value == "questions":
                sets.append(f"{section}.questions=questions.jsonl")
        if choice.value == "vqascore":
            sets.append(f"{section}.form=two_token")
        if choice.value == "picture":
            sets.append(f"{section}.measure=brightness")
        if choice.value == "aesthetic":
            sets.append(f"{section}.head=head.safetensors")
        if choice.value == "goal_baseline":
            sets.append(f"{section}.baseline=[a picture]")
        if choice.value == "recorded":
            sets.append(f"{section}.path=scores.jsonl")
            sets += ["algorithm={name: d3po}", "rollout.policy=reference"]
        if choice.value in TAKE_EXEMPLARS:
            sets.append(f"{section}.exemplars=[a circle]")
        if choice.value in SETS and section.startswith("rewards"):
            sets.append("algorithm={name: dragon}")
    places = [part if part != "[]" else "0" for part in key.path]
    return [*sets, f"{'.'.join(places)}={value}"]


def accepted(key: Key, value: str) -> bool:
    if key.dotted == "algorithm.beta" and key.variant and key.variant[1] not in KL_OPTIONAL:
        return False
    return key.dotted in ACCEPTED.get(value, set())


@pytest.mark.parametrize("value", VALUES)
def test_numeric_keys(value: str, tmp_path: Path) -> None:
    """100 % exit 2, or accepted as documented."""
    path = edited(tmp_path)
    surprises = []
    for key in numeric():
        try:
            load_config(path, overrides(key, value), ["a.py"])
            ran = True
        except ConfigError:
            ran = False
        if ran != accepted(key, value):
            surprises.append((key.dotted, key.variant, ran))
    assert not surprises


def test_the_table_names_existing_keys() -> None:
    """A key that was renamed cannot stay documented, and there are keys to try at all."""
    names = {key.dotted for key in numeric()}
    assert len(names) > 40
    assert set().union(*ACCEPTED.values()) <= names


def test_control_good_values_are_accepted(tmp_path: Path) -> None:
    """Negative control: the same overrides with each key's own default are no errors."""
    path = edited(tmp_path, ("batch_size: 8", "batch_size: 16"))  # a multiple of the default group
    for key in numeric():
        default = key.field.default
        if default is not None and not key.field.is_required():
            load_config(path, overrides(key, f"{default}"), ["a.py"])


@pytest.mark.parametrize("text", ["1e-5", "5e-05", "0.00001", "1.0e-5", "'1e-5'"])
def test_small_numbers_in_every_spelling(text: str, tmp_path: Path) -> None:
    config = load_config(edited(tmp_path), [f"train.learning_rate={text}"]).config
    assert config.train.learning_rate == float(text.strip("'"))


@pytest.mark.parametrize("text", ["10", "10.0", "1e1", "0xA", "0o12", '"10"'])
def test_exact_integers_in_every_spelling(text: str, tmp_path: Path) -> None:
    steps = load_config(edited(tmp_path), [f"train.steps={text}"]).config.train.steps
    assert steps == 10
    assert type(steps) is int
