"""From a config to a finished steering job: parts, baseline, method, files."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from flowalign.config.compare_checks import entries
from flowalign.config.steering import NoneConfig, SteerConfig
from flowalign.errors import StopRequested
from flowalign.metrics import Progress
from flowalign.run_directory import RunDirectory
from flowalign.signals import Signals
from flowalign.steering.methods import particles_of
from flowalign.steering.outcome import Population, Steered, SteerResult
from flowalign.steering.report import BASELINE, write_steered
from flowalign.steering.session import SteeringSession, assemble_steering, plan_of, run_method


def launch(
    config: SteerConfig,
    run: RunDirectory | None,
    *,
    allow_code: Sequence[str] = (),
    pipe: DiffusionPipeline | None = None,
) -> SteerResult:
    """Steer all prompts of `config`; files go to the open directory `run` where there is one."""
    session = assemble_steering(config, allow_code=allow_code, pipe=pipe)
    plan = plan_of(session)
    for entry in entries(config):  # none is run before all can be paid
        particles_of(entry.method, plan, entry.budget)
    if run is not None:
        run.start()
    baseline, columns = drawn(session, shown=run is not None)
    if run is not None:
        write(run, session, baseline, columns)
    main = (config.method.name, config.budget)
    return SteerResult(
        steered=next(found for found in columns if (found.label, found.budget) == main),
        columns=columns,
        baseline=baseline,
        run=None if run is None else run.root,
    )


def drawn(session: SteeringSession, *, shown: bool) -> tuple[Steered | None, list[Steered]]:
    """Plain samples where they are asked for, and the samples of every method and budget."""
    config, columns = session.config, []
    total = len(session.prompts) * config.samples_per_prompt
    with Signals() as signals:
        watch = Watch(total=total, shown=shown, signals=signals)
        baseline = None
        if config.baseline and not isinstance(config.method, NoneConfig):
            plain = NoneConfig(name="none")
            baseline = run_method(session, plain, budget=None, on_chunk=watch.chunk)
            watch.next("plain samples are drawn")
        for entry in entries(config):
            if columns:
                watch.next(f"{columns[-1].label} is done")
            columns.append(
                run_method(
                    session,
                    entry.method,
                    budget=entry.budget,
                    label=entry.label,
                    on_chunk=watch.chunk,
                )
            )
        watch.close()
    return baseline, columns


def write(
    run: RunDirectory,
    session: SteeringSession,
    baseline: Steered | None,
    columns: Sequence[Steered],
) -> None:
    """The files of a job that went well: each result under a step of its own."""
    for step, result in enumerate([baseline, *columns], start=BASELINE):
        if result is not None:
            write_steered(
                run.evaluation(step),
                result,
                step=step,
                seed=session.config.seed,
                steering_rewards=session.suite.names,
            )
    run.status("finished", len(columns), exit_code=0)


class Watch:
    """What is told while a method runs, and where a signal is obeyed."""

    def __init__(self, *, total: int, shown: bool, signals: Signals) -> None:
        self.total, self.shown, self.signals = total, shown, signals
        self.done = 0
        self.progress = Progress(total) if shown else None

    def chunk(self, populations: Sequence[Population]) -> None:
        """After some populations. Raises StopRequested when a signal asked for it."""
        action = self.signals.poll()
        if action.stop:
            raise StopRequested(action.exit_code)
        self.done += len(populations)
        if self.progress is not None:
            best = [float(p.reward[p.valid].max()) for p in populations if bool(p.valid.any())]
            count = sum(len(population.samples) for population in populations)
            mean = sum(best) / len(best) if best else float("nan")
            self.progress.update(self.done, reward=mean, samples=count)

    def next(self, told: str) -> None:
        """Another method begins."""
        self.done = 0
        if self.progress is not None:
            self.progress.message(told)
            self.progress = Progress(self.total)

    def close(self) -> None:
        """End the line."""
        if self.progress is not None:
            self.progress.close()
