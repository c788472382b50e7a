"""What was saved comes back bit for bit, and what is not finite never does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from flowalign import checkpoint
from flowalign.errors import CheckpointError, FlowalignWarning, HealthError, ResourceError
from tests.checkpoints import META, files, flip, load, names, same, save


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    loaded = load(save(tmp_path, 3))
    assert loaded.step == 3 and loaded.meta == META
    assert same(loaded.tensors, files(3))
    assert not same(loaded.tensors, files(4)), "control: another step's tensors must differ"
    assert sorted(p.suffix for p in loaded.path.iterdir()) == [".json"] * 2 + [".safetensors"] * 4


def test_values_that_are_not_json_are_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        checkpoint.save(tmp_path, 1, {}, {"x": float("nan")}, keep_last=1, run_id="r", world_size=1)
    assert names(tmp_path) == []


def test_the_last_good_ones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["step-000004", "step-000005"]
    save(tmp_path, 6, keep_last=1)
    assert names(tmp_path) == ["step-000006"]


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoints/step-000002/state.json").unlink()
    save(tmp_path, 3, keep_last=2)
    assert names(tmp_path) == ["step-000001", "step-000002", "step-000003"]


def test_saving_a_complete_step_again_changes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.iterdir()}
    assert save(tmp_path, 1) == path
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.iterdir()} == before


@pytest.mark.parametrize("harm", ["file missing", "byte flipped", "a file instead"])
def test_saving_over_a_damaged_step_replaces_it(tmp_path: Path, harm: str) -> None:
    path = save(tmp_path, 1)
    if harm == "file missing":
        (path / "weights.safetensors").unlink()
    elif harm == "byte flipped":
        flip(path / "weights.safetensors", -1)
    else:
        shutil.rmtree(path)
        path.write_text("x")
    save(tmp_path, 1)
    assert same(load(path).tensors, files(1)) and names(tmp_path) == ["step-000001"]


def test_a_checkpoint_that_reads_back_wrong_is_an_error_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses what was written: noticed before the older checkpoint is removed."""
    save(tmp_path, 1, keep_last=1)
    publish = checkpoint._publish

    def lossy(staged: Path, target: Path) -> None:
        publish(staged, target)
        flip(target / "weights.safetensors", -1)

    monkeypatch.setattr(checkpoint, "_publish", lossy)
    with pytest.raises(CheckpointError, match="hash mismatch"):
        save(tmp_path, 2, keep_last=1)
    with pytest.warns(FlowalignWarning, match="step-000002"):
        assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints/step-000001"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_weights_are_kept_aside_and_never_resumed(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    """P31: stored as `bad-<step>`, excluded from `latest` and from `load`."""
    good = save(tmp_path, 1)
    tensors = files(2)
    tensors["weights"]["w"] = torch.zeros(3, dtype=dtype)
    tensors["weights"]["w"][1] = value
    for _ in range(2):
        with pytest.raises(HealthError, match="weights/w is not finite at step 2") as caught:
            checkpoint.save(tmp_path, 2, tensors, META, keep_last=1, run_id="run", world_size=1)
        assert caught.value.exit_code == 9
    assert names(tmp_path) == ["bad-000002", "step-000001"]
    assert checkpoint.latest(tmp_path) == good
    with pytest.raises(CheckpointError, match="not a good checkpoint"):
        load(tmp_path / "checkpoints" / "bad-000002")


def test_control_without_the_check_a_nan_becomes_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_non_finite", lambda tensors: None)
    tensors = {"weights": {"w": torch.tensor([float("nan")])}}
    checkpoint.save(tmp_path, 2, tensors, {}, keep_last=1, run_id="run", world_size=1)
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "step-000002"


def test_missing_entries_are_told(tmp_path: Path) -> None:
    """K11, K14: names, shapes and dtypes must be those of the run."""
    loaded = load(save(tmp_path, 3))
    state = files(3)["weights"]
    assert same({"w": loaded.matching("weights", state)}, {"w": state})
    for like, message in (
        ({**state, "more": state["w"]}, "1 entries missing, 0 unknown, first 'more'"),
        ({"w": state["w"]}, "0 entries missing, 3 unknown, first 'half'"),
        ({**state, "w": state["w"][:4]}, r"'w' is float32\[8, 5\], this run has float32\[4, 5\]"),
        ({**state, "w": state["w"].double()}, "this run has float64"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            loaded.matching("weights", like)
        assert caught.value.exit_code == 4
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: is not part"):
        loaded.matching("ema", {})
    with pytest.raises(CheckpointError, match="has no entry 'rng-1'"):
        loaded.entry("rng-1")


def test_another_environment_is_told_and_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 3)
    monkeypatch.setattr(checkpoint.torch, "get_num_threads", lambda: 7)
    with pytest.warns(FlowalignWarning, match="saved with another environment: threads 1 -> 7"):
        load(path)


def test_left_overs_of_killed_saves_are_removed(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    shutil.copytree(path, path.with_name(".tmp-step-000004-99"))
    path.with_name(".tmp-file").write_text("x")
    assert [p.name for p in checkpoint.remove_leftovers(tmp_path)] == [
        ".tmp-file",
        ".tmp-step-000004-99",
    ]
    assert names(tmp_path) == ["step-000003"]
    assert checkpoint.remove_leftovers(tmp_path / "nothing") == []


def test_no_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint.disk, "free_bytes", lambda path: 500_000)
    with pytest.raises(ResourceError, match=r"the checkpoint of step 2 needs 1\.0 MB, 0\.5 MB"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001"]
