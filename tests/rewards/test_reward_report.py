"""`flowalign reward check`: every planted fault ends in exit code 5, sound rewards in 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowalign import reward_report
from flowalign.cli.main import main
from flowalign.reward_call import Entry
from flowalign.reward_report import answer_findings, built_in_samples, examine, extremes_findings
from flowalign.rewards.jpeg import JpegSize
from flowalign.types import Modality
from tests.cli.commands import fails, works
from tests.rewards.world import Scorer, brightness, noise_samples

CODE = """
import os
import torch


def means(samples):
    return torch.stack([s.media.mean() for s in samples])


class Sound:
    differentiable = True
    score_range = (0.0, 1.0)

    def __call__(self, samples):
        return means(samples)


def changes_input(samples):
    samples[0].media.mul_(0.9)
    return means(samples)


def draws(samples):
    return means(samples) + torch.rand(len(samples))


def of_the_batch(samples):
    return means(samples) - means(samples).mean()


def counts_places(samples):
    return means(samples) + 0.01 * torch.arange(len(samples))


def environment(samples):
    os.environ["FLOWALIGN_PLANTED"] = "1"
    return means(samples)


def nan(samples):
    return means(samples) * float("nan")


class BeyondItsRange(Sound):
    score_range = (0.0, 0.1)


class NoGradient(Sound):
    def __call__(self, samples):
        return means(samples).detach()


class NanOnBlack(Sound):
    def __call__(self, samples):
        return torch.stack([s.media.mean() / s.media.max() for s in samples])


class SlopeOfFlat(Sound):
    def __call__(self, samples):
        return torch.stack([s.media.var().sqrt() for s in samples])


def masks_all(samples):
    return means(samples), torch.zeros(len(samples), dtype=torch.bool)


def raises(samples):
    raise ValueError("no such thing")
"""
PLANTED = {
    "changes_input": "inputs",
    "draws": "repeat",
    "of_the_batch": "batch",
    "counts_places": "order",
    "environment": "surroundings",
    "nan": "answer",
    "BeyondItsRange": "range",
    "NoGradient": "gradient",
    "NanOnBlack": "extremes",
    "SlopeOfFlat": "extremes",
    "masks_all": "answer",
}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reward_report, "TIMED_S", 0.0)
    (tmp_path / "my.py").write_text(CODE)
    return tmp_path


def arguments(name: str) -> list[str]:
    return ["reward", "check", f"my.py:{name}", "--allow-code", "my.py", "--samples", "17"]


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_fault_is_found_and_named(name: str, code: Path, capsys) -> None:
    assert main(arguments(name)) == 5
    told = capsys.readouterr()
    faults = [row.split()[1] for row in told.out.splitlines() if row.startswith("FAULT")]
    assert PLANTED[name] in faults
    assert told.err.startswith("error[RWD-CHECK]") and "fault 1 of" in told.err


def test_sound_rewards_pass(code: Path, capsys) -> None:
    for words in (arguments("Sound"), ["reward", "check", "jpeg"], ["reward", "check", "shapes"]):
        told = works(capsys, words)
        assert "FAULT" not in told and "samples/s" in told
        checked = [row.split()[1] for row in told.splitlines()[2:]]
        assert ("gradient" in checked) == ("Sound" in words[2])  # the others are black boxes


def test_given_media(code: Path, capsys) -> None:
    from flowalign.media import save_image

    for i, given in enumerate(noise_samples(3, side=16)):
        save_image(code / f"{i}.png", given.media)
    files = [f"{i}.png" for i in range(3)]
    assert "3 samples" in works(capsys, ["reward", "check", "jpeg", "--media", *files])
    # The prompt is needed as in `flowalign score`, and is given as there.
    fails(capsys, ["reward", "check", "clip", "--media", *files], 3, "needs one")
    assert "3 samples" in works(
        capsys, ["reward", "check", "clip", "--prompt", "a red circle", "--media", *files]
    )


def test_settings_of_a_config(code: Path, capsys) -> None:
    Path("run.yaml").write_text("rewards: [{name: jpeg, quality: 10, label: small}, clip]\n")
    small = works(capsys, ["reward", "check", "small", "--config", "run.yaml"])
    large = works(capsys, ["reward", "check", "jpeg"])
    assert small.startswith("small: image") and small.splitlines()[1] != large.splitlines()[1]
    fails(capsys, ["reward", "check", "smal", "--config", "run.yaml"], 2, "did you mean `small`")


def test_what_cannot_be_checked(code: Path, capsys) -> None:
    fails(capsys, ["reward", "check", "vendi"], 2, "whole sets")
    fails(capsys, ["reward", "check", "jpg"], 2, "did you mean `jpeg`")
    fails(capsys, arguments("raises"), 5, "RWD-RAISED", "no such thing")
    fails(capsys, ["reward", "check", "my.py:Sound"], 8, "SEC-CODE")
    fails(capsys, ["reward"], 2, "required")
    fails(capsys, ["reward", "chek"], 2, "chek")


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_built_in_media_of_each_modality(modality: Modality) -> None:
    samples = built_in_samples(6, modality)
    assert len({s.prompt for s in samples}) == 2 == len({s.prompt_id for s in samples})
    assert [s.modality for s in samples] == [modality] * 6
    assert samples[0].media.ndim == {"image": 3, "video": 4, "audio": 2}[modality]
    assert not torch.equal(samples[0].media, samples[1].media)
    low = -1.0 if modality == "audio" else 0.0
    assert all(bool(((s.media >= low) & (s.media <= 1)).all()) for s in samples)
    entry = Entry(label="scorer", reward=Scorer(answer=brightness, modality=modality))
    assert examine(entry, samples).error() is None


def test_numbers_that_are_none() -> None:
    values, valid = torch.tensor([0.5, torch.nan, 2.0]), torch.tensor([True, True, True])
    assert [f.fault for f in answer_findings(values, valid, (0.0, 1.0))] == ["answer", "range"]
    # What is masked may be anything.
    valid = torch.tensor([True, False, False])
    assert answer_findings(values, valid, (0.0, 1.0)) == []


def test_flat_media_are_no_fault_of_a_sound_reward() -> None:
    assert extremes_findings(JpegSize(), noise_samples(1)[0]) == []
    answer = Scorer(answer=lambda s: torch.stack([1 / x.media.amax() for x in s]))
    (found,) = extremes_findings(answer, noise_samples(1)[0])
    assert found.what == "a black medium scores inf"


def test_a_prompt_for_the_built_in_pictures(code: Path, capsys) -> None:
    """A reward of quoted text has nothing to say of the world's own prompts."""
    Path("quoted.py").write_text(
        "import torch\n"
        "def quoted(samples):\n"
        "    return torch.ones(len(samples)), torch.tensor(['\"' in s.prompt for s in samples])\n"
    )
    words = ["reward", "check", "quoted.py:quoted", "--allow-code", "quoted.py"]
    fails(capsys, words, 5, "masks every sample", "--prompt")
    assert "0 masked" in works(capsys, [*words, "--prompt", 'a sign "OPEN"'])
