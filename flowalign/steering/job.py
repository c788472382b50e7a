"""Steering from Python and from a config: `steer` and `run_steering`. Torch-free until they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowalign.api import record_end
from flowalign.config.jobs import STEER
from flowalign.config.load import dump_config, mapping_for
from flowalign.config.steering import SteerConfig
from flowalign.run_directory import RunDirectory, open_run

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from flowalign.steering.outcome import SteerResult

PARTICLES = {"fk": "particles", "noise_search": "neighbours"}  # their key by method


def steer(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | str,
    rewards: Sequence[str | dict[str, Any]] | str,
    *,
    method: str | Mapping[str, Any] = "fk",
    particles: int | None = None,
    output: str | None = None,
    allow_code: Sequence[str] = (),
    **sections: Any,
) -> SteerResult:
    """Better samples of a pipeline object: `steer(pipe, ["a red circle"], "clip", particles=8)`.

    `prompts` is a list, or a source as in a config (`prompts.txt`, `shapes:heldout`). `rewards`
    are names or reward sections. `particles` are those of each prompt, whatever the method calls
    them. `sections` are keys of a config (`sampler={"num_steps": 28}`, `budget=160`). Files are
    written with `output` only, and then plain samples are drawn as well, to compare with.
    """
    settings: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    if particles is not None:
        settings[PARTICLES.get(settings.get("name", ""), "candidates")] = particles
    mapping: dict[str, Any] = {"baseline": output is not None, **sections}
    mapping |= {"output": output or "runs/steer", "method": settings, "prompts": prompts}
    mapping["rewards"] = [rewards] if isinstance(rewards, str) else list(rewards)
    if isinstance(prompts, str):
        mapping["prompts"] = {"source": prompts}
    config = mapping_for(STEER, mapping)
    return run_steering(config, allow_code=allow_code, pipe=pipe, write=output is not None)


def run_steering(
    config: SteerConfig,
    *,
    allow_code: Sequence[str] = (),
    pipe: DiffusionPipeline | None = None,
    write: bool = True,
) -> SteerResult:
    """Steer as `config` says; `pipe` replaces its model by a pipeline the caller already has.

    Without `write` no file is written. Raises FlowalignError for what the caller can mend,
    StopRequested after a signal; then nothing but the job's description is left.
    """
    if not write:
        return launched(config, None, allow_code=allow_code, pipe=pipe)
    run = open_run(config.output, dump_config(config), resumable=False)
    try:
        return launched(config, run, allow_code=allow_code, pipe=pipe)
    except BaseException as error:
        record_end(run, error)
        raise
    finally:
        run.close()


def launched(
    config: SteerConfig,
    run: RunDirectory | None,
    *,
    allow_code: Sequence[str],
    pipe: DiffusionPipeline | None,
) -> SteerResult:
    """Run in an open directory, or without one; torch is imported now."""
    from flowalign.steering.launch import launch

    return launch(config, run, allow_code=allow_code, pipe=pipe)
