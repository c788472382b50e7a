"""`flowalign reward train-noisy`, and steering by what it wrote: toy pictures, whole commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowalign.config.jobs import NOISY
from flowalign.config.load import dump_config, load_for
from flowalign.config.noisy_card import read_card
from flowalign.media import save_media
from flowalign.noisy_reward import job as training
from flowalign.noisy_reward.files import load_reward, save_reward
from flowalign.noisy_reward.fit import new_network
from flowalign.paths import VariancePreserving
from flowalign.scoring import Entry, RewardSuite
from flowalign.steering import session as parts
from flowalign.types import Sample
from tests.cli.commands import fails, works
from tests.noisy_reward.toy import card
from tests.steering.toy_pictures import Colour, PictureGenerator

TRAIN = """\
output: trained
device: cpu
prompts: [prompt 0, prompt 1, prompt 2, prompt 3, prompt 4, prompt 5, prompt 6, prompt 7]
rewards: [{name: jpeg, label: red}, {name: jpeg, label: blue}]
sampler: {num_steps: 6, noise_level: 1.0}
samples_per_prompt: 48
objective: soft_value
network: {width: 16, layers: 1, attention_heads: 2, patch: 2}
train: {steps: 200, batch_size: 64, learning_rate: 5e-3, held_out: 0.25}
"""
STEER = """\
output: run
device: cpu
prompts: [prompt 0, prompt 1, prompt 2, prompt 3]
rewards: [{name: jpeg, label: red}]
held_out_rewards: [{name: jpeg, label: blue}]
sampler: {num_steps: 6, noise_level: 1.0}
samples_per_prompt: 4
method: {name: flow_nrg, reward: trained, weights: {red: 1}, strength: 100}
"""
NO_PIPELINE: Any = SimpleNamespace(components={})
ACCURACY = "pairwise_accuracy_by_level"


def colours(configs: Sequence[Any], **options: Any) -> RewardSuite:
    """Each reward of the config by its label."""
    channel = {"red": 0, "green": 1, "blue": 2}
    entries = [Entry(label=c.label, reward=Colour(c.label, channel[c.label])) for c in configs]
    return RewardSuite(entries=entries, failure=options["failure"])


@pytest.fixture(autouse=True)
def toy_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The jobs as they are, with the toy pipeline and rewards put in."""
    monkeypatch.chdir(tmp_path)
    for module in (training, parts):
        monkeypatch.setattr(module, "load_pipeline", lambda config, device: NO_PIPELINE)
        monkeypatch.setattr(module, "make_generator", lambda pipe, config: PictureGenerator())
        monkeypatch.setattr(module, "build_suite", colours)
    Path("train.yaml").write_text(TRAIN)
    Path("steer.yaml").write_text(STEER)


def means(step: int) -> dict[str, float]:
    summary = json.loads(Path(f"run/eval/step-{step:06d}/summary.json").read_text())
    return {name: score["mean"] for name, score in summary["scores"].items()}


def steered(capsys: pytest.CaptureFixture[str], output: str, *sets: str) -> dict[str, float]:
    options = [word for each in (*sets, f"output={output}") for word in ("--set", each)]
    works(capsys, ["steer", "steer.yaml", *options])
    summary = json.loads(Path(output, "eval/step-000001/summary.json").read_text())
    assert summary["costs"]["noisy_reward_passes"] == 16 * 5  # the first level is pure noise
    assert summary["costs"]["network_evaluations"] == 16 * 6
    assert summary["costs"]["decodes"] == 16
    return {name: score["mean"] for name, score in summary["scores"].items()}


