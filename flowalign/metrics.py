"""The numbers of a run: metrics.jsonl, trackers beside it, and the line a person watches."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from flowalign import disk
from flowalign.errors import CheckpointError, ResourceError, warn

Value = bool | int | float | str | None


class MetricsLog:
    """metrics.jsonl: one JSON object per training step, complete when `write` returns.

    After `resume_step` the file holds the rows of steps 1..resume_step and nothing else, so a
    resumed run writes the same file as an uninterrupted one (but for wall-clock fields).
    """

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        self._path = path
        self._step = resume_step
        _cut(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        """Append the row of `step`; NaN and infinities become the strings "nan", "inf", "-inf"."""
        assert step > self._step, f"row {step} after row {self._step}"
        self._step = step
        self._file.write(format_row(step, row))
        self._file.flush()

    def sync(self) -> None:
        """Wait until all rows are on the disk; called before a checkpoint relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def format_row(step: int, row: Mapping[str, Value]) -> str:
    """One line of strict JSON."""
    plain = {"step": step, **{name: _plain(value) for name, value in row.items()}}
    return json.dumps(plain, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _plain(value: Value) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _cut(path: Path, resume_step: int) -> None:
    """Keep the rows up to `resume_step`, each of its own step, in order."""
    if not path.exists():
        if resume_step:
            warn(str(path), "is missing", f"it will begin at step {resume_step + 1}")
        return
    kept: list[str] = []
    last = 0
    for number, line in enumerate(path.read_text("utf-8").splitlines(keepends=True), start=1):
        if last >= resume_step:
            break
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            step = None
        if not isinstance(step, int) or step <= last or not line.endswith("\n"):
            raise CheckpointError(
                "RUN-METRICS",
                f"{path}:{number}",
                f"is not the next row, and the checkpoint is of step {resume_step}",
                "put the file back, or move it away to begin a new one",
            )
        if step <= resume_step:
            kept.append(line)
        last = step
    disk.write_file(path, "".join(kept).encode())


class Tracker(Protocol):
    """Where metrics go beside the built-in file."""

    def write(self, step: int, row: Mapping[str, Value]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard; rows after the resumed step are hidden when resuming."""

    def __init__(self, folder: Path, *, resume_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases by accelerate's tracker; a resumed run continues under its run id."""

    def __init__(self, root: Path, run_id: str, config: Mapping[str, Any]) -> None:
        try:
            from accelerate.tracking import WandBTracker

            self._tracker = WandBTracker(
                "flowalign", id=run_id, name=root.name, dir=str(root), resume="allow"
            )
            self._tracker.start()
        except ImportError as error:
            raise _missing("wandb", error) from None
        self._tracker.store_init_configuration(dict(config))

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        self._tracker.log(numbers(row), step=step)

    def close(self) -> None:
        self._tracker.finish()


def open_trackers(
    names: Sequence[str],
    root: Path,
    *,
    run_id: str,
    config: Mapping[str, Any],
    resume_step: int = 0,
) -> list[Tracker]:
    """The trackers of the config (`tensorboard`, `wandb`), for rank 0."""
    trackers: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            trackers.append(TensorBoard(root / "tensorboard", resume_step=resume_step))
        else:
            assert name == "wandb", name
            trackers.append(Wandb(root, run_id, config))
    return trackers


class Progress:
    """One line: step, reward, samples per second, time left. Rewritten in place on a terminal.
    `label` says what the number is where it is no reward.

    Elsewhere a line is printed at most every `interval_s`. A reader that went away (`| head -1`)
    silences it and nothing else.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        stream: TextIO | None = None,
        interval_s: float = 10.0,
        label: str = "reward",
    ) -> None:
        self._label = label
        self._total, self._done = total, start
        self._stream: TextIO | None = sys.stdout if stream is None else stream
        self._terminal = self._stream is not None and _is_terminal(self._stream)
        self._interval_s = 0.1 if self._terminal else interval_s
        self._printed = -math.inf
        self._width = 0
        # (monotonic seconds, step, samples) of the last steps: the clock may be set, this may not.
        self._history: deque[tuple[float, int, int]] = deque([(time.monotonic(), start, 0)], 20)

    def update(self, step: int, *, reward: float, samples: int) -> None:
        """After training step `step`, which took `samples` samples of mean `reward`."""
        now = time.monotonic()
        self._history.append((now, step, self._history[-1][2] + samples))
        self._done = step
        if now - self._printed >= self._interval_s or step == self._total:
            self._printed = now
            self._print(self.line(reward))

    def line(self, reward: float) -> str:
        """For example `step 12/100  reward 0.412  31.0 samples/s  6:12 left`."""
        (begin, first, before), (end, last, after) = self._history[0], self._history[-1]
        seconds = max(end - begin, 1e-9)
        left = (self._total - last) * seconds / max(last - first, 1)
        return (
            f"step {last}/{self._total}  {self._label} {reward:.3f}  "
            f"{(after - before) / seconds:.1f} samples/s  {_clock(left)} left"
        )

    def message(self, text: str) -> None:
        """Print `text` on a line of its own."""
        self._end_line()
        self._put(text + "\n")

    def close(self) -> None:
        self._end_line()

    def _print(self, text: str) -> None:
        if not self._terminal:
            self._put(text + "\n")
            return
        self._put("\r" + text.ljust(self._width))
        self._width = len(text)

    def _end_line(self) -> None:
        if self._width:
            self._put("\n")
            self._width = 0

    def _put(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            _silence(self._stream)
            self._stream = None


def _silence(stream: TextIO) -> None:
    """Let a broken stream write to nowhere, or the interpreter's last flush fails the process."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return  # closed already: nothing will be flushed into it


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def numbers(row: Mapping[str, Value]) -> dict[str, float]:
    """The entries that a curve can be drawn of."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _missing(package: str, error: ImportError) -> ResourceError:
    return ResourceError(
        "TRACKER-MISSING",
        "trackers",
        f"{package} cannot be used ({error})",
        f"pip install {package}",
    )
