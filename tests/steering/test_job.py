"""`flowalign steer` and `steer(pipe, ...)`: files, exit codes, nothing half-written, a gallery."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from flowalign import gallery
from flowalign import steer as public_steer
from flowalign.cli.main import main
from flowalign.scoring import Entry, RewardSuite
from flowalign.steering import session as parts
from flowalign.steering.job import steer
from flowalign.types import Modality
from tests.cli.commands import fails, works
from tests.steering.toy_pictures import Colour, PictureGenerator

JOB = """\
output: run
device: cpu
prompts: [prompt 0, prompt 1, prompt 2]
rewards: [{name: jpeg, label: red}]
held_out_rewards: [{name: jpeg, label: blue}]
sampler: {num_steps: 6, noise_level: 1.0}
method: {name: fk, particles: 4, strength: 200}
"""
NO_PIPELINE: Any = SimpleNamespace(components={})


def colours(configs: Sequence[Any], **options: Any) -> RewardSuite:
    """Each reward of the config by its label."""
    channel = {"red": 0, "green": 1, "blue": 2}
    entries = [
        Entry(label=c.label, reward=Colour(c.label, channel[c.label]), weight=c.weight)
        for c in configs
    ]
    return RewardSuite(entries=entries, failure=options["failure"])


@pytest.fixture(autouse=True)
def toy_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The job as it is, with the toy pipeline and rewards put in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "load_pipeline", lambda config, device: NO_PIPELINE)
    monkeypatch.setattr(parts, "make_generator", lambda pipe, config: PictureGenerator())
    monkeypatch.setattr(parts, "build_suite", colours)
    Path("job.yaml").write_text(JOB)


def rows(step: int) -> list[dict[str, Any]]:
    text = Path(f"run/eval/step-{step:06d}/scores.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def read(name: str) -> Any:
    return json.loads(Path(name).read_text())


def test_a_job_and_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    told = works(capsys, ["steer", "job.yaml"]).splitlines()
    assert told[-1].endswith("/run")
    assert told[-2].startswith("fk, 4 particles: 72 network evaluations, 48 decodes, 48 reward")
    assert [line.split()[0] for line in told[-4:-2]] == ["red", "blue"]
    plain, steered = rows(0), rows(1)
    assert [row["prompt"] for row in steered] == [f"prompt {i}" for i in range(3)]
    for step, row in [(0, plain[0]), (1, steered[0])]:
        picture = Path(f"run/eval/step-{step:06d}") / row["image"]
        assert Image.open(picture).size == (8, 8)
        assert set(row["scores"]) == {"red", "blue"}
        assert row["sample_id"] == 0
    assert sum(row["scores"]["red"] for row in steered) > sum(row["scores"]["red"] for row in plain)
    status = read("run/status.json")
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    assert "tempering: null" in Path("run/config.yaml").read_text()
    assert read("run/eval/step-000000/summary.json")["costs"]["network_evaluations"] == 18


def test_summary_and_ancestry(capsys: pytest.CaptureFixture[str]) -> None:
    works(capsys, ["steer", "job.yaml"])
    summary = read("run/eval/step-000001/summary.json")
    costs = summary["costs"]
    assert (costs["network_evaluations"], costs["decodes"]) == (72, 48)
    assert costs["reward_calls"] == 48
    assert costs["peak_memory_mib"] > 0 < costs["seconds"]
    assert summary["trained"], summary["held_out"] == (["red"], ["blue"])
    assert summary["scores"]["red"]["n"] == 3
    told = read("run/eval/step-000001/ancestry.json")
    assert (told["method"], told["particles"], len(told["populations"])) == ("fk", 4, 3)
    for group, row in zip(told["populations"], rows(1), strict=True):
        assert [look["step"] for look in group["looks"]] == [1, 2, 3]
        for look in group["looks"]:
            assert len(look["parents"]) == len(look["reward"]) == len(look["log_weight"]) == 4
        (chosen,) = group["returned"]
        assert group["reward"][chosen] == max(group["reward"])
        assert row["scores"]["red"] == pytest.approx(group["reward"][chosen], rel=1e-6)
        assert row["particle"] == group["sample_ids"][chosen]
        weights = torch.tensor(group["log_weight"]).exp()
        assert float(weights.sum()) == pytest.approx(1.0, rel=1e-5)
    mean = sum(group["log_z"] for group in told["populations"]) / 3
    assert summary["mean_log_z"] == pytest.approx(mean)


@pytest.mark.parametrize("method", ["best_of_n", "svdd", "none"])
def test_other_methods_write_the_same_files(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    works(capsys, ["steer", "job.yaml", "--set", f"method={method}"])
    assert len(rows(1)) == 3
    assert Path("run/eval/step-000000").exists() is (method != "none")
    assert read("run/eval/step-000001/ancestry.json")["method"] == method


def test_all_particles_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", "method.output=all", "--set", "samples_per_prompt=2"]
    works(capsys, ["steer", "job.yaml", *sets])
    found = rows(1)
    assert [row["sample_id"] for row in found[:8]] == list(range(8))
    assert len({row["image"] for row in found}) == len(found) == 24
    assert all((Path("run/eval/step-000001") / row["image"]).exists() for row in found)


def test_a_gallery_shows_both(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain samples are the base, steered ones the column beside it, line by line."""
    works(capsys, ["steer", "job.yaml"])
    page = works(capsys, ["gallery", "run", "-o", "page"]).strip()
    text = Path(page).read_text()
    assert "base" in text
    assert "prompt 2" in text
    assert text.count('aria-label="Family tree: ') == 3
    assert gallery(["run"], "again").exists()


