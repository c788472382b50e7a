"""Reward heads on tiny models of their real classes: independent values, true gradients, purity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.config.rewards import (
    AestheticReward,
    ClipReward,
    DinoReward,
    GoalBaselineReward,
    HPSv2Reward,
    PickScoreReward,
    RewardConfig,
)
from flowalign.errors import CheckpointError, FlowalignWarning
from flowalign.media import save_image
from flowalign.protocols import Reward
from flowalign.reward_check import check_reward
from flowalign.rewards import aesthetic, clip, dino, goal_baseline, hpsv2, pickscore
from flowalign.rewards.exemplar import ExemplarCosine
from flowalign.scoring import build_suite
from flowalign.siglip import SiglipTowers
from flowalign.similarity import CosineScore
from flowalign.types import Sample
from tests.golden.vectors import cases
from tests.rewards.plain_clip import cosines, picture_features
from tests.rewards.tiny_heads import write_head, write_tiny_dino, write_tiny_siglip
from tests.rewards.world import noise_samples, sample, true_samples, write_tiny_clip

CPU = torch.device("cpu")
LONG = "a red circle and a blue square and a green triangle and a yellow diamond on a white"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything the heads need: folders clip, siglip, dino, pictures, a file head.safetensors."""
    root = tmp_path_factory.mktemp("heads")
    write_tiny_clip(root / "clip")
    write_tiny_siglip(root / "siglip")
    write_tiny_dino(root / "dino")
    write_head(root / "head.safetensors")
    (root / "pictures").mkdir()
    for i, one in enumerate(true_samples(3)):
        save_image(root / "pictures" / f"{i}.png", one.media)
    return root


HEADS: dict[str, Callable[[Path], RewardConfig]] = {
    "pickscore": lambda f: PickScoreReward(name="pickscore", model=str(f / "clip")),
    "hpsv2": lambda f: HPSv2Reward(name="hpsv2", model=str(f / "clip")),
    "aesthetic": lambda f: AestheticReward(
        name="aesthetic", model=str(f / "clip"), head=str(f / "head.safetensors")
    ),
    "goal_baseline": lambda f: GoalBaselineReward(
        name="goal_baseline", model=str(f / "clip"), baseline=("a picture",), alpha=0.7
    ),
    "siglip": lambda f: ClipReward(name="clip", model=str(f / "siglip"), output="logit"),
    "dino": lambda f: DinoReward(
        name="dino", model=str(f / "dino"), exemplars=str(f / "pictures"), measure="nearest"
    ),
}


@pytest.fixture(scope="module")
def rewards(folder: Path) -> dict[str, Reward]:
    """Each head, built from its config as a run does it."""
    built = {name: build_suite([config(folder)]) for name, config in HEADS.items()}
    return {name: suite.entries[0].reward for name, suite in built.items()}


def mixed_samples() -> list[Sample]:
    """Pictures of two sizes and proportions; prompts that repeat."""
    wide = [sample(torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(1)))]
    return [*true_samples(4), *wide, *noise_samples(2, side=32)]


@pytest.mark.parametrize("name", HEADS)
def test_each_head_is_pure_with_a_true_gradient(name: str, rewards: dict[str, Reward]) -> None:
    """Batches, order and repetition do not matter; slopes are those of finite differences."""
    reward = rewards[name]
    assert reward.differentiable and not reward.group_only and reward.modality == "image"
    assert check_reward(reward, mixed_samples()) == []
    values, valid = reward(mixed_samples())
    low, high = reward.score_range
    assert valid.all() and values.std() > 1e-3 and low <= values.min() and values.max() <= high
    generator = torch.Generator().manual_seed(2)
    media = torch.rand(3, 40, 50, generator=generator)
    direction = torch.randn(3, 40, 50, generator=generator)
    leaf = media.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward([sample(leaf)])[0].sum(), leaf)
    step = 1e-3
    ends = reward([sample(media + step * direction), sample(media - step * direction)])[0]
    numeric = float(ends[0] - ends[1]) / (2 * step)
    slope = float((gradient * direction).sum())
    assert numeric == pytest.approx(slope, rel=0.05, abs=5e-3 * float(gradient.norm()))
    # Negative control: the tolerance is far below the slope itself.
    assert abs(slope) > 0.05 * float(gradient.norm())


