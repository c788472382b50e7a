"""Whether a reward is fit to be learned from, as a user sees it: checks, scores and speed.

N samples. `flowalign.reward_check` finds what is impure; here are the facts besides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowalign.answers import read_answer
from flowalign.errors import FlowalignError, RewardError
from flowalign.protocols import Reward
from flowalign.reward_call import Entry, first_line
from flowalign.reward_check import Finding, check_reward, everything_restored
from flowalign.types import Modality, Sample
from flowalign.worlds.shapes.grammar import parse, prompts
from flowalign.worlds.shapes.render import pictures

GROUP = 4  # built-in samples of one prompt
FRAMES = 4  # of a built-in video
FPS = 8.0
RATE_HZ = 16_000.0
TIMED_S = 0.5  # seconds of calls for the speed, one call at least
CHECKS = (
    ("surroundings", "leaves random generators, directory, environment, threads as they were"),
    ("inputs", "leaves its media as they were"),
    ("repeat", "gives equal scores twice"),
    ("order", "scores do not depend on the order"),
    ("batch", "scores do not depend on the batch (1, 2, 3, 4, 5, 7, 8, 16 samples)"),
    ("answer", "every score is finite or masked, and some sample has one"),
    ("range", "scores lie in its range"),
    ("extremes", "black, white and grey media have finite scores and gradients, or a mask"),
    ("gradient", "each sample has a finite gradient"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardReport:
    """What `examine` saw of a reward."""

    label: str
    where: str  # place in errors
    reward: Reward
    findings: Sequence[Finding]
    values: Tensor  # (N,) float32
    valid: Tensor  # (N,) bool
    samples_per_s: float

    def lines(self) -> list[str]:
        """One line about the reward, one about the scores, one for each check."""
        reward, scores = self.reward, self.values[self.valid]
        low, high = reward.score_range
        facts = [
            reward.modality,
            "differentiable" if reward.differentiable else "black box",
            "comparable within a group only" if reward.group_only else "comparable between prompts",
            f"range {low:g} to {high:g}",
        ]
        spread = "no scores"
        if len(scores):
            spread = f"scores {float(scores.min()):.4g} to {float(scores.max()):.4g}"
        masked = int((~self.valid).sum())
        seen = f"{len(self.valid)} samples: {spread}, {masked} masked"
        return [
            f"{self.label}: {', '.join(facts)}",
            f"{seen}, {float(f'{self.samples_per_s:.3g}'):g} samples/s in one batch",
            *(self._check(fault, what) for fault, what in CHECKS if self._applies(fault)),
        ]

    def _applies(self, fault: str) -> bool:
        if fault == "gradient":
            return self.reward.differentiable
        return fault != "batch" or not self.reward.group_only

    def _check(self, fault: str, what: str) -> str:
        found = [finding.what for finding in self.findings if finding.fault == fault]
        return f"FAULT {fault:12} {'; '.join(found)}" if found else f"ok    {fault:12} {what}"

    def error(self) -> RewardError | None:
        """What is wrong, with exit code 5; None for a sound reward."""
        if not self.findings:
            return None
        first = self.findings[0]
        what = f"fault 1 of {len(self.findings)}: {first.fault}: {first.what}"
        fix = "a score is a finite function of its sample alone; see the lines above"
        if not bool(self.valid.any()):
            fix = "give media and a prompt that it can score: --media, --prompt"
        return RewardError("RWD-CHECK", self.where, what, fix)


def examine(entry: Entry, samples: Sequence[Sample]) -> RewardReport:
    """Check one reward on samples of its modality; a reward that raises is a RewardError."""
    reward = entry.reward
    other = [sample.modality for sample in samples if sample.modality != reward.modality]
    if other:
        what = f"scores {reward.modality}, and the media are {other[0]}"
        raise RewardError("RWD-MODALITY", entry.where, what, f"give files of {reward.modality}")
    try:
        findings = check_reward(reward, samples)  # first: what happens once happens there
        with everything_restored():
            answer, speed = timed(reward, samples)
        values, valid = read_answer(answer, where=entry.where, num=len(samples))
        findings += answer_findings(values, valid, reward.score_range)
        with everything_restored():
            findings += extremes_findings(reward, samples[0])
    except FlowalignError:
        raise
    except Exception as error:
        what = f"raised {first_line(error)}"
        raise RewardError("RWD-RAISED", entry.where, what, "repair it") from error
    return RewardReport(
        label=entry.label,
        where=entry.where,
        reward=reward,
        findings=findings,
        values=values,
        valid=valid,
        samples_per_s=speed,
    )


def timed(reward: Reward, samples: Sequence[Sample]) -> tuple[object, float]:
    """(answer, samples per second of the fastest call)."""
    copies = [replace(sample, media=sample.media.clone()) for sample in samples]
    with torch.no_grad():
        answer: object = reward(copies)
        fastest, start = math.inf, time.perf_counter()
        while not math.isfinite(fastest) or time.perf_counter() - start < TIMED_S:
            begin = time.perf_counter()
            reward(copies)
            fastest = min(fastest, time.perf_counter() - begin)
    return answer, len(samples) / max(fastest, 1e-9)


def answer_findings(values: Tensor, valid: Tensor, limits: tuple[float, float]) -> list[Finding]:
    """Scores (N,) that are no numbers or lie outside of `limits`; a mask on everything."""
    if not bool(valid.any()):
        return [Finding(fault="answer", what="masks every sample, so nothing could be checked")]
    finite = values.isfinite()
    broken = (valid & ~finite).nonzero().flatten().tolist()
    findings = []
    if broken:
        what = f"{len(broken)} scores are not finite, for example sample {broken[0]}: "
        findings.append(Finding(fault="answer", what=what + f"{float(values[broken[0]])}"))
    low, high = limits
    room = 1e-5 * torch.tensor([1.0, *(abs(x) for x in limits if math.isfinite(x))]).max()
    outside = valid & finite & ((values < low - room) | (values > high + room))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        what = f"sample {row} scores {float(values[row]):.6g}, and the range is {low:g} to {high:g}"
        findings.append(Finding(fault="range", what=what))
    return findings


def extremes_findings(reward: Reward, like: Sample) -> list[Finding]:
    """What goes wrong on flat media, which generators do make: scores, and gradients if promised.

    A mask is right where there is nothing to score; so is a gradient of 0.
    """
    findings = []
    for name, level in (("black", 0.0), ("white", 1.0), ("grey", 0.5)):
        media = torch.full_like(like.media, level).requires_grad_(reward.differentiable)
        with torch.set_grad_enabled(reward.differentiable):
            answer: object = reward([replace(like, media=media)])
        pair = answer if isinstance(answer, tuple) else (answer, torch.ones(1, dtype=torch.bool))
        score, mask = pair
        if not isinstance(score, Tensor):
            score = torch.as_tensor(score)
        if not bool(torch.as_tensor(mask)[0]):
            continue
        if not bool(score.isfinite().all()):
            what = f"a {name} medium scores {float(score[0].detach())}"
            findings.append(Finding(fault="extremes", what=what))
        elif score.requires_grad:
            (slope,) = torch.autograd.grad(score.sum(), media, allow_unused=True)
            if slope is not None and not bool(slope.isfinite().all()):
                what = f"a {name} medium has a gradient that is not finite"
                findings.append(Finding(fault="extremes", what=what))
    return findings


def built_in_samples(num: int, modality: Modality, *, prompt: str | None = None) -> list[Sample]:
    """Pictures of the shapes world in groups of one prompt; videos of them; for audio, noise.

    Their prompts are those of the world, or `prompt`.
    """
    generator = torch.Generator().manual_seed(0)
    texts = [prompts("train", limit=-(-num // GROUP))[i // GROUP] for i in range(num)]
    rate: float | None = None
    if modality == "audio":
        rate = RATE_HZ
        media = 0.2 * torch.randn(num, 1, int(RATE_HZ), generator=generator).clamp(-5.0, 5.0)
    else:
        frames = FRAMES if modality == "video" else 1
        scenes = [parse(text) for text in texts for _ in range(frames)]
        drawn = pictures(scenes, generator)
        media = drawn if modality == "image" else drawn.reshape(num, frames, *drawn.shape[1:])
        rate = FPS if modality == "video" else None
    return [
        Sample(
            prompt=text if prompt is None else prompt,
            media=media[i],
            modality=modality,
            rate=rate,
            prompt_id=i // GROUP,
            sample_id=i % GROUP,
            seed=0,
        )
        for i, text in enumerate(texts)
    ]
