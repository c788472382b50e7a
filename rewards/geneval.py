"""GenEval: are the right objects there, in number, colour and place?

Measures   an object detector's findings against clauses (`flowalign.detection.clauses`): so many
           objects of a class, of a colour, left of another. Strict: 1 when every clause holds,
           else 0. `dense: true`: the mean over what is asked for, 1 exactly when strict is 1.
           Sees nothing else: training finds pictures of catalogue objects on empty ground, and
           what the detector takes for two dogs.
Range      [0, 1], higher is better.
Source     GenEval (arXiv 2310.11513), section 3: confidence 0.3 (0.9 where the tag is `counting`),
           16 objects a class, no suppression, position margin 0.1, colours by CLIP on crops with
           the background painted #999. Dense scores: `flowalign.detection.verdict`. We differ:
           any detector instead of Mask2Former; one without masks leaves the background as it is.
Licence    this project's (Apache-2.0); of the checkpoint: torchvision's BSD-3, DETR Apache-2.0.
Checkpoint `detector: shapes`, built in: labels `circle`, `red circle`, `object`; without `metadata`
           the prompt itself is the check, except sizes and background; on prompts without these
           its strict verdicts are the exact verifier's on true and on wrong pictures (tested), and
           on 97 of 98 that the built-in model drew.
           `transformers`: a folder or Hub id, safetensors only. `torchvision`: a model's name and
           `weights`, its state dict as safetensors. `code`: your own
           `flowalign.detection.objects.Detector`, run only with `--allow-code`.
Masks      with `unknown: mask` a prompt without metadata; otherwise that is an error.
Differentiable: no. Group-only: no.
Cost       one detector pass a picture, pictures one by one, and one CLIP pass an object whose
           colour is asked for; `shapes` 0.4 ms a 32x32 picture on one core.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowalign.config.rewards_rules import GenEvalReward
from flowalign.config.suggest import did_you_mean
from flowalign.detection.clauses import COUNTING, Check, read_checks
from flowalign.detection.colours import (
    PALETTE,
    ClipColours,
    ColourNamer,
    NearestColour,
    OwnColours,
)
from flowalign.detection.objects import Detector, Found, kept
from flowalign.detection.shapes_objects import ShapesDetector, check_of
from flowalign.detection.verdict import parts
from flowalign.errors import ConfigError, RewardError
from flowalign.reward_call import first_line
from flowalign.types import Modality, Sample
from flowalign.user_code import LoadedCode, load_attribute
from flowalign.worlds.shapes.scene import COLOURS

WHERE = "reward `geneval`"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenEval:
    """Agreement of a detector's objects with what each prompt asks for."""

    detector: Detector
    colours: ColourNamer
    checks: Callable[[str], Check | None]  # of a prompt; None: not known
    mask_unknown: bool = False
    dense: bool = False
    confidence: float = 0.3
    counting_confidence: float = 0.9
    max_objects: int = 16
    nms: float = 1.0
    position_margin: float = 0.1
    name: str = "geneval"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(score (N,), valid (N,)); valid where the prompt's check is known."""
        checks = [self.checks(sample.prompt) for sample in samples]
        if not self.mask_unknown:
            for sample, check in zip(samples, checks, strict=True):
                if check is None:
                    raise _unknown(sample.prompt)
        rows = [row for row, check in enumerate(checks) if check is not None]
        values = torch.full((len(samples),), torch.nan)
        pictures = [samples[row].media for row in rows]
        for row, found in zip(rows, self._found(pictures), strict=True):
            check = checks[row]
            assert check is not None, "selected"
            values[row] = self.score(samples[row].media, found, check)
        return values, torch.tensor([check is not None for check in checks], dtype=torch.bool)

    def score(self, picture: Tensor, found: Sequence[Found], check: Check) -> float:
        """Of one picture with these objects."""
        sure = self.counting_confidence if check.tag == COUNTING else self.confidence
        objects = {
            label: kept(
                [one for one in found if one.label == label],
                confidence=sure,
                max_objects=self.max_objects,
                nms=self.nms,
            )
            for label in check.labels
        }

        def colour(one: Found) -> str:
            return self.colours(picture, one)

        asked = parts(check, objects, colour, margin=self.position_margin)
        return sum(asked) / len(asked) if self.dense else float(min(asked) == 1.0)

    def _found(self, pictures: list[Tensor]) -> Sequence[Sequence[Found]]:
        """The detector's answer, which a user's own may have wrong."""
        if not pictures:
            return []
        answer: object = self.detector(pictures)
        rows = answer if isinstance(answer, list | tuple) else ()
        if len(rows) != len(pictures):
            what = f"the detector answered {type(answer).__name__} for {len(pictures)} pictures"
            raise RewardError("RWD-DETECTOR", WHERE, what, "answer a list of objects for each")
        for one in (one for row in rows for one in row):
            if not isinstance(one, Found):
                what = f"the detector answered a {type(one).__name__} as an object"
                fix = "answer `flowalign.detection.objects.Found`"
                raise RewardError("RWD-DETECTOR", WHERE, what, fix)
            if not all(math.isfinite(number) for number in (one.score, *one.box)):
                what = f"the detector answered {one.score} for a box {one.box}"
                raise RewardError("RWD-DETECTOR", WHERE, what, "answer finite numbers")
        return rows