def plain_cosines(reward: Reward, samples: list[Sample]) -> Tensor:
    """Of pictures of the model's own side, in plain torch."""
    towers = reward.towers  # type: ignore[attr-defined]
    read = towers.tokenizer(
        [s.prompt for s in samples], padding="max_length", truncation=True, return_tensors="pt"
    )
    pixels = torch.stack([(s.media - 0.5) / 0.5 for s in samples])
    end = towers.tokenizer.eos_token_id
    return cosines(towers.model.state_dict(), pixels, read["input_ids"], heads=3, end=end)


def test_pickscore_is_the_scaled_cosine(rewards: dict[str, Reward]) -> None:
    reward, samples = rewards["pickscore"], true_samples(6)
    scale = reward.towers.model.logit_scale.exp().item()  # type: ignore[attr-defined]
    expected = scale * plain_cosines(reward, samples)
    values = reward(samples)[0].double()
    assert (values - expected).abs().max() < 1e-5 * scale
    assert (values / scale - expected).abs().max() > 1e-2  # negative control: scale forgotten
    assert reward.score_range == pytest.approx((-scale, scale))


def test_pickscore_gives_equal_pictures_half_the_votes(rewards: dict[str, Reward]) -> None:
    first, second = true_samples(2)
    second = replace(second, prompt=first.prompt)
    scores = rewards["pickscore"]([first, second, first])[0]
    assert scores[[0, 2]].softmax(0).tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    share = torch.sigmoid(scores[0] - scores[1])
    assert float(scores[:2].softmax(0)[0]) == pytest.approx(float(share), abs=1e-6)
    assert abs(float(share) - 0.5) > 1e-4  # negative control


def test_the_published_pickscore_brings_its_processor(monkeypatch) -> None:
    """And no other model is given a foreign one."""
    asked: list[str | None] = []

    def load(*_: object, processor: str | None, **__: object):
        asked.append(processor)
        raise CheckpointError("CKPT-MODEL", "here", "stopped", "nothing")

    monkeypatch.setattr(pickscore, "load_towers", load)
    for model, processor in ((pickscore.PUBLISHED, None), ("o/n", None), ("o/n", "o/p")):
        config = PickScoreReward(name="pickscore", model=model, processor=processor)
        with pytest.raises(CheckpointError):
            pickscore.from_config(config, device=CPU)
    assert asked == [pickscore.PUBLISHED_PROCESSOR, None, "o/p"]


def test_a_processor_can_lie_apart(folder: Path, rewards: dict[str, Reward]) -> None:
    config = PickScoreReward(
        name="pickscore", model=str(folder / "clip"), processor=str(folder / "clip")
    )
    samples = true_samples(2)
    apart = pickscore.from_config(config, device=CPU)(samples)[0]
    assert torch.equal(apart, rewards["pickscore"](samples)[0])


def test_hpsv2_pads_with_black_and_does_not_crop(folder: Path, rewards: dict[str, Reward]) -> None:
    """A picture and the same with black bars score alike; a crop would not."""
    reward = rewards["hpsv2"]
    square = true_samples(4)
    expected = 100 * plain_cosines(reward, square)
    assert (reward(square)[0].double() - expected).abs().max() < 1e-3
    media = torch.rand(3, 20, 32, generator=torch.Generator().manual_seed(0))
    bars = F.pad(media, (0, 0, 6, 6))
    narrow, padded = reward([sample(media), sample(bars)])[0].tolist()
    assert narrow == pytest.approx(padded, abs=1e-3)
    cropping = clip.from_config(ClipReward(name="clip", model=str(folder / "clip")), device=CPU)
    crop, whole = (100 * cropping([sample(media), sample(bars)])[0]).tolist()
    assert abs(crop - whole) > 0.1  # negative control
    assert reward.score_range == (-100.0, 100.0)


def test_hpsv2_reads_weights_of_open_clip(monkeypatch) -> None:
    """A file means open_clip's ViT-H-14; here a small open_clip stands in its place."""
    from flowalign.rewards import open_clip

    asked: list[object] = []

    def named(*given: object, reward: str) -> open_clip.OpenClipTowers:
        asked.append((*given, reward))
        return open_clip.built_in_towers(CPU)

    monkeypatch.setattr(open_clip, "named_towers", named)
    config = HPSv2Reward(name="hpsv2", model="hps.safetensors", scale=1.0)
    reward = hpsv2.from_config(config, device=CPU)
    assert asked == [("ViT-H-14", "hps.safetensors", CPU, "hpsv2")]
    bars = F.pad(torch.rand(3, 20, 32, generator=torch.Generator().manual_seed(0)), (0, 0, 6, 6))
    wide = reward([sample(bars[:, 6:26])])[0]
    whole = CosineScore(name="open_clip", towers=open_clip.built_in_towers(CPU))
    assert torch.allclose(wide, whole([sample(bars)])[0], atol=1e-5)
    cropped = whole([sample(bars[:, 6:26])])[0]
    assert not torch.allclose(wide, cropped, atol=1e-3)  # negative control


