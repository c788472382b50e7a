"""Back to the best checkpoint before an alarm of reward hacking, with nothing lost.

The alarmed state is written as `hacked-<step>` before this; here every later checkpoint gets such
a name, newest first, and the best earlier one becomes the run's newest. A kill at any moment
leaves a run whose `--resume` trains the same steps again, meets the same alarm and ends here.
"""

from __future__ import annotations

from flowalign import checkpoint
from flowalign.assembly import Session
from flowalign.errors import HealthError
from flowalign.monitor import best_step
from flowalign.run_directory import RunDirectory


def roll_back(session: Session, run: RunDirectory, run_id: str, alarm: HealthError) -> HealthError:
    """Put the best earlier state back on all processes; the alarm with what was done.

    The best is the checkpoint whose evaluation had the highest held-out rewards. A run that has
    none, because it was resumed with `rollback` only now, keeps its last state.
    """
    processes, state = session.processes, session.state
    now = state.progress.step
    step = -1
    if processes.is_main:
        kept = [one for one in checkpoint.steps(run.root) if one < now]
        found = best_step(state.memory, kept)
        step = -1 if found is None else found
        if found is not None:
            checkpoint.set_aside(run.root, found)
    step = processes.worst(step)  # the others say -1
    if step < 0:
        done = f"no earlier checkpoint was evaluated, and step {now} is kept as hacked-{now:06d}"
        return HealthError(alarm.code, alarm.where, alarm.what, f"{done}; {alarm.fix}")
    loaded = checkpoint.load(
        run.checkpoints / f"step-{step:06d}", run_id=run_id, world_size=processes.count
    )
    files = {stem: dict(tensors) for stem, tensors in loaded.tensors.items()}
    state.restore(files, loaded.entry("progress"), str(loaded.path))
    done = f"rolled back to step {step}, later states are kept as checkpoints/hacked-*"
    return HealthError(alarm.code, alarm.where, alarm.what, f"{done}; {alarm.fix}")
