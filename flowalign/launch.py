"""From an open directory to a finished run: processes, parts, checkpoint, loop."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffusers import DiffusionPipeline

from flowalign import checkpoint, disk
from flowalign.api import TrainResult
from flowalign.assembly import Session, assemble
from flowalign.attention.shim import releasing
from flowalign.config.load import load_stored_config
from flowalign.config.schema import RunConfig
from flowalign.errors import CheckpointError, HealthError
from flowalign.evaluation import drop_later
from flowalign.lora_files import export_lora
from flowalign.metrics import MetricsLog, Progress, open_trackers
from flowalign.monitor import HACKING
from flowalign.processes import start_processes
from flowalign.rollback import roll_back
from flowalign.run_directory import RunDirectory, open_run
from flowalign.signals import Signals
from flowalign.trainer import Loop, Outlets


def launch(
    config: RunConfig,
    run: RunDirectory,
    *,
    resume: bool,
    allow_code: Sequence[str] = (),
    allow_world_size_change: bool = False,
    pipe: DiffusionPipeline | None = None,
) -> TrainResult:
    """Train `config` in the open directory `run`, from its newest checkpoint with `resume`."""
    processes = start_processes(
        config.device,
        config.train.mixed_precision,
        timeout_s=config.peer_timeout_s,
        pulse=run.root,
    )
    run_id = processes.text_of_main(run.run_id)
    session = assemble(config, processes=processes, allow_code=allow_code, pipe=pipe)
    if resume:
        restore(session, run, run_id, allow_world_size_change=allow_world_size_change)
    step = session.state.progress.step
    if processes.is_main:
        checkpoint.remove_leftovers(run.root)
        # The new checkpoint is whole before the old one goes, so there is room for two.
        disk.require_free(run.root, 2 * session.state.estimated_bytes(), "two checkpoints")
        drop_later(run.root, step)
        run.start(step=step, code=session.all_rewards.digests)
    with Signals() as signals, releasing(session.generator.denoisers()):
        outlets = open_outlets(config, run, step) if processes.is_main else None
        loop = Loop(session=session, run=run, outlets=outlets, signals=signals)
        try:
            loop.train()
            if loop.last is None:  # a finished run was resumed: nothing was left to do
                loop.evaluate()
        except HealthError as problem:
            if problem.code != HACKING or config.monitor.action != "rollback":
                raise
            told = roll_back(session, run, run_id, problem)
            if processes.is_main:
                export_lora_of(session, run.root / "lora")
            processes.barrier()
            raise told from None
        finally:
            if outlets is not None:
                outlets.close()
    if processes.is_main:
        export_lora_of(session, run.root / "lora")
        run.status("finished", session.state.progress.step, exit_code=0)
    processes.barrier()
    if processes.pulse is not None:
        processes.pulse.file.unlink(missing_ok=True)
    return result_of(run.root, loop)


def open_outlets(config: RunConfig, run: RunDirectory, step: int) -> Outlets:
    """Metrics file, trackers and the progress line, continued after `step`."""
    return Outlets(
        log=MetricsLog(run.metrics, resume_step=step),
        trackers=open_trackers(
            config.trackers,
            run.root,
            run_id=run.run_id,
            config=config.model_dump(mode="json"),
            resume_step=step,
        ),
        progress=Progress(config.train.steps, start=step),
    )


def restore(
    session: Session, run: RunDirectory, run_id: str, *, allow_world_size_change: bool
) -> None:
    """Load the newest good checkpoint into the session; a run without one starts over."""
    newest = checkpoint.latest(run.root, run_id=run_id)
    if newest is None:
        return
    loaded = checkpoint.load(
        newest,
        run_id=run_id,
        world_size=session.processes.count,
        allow_world_size_change=allow_world_size_change,
    )
    check_same_data(session, run, loaded)
    files = {stem: dict(tensors) for stem, tensors in loaded.tensors.items()}
    session.state.restore(files, loaded.entry("progress"), str(newest))


def check_same_data(session: Session, run: RunDirectory, loaded: checkpoint.Loaded) -> None:
    """Refuse to go on with other rows than before, unless `data` was overridden on purpose.

    The main process decides, because it knows what was overridden. Raises CheckpointError (exit
    4): what comes next would be something else.
    """
    overridden = any(key.startswith("data.") and key != "data.cache" for key in run.changed)
    if session.source is None or overridden or not session.processes.is_main:
        return
    if loaded.entry("data") != session.source.dataset.digest:
        raise CheckpointError(
            "CKPT-DATA",
            session.source.config.path,
            "the rows are not those of the interrupted run",
            "put the file back as it was, or start a new run",
        )


def export_lora_of(session: Session, folder: Path) -> None:
    """The weights that evaluations used, as a folder plain diffusers loads."""
    if session.config.lora is None:
        return
    ema = session.state.ema
    if ema is None:
        export_lora(session.pipe, folder)
        return
    with session.policy.weights(ema):
        export_lora(session.pipe, folder)


def result_of(root: Path, loop: Loop) -> TrainResult:
    """Scores of the first and the last evaluation."""
    assert loop.last is not None
    last = {name: loop.last.mean(name) for name in loop.last.names}
    summary = root / "eval" / "step-000000" / "summary.json"
    base = {}
    if summary.exists():
        stored = json.loads(summary.read_text(encoding="utf-8"))["scores"]
        base = {name: entry["mean"] for name, entry in stored.items()}
    step = loop.session.state.progress.step
    return TrainResult(run=root, step=step, scores=last, base_scores=base)


def dry_run(
    config: RunConfig, *, allow_code: Sequence[str] = (), pipe: DiffusionPipeline | None = None
) -> TrainResult:
    """Build everything and run one small step and evaluation in a directory that is removed."""
    small = config.model_copy(
        update={
            "trackers": (),
            "data": config.data and config.data.model_copy(update={"cache": None}),
            "train": config.train.model_copy(update={"steps": 1, "save_every": 1}),
            "rollout": config.rollout.model_copy(
                update={"num_prompts": min(2, config.rollout.num_prompts)}
            ),
            "evaluation": config.evaluation.model_copy(
                update={"num_prompts": min(2, config.evaluation.num_prompts)}
            ),
        }
    )
    with tempfile.TemporaryDirectory(prefix="flowalign-") as folder:
        run = open_run(Path(folder) / "run", "{}\n")
        try:
            return launch(small, run, resume=False, allow_code=allow_code, pipe=pipe)
        finally:
            run.close()


def export_run(run: Path, output: Path, *, step: int | None = None) -> Path:
    """Write the adapter of a checkpoint to `output` in diffusers' format.

    Raises CheckpointError (exit 4) without a usable checkpoint or for a run of full weights.
    """
    config = load_stored_config(run)
    if config.lora is None:
        raise CheckpointError(
            "CKPT-NO-LORA", str(run), "trained full weights, not an adapter", "use its checkpoint"
        )
    chosen = checkpoint.latest(run) if step is None else run / "checkpoints" / f"step-{step:06d}"
    if chosen is None:
        raise CheckpointError("CKPT-NONE", str(run), "has no checkpoint", "train it first")
    processes = start_processes("cpu", "no")
    session = assemble(config, processes=processes)
    loaded = checkpoint.load(chosen, run_id=None, world_size=1, allow_world_size_change=True)
    files = {stem: dict(tensors) for stem, tensors in loaded.tensors.items()}
    session.state.restore(files, loaded.entry("progress"), str(chosen))
    export_lora_of(session, output)
    return output