def golden_head(seed: int) -> aesthetic.Layers:
    """The reference's weights, by its recipe."""
    import numpy as np

    draws, widths = np.random.RandomState(seed), (768, 1024, 128, 64, 16, 1)
    head = []
    for width, out in pairwise(widths):
        weight = draws.standard_normal((out, width)) / math.sqrt(width)
        head.append((torch.tensor(weight), torch.tensor(0.1 * draws.standard_normal(out))))
    return head


def test_the_aesthetic_head_is_the_references() -> None:
    """Of unit features, with no activation between the layers."""
    (case,) = (case for case in cases("reward_heads") if case.name == "aesthetic_mlp")
    head, unit = golden_head(case.hyper["weight_seed"]), F.normalize(case.given["features"], dim=-1)
    case.close(aesthetic.apply_head(head, unit), case.out["raw"])
    active = unit
    for weight, bias in head[:-1]:
        active = (active @ weight.T + bias).relu()
    slips = (
        aesthetic.apply_head(head[-1:], active),
        aesthetic.apply_head(head, case.given["features"]),
    )
    for slip in slips:  # negative control
        assert (slip - case.out["raw"]).abs().max() > 1e-2


def test_aesthetic_reads_unit_features_and_no_prompt(rewards: dict[str, Reward]) -> None:
    reward = rewards["aesthetic"]
    assert isinstance(reward, aesthetic.AestheticScore)
    samples = true_samples(4)
    pixels = torch.stack([(s.media - 0.5) / 0.5 for s in samples]).double()
    weights = reward.tower.model.state_dict()  # type: ignore[attr-defined]
    exact = {name: value.double() for name, value in weights.items()}
    features = picture_features(exact, pixels, heads=3)
    head = [(weight.double(), bias.double()) for weight, bias in reward.head]
    expected = aesthetic.apply_head(head, F.normalize(features, dim=-1))
    assert (reward(samples)[0].double() - expected).abs().max() < 1e-5
    long = aesthetic.apply_head(head, features)
    assert (long - expected).abs().max() > 1e-2  # negative control: length not taken away
    other = [replace(s, prompt="a blue square") for s in samples]
    assert torch.equal(reward(other)[0], reward(samples)[0])


