"""Detection networks of the real classes, random and tiny, against their own answers; colours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models import get_model
from transformers import (
    AutoModelForObjectDetection,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from flowalign.config.rewards_rules import GENEVAL_COLOURS, GenEvalReward
from flowalign.detection.colours import (
    GREY,
    PALETTE,
    TEMPLATES,
    ClipColours,
    NearestColour,
    cut,
)
from flowalign.detection.networks import torchvision_detector, transformers_detector
from flowalign.detection.objects import Found
from flowalign.errors import (
    CheckpointError,
    ConfigError,
    FlowalignError,
    ResourceError,
    SecurityError,
)
from flowalign.media import to_uint8
from flowalign.reward_check import check_reward
from flowalign.rewards.clip import load_towers
from flowalign.rewards.geneval import from_config
from tests.rewards.tiny_classifiers import SIDE, write_tiny_classifier, write_tiny_detector
from tests.rewards.world import noise_samples, write_tiny_clip

CPU = torch.device("cpu")
SMALL = "ssdlite320_mobilenet_v3_large"  # the smallest of torchvision's; the path is the same


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("detectors")
    write_tiny_detector(root / "yolos")
    write_tiny_classifier(root / "vit")
    write_tiny_clip(root / "clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_model(SMALL, weights=None, weights_backbone=None, num_classes=91)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.startswith("head.classification_head.module_list") and tensor.numel() == 6 * 91:
            tensor.view(-1, 91)[:, [18, 3]] = 4.5  # dogs and cars, or nothing would be sure enough
    save_file(state, root / "ssd.safetensors")
    save_file({"weight": torch.zeros(1)}, root / "other.safetensors")
    return root


def test_transformers(folder: Path) -> None:
    """Softmax without the last class, boxes from centre and size: YOLOS by hand."""
    detector = transformers_detector(str(folder / "yolos"), None, CPU)
    assert detector.labels == {"dog", "cat", "car"}
    samples = noise_samples(3, side=SIDE)
    wide = torch.cat([samples[0].media, samples[1].media], dim=-1)  # (3, 32, 64)
    model = YolosForObjectDetection.from_pretrained(folder / "yolos").eval()
    processor = YolosImageProcessor.from_pretrained(folder / "yolos")
    for picture in (*(one.media for one in samples), wide):
        pixels = processor(images=to_uint8(picture), return_tensors="pt")["pixel_values"]
        if picture.shape[-1] == SIDE:
            native = (picture * 255).round() / 255
            torch.testing.assert_close(pixels, (native[None] - 0.5) / 0.5)
        with torch.no_grad():
            answer = model(pixels)
        scores, labels = answer.logits[0].softmax(-1)[:, :-1].max(-1)
        x, y, w, h = answer.pred_boxes[0].unbind(-1)
        boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
        boxes = boxes * torch.tensor([picture.shape[2], picture.shape[1]] * 2)
        seen = detector([picture])[0]
        kept = scores > 0.05
        assert len(seen) == int(kept.sum()) > 0
        names = [["dog", "cat", "car"][label] for label in labels[kept].tolist()]
        assert [one.label for one in seen] == names
        found = torch.tensor([[*one.box, one.score] for one in seen])
        expected = torch.cat([boxes, scores[:, None]], dim=-1)[kept]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_torchvision(folder: Path) -> None:
    detector = torchvision_detector(SMALL, folder / "ssd.safetensors", CPU)
    assert {"person", "dog", "traffic light"} <= detector.labels and len(detector.names) == 91
    pictures = [one.media for one in noise_samples(2, side=SIDE)]
    seen = detector(pictures)
    for picture, found in zip(pictures, seen, strict=True):
        with torch.no_grad():
            answer = detector.model([picture])[0]
        sure = answer["scores"] > 0.05
        assert [one.score for one in found] == answer["scores"][sure].tolist()
        labels = [detector.names[label] for label in answer["labels"][sure].tolist()]
        assert [one.label for one in found] == labels and {"dog", "car"} >= set(labels) > set()


def test_masks_of_torchvision_become_pixels() -> None:
    """As Mask R-CNN answers: probabilities (n, 1, H, W)."""
    from flowalign.detection.networks import TorchvisionDetector

    class Masks(torch.nn.Module):
        def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            mask = torch.zeros(2, 1, 4, 4)
            mask[0, 0, :2] = 0.9
            boxes, scores = torch.tensor([[0.0, 0, 4, 2], [0, 0, 4, 4]]), torch.tensor([0.8, 0.01])
            labels = torch.tensor([1, 0])
            return [{"boxes": boxes, "scores": scores, "labels": labels, "masks": mask}]

    detector = TorchvisionDetector(model=Masks(), names=["a", "b"], device=CPU)
    (found,) = detector([torch.zeros(3, 4, 4)])[0]
    assert (found.label, found.box) == ("b", (0.0, 0.0, 4.0, 2.0)) and found.mask is not None
    assert found.mask.sum() == 8 and found.mask[:2].all()


def test_the_whole_reward_is_pure(folder: Path, tmp_path: Path) -> None:
    """With a network that sees dogs everywhere, and CLIP for their colour."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"prompt": "a red circle", "include": [{"class": "dog", "color": "red"}]}\n')
    config = GenEvalReward(
        name="geneval",
        detector="transformers",
        model=str(folder / "yolos"),
        metadata=str(path),
        dense=True,
        colour_model=str(folder / "clip"),
    )
    reward, code = from_config(config, device=CPU)
    assert code is None and isinstance(reward.colours, ClipColours)
    samples = noise_samples(5, side=SIDE)
    assert check_reward(reward, samples) == []
    assert len(set(reward(samples)[0].tolist())) > 1


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"detector": "transformers", "model": "vit"}, CheckpointError, "object detector"),
        ({"detector": "transformers", "model": "nowhere"}, CheckpointError, "no such folder"),
        ({"detector": "torchvision", "model": "resnet18"}, ConfigError, "is no detector"),
        ({"detector": "torchvision", "model": SMALL[:-1]}, ConfigError, f"did you mean `{SMALL}`"),
        ({"weights": "other.safetensors"}, CheckpointError, "does not fit"),
        ({"weights": "absent.safetensors"}, CheckpointError, "no such file"),
        ({"weights": "ssd.pth"}, SecurityError, "never read"),
    ],
)
def test_what_is_no_detector(
    folder: Path,
    tmp_path: Path,
    settings: dict[str, str],
    error: type[FlowalignError],
    words: str,
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"prompt": "a", "include": [{"class": "dog"}]}\n')
    given = {"detector": "torchvision", "model": SMALL, "weights": "ssd.safetensors"} | settings
    given["weights"] = str(folder / given["weights"])
    if given["detector"] == "transformers":
        given["model"] = str(folder / given["model"])
    whole = {"name": "geneval", "metadata": str(path), **given}
    with pytest.raises(error, match=words):
        from_config(GenEvalReward.model_validate(whole), device=CPU)


