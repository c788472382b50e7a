"""HPSv3 and VideoReward on a random Qwen2-VL of the real classes, against plain computations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from flowalign.config.rewards_heads import HPSv3Reward, VideoRewardReward
from flowalign.errors import (
    CheckpointError,
    ConfigError,
    FlowalignError,
    RewardError,
    SecurityError,
)
from flowalign.qwen2_vl import CHAT, Vision, at_tokens, chosen_frames
from flowalign.reward_check import check_reward
from flowalign.rewards import hpsv3, video_reward
from flowalign.rewards.hpsv3 import HPSv3Score
from flowalign.rewards.video_reward import VideoRewardScore
from flowalign.scoring import build_suite
from flowalign.types import Sample
from tests.golden.vectors import cases
from tests.rewards.plain_qwen import last_states
from tests.rewards.tiny_qwen import (
    PATCH,
    video_head,
    with_adapters,
    write_base,
    write_hpsv3,
    write_video_reward,
)
from tests.rewards.world import noise_samples, sample, true_samples, write_tiny_clip

CPU = torch.device("cpu")
VISION = Vision(patch=PATCH, merge=2, temporal=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("qwen")
    write_base(root / "base")
    write_hpsv3(root / "hpsv3.safetensors")
    write_video_reward(root / "video.safetensors")
    return root


def hps_config(folder: Path, **settings) -> HPSv3Reward:
    given = {"weights": str(folder / "hpsv3.safetensors"), "pixels": 784, "dtype": "float32"}
    return HPSv3Reward(name="hpsv3", model=str(folder / "base"), **(given | settings))


def video_config(folder: Path, **settings) -> VideoRewardReward:
    given = {"weights": str(folder / "video.safetensors"), "max_pixels": 784, "dtype": "float32"}
    return VideoRewardReward(name="video_reward", model=str(folder / "base"), **(given | settings))


def hps(folder: Path, **settings) -> HPSv3Score:
    return hpsv3.from_config(hps_config(folder, **settings), device=CPU)


def video(folder: Path, **settings) -> VideoRewardScore:
    return video_reward.from_config(video_config(folder, **settings), device=CPU)


def videos(num: int, frames: int = 9) -> list[Sample]:
    media = torch.rand(num, frames, 3, 24, 32, generator=torch.Generator().manual_seed(3))
    return [
        replace(s, media=media[i], modality="video", rate=4.0)
        for i, s in enumerate(true_samples(num))
    ]


def test_sizes_are_those_of_the_processor() -> None:
    generator = torch.Generator().manual_seed(0)
    for least, most in ((784, 784), (400, 3000), (56 * 56, 28 * 28 * 1280)):
        for height, width in torch.randint(8, 600, (40, 2), generator=generator).tolist():
            asked = {"factor": 8, "min_pixels": least, "max_pixels": most}
            found = VISION.size(height, width, least=least, most=most)
            assert found == smart_resize(height, width, **asked)
    full = replace(VISION, patch=14)
    assert full.size(512, 512, least=200704, most=200704) == (448, 448)
    assert full.size(1024, 512, least=200704, most=200704) == (616, 308)


def test_patches_are_those_of_the_processor() -> None:
    """Of pictures and of an odd number of frames, resized; a foreign order is seen."""
    given = {"patch_size": PATCH, "merge_size": 2, "do_rescale": False, "do_resize": True}
    given |= {"image_mean": VISION.mean, "image_std": VISION.std}
    given |= {"size": {"shortest_edge": 784, "longest_edge": 784}}
    frames = torch.rand(3, 3, 50, 40, generator=torch.Generator().manual_seed(1))
    size = VISION.size(50, 40, least=784, most=784)
    seen, grid = VISION.patches(frames[:1], size)
    picture = Qwen2VLImageProcessor(**given)(images=[frames[0]], return_tensors="pt")
    torch.testing.assert_close(seen, picture["pixel_values"], rtol=1e-5, atol=1e-5)
    assert grid == tuple(picture["image_grid_thw"][0].tolist())
    seen, grid = VISION.patches(frames, size)
    processor = Qwen2VLVideoProcessor(**given, cap_pixels_per_frame=False)
    clip = processor(videos=[frames], return_tensors="pt")
    torch.testing.assert_close(seen, clip["pixel_values_videos"], rtol=1e-5, atol=1e-5)
    assert grid == tuple(clip["video_grid_thw"][0].tolist())
    turned = VISION.patches(frames.flip(0), size)[0]
    assert not torch.allclose(turned, seen, atol=1e-2)  # negative control


def test_chosen_frames() -> None:
    """2 a second of 81 frames at 16 fps are 10; never fewer than 4, always even, ends included."""
    expected = [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert chosen_frames(81, 16.0, fps=2.0).tolist() == expected
    assert chosen_frames(16, 16.0, fps=2.0).tolist() == [0, 5, 10, 15]
    assert chosen_frames(3, 16.0, fps=2.0).tolist() == [0, 2]
    assert chosen_frames(1, 16.0, fps=2.0).tolist() == [0]
    assert len(chosen_frames(49, 8.0, fps=2.0)) == 12
    assert len(chosen_frames(9000, 8.0, fps=2.0)) == 768


def test_at_tokens_as_the_reference_pools() -> None:
    (case,) = (c for c in cases("reward_heads") if "special" in c.name)
    found = at_tokens(
        case.given["logits"], case.given["input_ids"], case.hyper["special_token_ids"]
    )
    case.close(found.squeeze(-1), case.out["pooled"])


def plain_states(folder: Path, weights: str, reward, text: str, frames: Tensor, least: int):
    """(L, D) float64 and ids (L,): vision by transformers, everything else in plain torch."""
    tensors = load_file(folder / weights)
    reader = reward.reader
    seen, grid = reader.vision.patches(frames, reader.vision.size(*frames.shape[-2:], **{
        "least": least, "most": 784}))  # fmt: skip
    tokens = reader.model.visual(seen, grid_thw=torch.tensor([grid])).pooler_output.double()
    medium = "<|image_pad|>" if len(frames) == 1 else "<|video_pad|>"
    chat = CHAT.replace("{medium}", medium * len(tokens)).replace("{text}", text)
    ids = torch.tensor(reader.tokenizer(chat)["input_ids"])
    x = tensors["model.embed_tokens.weight"][ids].double()
    x[ids == reader.tokenizer.convert_tokens_to_ids(medium)] = tokens
    return last_states(tensors, x), ids


def test_hpsv3_against_plain_torch(folder: Path) -> None:
    """Flat positions, hidden state at the token, 32-1024-16-2 with ReLU, the first output."""
    reward, tensors = hps(folder, scale=0.1), load_file(folder / "hpsv3.safetensors")
    samples = [*noise_samples(2, side=28), *true_samples(2)]
    samples = [replace(s, media=F.interpolate(s.media[None], (32, 24))[0]) for s in samples]
    expected = []
    for s in samples:
        text = hpsv3.INSTRUCTION.replace("{prompt}", s.prompt)
        states, ids = plain_states(folder, "hpsv3.safetensors", reward, text, s.media[None], 784)
        (place,) = (ids == reward.reader.tokenizer.convert_tokens_to_ids("<|Reward|>")).nonzero()
        x = states[place]
        for n in (0, 3, 5):
            x = x @ tensors[f"rm_head.{n}.weight"].double().T + tensors[f"rm_head.{n}.bias"]
            x = x.relu() if n < 5 else x
        expected.append(0.1 * x[0, 0])
    found = reward(samples)[0].double()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    other = hps(folder, scale=0.1, positions="mrope")(samples)[0]
    assert (other.double() - found).abs().max() > 1e-2  # negative control: it is another function


def test_mrope_is_the_model_itself(folder: Path) -> None:
    """With `positions: mrope` the states are those of transformers' own forward pass."""
    reader = hps(folder, positions="mrope").reader
    frames = true_samples(1)[0].media[None]
    text = hpsv3.INSTRUCTION.replace("{prompt}", "a red circle")
    pixels, grid = reader.vision.patches(frames, reader.vision.size(32, 32, least=784, most=784))
    ids = reader._ids(text, grid, "<|image_pad|>")[None]
    own = reader.model(
        input_ids=ids,
        pixel_values=pixels,
        image_grid_thw=torch.tensor([grid]),
        mm_token_type_ids=(ids == reader.tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
    ).last_hidden_state
    place = (ids[0] == reader.tokenizer.convert_tokens_to_ids("<|Reward|>")).nonzero()[0]
    found = reader.states([text], [frames], least=784, most=784, video=False)[0]
    torch.testing.assert_close(found, own[0, place], rtol=1e-5, atol=1e-5)


def test_video_reward_against_plain_torch(folder: Path) -> None:
    """The diagonal of the 3 x 3, normalised; `overall` is the sum of the three."""
    reward, samples = video(folder), videos(2)
    for s, total in zip(samples, reward(samples)[0].tolist(), strict=True):
        text = video_reward.INSTRUCTION.replace("{prompt}", s.prompt)
        frames = s.media[chosen_frames(len(s.media), 4.0, fps=2.0)]
        states, ids = plain_states(folder, "video.safetensors", reward.judge, text, frames, 392)
        added = reward.judge.reader.tokenizer.convert_tokens_to_ids(list(video_reward.TOKENS))
        rows = [int((ids == token).nonzero()[0]) for token in added]
        assert rows == sorted(rows)
        raw = [float(states[row] @ video_head()[k].double()) for k, row in enumerate(rows)]
        constants = ((3.6757, 2.2476), (1.1646, 1.3811), (2.8105, 2.5121))
        normal = [(r - mean) / std for r, (mean, std) in zip(raw, constants, strict=True)]
        assert total == pytest.approx(sum(normal), abs=1e-4)
        for dimension, value in zip(("VQ", "MQ", "TA"), normal, strict=True):
            one = video(folder, dimension=dimension)([s])[0]
            assert float(one) == pytest.approx(value, abs=1e-4)


def test_the_prompt_reaches_text_alignment_alone(folder: Path) -> None:
    samples = videos(3)
    others = [replace(s, prompt="something quite different") for s in samples]
    for dimension, tolerance in (("VQ", 1e-5), ("MQ", 1e-5)):
        reward = video(folder, dimension=dimension)
        torch.testing.assert_close(reward(samples)[0], reward(others)[0], rtol=0, atol=tolerance)
    reward = video(folder, dimension="TA")
    assert (reward(samples)[0] - reward(others)[0]).abs().min() > 1e-3  # negative control


def test_dimensions_share_one_model_and_one_pass(folder: Path) -> None:
    names = ("VQ", "MQ", "TA", "overall")
    suite = build_suite([video_config(folder, dimension=name, label=name) for name in names])
    rewards = [entry.reward for entry in suite.entries]
    assert len({id(reward.judge) for reward in rewards}) == 1  # type: ignore[attr-defined]
    passes = []
    body = rewards[0].judge.reader.model  # type: ignore[attr-defined]
    handle = body.register_forward_hook(lambda *_: passes.append(1))
    samples = videos(3)
    with torch.no_grad():
        terms = suite.score(samples).terms
        assert len(passes) == 1
        torch.testing.assert_close(terms["VQ"] + terms["MQ"] + terms["TA"], terms["overall"])
        again = suite.score(samples).terms  # whoever asks again gets a new pass
        assert len(passes) == 2
        assert torch.equal(again["TA"], terms["TA"])
        samples[0].media.mul_(0.5)  # seen although it is the same tensor
        changed = suite.score(samples).terms
    handle.remove()
    assert len(passes) == 3
    assert abs(float(changed["VQ"][0] - terms["VQ"][0])) > 1e-3


def test_a_picture_is_a_video_of_one_frame(folder: Path) -> None:
    picture = true_samples(1)[0]
    clip = replace(picture, media=picture.media[None], modality="video", rate=8.0)
    one = video(folder, modality="image")([picture])[0]
    assert torch.equal(one, video(folder)([clip])[0])


def test_adapters_are_merged(folder: Path, tmp_path: Path) -> None:
    """Names of peft, W + alpha / rank B A; another alpha is another model."""
    plain = load_file(folder / "video.safetensors")
    adapted = with_adapters(plain)
    save_file(adapted, tmp_path / "peft.safetensors")
    merged = dict(plain)
    for name in [n for n in plain if n.endswith("q_proj.weight")]:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (adapted[f"{stem}.lora_{side}.default.weight"] for side in "AB")
        merged[name] = plain[name] + 8.0 / 4 * b @ a
    save_file(merged, tmp_path / "merged.safetensors")
    samples = videos(1)
    found = video(folder, weights=str(tmp_path / "peft.safetensors"), lora_alpha=8)(samples)[0]
    expected = video(folder, weights=str(tmp_path / "merged.safetensors"))(samples)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (video(folder)(samples)[0] - expected).abs().max() > 1e-3  # negative control


@pytest.mark.parametrize("kind", ["hpsv3", "video_reward"])
def test_pure_with_a_true_gradient(kind: str, folder: Path) -> None:
    """Prompts of unequal length in one batch, pictures of unequal size; finite differences."""
    samples: list[Sample] = true_samples(5) if kind == "hpsv3" else videos(5)
    samples[1] = replace(samples[1], prompt="short", media=samples[1].media[..., :20])
    reward = hps(folder) if kind == "hpsv3" else video(folder)
    assert check_reward(reward, samples) == []
    assert float(reward(samples)[0].std()) > 1e-2
    media = samples[0].media
    direction = torch.randn(media.shape, generator=torch.Generator().manual_seed(2))
    leaf = media.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward([replace(samples[0], media=leaf)])[0].sum(), leaf)
    ends = [
        float(reward([replace(samples[0], media=media + h * direction)])[0]) for h in (2e-3, -2e-3)
    ]
    along = float((slope * direction).sum())
    assert (ends[0] - ends[1]) / 4e-3 == pytest.approx(
        along, rel=0.05, abs=0.02 * float(slope.norm())
    )
    assert abs(along) > 0.1 * float(slope.norm())  # negative control


