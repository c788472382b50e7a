"""The training loop: sample, score, credit, update; evaluate, save, stop when asked.

One training step is one rollout and the algorithm's updates from it. The loop knows no algorithm,
no model and no reward.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowalign import checkpoint
from flowalign.assembly import Session
from flowalign.attention.shim import counts
from flowalign.collection import Collected, collect, requests
from flowalign.errors import HealthError, RewardError, StopRequested, warn
from flowalign.evaluation import Evaluation, evaluate, write_evaluation
from flowalign.metrics import MetricsLog, Progress, Tracker
from flowalign.monitor import ALARMS, Report, best_step, hacking, watch, watch_groups
from flowalign.policy import average
from flowalign.randomness import generator as keyed
from flowalign.rollout import training_plan
from flowalign.run_directory import RunDirectory
from flowalign.scoring import combine
from flowalign.set_results import valid_score
from flowalign.shaped_rollout import shaping_numbers, taught
from flowalign.signals import Action, Signals
from flowalign.training_state import progress_dict
from flowalign.types import Rollout
from flowalign.unconditional import remembering
from flowalign.update import is_extreme, update

log = logging.getLogger(__name__)

WARN_RATIO_OFF = 1e-3
MAX_DROPPED_SHARE = 0.2


@dataclass(kw_only=True, slots=True)
class Outlets:
    """Where the main process tells what happens."""

    log: MetricsLog
    trackers: Sequence[Tracker]
    progress: Progress

    def step(self, step: int, row: dict[str, float], samples: int) -> None:
        """One training step."""
        self.log.write(step, row)
        for tracker in self.trackers:
            tracker.write(step, row)
        self.progress.update(step, reward=row["reward"], samples=samples)

    def evaluation(self, result: Evaluation, report: Report | None) -> None:
        """Means of one evaluation; metrics.jsonl has training steps only."""
        if report is not None:
            for tracker in self.trackers:
                told = {f"monitor/{name}": value for name, value in report.numbers().items()}
                tracker.write(result.step, told)
        means = {name: result.mean(name) for name in result.names}
        for tracker in self.trackers:
            tracker.write(result.step, {f"eval/{name}": mean for name, mean in means.items()})
        told = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items()) or "no rewards"
        self.progress.message(f"evaluation at step {result.step}: {told}")

    def close(self) -> None:
        self.log.close()
        self.progress.close()
        for tracker in self.trackers:
            tracker.close()


@dataclass(kw_only=True, slots=True)
class Loop:
    """A session on its way. `outlets` is None on all processes but the main one."""

    session: Session
    run: RunDirectory
    outlets: Outlets | None
    signals: Signals
    last: Evaluation | None = None
    report: Report | None = None  # of the last evaluation, where there is a monitor

    def train(self) -> None:
        """Run to `train.steps`. Raises StopRequested after saving when a signal asked for it."""
        session, config = self.session, self.session.config
        progress = session.state.progress
        if progress.step == 0:
            self.evaluate()
            if self.is_best():
                self.save()
            self.obey(self.signals.poll(session.processes.worst))
        while progress.step < config.train.steps:
            row = self.training_step()
            finished = progress.step == config.train.steps
            if self.outlets is not None:
                self.outlets.step(progress.step, row, config.rollout.num_samples)
            if finished or due(config.evaluation.every, progress.step):
                self.evaluate()
            action = self.signals.poll(session.processes.worst)
            alarm = self.alarm()
            asked = action > Action.CONTINUE or alarm is not None
            kept = finished or asked or self.is_best()
            if kept or due(config.train.save_every, progress.step):
                self.save(hacked=alarm is not None and config.monitor.action == "rollback")
            if alarm is not None:
                raise alarm
            self.obey(action)

    def obey(self, action: Action) -> None:
        """Stop where a signal asked for it; the state of the last step is saved by then."""
        if action.stop:
            raise StopRequested(action.exit_code)

    def alarm(self) -> HealthError | None:
        """What the evaluation of this very step says against going on, where it may stop a run."""
        stops = self.session.config.monitor.action in ("stop", "rollback")
        step = self.session.state.progress.step
        fresh = self.last is not None and self.last.step == step
        return hacking(self.report, step) if stops and fresh and self.report is not None else None

    def is_best(self) -> bool:
        """Whether a rollback would come back to this very step."""
        step, action = self.session.state.progress.step, self.session.config.monitor.action
        return action == "rollback" and best_step(self.session.state.memory) == step

    def training_step(self) -> dict[str, float]:
        """One rollout and its updates; returns the row of metrics."""
        session, config = self.session, self.session.config
        progress, algorithm = session.state.progress, session.algorithm
        begun = time.monotonic()
        collected = self.rollout()
        scored = collected.scored
        check_rewards(collected)
        lesson = taught(session, collected)
        credit = algorithm.credit(lesson.scored, session.state.memory)
        # Under `skip` it makes the loss non-finite, and the update is skipped and counted.
        if config.train.on_nonfinite == "stop" and not torch.isfinite(credit).all():
            where = f"training step {progress.step + 1}"
            raise HealthError(
                "NON-FINITE", where, "a credit is not finite", "look at the rewards' scale"
            )
        sampled, before = time.monotonic(), session.policy.passes
        rows = [
            update(
                session.policy,
                algorithm,
                batches,
                session.state,
                config.train,
                processes=session.processes,
                total_updates=session.total_updates,
            )
            for batches in self.batches(lesson, credit)
        ]
        progress.step += 1
        progress.cursor += config.rollout.num_prompts
        progress.samples += len(scored.group)
        passes = session.processes.sum(torch.tensor(session.policy.passes - before))
        drawn = 0 if session.source is not None else len(scored.group) * config.sampler.num_steps
        progress.evaluations += drawn + int(passes)
        if session.state.old is not None:
            decay = algorithm.old_decay(progress.step)
            average(session.state.old, session.policy.parameters, decay)
        seconds = time.monotonic() - begun
        progress.train_seconds += seconds
        row = mean_rows(rows)
        row.update(reward_statistics(collected, credit))
        row.update(shaping_numbers(session, lesson))
        if config.monitor.action != "off":
            row["reward_group_std"] = watch_groups(scored, session.state.memory)
            row["monitor/alarms"] = float(session.state.memory.get(ALARMS, 0))
        row["credit/zero_share"] = float((credit == 0).double().mean())
        row["updates_skipped"] = progress.skipped
        row["seconds"] = seconds
        row["seconds_rollout"] = sampled - begun
        row["samples_per_second"] = len(scored.group) / seconds
        row.update(counts(session.generator.denoisers()))
        return row

    def rollout(self) -> Collected:
        """The samples of the next training step, with the rewards of all processes."""
        session, config = self.session, self.session.config
        progress, policy = session.state.progress, session.policy
        if session.source is not None:
            policy.fresh = False
            with session.processes.accelerator.autocast():
                return session.source.collect(progress.cursor, config.rollout.num_prompts)
        plan = training_plan(
            session.generator, config.sampler, training_step=progress.step, seed=config.seed
        )
        wanted = requests(
            session.train_prompts,
            progress.cursor,
            config.rollout.num_prompts,
            config.rollout.group_size,
            seed=config.seed,
            shared=config.rollout.same_initial_noise,
            repeated=config.rollout.repeat_samples,
        )
        with self.acting() as heard, session.processes.accelerator.autocast():
            collected = collect(
                policy,
                plan,
                wanted,
                cache=session.cache,
                suite=session.train_rewards,
                weights=session.weights,
                processes=session.processes,
                chunk_size=config.rollout.batch_size,
                seed=config.seed,
                dtype=torch.float32 if config.rollout.latent_dtype == "fp32" else torch.bfloat16,
                needs=session.algorithm.needs,
            )
        of_start = config.rollout.policy == "reference"
        policy.fresh = not (of_start or session.algorithm.needs.old)
        if collected.rollout is None:
            return collected
        return replace(collected, rollout=remembering(collected.rollout, heard))

    @contextmanager
    def acting(self) -> Iterator[list[Tensor]]:
        """The view of the policy that draws samples; what is heard serves the first update."""
        policy = self.session.policy
        if self.session.config.rollout.policy == "reference":
            with policy.reference():
                yield []
            return
        old = policy.old() if self.session.algorithm.needs.old else nullcontext()
        with old, policy.sampling_view(), policy.listening() as heard:
            yield heard

    def batches(self, collected: Collected, credit: torch.Tensor) -> Sequence[Sequence[Any]]:
        """Micro-batches of this process, one sequence per update; empty ones without samples."""
        session, config = self.session, self.session.config
        rollout: Rollout | None = collected.rollout
        if rollout is None:
            return [[] for _ in range(session.algorithm.num_updates)]
        # One key for all processes: they choose the same steps and the same split.
        generator = keyed(config.seed, "updates", step=session.state.progress.step)
        return list(
            session.algorithm.batches(
                rollout,
                credit[collected.index],
                generator,
                batch_size=config.train.batch_size,
                total=len(collected.scored.group),
            )
        )

    def evaluate(self) -> Evaluation:
        """Score the held-out prompts with the averaged weights where they are kept."""
        session, state = self.session, self.session.state
        folder = self.run.evaluation(state.progress.step)
        begun = time.monotonic()
        ema = session.policy.weights(state.ema) if state.ema is not None else nullcontext()
        with ema, session.policy.sampling_view(), session.processes.accelerator.autocast():
            result = evaluate(
                session.evaluation_generator,
                session.evaluation_prompts,
                session.all_rewards,
                session.config.evaluation,
                step=state.progress.step,
                seed=session.config.seed,
                processes=session.processes,
                cache=session.evaluation_cache,
                folder=folder,
                pictures=session.config.monitor.action != "off",
            )
        self.report = self.watched(result)
        if session.processes.is_main:
            write_evaluation(
                folder,
                result,
                session.config.evaluation,
                seed=session.config.seed,
                trained=[*session.weights, *session.train_rewards.sets],
                costs={
                    "train_seconds": state.progress.train_seconds,
                    "wall_seconds": time.monotonic() - begun,
                    "training_samples": state.progress.samples,
                    "network_evaluations": state.progress.evaluations,
                },
                monitor=None if self.report is None else self.report.summary(),
            )
        if self.outlets is not None:
            self.outlets.evaluation(result, self.report)
        self.last = result
        return result

    def watched(self, result: Evaluation) -> Report | None:
        """What the monitor says of an evaluation; the main process warns."""
        session, config = self.session, self.session.config.monitor
        if config.action == "off":
            return None
        report = watch(result, session.weights, config, session.state.memory)
        problem = hacking(report, result.step)
        if problem is not None and session.processes.is_main:
            warn(problem.where, problem.what, problem.fix)
        return report

    def save(self, *, hacked: bool = False) -> None:
        """Write a checkpoint from the main process; all wait for it."""
        session, state = self.session, self.session.state
        guarded = session.config.monitor.action == "rollback"
        if self.outlets is not None:
            self.outlets.log.sync()
            checkpoint.save(
                self.run.root,
                state.progress.step,
                state.files(),
                self.entries(),
                keep_last=session.config.train.keep_last,
                run_id=self.run.run_id,
                world_size=session.processes.count,
                best=best_step(state.memory) if guarded else None,
                hacked=hacked,
            )
            self.run.status("running", state.progress.step)
        session.processes.barrier()

    def entries(self) -> dict[str, object]:
        """What a checkpoint tells besides its tensors: the counters, and which data were read."""
        source = self.session.source
        entries: dict[str, object] = {"progress": progress_dict(self.session.state.progress)}
        return entries if source is None else entries | {"data": source.dataset.digest}


def due(every: int | str, step: int) -> bool:
    """Whether something done every so many steps is done after `step`."""
    return isinstance(every, int) and step % every == 0


def check_rewards(collected: Collected) -> None:
    """Stop when too much was dropped to learn from (more than 20 %, or half of the groups)."""
    scored = collected.scored
    share = collected.dropped / max(1, len(scored.group) * len(scored.valid))
    if share > MAX_DROPPED_SHARE:
        what = f"{share:.0%} of the scores were dropped in one step"
        raise RewardError("RWD-DROPPED", "rewards", what, "look at the failures in the log")
    valid = torch.stack(list(scored.valid.values())).all(dim=0).double()
    empty = torch.zeros(int(scored.group.max()) + 1, dtype=torch.float64)
    usable = empty.index_add(0, scored.group, valid)
    size = torch.bincount(scored.group)
    if (usable < size.clamp(max=2)).double().mean() > 0.5 and collected.dropped:
        what = "over half of the groups have fewer than 2 valid samples"
        raise RewardError("RWD-DROPPED", "rewards", what, "look at the failures in the log")


def reward_statistics(collected: Collected, credit: torch.Tensor) -> dict[str, float]:
    """Mean and spread of each reward, and the combined mean.

    A set reward has one score, and one for the samples of positive and of negative credit each:
    their difference is what the step can teach of it.
    """
    row: dict[str, float] = {}
    scored = collected.scored
    for name, values in scored.terms.items():
        seen = values[scored.valid[name]].double()
        if len(seen):  # a reward may mask all by itself
            row[f"reward/{name}"] = float(seen.mean())
            row[f"reward_std/{name}"] = float(seen.std(correction=0))
    reward, usable = combine(scored.terms, scored.valid, scored.weights)
    row["reward"] = float(reward[usable].double().mean())
    for name, one in scored.sets.items():
        features, valid = scored.features[name], scored.valid[name]
        row[f"reward/{name}"] = valid_score(one, features, valid)
        row[f"reward_plus/{name}"] = valid_score(one, features, valid & (credit > 0))
        row[f"reward_minus/{name}"] = valid_score(one, features, valid & (credit < 0))
        row["reward"] += scored.set_weights[name] * row[f"reward/{name}"]
    row["reward/dropped"] = collected.dropped
    return row


def mean_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each metric over the updates that have it: the maximum of `..._max`, the mean of others.

    The first update is on-policy: its ratios are told apart, as a proof of exact replay.
    """
    joined: dict[str, float] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        found = [row[name] for row in rows if name in row]
        joined[name] = max(found) if is_extreme(name) else sum(found) / len(found)
    if "ratio_off_max" in rows[0]:
        joined["ratio_off_first"] = rows[0]["ratio_off_max"]
        if joined["ratio_off_first"] > WARN_RATIO_OFF:
            log.warning(
                "the first ratio is off by %.2g: replay differs from sampling (precision?)",
                joined["ratio_off_first"],
            )
    return joined
