"""Rewards of local vision-language models: keys that do nothing together. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.config.problems import Problem
from flowalign.config.rewards_vlm import QuestionsReward, RewardDanceReward, VLMBase
from flowalign.config.schema import RunConfig
from flowalign.config.steering import SteerConfig
from flowalign.config.yaml12 import KeyPath


def vlm_rule(config: RunConfig | SteerConfig | NoisyRewardConfig) -> Iterator[Problem]:
    """No key that is not heard."""
    for section, entries in (
        ("rewards", config.rewards),
        ("held_out_rewards", config.held_out_rewards),
    ):
        for index, entry in enumerate(entries):
            if isinstance(entry, VLMBase):
                yield from _unheard(entry, (section, index))


def _unheard(entry: VLMBase, path: KeyPath) -> Iterator[Problem]:
    given = entry.model_fields_set
    if entry.form == "full" and "least_mass" in given:
        fix = "remove it, or use `form: two_token`"
        yield _conflict((*path, "least_mass"), "`form: full` does not read it", fix)
    if entry.modality == "image" and "frames" in given:
        fix = "remove it, or use `modality: video`"
        yield _conflict((*path, "frames"), "a picture has no frames", fix)
    if entry.model == "shapes" and entry.revision is not None:
        what = "`model: shapes` is no repository"
        yield _conflict((*path, "revision"), what, "remove it, or name a Hub id as `model`")
    drawn = isinstance(entry, RewardDanceReward) and entry.references == "shapes"
    if drawn and entry.modality == "video":
        what = "the built-in world draws pictures, and this is for videos"
        yield _conflict((*path, "references"), what, "name a file of references")
    if isinstance(entry, QuestionsReward):
        weights = (entry.global_weight, entry.subject_weight, entry.relation_weight)
        if not any(weights):
            what = "all three levels have weight 0"
            yield _conflict((*path, "global_weight"), what, "give one of them a weight")


def _conflict(path: KeyPath, what: str, fix: str) -> Problem:
    return Problem(path=path, code="CFG-CONFLICT", what=what, fix=fix)
