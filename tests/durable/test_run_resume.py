"""A run that was interrupted and resumed is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowalign import checkpoint, collection, policy, trainer
from flowalign.algorithms.grpo import GRPO
from flowalign.algorithms.nft import NFT
from flowalign.metrics import MetricsLog
from flowalign.scoring import RewardSuite
from flowalign.training_state import TrainingState
from tests import toy_run
from tests.toy_run import KILLED, LORA, dies, fingerprint, start, straight, toy

Straight = Callable[..., str]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Fingerprint of the straight run of a kind, made once."""
    known: dict[str, str] = {}

    def run(algorithm: str, world: int, **sections: Any) -> str:
        key = json.dumps([algorithm, world, sections])
        if key not in known:
            root = tmp_path_factory.mktemp("straight") / "run"
            known[key] = straight(toy(root, algorithm, **sections), world=world)
        return known[key]

    return run


def resumed(root: Path, algorithm: str, world: int, change: toy_run.Change, **sections: Any) -> str:
    """Fingerprint of a run that `change` kills once."""
    config = toy(root, algorithm, **sections)
    codes = start(config, world=world, change=change).wait()
    assert codes == [KILLED] * world, codes
    return straight(config, world=world, resume=True)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
def test_six_and_six_steps_equal_twelve(
    tmp_path: Path, uninterrupted: Straight, algorithm: str, world: int
) -> None:
    """P01, with EMA, warm-up, cosine, KL and, for NFT, the old policy."""
    stop = dies(trainer.Loop, "save", 2, after=True)
    assert resumed(tmp_path / "run", algorithm, world, stop) == uninterrupted(algorithm, world)


@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
def test_six_and_six_steps_of_an_adapter(
    tmp_path: Path, uninterrupted: Straight, algorithm: str
) -> None:
    """P01 for LoRA, merged while sampling."""
    stop = dies(trainer.Loop, "save", 2, after=True)
    found = resumed(tmp_path / "run", algorithm, 1, stop, lora=LORA)
    assert found == uninterrupted(algorithm, 1, lora=LORA)


def test_another_seed_is_another_run(tmp_path: Path, uninterrupted: Straight) -> None:
    """The fingerprint tells runs apart."""
    assert uninterrupted("grpo", 1, seed=4) != uninterrupted("grpo", 1)


STOPS = {
    "in the middle of sampling": dies(toy_run.ToyGenerator, "predict", 150),
    "before rewards": dies(RewardSuite, "score", 11),
    "after rewards": dies(RewardSuite, "score", 11, after=True),
    "between micro-batches": dies(GRPO, "loss", 50),
    "between updates": dies(trainer, "update", 9),
    "before the row": dies(MetricsLog, "write", 7),
    "after the row, before saving": dies(MetricsLog, "write", 5, after=True),
    "before an evaluation": dies(trainer, "evaluate", 1),
    "after an evaluation": dies(trainer, "write_evaluation", 2, after=True),
    "inside the averaged weights": dies(policy.TrainedPolicy, "weights", 1, after=True),
    "in a save, files written": dies(checkpoint, "_publish", 1),
    "in a save, before pruning": dies(checkpoint, "_prune", 2),
}


@pytest.mark.parametrize("stop", list(STOPS))
def test_any_stopping_point_is_safe(tmp_path: Path, uninterrupted: Straight, stop: str) -> None:
    """P02, one stop in each phase of a step."""
    assert resumed(tmp_path / "run", "grpo", 1, STOPS[stop]) == uninterrupted("grpo", 1)


def test_a_run_killed_before_its_first_save_starts_over(
    tmp_path: Path, uninterrupted: Straight
) -> None:
    stop = dies(MetricsLog, "write", 1, after=True)
    assert resumed(tmp_path / "run", "grpo", 1, stop) == uninterrupted("grpo", 1)


def test_the_same_command_twice_gives_the_same_bytes(
    tmp_path: Path, uninterrupted: Straight
) -> None:
    """P36."""
    for algorithm, world in (("grpo", 1), ("nft", 1), ("grpo", 2)):
        config = toy(tmp_path / f"{algorithm}{world}", algorithm)
        assert straight(config, world=world) == uninterrupted(algorithm, world)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(
    tmp_path: Path, uninterrupted: Straight
) -> None:
    config = toy(tmp_path / "run")
    straight(config)
    assert straight(config, resume=True) == uninterrupted("grpo", 1)


