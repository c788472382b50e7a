"""What a gallery says of the watch for reward hacking. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from flowalign.gallery.records import Evaluation

MAX_TEXT = 300


def alarm_notes(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """One note for each evaluation that raised an alarm, with what held-out rewards did since
    their best."""
    by_step = {evaluation.step: evaluation for evaluation in evaluations}
    for evaluation in evaluations:
        if not evaluation.alarms:
            continue
        told = "; ".join(evaluation.alarms)
        note = f"reward hacking alarm at step {evaluation.step}: {told[:MAX_TEXT]}"
        step = evaluation.best_held_out
        best = None if step is None else by_step.get(step)
        if best is not None and best is not evaluation:
            moves = [_move(name, best, evaluation) for name in evaluation.held_out]
            note += f"; held-out rewards were best at step {best.step}"
            note += f" ({', '.join(moves)})" if moves else ""
        yield note


def _move(name: str, before: Evaluation, after: Evaluation) -> str:
    """`name 0.81 -> 0.62`."""
    values = []
    for evaluation in (before, after):
        found = [sample.scores.get(name) for sample in evaluation.samples.values()]
        known = [score for score in found if score is not None]
        values.append(f"{fmean(known):.3g}" if known else "none")
    return f"{name} {' -> '.join(values)}"