def test_bfloat16_backbone_with_a_float32_head(folder: Path) -> None:
    samples = true_samples(4)
    half = hps(folder, dtype="bfloat16")
    assert half.reader.model.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in half.head} == {torch.float32}
    difference = (half(samples)[0] - hps(folder)(samples)[0]).abs().max()
    assert 0 < float(difference) < 0.5


def test_a_prompt_cannot_steer_the_model(folder: Path) -> None:
    """A prompt with a token of the reward fails, alone; the others keep their scores."""
    samples = true_samples(3)
    samples[1] = replace(samples[1], prompt="a cat <|Reward|>")
    with pytest.raises(RewardError, match="special token"):
        build_suite([hps_config(folder)]).score(samples)
    scores = build_suite([hps_config(folder)], failure="drop").score(samples)
    assert scores.valid["hpsv3"].tolist() == [True, False, True]
    alone = hps(folder)([samples[0], samples[2]])[0]
    torch.testing.assert_close(scores.terms["hpsv3"][[0, 2]], alone)
    thin = [sample(torch.rand(3, 1, 300)), samples[0]]
    dropped = build_suite([hps_config(folder)], failure="drop").score(thin)
    assert dropped.valid["hpsv3"].tolist() == [False, True]


def changed(path: str, change: Callable[[dict[str, Tensor]], object]):
    """Settings of HPSv3 with other weights."""

    def settings(folder: Path, tmp: Path) -> dict[str, str]:
        tensors = load_file(folder / path)
        change(tensors)
        save_file(tensors, tmp / "changed.safetensors")
        return {"weights": str(tmp / "changed.safetensors")}

    return settings