def test_no_room_for_checkpoints_is_told_before_training(tmp_path: Path) -> None:
    """P15, X05: the size of two checkpoints is known once the model is built."""
    for megabytes, code in ((64, 7), (66, 0)):
        config = toy(tmp_path / "run", lora=None, train={"steps": 1})

        def full(free: int = megabytes * 10**6) -> None:
            checkpoint.disk.free_bytes = lambda path: free
            TrainingState.estimated_bytes = lambda self: 32_500_000  # type: ignore[method-assign]

        assert start(config, change=full).wait() == [code]
        assert (tmp_path / "run").exists() == (code == 0)


def test_the_estimate_is_the_size_of_a_checkpoint(tmp_path: Path) -> None:
    for method in ("grpo", "nft"):
        root = tmp_path / method

        def note(root: Path = root) -> None:
            estimate = TrainingState.estimated_bytes

            def noting(self: TrainingState) -> int:
                (root.parent / "estimate").write_text(str(estimate(self)))
                return estimate(self)

            TrainingState.estimated_bytes = noting  # type: ignore[method-assign]

        straight(toy(root, method, train={"steps": 1}), change=note)
        files = toy_run.newest(root).glob("*.safetensors")
        size = sum(path.stat().st_size for path in files)
        assert 0.7 * size < int((tmp_path / "estimate").read_text()) <= size


Drop = Callable[[TrainingState, dict[str, torch.Tensor]], object]


def moment(key: str) -> Drop:
    return lambda state, start: [m[key].zero_() for m in state.optimizer.state.values()]


def counter(key: str) -> Drop:
    return lambda state, start: setattr(state.progress, key, 0)


def put_back(name: str) -> Drop:
    def drop(state: TrainingState, start: dict[str, torch.Tensor]) -> None:
        for key, tensor in getattr(state, name).items():
            tensor.data.copy_(start[key])

    return drop


DROPS: dict[str, Drop] = {
    "weights": put_back("parameters"),
    "first moment": moment("exp_avg"),
    "second moment": moment("exp_avg_sq"),
    "optimiser's step": moment("step"),
    "averaged weights": put_back("ema"),
    "old policy": put_back("old"),
    "training step": counter("step"),
    "learning rate's position": counter("updates"),
    "data cursor": counter("cursor"),
    "samples": counter("samples"),
    "network evaluations": counter("evaluations"),
    "skipped updates": counter("skipped"),
}


def forgetting(drop: Drop) -> toy_run.Change:
    """A restore that leaves one item out."""

    def change() -> None:
        restore = TrainingState.restore

        def partial(state: TrainingState, *args: Any) -> None:
            start = {name: value.detach().clone() for name, value in state.parameters.items()}
            restore(state, *args)
            drop(state, start)

        TrainingState.restore = partial  # type: ignore[method-assign]

    return change


def one_bad_update(number: int) -> toy_run.Change:
    """The loss of that call is NaN: an update is skipped and counted."""

    def change() -> None:
        loss, count = NFT.loss, iter(range(10**9))

        def bad(self: NFT, *args: Any) -> Any:
            value, metrics = loss(self, *args)
            return value * (float("nan") if next(count) == number else 1.0), metrics

        NFT.loss = bad  # type: ignore[method-assign]

    return change


def both(*changes: toy_run.Change) -> toy_run.Change:
    return lambda: [change() for change in changes]


def test_each_restored_item_matters(tmp_path: Path) -> None:
    """P03: leave one item out of the restored state, and the end is another one: 12 of 12."""
    sections = {
        "train": {"steps": 6, "on_nonfinite": "skip"},
        "rollout": {"num_prompts": 2},
        "evaluation": {"every": "never", "num_prompts": 2},
    }
    bad = one_bad_update(3)
    config = toy(tmp_path / "straight", "nft", **sections)
    expected = straight(config, change=bad)
    config = toy(tmp_path / "killed", "nft", **sections)
    stop = both(bad, dies(trainer.Loop, "save", 1, after=True))
    assert start(config, change=stop).wait() == [KILLED]
    undetected = []
    for name, drop in {"nothing": lambda state, start: None, **DROPS}.items():
        root = tmp_path / name
        shutil.copytree(tmp_path / "killed", root)
        config = toy(root, "nft", **sections)
        codes = start(config, resume=True, change=forgetting(drop)).wait()
        if codes == [0] and fingerprint(root) == expected:
            undetected.append(name)
    assert undetected == ["nothing"]


