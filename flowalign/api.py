"""The Python face: `finetune`, `train`, `sample`, `score`, `export`, `gallery`. Torch-free.

A directory that cannot be used is found before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowalign import peers
from flowalign.config.schema import RolloutConfig, RunConfig
from flowalign.errors import EXIT_INTERRUPTED, FlowalignError, StopRequested
from flowalign.run_directory import RunDirectory, join_run, open_run

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a finished run left behind."""

    run: Path
    step: int
    scores: dict[str, float]  # mean of each reward in the last evaluation
    base_scores: dict[str, float]  # the same before training


def resolved_yaml(config: RunConfig) -> str:
    """The config with every default written out, as it is stored beside the results."""
    from flowalign.config.load import dump_config

    return dump_config(config)


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    allow_code: Sequence[str] = (),
    override_resume: Collection[str] = (),
    allow_world_size_change: bool = False,
    pipe: DiffusionPipeline | None = None,
) -> TrainResult:
    """Train as `config` says; `pipe` replaces its model by a pipeline the caller already has.

    `dry_run` builds everything, runs one training step and leaves nothing behind.

    Raises FlowalignError for what the caller can mend, StopRequested after a signal.
    """
    if dry_run:
        from flowalign.launch import dry_run as run_once

        return run_once(config, allow_code=allow_code, pipe=pipe)
    run = enter_run(config, resume=resume, override_resume=override_resume)
    try:
        from flowalign.launch import launch

        return launch(
            config,
            run,
            resume=resume,
            allow_code=allow_code,
            allow_world_size_change=allow_world_size_change,
            pipe=pipe,
        )
    except BaseException as error:
        found = peers.reason(run.root, error)
        if found is not None:
            record_end(run, found)
            raise found from None
        if run.world_size > 1 and not isinstance(error, StopRequested | KeyboardInterrupt):
            peers.tell(run.root, int(os.environ.get("RANK", "0")), error)
        record_end(run, error)
        raise
    finally:
        run.close()


def enter_run(config: RunConfig, *, resume: bool, override_resume: Collection[str]) -> RunDirectory:
    """Open the directory on the main process; the others join it later, when it is named."""
    text = resolved_yaml(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if int(os.environ.get("RANK", "0")) == 0:
        run = open_run(
            config.output,
            text,
            resume=resume,
            override_resume=override_resume,
            world_size=world_size,
        )
        peers.forget(run.root)
        return run
    return join_run(config.output, "", text, resume=resume, world_size=world_size)


def record_end(run: RunDirectory, error: BaseException) -> None:
    """Write why the run ended, where it had begun; the error itself goes on."""
    if run.lock is None or not (run.root / "run.json").exists():
        return
    state, code, reason = "failed", 1, f"{type(error).__name__}: {error}"
    if isinstance(error, StopRequested):
        state, code, reason = "stopped", error.exit_code, str(error)
    elif isinstance(error, KeyboardInterrupt):
        state, code, reason = "stopped", EXIT_INTERRUPTED, "interrupted without a save"
    elif isinstance(error, FlowalignError):
        code, reason = error.exit_code, error.line()
    with suppress(OSError):  # a full disk must not hide the error that tells of it
        run.status(state, last_step(run), exit_code=code, reason=reason)


def last_step(run: RunDirectory) -> int:
    """Training steps written to the metrics so far."""
    if not run.metrics.exists():
        return 0
    with run.metrics.open("rb") as rows:
        return sum(1 for _ in rows)


def finetune(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | str,
    rewards: Sequence[str | dict[str, Any]] | str,
    *,
    output: str = "runs/finetune",
    algorithm: str | dict[str, Any] = "nft",
    evaluation_prompts: Sequence[str] | str | None = None,
    allow_code: Sequence[str] = (),
    **sections: Any,
) -> TrainResult:
    """Fine-tune a pipeline object with rewards: `finetune(pipe, ["a red circle"], "clip")`.

    `prompts` is a list, or a source as in a config (`prompts.txt`, `shapes:train`). `rewards` are
    names or reward sections. Without `evaluation_prompts` the training prompts are evaluated, and
    a warning says so. `sections` are sections of a config (`train={"steps": 50}`). The
    pipeline carries the adapter afterwards; the run directory has it in diffusers' format.
    """
    from flowalign.config.load import config_from_mapping

    mapping: dict[str, Any] = {"output": output, "algorithm": algorithm, **sections}
    mapping["rewards"] = [rewards] if isinstance(rewards, str) else list(rewards)
    sources: dict[str, Any] = {"train": prompts}
    sources["evaluation"] = prompts if evaluation_prompts is None else evaluation_prompts
    mapping["prompts"] = {**sources, **mapping.get("prompts", {})}
    if not isinstance(prompts, str):
        # A step draws distinct prompts: a short list is a small step, not an error.
        usual = RolloutConfig().num_prompts
        mapping["rollout"] = {
            "num_prompts": max(1, min(usual, len(prompts))),
            **mapping.get("rollout", {}),
        }
    return train(config_from_mapping(mapping), allow_code=allow_code, pipe=pipe)


def export(run: str | Path, output: str | Path, *, step: int | None = None) -> Path:
    """Write a run's adapter to `output` in the format of `pipe.load_lora_weights`."""
    from flowalign.launch import export_run

    return export_run(Path(run), Path(output), step=step)
