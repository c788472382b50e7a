"""The jobs that have configs: what a config file of each must look like. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flowalign.config import checks, noisy_checks, steer_checks
from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.config.problems import Problem
from flowalign.config.sampling import Section
from flowalign.config.schema import RunConfig
from flowalign.config.shorthand import write_out, write_out_noisy, write_out_steering
from flowalign.config.steering import SteerConfig
from flowalign.config.tree import variant_names

Root = TypeVar("Root", bound=Section)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Generic[Root]):
    """A kind of config: its schema, its short forms, and the rules between its keys."""

    command: str  # of `flowalign` that runs it
    root: type[Root]
    rules: Sequence[Callable[[Root], Iterator[Problem]]]
    write_out: Callable[[Mapping[str, Any]], dict[str, Any]]
    short_forms: tuple[str, ...]  # sections that may be a mere name
    schema_file: str  # beside the shipped configs


TRAIN = Job(
    command="train",
    root=RunConfig,
    rules=checks.RULES,
    write_out=write_out,
    short_forms=("model", "sampler", "algorithm"),
    schema_file="schema.json",
)
STEER = Job(
    command="steer",
    root=SteerConfig,
    rules=steer_checks.RULES,
    write_out=write_out_steering,
    short_forms=("model", "sampler", "method", "prompts"),
    schema_file="steer_schema.json",
)
NOISY = Job(
    command="reward train-noisy",
    root=NoisyRewardConfig,
    rules=noisy_checks.RULES,
    write_out=write_out_noisy,
    short_forms=("model", "sampler", "objective", "prompts"),
    schema_file="noisy_reward_schema.json",
)
JOBS: Mapping[str, Job[Any]] = {job.command: job for job in (TRAIN, STEER, NOISY)}


def command_of(data: Mapping[str, Any]) -> str | None:
    """The command that a raw config is for: it names an algorithm, an objective or a method."""
    method = data.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    named = [key for key in ("algorithm", "objective", "method") if key in data]
    if len(named) != 1:
        return None
    if named[0] != "method":
        return TRAIN.command if named[0] == "algorithm" else NOISY.command
    methods = variant_names(SteerConfig.model_fields["method"].annotation)
    return STEER.command if isinstance(name, str) and name in methods else None