def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **settings: object) -> None:
        raise ImportError("this model requires the timm library\nmore")

    monkeypatch.setattr(AutoModelForObjectDetection, "from_pretrained", absent)
    with pytest.raises(ResourceError, match=r"requires the timm library; pip install timm"):
        transformers_detector(str(folder / "yolos"), None, CPU)


# Colours.


def found(box: tuple[float, float, float, float], mask: torch.Tensor | None = None) -> Found:
    return Found(label="dog", box=box, score=0.9, mask=mask)


def painted(rgb: tuple[int, int, int], side: int = 8) -> torch.Tensor:
    return (torch.tensor(rgb) / 255)[:, None, None].expand(3, side, side).clone()


def test_the_palette_names_itself_and_the_object_only() -> None:
    namer = NearestColour(palette=PALETTE)
    assert namer.colours == GENEVAL_COLOURS
    for name, rgb in PALETTE.items():
        ground = painted(PALETTE["blue" if name != "blue" else "red"], 16)
        ground[:, 4:12, 4:12] = painted(rgb)
        mask = torch.zeros(16, 16, dtype=torch.bool)
        mask[4:12, 4:12] = True
        assert namer(ground, found((0, 0, 16, 16), mask)) == name
        assert namer(ground, found((0, 0, 16, 16))) == name  # the middle half of the box
        if name not in ("blue", "red"):  # the control: outside of the box it is another colour
            assert namer(ground, found((0, 0, 4, 4))) != name


def test_cut_touches_every_pixel_of_the_box() -> None:
    picture = torch.arange(3 * 6 * 8, dtype=torch.float32).reshape(3, 6, 8)
    assert torch.equal(cut(picture, (1.2, 2.0, 3.1, 4.5)), picture[:, 2:5, 1:4])
    assert torch.equal(cut(picture, (-5, -5, 50, 50)), picture)
    assert cut(picture, (7.9, 5.9, 7.9, 5.9)).shape == (3, 1, 1)
    assert cut(picture, (9, 9, 9, 9)).shape == (3, 1, 1)


def test_clip_is_asked_about_the_object_on_grey(folder: Path) -> None:
    towers = load_towers(str(folder / "clip"), "main", CPU)
    names = ("red", "blue", "green")
    namer = ClipColours(towers=towers, colours=names)
    generator = torch.Generator().manual_seed(0)
    answers = set()
    for _ in range(6):
        picture = torch.rand(3, SIDE, SIDE, generator=generator)
        mask = torch.rand(SIDE, SIDE, generator=generator) > 0.5
        grey = picture.clone()
        grey[:, ~mask] = GREY
        crop = grey[None, :, 4:28, 2:30]
        with torch.no_grad():
            seen = F.normalize(towers.picture_features(towers.preprocessing(crop)), dim=-1)[0]
            cosines = []
            for name in names:
                texts = [one.format(colour=name, label="dog") for one in TEMPLATES]
                rows = [F.normalize(towers.text_features(text), dim=-1) for text in texts]
                cosines.append(float(seen @ F.normalize(sum(rows), dim=-1)))  # type: ignore[arg-type]
        expected = names[max(range(3), key=lambda k: cosines[k])]
        assert namer(picture, found((2, 4, 30, 28), mask)) == expected
        answers.add(expected)
    assert set(namer.texts) == {"dog"}  # encoded once


def test_the_built_in_clip_knows_colours() -> None:
    """It was trained on shapes: a plain sentence about a circle is enough of its language."""
    from flowalign.worlds.shapes.grammar import parse
    from flowalign.worlds.shapes.render import pictures
    from flowalign.worlds.shapes.scene import COLOURS

    namer = ClipColours(towers=load_towers("shapes", "main", CPU), colours=tuple(COLOURS))
    scenes = [parse(f"{'an' if c[0] == 'o' else 'a'} {c} circle") for c in COLOURS]
    drawn = pictures(scenes, torch.Generator().manual_seed(0))
    whole = Found(label="circle", box=(0, 0, 32, 32), score=0.9)
    right = [namer(one, whole) == name for one, name in zip(drawn, COLOURS, strict=True)]
    assert sum(right) >= 7, right