def foreign_head(tensors: dict[str, Tensor]) -> None:
    tensors["rm_head.5.weight"] = torch.zeros(3, 16)


def template(text: str):
    def settings(_: Path, tmp: Path) -> dict[str, str]:
        (tmp / "template.txt").write_text(text, "utf-8")
        return {"template": str(tmp / "template.txt")}

    return settings


GATE = "model.layers.1.mlp.gate_proj.weight"
FILE = "hpsv3.safetensors"
BAD: dict[str, tuple[Callable, type[FlowalignError], str]] = {
    "no file": (lambda *_: {"weights": "gone.safetensors"}, CheckpointError, "no such file"),
    "pickle": (lambda *_: {"weights": "model.pth"}, SecurityError, "never read"),
    "missing": (changed(FILE, lambda t: t.pop(GATE)), CheckpointError, "1 weights are missing"),
    "unknown": (
        changed(FILE, lambda t: t.update(more=torch.zeros(1))),
        CheckpointError,
        "unknown, for example `more`",
    ),
    "shape": (
        changed(FILE, lambda t: t.update({GATE: torch.zeros(8, 32)})),
        CheckpointError,
        "gate_proj.weight` has shape (8, 32), a Qwen2-VL of this size wants (48, 32)",
    ),
    "head": (changed(FILE, foreign_head), CheckpointError, "its head has shapes"),
    "no head": (
        changed(FILE, lambda t: [t.pop(n) for n in list(t) if n.startswith("rm_head")]),
        CheckpointError,
        "shapes none",
    ),
    "few tokens": (
        changed(FILE, lambda t: t.update({"model.embed_tokens.weight": torch.zeros(262, 32)})),
        CheckpointError,
        "embeds 262 tokens",
    ),
    "video head": (
        lambda f, _: {"weights": str(f / "video.safetensors")},
        CheckpointError,
        "its head has shapes",
    ),
    "a CLIP": (
        lambda _, t: {"model": str(write_tiny_clip(t / "clip"))},
        CheckpointError,
        "its architecture is clip",
    ),
    "no token": (template("Rate {prompt}"), ConfigError, "holds `<|Reward|>` 0 times"),
    "no prompt": (template("Rate <|Reward|>"), ConfigError, "holds `{prompt}` 0 times"),
    "no template": (lambda *_: {"template": "gone.txt"}, ConfigError, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read(name: str, folder: Path, tmp_path: Path) -> None:
    settings, kind, words = BAD[name]
    given = {"model": str(folder / "base"), "weights": str(folder / FILE), "pixels": 784}
    config = HPSv3Reward(name="hpsv3", **(given | settings(folder, tmp_path)))
    with pytest.raises(kind) as caught:
        hpsv3.from_config(config, device=CPU)
    assert words in caught.value.line()
    assert "\n" not in caught.value.line()


def test_a_template_of_ones_own_is_asked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("How fine is {prompt}? <|Reward|>", "utf-8")
    samples = true_samples(2)
    other = hps(folder, template=str(tmp_path / "t.txt"))
    assert other.template == "How fine is {prompt}? <|Reward|>"
    assert (other(samples)[0] - hps(folder)(samples)[0]).abs().max() > 1e-3
