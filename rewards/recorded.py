"""Recorded scores: what people said of these very samples.

Measures   nothing by itself: it looks up the score that a file holds for a sample. Samples are
           functions of their keys, so people can score them before training and the same samples
           come again while training (`rollout.policy: reference`; `rollout.repeat_samples: true`
           for more than one epoch).
File       one JSON object a line (`.jsonl`); other keys are kept as metadata and ignored:
               {"prompt": "a red circle", "prompt_id": 0, "sample_id": 3, "seed": 0, "score": 2,
                "sha256": "..."}
           `prompt_id` is the prompt's place in the source of prompts, `sample_id` the sample's
           number within its prompt, `seed` the run's. `score` is a number in people's units,
           higher is better: a rating, or how many comparisons within its group it won; null says
           that nobody scored it. `sha256`, where present, is that of the PNG file that flowalign
           writes of the picture, 64 hexadecimal digits.
Range      that of the file.
Masks      a sample without a score.
Refuses    a file of other seeds or of another order of prompts than the run's, and a picture with
           another hash: those are not the pictures people saw.
Source     D3PO (arXiv 2311.13231) section 5.2 learns from people's choices among samples of one
           prompt; any algorithm that is not on-policy can.
Licence    this project's (Apache-2.0). Weights: none. Differentiable: no. Group-only: no.
Cost       a look-up; with `sha256` about 0.1 ms a 32x32 picture, 10 ms a 512x512 one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowalign.config.rewards import RecordedReward
from flowalign.errors import MAX_LISTED, DataError
from flowalign.media import encoded
from flowalign.reward_call import named
from flowalign.text_rows import (
    each_row,
    kind,
    required,
    shown,
    text_of,
)
from flowalign.types import Modality, Sample

Key = tuple[str, int, int, int]  # prompt, prompt_id, sample_id, seed
EXAMPLE = 'write {"prompt": "...", "prompt_id": 0, "sample_id": 0, "seed": 0, "score": 1}'
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of the file."""

    key: Key
    score: float | None  # None: nobody scored it
    sha256: str | None
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedScore:
    """Scores of the samples that people saw; all others are masked."""

    records: Mapping[Key, Record]
    prompt_ids: Mapping[str, frozenset[int]]  # of each prompt in the records
    seeds: frozenset[int]
    path: str
    name: str = "recorded"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (-math.inf, math.inf)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(score (N,), valid (N,)): valid where people gave a score."""
        scores = [self.score(sample) for sample in samples]
        values = [math.nan if score is None else score for score in scores]
        valid = [score is not None for score in scores]
        return torch.tensor(values, dtype=torch.float32), torch.tensor(valid, dtype=torch.bool)

    def score(self, sample: Sample) -> float | None:
        """Of one sample; None without one."""
        record = self.records.get((sample.prompt, sample.prompt_id, sample.sample_id, sample.seed))
        if record is None:
            self.check_source(sample)
            return None
        if record.sha256 is not None and record.sha256 != picture_sha256(sample.media):
            what = f"{named(sample)} has another `sha256`: it is not the picture people saw"
            fix = "draw it with the model, sampler, seed, device and versions of then"
            raise DataError("DATA-OTHER-PICTURE", record.where, what, fix)
        return record.score

    def check_source(self, sample: Sample) -> None:
        """Refuse samples whose keys cannot be in the file: nothing would be learned of it."""
        if sample.seed not in self.seeds:
            what = f"scores of seed {_listed(self.seeds)}, and this run's is {sample.seed}"
            raise DataError("DATA-OTHER-SEED", self.path, what, "set `seed` to that of the file")
        known = self.prompt_ids.get(sample.prompt)
        if known is not None and sample.prompt_id not in known:
            what = (
                f"{shown(sample.prompt)} has prompt_id {_listed(known)}, and {sample.prompt_id} in "
                "this run"
            )
            fix = "use the prompts of then, in their order, or write a line with score null for it"
            raise DataError("DATA-OTHER-PROMPTS", self.path, what, fix)


def picture_sha256(picture: Tensor) -> str:
    """SHA-256 of the PNG file of (3, H, W), 64 hexadecimal digits."""
    return hashlib.sha256(encoded(picture, "PNG")).hexdigest()


def read_records(path: Path, *, modality: Modality) -> dict[Key, Record]:
    """Every line of the file by its key.

    Raises DataError (exit 3) with up to 20 bad lines and their number, SecurityError (exit 8) for
    a file that can only be a pickle.
    """
    where = f"reward `recorded`: {path}"
    records: dict[Key, Record] = {}

    def take(row: Mapping[str, Any], place: str) -> None:
        record = read_record(row, place)
        if record.sha256 is not None and modality != "image":
            what = f"`sha256` of {modality}: only the files of pictures come out equal again"
            raise DataError("DATA-KEY", place, what, "remove the key")
        if record.key in records:
            what = f"the sample of {records[record.key].where} again"
            raise DataError("DATA-DUPLICATE", place, what, "write one score for it")
        records[record.key] = record

    each_row(path, where, take, row="a score a line", noun="scores", example=EXAMPLE)
    if not records:
        raise DataError("DATA-EMPTY", where, "holds no scores", EXAMPLE)
    return records


def read_record(row: Mapping[str, Any], where: str) -> Record:
    """What one line says."""
    prompt = text_of(required(row, "prompt", where), "prompt", where)
    prompt_id, sample_id, seed = (
        _whole(required(row, name, where), name, where)
        for name in ("prompt_id", "sample_id", "seed")
    )
    score = required(row, "score", where)
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, int | float):
            what = f"`score`: expected a number, got {kind(score)}"
            raise DataError("DATA-TYPE", where, what, "write a number, or null for no score")
        if not math.isfinite(score):
            what = f"`score` must be finite, got {score}"
            raise DataError("DATA-FINITE", where, what, "write null for no score")
    digest = row.get("sha256")
    if digest is not None and not (isinstance(digest, str) and SHA256.fullmatch(digest)):
        what = "`sha256`: expected 64 hexadecimal digits"
        raise DataError("DATA-TYPE", where, what, "leave the key out, or correct it")
    key = (prompt, prompt_id, sample_id, seed)
    return Record(
        key=key, score=None if score is None else float(score), sha256=digest, where=where
    )


def _whole(value: object, name: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        what = f"`{name}`: expected an integer, got {kind(value)} {shown(str(value))}"
        raise DataError("DATA-TYPE", where, what, "write it without quotes and decimal point")
    return value


def _listed(numbers: frozenset[int]) -> str:
    first = sorted(numbers)[:MAX_LISTED]
    return ", ".join(map(str, first)) + (", ..." if len(numbers) > MAX_LISTED else "")


def from_config(config: RecordedReward, *, device: torch.device) -> RecordedScore:
    """The reward of a config; it works on the CPU wherever the pictures are."""
    records = read_records(Path(config.path), modality=config.modality)
    prompt_ids: dict[str, frozenset[int]] = {}
    for prompt, prompt_id, _, _ in records:
        prompt_ids[prompt] = prompt_ids.get(prompt, frozenset()) | {prompt_id}
    return RecordedScore(
        records=records,
        prompt_ids=prompt_ids,
        seeds=frozenset(seed for _, _, _, seed in records),
        path=config.path,
        modality=config.modality,
    )