def _unknown(prompt: str) -> RewardError:
    what = f"prompt {prompt!r} has no metadata"
    fix = "add it to `metadata`, or write `unknown: mask`"
    return RewardError("RWD-PROMPT", WHERE, what, fix)


def shapes_check(prompt: str) -> Check | None:
    """The check of a prompt of the shapes world; None outside its grammar."""
    try:
        return check_of(prompt)
    except ValueError:
        return None


def detector_of(
    config: GenEvalReward, device: torch.device, allow_code: Sequence[str]
) -> tuple[Detector, LoadedCode | None]:
    """The detector that the config names, and the user's file it comes from."""
    if config.detector == "shapes":
        return ShapesDetector(), None
    if config.detector == "code":
        assert config.target is not None, "checked with the config"
        found, code = load_attribute(config.target, allow_code=allow_code)
        return _users(found, config.target), code
    # The networks' packages take seconds to import.
    from flowalign.detection.networks import torchvision_detector, transformers_detector

    assert config.model is not None, "checked with the config"
    if config.detector == "transformers":
        return transformers_detector(config.model, config.revision, device), None
    assert config.weights is not None, "checked with the config"
    return torchvision_detector(config.model, Path(config.weights), device), None


def _users(found: object, target: str) -> Detector:
    """A user's class without arguments, or an object, as a detector."""
    where = f"{WHERE}, detector `{target}`"
    try:
        detector: object = found() if inspect.isclass(found) else found
        names = frozenset(detector.labels) if isinstance(detector, Detector) else None
    except Exception as error:
        what = f"failed: {first_line(error)}"
        raise RewardError("RWD-CODE", where, what, "repair it") from error
    if names is None or not all(isinstance(name, str) for name in names):
        what = "is no detector"
        fix = "give it `labels` and `__call__(pictures)`, see flowalign.detection.objects.Detector"
        raise RewardError("RWD-SIGNATURE", where, what, fix)
    assert isinstance(detector, Detector), "it has names"
    return detector


def colours_of(config: GenEvalReward, device: torch.device) -> ColourNamer:
    """What tells colours."""
    if config.detector == "shapes":
        return OwnColours(colours=tuple(COLOURS))
    if config.colour == "palette":
        return NearestColour(palette=PALETTE)
    from flowalign.rewards.clip import load_towers

    revision = config.colour_revision or "main"
    towers = load_towers(config.colour_model, revision, device, reward="geneval")
    return ClipColours(towers=towers, colours=config.colours)


def from_config(
    config: GenEvalReward, *, device: torch.device, allow_code: Sequence[str] = ()
) -> tuple[GenEval, LoadedCode | None]:
    """(the reward of a config, the user's file behind its detector)."""
    table = None if config.metadata is None else read_checks(Path(config.metadata))
    detector, code = detector_of(config, device, allow_code)
    colours = colours_of(config, device) if _asks_colours(table) else OwnColours(colours=())
    if table is not None:
        _check_names(table, detector, colours)
    reward = GenEval(
        detector=detector,
        colours=colours,
        checks=shapes_check if table is None else table.get,
        mask_unknown=config.unknown == "mask",
        dense=config.dense,
        confidence=config.confidence,
        counting_confidence=config.counting_confidence,
        max_objects=config.max_objects,
        nms=config.nms,
        position_margin=config.position_margin,
    )
    return reward, code


def _asks_colours(table: Mapping[str, Check] | None) -> bool:
    return table is None or any(check.colours for check in table.values())


def _check_names(table: Mapping[str, Check], detector: Detector, colours: ColourNamer) -> None:
    """Every class and colour of the metadata is one that can be found."""
    for what, asked, known in (
        ("class", {label for check in table.values() for label in check.labels}, detector.labels),
        ("color", {name for check in table.values() for name in check.colours}, colours.colours),
    ):
        for name in sorted(asked - set(known)):
            told = f"the metadata asks for {what} '{name}', which cannot be found"
            raise ConfigError("CFG-VALUE", WHERE, told, did_you_mean(name, sorted(known)))
