"""`flowalign score`: a row for each file, and faults by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flowalign.config.rewards import ClipReward, CodeReward, JpegReward, ShapesReward
from flowalign.errors import DataError, FlowalignError, ResourceError, RewardError, SecurityError
from flowalign.media import load_image, save_image
from flowalign.media_audio import save_audio
from flowalign.rewards.jpeg import jpeg_bytes
from flowalign.scoring_session import score_files
from tests.rewards.world import true_samples

JPEG = JpegReward(name="jpeg")
SHAPES = ShapesReward(name="shapes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures with a manifest, as `flowalign sample` writes them."""
    samples = true_samples(5)
    rows = []
    for place, given in enumerate(samples):
        save_image(tmp_path / f"{place}.png", given.media)
        rows.append({"image": f"{place}.png", "prompt": given.prompt, "seed": 0})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_manifest_is_scored_row_by_row(folder: Path) -> None:
    report = score_files([folder], [SHAPES, JPEG], output="scores.jsonl", batch_size=2)
    assert [row["image"] for row in report.rows] == [f"{i}.png" for i in range(5)]
    assert all(row["scores"]["shapes"] > 0.9 for row in report.rows)
    sizes = [jpeg_bytes(load_image(folder / f"{i}.png"), 95) / 1000 for i in range(5)]
    found = [row["scores"]["jpeg"] for row in report.rows]
    assert found == pytest.approx(sizes)
    assert report.summary["jpeg"]["mean"] == pytest.approx(sum(sizes) / 5)
    assert report.summary["jpeg"]["std"] == pytest.approx(torch.tensor(sizes).std().item())
    assert report.summary["jpeg"]["n"] == 5 and report.summary["jpeg"]["masked"] == 0
    written = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert written == report.rows
    assert json.loads(Path("scores.jsonl.summary.json").read_text()) == report.summary


def test_a_wrong_prompt_scores_low(folder: Path) -> None:
    right = score_files([folder / "0.png"], [SHAPES], prompt=true_samples(1)[0].prompt)
    wrong = score_files([folder / "0.png"], [SHAPES], prompt="three small pink crosses")
    assert right.rows[0]["scores"]["shapes"] > 0.9 > 0.15 > wrong.rows[0]["scores"]["shapes"]


def test_files_need_no_prompt_when_no_reward_reads_it(folder: Path) -> None:
    report = score_files([folder / "0.png", str(folder / "1.png")], [JPEG])
    assert [row["prompt"] for row in report.rows] == [None, None]
    for reward in (SHAPES, ClipReward(name="clip")):
        with pytest.raises(DataError, match=f"no prompt, and reward `{reward.name}` needs one"):
            score_files([folder / "0.png"], [reward])


def test_a_masked_score_is_null_and_counted(folder: Path) -> None:
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[2]["prompt"] = "a photo of a cat"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RewardError, match="a photo of a cat"):
        score_files([folder], [SHAPES])
    report = score_files([folder], [SHAPES], failure="drop", output="scores.jsonl")
    assert report.rows[2]["scores"] == {"shapes": None}
    assert report.summary["shapes"]["n"] == 4 and report.summary["shapes"]["masked"] == 1
    assert "NaN" not in Path("scores.jsonl").read_text()


FAULTS: dict[str, tuple[str, type[FlowalignError], str]] = {
    "not JSON": ("{image: a.png}", DataError, "not JSON"),
    "no object": ("[1, 2]", DataError, "expected an object"),
    "no image": ('{"prompt": "a"}', DataError, "`image`: expected text"),
    "image a number": ('{"image": 3}', DataError, "`image`: expected text, got 3"),
    "prompt a list": ('{"image": "0.png", "prompt": []}', DataError, "`prompt`: expected text"),
    "missing file": ('{"image": "gone.png", "prompt": "a"}', DataError, "no such file"),
    "a directory": ('{"image": "sub", "prompt": "a"}', DataError, "is a directory"),
    "damaged": ('{"image": "half.png", "prompt": "a"}', DataError, "damaged"),
    "deep JSON": ("[" * 100_000, DataError, "not JSON"),
    "long line": ('{"image": "' + "a" * 1_000_000 + '"}', DataError, "a line of"),
    "not UTF-8": ('{"image": "\udcff.png"}', DataError, "not JSON"),
    "parent": ('{"image": "../secret.png", "prompt": "a"}', SecurityError, "leaves"),
    "absolute": ('{"image": "/etc/passwd", "prompt": "a"}', SecurityError, "not a relative path"),
    "link": ('{"image": "link.png", "prompt": "a"}', SecurityError, "leaves"),
    "address": ('{"image": "http://a/b.png", "prompt": "a"}', SecurityError, "is an address"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_of_a_manifest_name_its_row(kind: str, folder: Path) -> None:
    line, error, fragment = FAULTS[kind]
    secret = folder.parent / "secret.png"
    save_image(secret, torch.zeros(3, 16, 16))
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(secret)
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:60])
    manifest = folder / "manifest.jsonl"
    good = manifest.read_text().splitlines()[0]
    manifest.write_bytes(f"{good}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(error) as caught:
        score_files([manifest], [JPEG], output="scores.jsonl")
    assert caught.value.exit_code == (8 if error is SecurityError else 3)
    assert fragment in caught.value.line() and f"{manifest}:2" in caught.value.line()
    assert not Path("scores.jsonl").exists()


def test_all_bad_rows_are_listed(folder: Path) -> None:
    manifest = folder / "manifest.jsonl"
    manifest.write_text("nonsense\n" * 30 + '{"image": "0.png", "prompt": "a"}\n')
    with pytest.raises(DataError, match="one of 30 problems") as caught:
        score_files([manifest], [JPEG])
    assert len(caught.value.earlier) == 21  # at most 20 and the total


def test_nothing_is_overwritten_and_nothing_is_scored_for_nothing(folder: Path) -> None:
    Path("scores.jsonl").write_text("mine")
    with pytest.raises(ResourceError, match="exists"):
        score_files([folder], [JPEG], output="scores.jsonl")
    assert Path("scores.jsonl").read_text() == "mine"
    with pytest.raises(DataError, match="nothing to score"):
        score_files([], [JPEG])
    with pytest.raises(DataError, match="no such file"):
        score_files([folder / "other.jsonl"], [JPEG])


def test_other_modalities_are_read_and_given_to_their_rewards(folder: Path) -> None:
    save_audio(folder / "a.wav", torch.linspace(-1, 1, 800)[None], 8000)
    with pytest.raises(RewardError, match="scores image, but prompt 0 sample 0 is audio"):
        score_files([folder / "a.wav"], [JPEG])
    Path("loud.py").write_text(
        "class Loudness:\n"
        "    modality = 'audio'\n"
        "    def __call__(self, samples):\n"
        "        return [float(s.media.abs().max()) * s.rate for s in samples]\n"
    )
    code = CodeReward(name="code", target="loud.py:Loudness")
    report = score_files([folder / "a.wav"], [code], allow_code=["loud.py"])
    assert report.rows[0]["scores"]["code"] == pytest.approx(8000.0)