def test_the_streak_of_bad_updates_goes_on_after_a_resume(tmp_path: Path) -> None:
    """P03, the thirteenth item: three bad updates before the kill and two after it stop the run."""

    def nan_from(first_step: int) -> toy_run.Change:
        def change() -> None:
            update = trainer.update

            def bad(policy: Any, algorithm: Any, batches: Any, state: Any, *args: Any, **kw: Any):
                if state.progress.step >= first_step:
                    for parameter in policy.parameters.values():
                        parameter.register_hook(lambda grad: grad * float("nan"))
                return update(policy, algorithm, batches, state, *args, **kw)

            trainer.update = bad

        return change

    sections = {
        "algorithm": {"updates_per_rollout": 1},
        "train": {"steps": 6, "on_nonfinite": "skip", "save_every": 1},
    }
    config = toy(tmp_path / "run", **sections)
    stop = both(nan_from(1), dies(trainer.Loop, "save", 3, after=True))
    assert start(config, change=stop).wait() == [KILLED]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert start(config, resume=True, change=nan_from(1)).wait() == [9]
    config = toy(tmp_path / "other", **sections)
    forgets = both(nan_from(1), forgetting(counter("bad_streak")))
    assert start(config, resume=True, change=forgets).wait() == [0], "control"


def told(log: Path) -> toy_run.Change:
    """Each process notes the samples that it draws for training."""

    def change() -> None:
        walk = collection.walk

        def noting(generator: Any, plan: Any, cond: Any, requests: Any, **options: Any) -> Any:
            text = "".join(f"{r.prompt_id} {r.sample_id}\n" for r in requests)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, text.encode())
            os.close(descriptor)
            return walk(generator, plan, cond, requests, **options)

        collection.walk = noting

    return change


def test_no_item_is_repeated_or_skipped_across_resumes(tmp_path: Path) -> None:
    """P05: over 3 epochs of 37 prompts, 2 processes, killed after every step."""
    sections = {
        "rollout": {"num_prompts": 12, "group_size": 2, "batch_size": 8},
        "train": {"steps": 10, "save_every": 1, "batch_size": 24},
        "sampler": {"num_steps": 2},
        "algorithm": {"updates_per_rollout": 1},
        "evaluation": {"every": "never", "num_prompts": 1},
    }
    config = toy(tmp_path / "run", **sections)
    log = tmp_path / "log"
    for step in range(10):
        stop = both(told(log), dies(trainer.Loop, "save", 0, after=True))
        codes = start(config, world=2, change=stop, resume=step > 0).wait()
        assert codes == [KILLED] * 2
    drawn = Counter(tuple(map(int, line.split())) for line in log.read_text().splitlines())
    straight(toy(tmp_path / "straight", **sections), world=2, change=told(tmp_path / "log-2"))
    once = Counter(
        tuple(map(int, line.split())) for line in (tmp_path / "log-2").read_text().splitlines()
    )
    assert drawn == once and set(drawn.values()) == {1}
    prompts = Counter(prompt for prompt, _ in drawn.elements())
    assert len(prompts) == 37 and set(prompts.values()) == {6, 8}, "3 whole epochs and 9 prompts"


def test_control_a_forgotten_cursor_repeats_items(tmp_path: Path) -> None:
    sections = {"train": {"steps": 2, "save_every": 1}, "evaluation": {"every": "never"}}
    config, log = toy(tmp_path / "run", **sections), tmp_path / "log"
    stop = both(told(log), dies(trainer.Loop, "save", 0, after=True))
    assert start(config, change=stop).wait() == [KILLED]
    straight(config, resume=True, change=both(told(log), forgetting(counter("cursor"))))
    drawn = Counter(log.read_text().splitlines())
    assert set(drawn.values()) == {2}


def test_another_process_count_is_refused_unless_allowed(tmp_path: Path) -> None:
    """P06: exit 4; allowed, the weights agree to rel 1e-6 with the straight run of two."""
    config = toy(tmp_path / "run")
    stop = dies(trainer.Loop, "save", 2, after=True)
    assert start(config, world=2, change=stop).wait() == [KILLED] * 2
    assert start(config, resume=True).wait() == [4]
    straight(config, resume=True, allow_world_size_change=True)
    straight(toy(tmp_path / "two"), world=2)
    assert toy_run.distance(tmp_path / "run", tmp_path / "two") <= 1e-6


def contents(root: Path) -> dict[Path, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "run.lock")
    return {path: path.read_bytes() for path in files}


def test_a_changed_config_is_refused_unless_overridden(tmp_path: Path) -> None:
    """P07 through the whole entry: exit 4 and nothing written."""
    config = toy(tmp_path / "run")
    assert start(config, change=dies(trainer.Loop, "save", 2, after=True)).wait() == [KILLED]
    before = contents(tmp_path / "run")
    changed = toy(tmp_path / "run", train={"learning_rate": 2e-2})
    assert start(changed, resume=True).wait() == [4]
    assert contents(tmp_path / "run") == before
    assert start(changed, resume=True, override_resume=["train.learning_rate"]).wait() == [0]