@pytest.mark.parametrize("method", ["fk", "best_of_n", "svdd", "noise_search"])
def test_a_gallery_draws_what_each_method_noted(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that the method wrote, read by the gallery: a circle for each reward and start."""
    works(capsys, ["steer", "job.yaml", "--set", f"method={method}"])
    text = gallery(["run"], "page").read_text()
    assert text.count('aria-label="Family tree: ') == 3
    assert "no picture here" not in text
    told = read("run/eval/step-000001/ancestry.json")["populations"]
    judged = sum(len(g["reward"]) + sum(len(k["reward"]) for k in g["looks"]) for g in told)
    trees = "".join(part.split("</svg>")[0] for part in text.split('<div class="limbs">')[1:])
    assert trees.count("<circle") - trees.count(", start: ") == judged


@pytest.mark.parametrize(
    ("modality", "rate", "shape", "suffix"),
    [("video", 8.0, (5, 3, 16, 16), "mp4"), ("audio", 16_000.0, (1, 4000), "wav")],
)
def test_video_and_audio(
    modality: Modality,
    rate: float,
    shape: tuple[int, ...],
    suffix: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the same code: media are written as what they are, with their rate."""

    class Moving(PictureGenerator):
        def decode(self, x0: torch.Tensor) -> torch.Tensor:
            level = super().decode(x0).mean(dim=(1, 2, 3))
            return level.reshape(-1, *[1] * len(shape)).expand(-1, *shape)

    def build(configs: Sequence[Any], **options: Any) -> RewardSuite:
        entries = [Entry(label=c.label, reward=Colour(c.label, 0, None, modality)) for c in configs]
        return RewardSuite(entries=entries)

    moving = Moving(modality=modality, rate=rate)
    monkeypatch.setattr(parts, "make_generator", lambda pipe, config: moving)
    monkeypatch.setattr(parts, "build_suite", build)
    works(capsys, ["steer", "job.yaml"])
    assert [row["image"] for row in rows(1)] == [f"000{i}-0.{suffix}" for i in range(3)]
    assert all((Path("run/eval/step-000001") / row["image"]).exists() for row in rows(1))
    linear = ["--set", "method.preview=linear", "--output", "linear"]
    fails(capsys, ["steer", "job.yaml", *linear], 2, "linear previews are for pictures")
    assert not Path("linear/eval").exists()


def test_options_are_short_for_set(capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["method.particles=null", "baseline=false"]
    arguments = [part for text in sets for part in ("--set", text)]
    short = ["--output", "other", "--seed", "3", "--budget", "48", "--device", "cpu"]
    printed = works(capsys, ["steer", "job.yaml", *arguments, *short, "--print-config"])
    for line in ("output: other", "seed: 3", "budget: 48", "baseline: false"):
        assert line in printed.splitlines()
    assert not Path("other").exists()
    told = works(capsys, ["steer", "job.yaml", *arguments, *short])
    assert "fk, 8 particles: 144 network evaluations" in told
    assert not Path("other/eval/step-000000").exists()
    fails(capsys, ["steer", "job.yaml", "--budget", "0"], 2, "--budget: must be >= 1")


def test_runs_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    """The same files, but for times and memory."""
    for name in ("a", "b"):
        works(capsys, ["steer", "job.yaml", "--output", name])
    for name in ("scores.jsonl", "ancestry.json", "0002-0.png"):
        one, two = (Path(f"{run}/eval/step-000001/{name}") for run in ("a", "b"))
        assert one.read_bytes() == two.read_bytes()
    works(capsys, ["steer", "job.yaml", "--output", "c", "--seed", "1"])
    assert Path("c/eval/step-000001/scores.jsonl").read_text() != rows_text("a")


def rows_text(run: str) -> str:
    return Path(f"{run}/eval/step-000001/scores.jsonl").read_text()


def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["steer", "nothing.yaml"], 2, "file not found")
    fails(capsys, ["steer", "job.yaml", "--set", "method=fkk"], 2, "did you mean `fk`?")
    fails(capsys, ["steer", "job.yaml", "--steps", "3"], 2, "unknown option --steps")
    fails(capsys, ["steer", "shapes_nft"], 2, "is a config of `flowalign train`")
    fails(capsys, ["steer", "job.yaml", "--set", "prompts=none.txt"], 3, "not found")
    assert not Path("run").exists()
    code = "rewards=[{name: code, target: mine.py:Mine, label: red}]"
    fails(capsys, ["steer", "job.yaml", "--set", code], 8, "--allow-code mine.py")
    works(capsys, ["steer", "job.yaml"])
    last = fails(capsys, ["steer", "job.yaml"], 7, "holds another run")
    assert "--resume" not in last


def test_a_failing_job_leaves_no_samples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No valid reward for a prompt: exit 5, status failed, no folder of samples."""

    def without(configs: Sequence[Any], **options: Any) -> RewardSuite:
        missing = Colour("red", 0, missing=lambda sample: sample.prompt_id == 1)
        return RewardSuite(entries=[Entry(label="red", reward=missing)], failure="drop")

    monkeypatch.setattr(parts, "build_suite", without)
    fails(capsys, ["steer", "job.yaml"], 5, "any of the 4 particles of prompt 1")
    status = read("run/status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    assert not Path("run/eval").exists()


def test_a_nan_is_never_a_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(PictureGenerator):
        def predict(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
            return super().predict(x, t, cond) * torch.nan

    monkeypatch.setattr(parts, "make_generator", lambda pipe, config: Broken())
    fails(capsys, ["steer", "job.yaml"], 9, "not finite")


def test_a_signal_stops_between_chunks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 143 after the chunk that was on its way, and status stopped."""

    class Stopping(PictureGenerator):
        def decode(self, x0: torch.Tensor) -> torch.Tensor:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().decode(x0)

    monkeypatch.setattr(parts, "make_generator", lambda pipe, config: Stopping())
    assert main(["steer", "job.yaml"]) == 143
    capsys.readouterr()
    assert read("run/status.json")["state"] == "stopped"


def test_more_than_one_process_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = SimpleNamespace(count=2, device=torch.device("cpu"))
    monkeypatch.setattr(parts, "start_processes", lambda device, precision: two)
    fails(capsys, ["steer", "job.yaml"], 6, "2 processes, and it uses one")


def test_the_python_face() -> None:
    """Three lines on an object; files only where they are asked for."""
    rewards = [{"name": "jpeg", "label": "red"}]
    sampler = {"num_steps": 6, "noise_level": 1.0}
    result = steer(NO_PIPELINE, ["prompt 0", "prompt 1"], rewards, particles=3, sampler=sampler)
    assert public_steer is steer
    assert [image.size for image in result.images] == [(8, 8), (8, 8)]
    assert [sample.prompt for sample in result.samples] == ["prompt 0", "prompt 1"]
    assert (result.run, result.baseline, result.steered.particles) == (None, None, 3)
    assert sorted(path.name for path in Path().iterdir()) == ["job.yaml"]
    best = steer(
        NO_PIPELINE,
        ["prompt 0"],
        rewards,
        method="best_of_n",
        particles=5,
        sampler=sampler,
        output="kept",
    )
    assert best.steered.particles == 5
    assert best.baseline is not None
    assert best.run is not None
    assert (best.run / "eval/step-000001/0000-0.png").exists()
    halving = {"name": "best_of_n", "halvings": 1}
    priced = steer(NO_PIPELINE, ["a"], rewards, method=halving, budget=60, sampler=sampler)
    assert priced.steered.costs.network_evaluations <= 60