def test_train_then_steer(capsys: pytest.CaptureFixture[str]) -> None:
    """Heads read their colours; each weight moves its own colour, and its sign the direction."""
    options = ["--set", "objective=bradley_terry", "--steps", "500"]
    told = works(capsys, ["reward", "train-noisy", "train.yaml", *options]).splitlines()
    assert told[-1] == "trained" and told[-2].split()[0] == "blue"
    found = read_card("trained")
    assert found.names == ("red", "blue") and found.latent_shape == (3, 4, 4)
    assert found.trained["samples"] == 288 and found.trained["held_out_samples"] == 96
    assert all(levels["0.1"] > 0.75 for levels in found.trained[ACCURACY].values())
    more = steered(capsys, "more")
    blue = steered(capsys, "blue", "method.weights={blue: 1}")
    less = steered(capsys, "less", "method.weights={red: -1}")
    works(capsys, ["steer", "steer.yaml", "--set", "method.weights={red: 0}"])
    plain = means(0)
    assert means(1) == plain
    assert less["red"] + 0.01 < plain["red"] < more["red"] - 0.01
    assert plain["blue"] < blue["blue"] - 0.01
    assert abs(blue["red"] - plain["red"]) < abs(more["red"] - plain["red"]) / 2


def test_a_budget_buys_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    works(capsys, ["reward", "train-noisy", "train.yaml", "--steps", "1"])
    told = works(capsys, ["steer", "steer.yaml", "--budget", "18"]).splitlines()
    assert told[-2].startswith("flow_nrg, 3 particles: 288 network evaluations, 240 passes of the")


def test_the_same_seed_is_the_same_reward(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        options = ["--output", name, "--seed", seed, "--steps", "2"]
        works(capsys, ["reward", "train-noisy", "train.yaml", *options])
    one, two, other = (Path(n, "model.safetensors").read_bytes() for n in ("one", "two", "other"))
    assert one == two != other


def scored_file(scores: str = '{"warm": 0.1, "cold": null}') -> None:
    rows = []
    for i in range(24):
        media = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i))
        save_media(
            Path(f"{i}.png"),
            Sample(
                prompt="",
                media=media,
                modality="image",
                rate=None,
                prompt_id=0,
                sample_id=i,
                seed=0,
            ),
        )
        own = scores.replace("0.1", str(float(media[0].mean())))
        own = own if i % 2 else own.replace("null", str(i / 24))
        rows.append(f'{{"prompt": "prompt {i % 4}", "media": "{i}.png", "scores": {own}}}')
    Path("scored.jsonl").write_text("\n".join(rows))


DATA = ["--set", "data.path=scored.jsonl", "--set", "rewards=[]", "--steps", "2"]


