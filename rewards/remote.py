"""A reward that lives elsewhere: in another environment, or on another machine.

Measures   whatever `flowalign serve` serves under `reward`; the scores are those of the reward in
           its own process, bit for bit in float32 (same versions, device and threads there).
Range      as the served reward's; so are modality and direction, as the server's card says.
Source     none: the card is the served reward's.
Differentiable: no, whatever it is there. Group-only: as the served reward.
Licence    that of the served reward.
Weights    none here.
Cost       the reward's own, and the media as float32 on the way (3 MB for a 512x512 picture). One
           request for all samples of a call, as long as the server takes that many.
Failures   a sample that failed there has failed here, with the same reason; an error of the reward
           is the same error here. See `flowalign.server.wire` for what travels.
Privacy    prompts and media go to the address you give, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.config.rewards import RemoteReward
from flowalign.errors import RewardServerError
from flowalign.http.client import Call, Server
from flowalign.http.connect import connect
from flowalign.http.faults import FaultError
from flowalign.sample_failures import SampleFailuresError
from flowalign.server.card import Limits, RewardCard, ServerCard, read_card
from flowalign.server.replies import Result, read_error, read_results
from flowalign.server.wire import CONTENT_TYPE, Packed, join, packed
from flowalign.types import Modality, Sample

HEAD_BYTES = 2_000  # allowed for what stands beside a sample's media and prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A served reward."""

    server: Server
    card: RewardCard
    limits: Limits
    differentiable: bool = False

    @property
    def name(self) -> str:
        """As on the server."""
        return self.card.name

    @property
    def modality(self) -> Modality:
        """As the card says."""
        return self.card.modality

    @property
    def group_only(self) -> bool:
        """As the card says."""
        return self.card.group_only

    @property
    def score_range(self) -> tuple[float, float]:
        """As the card says."""
        return self.card.score_range

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(values (N,), valid (N,)); SampleFailuresError for samples without a score."""
        travelling = [packed(sample) for sample in samples]
        found: dict[int, Result] = {}
        reasons: dict[int, str] = {}
        open_rows = list(range(len(samples)))
        deadline = time.monotonic() + self.server.limits.batch_s
        for _ in range(self.server.limits.retries + 1):
            if not open_rows:
                break
            parts = list(self._parts(open_rows, samples, travelling))
            calls = [self._call([travelling[row] for row in part]) for part in parts]
            left = max(deadline - time.monotonic(), 0.0)
            for part, answer in zip(parts, self.server.within(left).ask(calls), strict=True):
                if isinstance(answer, FaultError):
                    reasons |= dict.fromkeys(part, answer.what)
                else:
                    found |= {part[place]: result for place, result in answer.items()}
            # Only what the server left out is sent again.
            open_rows = [row for row in open_rows if row not in found and row not in reasons]
        answered = f"the server answered {len(found)} of {len(samples)} samples"
        reasons |= dict.fromkeys(open_rows, answered)
        return _scores(len(samples), found, reasons)

    def _call(self, samples: Sequence[Packed]) -> Call[dict[int, Result]]:
        where = f"{self.server.where} at {self.server.url}"
        return Call(
            path="v1/score",
            body=lambda: join(self.card.name, samples),
            content_type=CONTENT_TYPE,
            read=lambda value: read_results(value, samples),
            refused=lambda value: read_error(value, where),
        )

    def _parts(
        self, rows: Sequence[int], samples: Sequence[Sample], travelling: Sequence[Packed]
    ) -> Iterator[list[int]]:
        """Rows of one request each, as many as the server takes; groups stay together."""
        if self.card.group_only:
            by_prompt: dict[str, list[int]] = {}
            for row in range(len(samples)):  # whole groups, also when a part of one is left
                by_prompt.setdefault(samples[row].prompt, []).append(row)
            units = [group for group in by_prompt.values() if set(group) & set(rows)]
        else:
            units = [[row] for row in rows]
        part: list[int] = []
        size = 0
        for unit in units:
            more = sum(_size(samples[row], travelling[row]) for row in unit)
            if part and (
                size + more > self.limits.bytes or len(part) + len(unit) > self.limits.samples
            ):
                yield part
                part, size = [], 0
            part, size = [*part, *unit], size + more
        yield part


def _size(sample: Sample, travelling: Packed) -> int:
    return len(travelling.media) + 6 * len(sample.prompt) + HEAD_BYTES  # 6: an escaped character


def _scores(num: int, found: dict[int, Result], reasons: dict[int, str]) -> tuple[Tensor, Tensor]:
    values = torch.full((num,), torch.nan)
    valid = torch.zeros(num, dtype=torch.bool)
    for row, result in found.items():
        values[row], valid[row] = result.value, result.valid
        if result.failed is not None:
            reasons[row] = result.failed
    if reasons:
        raise SampleFailuresError(values, valid, dict(sorted(reasons.items())))
    return values, valid


def from_config(config: RemoteReward, *, device: torch.device) -> Remote:
    """The reward of a config, as its server describes it; RewardServerError when it is down."""
    server = connect(config, secret_env=config.token_env, concurrency=1)
    card = server.get("v1/card", read_card)
    return Remote(server=server, card=_chosen(card, config.reward, server), limits=card.limits)


def _chosen(card: ServerCard, name: str | None, server: Server) -> RewardCard:
    named = [reward for reward in card.rewards if name in (None, reward.name)]
    if len(named) == 1:
        return named[0]
    serves = ", ".join(reward.name for reward in card.rewards) or "nothing"
    what = f"has no reward `{name}`" if name is not None else "has several rewards"
    where = f"{server.where} at {server.url}"
    raise RewardServerError("RWD-SERVER", where, what, f"set `reward` to one of: {serves}")