def random_units(num: int, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(num)
    return F.normalize(torch.randn(num, width, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_projection_is_that_of_the_matrix(alpha: float) -> None:
    """VLM-RM's definition with the D x D matrix."""
    x, goal, baseline = random_units(50), random_units(2).mean(0), random_units(1)[0]
    d = goal - baseline
    matrix = alpha * torch.outer(d, d) / (d @ d) + (1 - alpha) * torch.eye(9, dtype=d.dtype)
    expected = 1 - 0.5 * ((x - goal) @ matrix.T).square().sum(1)
    found = goal_baseline.projected(x, goal, baseline, alpha)
    assert (found - expected).abs().max() < 1e-12
    assert found.max() <= 1
    slip = goal_baseline.projected(x, goal, baseline, alpha + 0.1)
    assert (slip - expected).abs().max() > 1e-3  # negative control


def test_the_ends_of_alpha() -> None:
    x, (goal, baseline) = random_units(50), random_units(2)
    assert torch.allclose(goal_baseline.projected(x, goal, baseline, 0.0), x @ goal)
    d = F.normalize(goal - baseline, dim=0)
    moved = x + 3 * (random_units(1)[0] - (random_units(1)[0] @ d) * d)  # across the line
    alone = goal_baseline.projected(x, goal, baseline, 1.0)
    assert torch.allclose(goal_baseline.projected(moved, goal, baseline, 1.0), alone)
    assert not torch.allclose(
        goal_baseline.projected(moved, goal, baseline, 0.9),
        goal_baseline.projected(x, goal, baseline, 0.9),
    )
    assert float(goal_baseline.projected(goal, goal, baseline, 0.5)) == pytest.approx(1.0)


def test_without_a_goal_the_prompt_is_the_goal(folder: Path, rewards: dict[str, Reward]) -> None:
    given = replace(true_samples(1)[0], prompt="a red circle")
    config = GoalBaselineReward(
        name="goal_baseline",
        model=str(folder / "clip"),
        goal=("a red circle",),
        baseline=("a picture",),
        alpha=0.7,
    )
    fixed = goal_baseline.from_config(config, device=CPU)
    assert torch.equal(fixed([given])[0], rewards["goal_baseline"]([given])[0])
    other = replace(given, prompt="a blue square")
    assert torch.equal(fixed([other])[0], fixed([given])[0])
    assert not torch.equal(rewards["goal_baseline"]([other])[0], fixed([given])[0])


def test_a_prompt_that_is_the_baseline_is_masked(rewards: dict[str, Reward]) -> None:
    first, second = true_samples(2)
    values, valid = rewards["goal_baseline"]([first, replace(second, prompt="a picture")])
    assert valid.tolist() == [True, False] and values.isnan().tolist() == [False, True]


def test_siglip_has_the_logits_of_the_model(folder: Path, rewards: dict[str, Reward]) -> None:
    reward, samples = rewards["siglip"], true_samples(4)
    assert isinstance(reward, CosineScore) and isinstance(reward.towers, SiglipTowers)
    towers = reward.towers
    read = towers.tokenizer(
        [s.prompt for s in samples], padding="max_length", max_length=16, return_tensors="pt"
    )
    pixels = torch.stack([(s.media - 0.5) / 0.5 for s in samples])
    with torch.no_grad():
        whole = towers.model(input_ids=read["input_ids"], pixel_values=pixels)
    logits = whole.logits_per_image.diagonal()
    assert (reward(samples)[0] - logits).abs().max() < 1e-5
    assert (logits + 1.0 - reward(samples)[0]).abs().min() > 0.9  # negative control: the bias
    model = str(folder / "siglip")
    outputs = {
        output: clip.from_config(ClipReward(name="clip", model=model, output=output), device=CPU)
        for output in ("probability", "cosine")
    }
    assert torch.allclose(outputs["probability"](samples)[0], logits.sigmoid(), atol=1e-6)
    cosine = (logits + 1.0) / math.exp(1.5)
    assert torch.allclose(outputs["cosine"](samples)[0], cosine, atol=1e-6)
    assert outputs["cosine"].score_range == (-1.0, 1.0)


def test_dino_is_the_cosine_to_the_pictures(folder: Path, rewards: dict[str, Reward]) -> None:
    reward = rewards["dino"]
    assert isinstance(reward, ExemplarCosine) and isinstance(reward.towers, dino.DinoTower)
    samples = true_samples(6)
    assert reward(samples[:3])[0].tolist() == pytest.approx([1.0] * 3, abs=1e-3)  # 8 bits a file

    def features(media: Tensor) -> Tensor:
        grown = F.interpolate(media[None], (36, 36), mode="bicubic", antialias=True)
        with torch.no_grad():
            out = reward.towers.model(pixel_values=(grown[..., 2:34, 2:34] - 0.5) / 0.5)  # type: ignore[attr-defined]
        return F.normalize(out.last_hidden_state[0, 0], dim=0)

    seen = torch.stack([features(s.media) for s in samples])
    cosine = seen[3:] @ seen[:3].T
    assert torch.allclose(reward(samples[3:])[0], cosine.amax(1), atol=2e-3)
    config = HEADS["dino"](folder).model_copy(update={"measure": "centroid"})
    centroid = dino.from_config(config, device=CPU)(samples[3:])[0]  # type: ignore[arg-type]
    assert torch.allclose(centroid, seen[3:] @ F.normalize(seen[:3].mean(0), dim=0), atol=2e-3)
    assert (centroid - cosine.amax(1)).abs().max() > 1e-2  # negative control


@pytest.mark.parametrize("name", ["pickscore", "hpsv2", "goal_baseline", "siglip"])
def test_prompts_are_encoded_once_and_long_ones_told_once(name: str, folder: Path) -> None:
    reward = build_suite([HEADS[name](folder)]).entries[0].reward
    given = true_samples(2)
    long = [replace(s, prompt=LONG + " background" * i) for i, s in enumerate(given)]
    with pytest.warns(FlowalignWarning, match="does not see the last") as caught:
        reward([*long, *long])
    assert len(caught) == 1
    assert sorted(reward.truncated) == sorted(s.prompt for s in long)  # type: ignore[attr-defined]
    assert set(reward.texts) >= {s.prompt for s in long}  # type: ignore[attr-defined]