@pytest.mark.parametrize("objective", ["soft_value", "bradley_terry"])
def test_scored_samples(objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every score is a head, null is no score."""
    scored_file()
    options = [*DATA, "--set", f"objective={objective}"]
    works(capsys, ["reward", "train-noisy", "train.yaml", *options])
    found = load_reward("trained", torch.device("cpu"))[1]
    assert found.names == ("warm", "cold") and found.trained["samples"] == 18
    assert 0.4 < found.heads[0].mean < 0.6


def test_data_that_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    scored_file('{"warm": 1.0}')
    arguments = ["reward", "train-noisy", "train.yaml", *DATA]
    fails(capsys, arguments, 3, "DATA-FLAT", "`warm`", "same score")
    row = '{"prompt": "a", "a": "0.png", "b": "1.png", "preference": "a"}'
    Path("scored.jsonl").write_text(row)
    fails(capsys, arguments, 3, "DATA-KIND", "a pair", "scores")
    Path("scored.jsonl").unlink()
    fails(capsys, arguments, 3, "scored.jsonl")
    assert not Path("trained").exists()


def test_nothing_half_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that ends early leaves nothing, and one never writes over another's files."""

    def interrupted(fit: object, on_step: object) -> None:
        raise KeyboardInterrupt

    before = sorted(Path().iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(training, "train", interrupted)
        from flowalign.cli.main import main

        assert main(["reward", "train-noisy", "train.yaml"]) == 130
    assert sorted(Path().iterdir()) == before
    Path("trained").mkdir()
    Path("trained/mine").write_text("x")
    fails(capsys, ["reward", "train-noisy", "train.yaml"], 7, "RUN-OUTPUT", "trained")
    assert [p.name for p in Path("trained").iterdir()] == ["mine"]


CONFLICTS = {
    "nothing to learn": ("rewards=[]", "no rewards and no data"),
    "two sources": ("data.path=x.jsonl", "scores of their own"),
    "weights": ("rewards.0.weight=2", "weighed at sampling time"),
    "names": ("rewards.1.label=red", "duplicate name `red`"),
    "sets": ("rewards.0={name: vendi}", "scores sets"),
    "heads of attention": ("network.attention_heads=3", "multiple"),
    "odd batch": ("train.batch_size=63", "64"),
    "prompts": ("prompts=shapes:trian", "shapes:train"),
    "unknown key": ("objective.strenght=1", "strength"),
    "no such objective": ("objective=soft", "soft_value"),
    "ties": ("objective={name: bradley_terry, ties: 0.5}", "1"),
}


@pytest.mark.parametrize(("change", "told"), CONFLICTS.values(), ids=CONFLICTS)
def test_conflicts(change: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["reward", "train-noisy", "train.yaml", "--set", change], 2, told)


def test_a_resolved_config_loads_again(capsys: pytest.CaptureFixture[str]) -> None:
    printed = works(capsys, ["reward", "train-noisy", "train.yaml", "--print-config"])
    Path("again.yaml").write_text(printed)
    assert dump_config(load_for(NOISY, "again.yaml").config) == printed
    fails(capsys, ["train", "train.yaml"], 2, "CFG-JOB", "reward train-noisy")
    fails(capsys, ["reward", "train-noisy", "steer.yaml"], 2, "CFG-JOB", "flowalign steer")


def toy_card(**changes: object):
    base = {"latent_shape": (3, 4, 4), "text": {"name": "mean", "tokens": 1, "width": 1}}
    return card(**{**base, **changes})


UNFIT = {
    "latents": ({"latent_shape": (2, 4, 4)}, "(2, 4, 4)"),
    "path": ({"path": "VariancePreserving"}, "VariancePreserving"),
    "text": ({"text": {"name": "mean", "tokens": 7, "width": 1}}, "7 tokens"),
    "no text": ({"text": {"name": "pooled", "tokens": 1, "width": 1}}, "pooled"),
}


@pytest.mark.parametrize(("changes", "told"), UNFIT.values(), ids=UNFIT)
def test_a_reward_of_another_model(
    changes: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before anything is drawn."""
    unfit = toy_card(**changes)
    save_reward(Path("trained"), new_network(unfit, 0), unfit)
    arguments = ["steer", "steer.yaml", "--set", "method.weights={count: 1}"]
    fails(capsys, arguments, 4, "CKPT-SHAPE", told)
    assert not Path("run/eval").exists()
    fit = toy_card()
    save_reward(Path("fit"), new_network(fit, 0), fit)
    works(capsys, [*arguments, "--set", "method.reward=fit"])


def test_conflicts_of_steering(capsys: pytest.CaptureFixture[str]) -> None:
    fit = toy_card()
    fails(capsys, ["steer", "steer.yaml"], 2, "trained", "no such file", "train-noisy")
    save_reward(Path("trained"), new_network(fit, 0), fit)
    fails(capsys, ["steer", "steer.yaml"], 2, "no head `red`")
    wrong = ["steer", "steer.yaml", "--set", "method.weights={color: 1}"]
    fails(capsys, wrong, 2, "did you mean `colour`")
    levels = ["--set", "method.weights={colour: 1}", "--set", "method.start=0.2"]
    fails(capsys, ["steer", "steer.yaml", *levels, "--set", "method.stop=0.4"], 2, "no level")


def test_epsilon_prediction(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same commands on a variance-preserving path."""
    abar = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    class Diffusing(PictureGenerator):
        def levels(self, num_steps: int) -> torch.Tensor:
            return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)

    def generator(pipe: object, config: object) -> PictureGenerator:
        return Diffusing(path=VariancePreserving(alphas_cumprod=abar))

    for module in (training, parts):
        monkeypatch.setattr(module, "make_generator", generator)
    works(capsys, ["reward", "train-noisy", "train.yaml"])
    assert read_card("trained").path == "VariancePreserving"
    works(capsys, ["steer", "steer.yaml", "--set", "method.strength=50"])
    assert means(1)["red"] > means(0)["red"] + 0.01
