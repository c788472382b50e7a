"""`flowalign reward fit`: the optimum of the loss, what is held out, and a head that scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.config.rewards import AestheticReward
from flowalign.media import save_image
from flowalign.reward_fitting import Judged, fit_direction, fit_head, split_by_prompt
from flowalign.reward_losses import bradley_terry_ties
from flowalign.scoring import build_suite
from flowalign.scoring_session import read_samples
from tests.cli.commands import fails, works


def judged(num: int, *, width: int = 12, noise: float = 0.0, ties: bool = False, seed: int = 0):
    """Pairs judged by one true direction, four of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    true = F.normalize(torch.randn(width, generator=generator), dim=0)
    a, b = (F.normalize(torch.randn(num, width, generator=generator), dim=-1) for _ in range(2))
    difference = (a - b) @ true + noise * torch.randn(num, generator=generator)
    label = difference.sign().long()
    if ties:
        label[difference.abs() < 0.2] = 0
    return Judged(a=a, b=b, label=label, prompt=torch.arange(num) // 4), true


def test_the_head_is_the_optimum() -> None:
    """The gradient of the penalised loss vanishes, with and without ties; w is the direction."""
    for ties in (False, True):
        pairs, true = judged(400, ties=ties)
        w = fit_direction(pairs, penalty=1e-2)
        apart = (pairs.a - pairs.b).double()
        score = (apart @ w).requires_grad_()
        if ties:
            loss = bradley_terry_ties(score, pairs.label).mean()
            (slope,) = torch.autograd.grad(loss, score)
        else:  # -sigma(-D) towards the preferred
            slope = -pairs.label * torch.sigmoid(-pairs.label * score.detach()) / len(score)
        assert (apart.T @ slope + 1e-2 * w).abs().max() < 1e-6
        assert (apart.T @ slope + 2e-2 * w).abs().max() > 1e-3  # negative control
        assert float(F.cosine_similarity(w, true.double(), dim=0)) > 0.97


def test_other_prompts_are_held_out() -> None:
    """About a fifth, all pairs of a prompt on one side; another seed holds out others."""
    pairs, _ = judged(400)
    fitted, held = split_by_prompt(pairs, share=0.2, seed=0)
    assert (len(fitted.label), len(held.label)) == (320, 80)
    assert not set(fitted.prompt.tolist()) & set(held.prompt.tolist())
    other = split_by_prompt(pairs, share=0.2, seed=1)[1]
    assert set(other.prompt.tolist()) != set(held.prompt.tolist())


def test_the_report_tells_what_generalises() -> None:
    """Near 1 for a true direction, near 1/2 for answers that no direction explains."""
    tensors, report = fit_head(judged(800, ties=True)[0], penalty=1e-3, share=0.25, seed=0)
    assert report.decided > 0.97
    assert report.with_ties.accuracy > 0.85
    assert "with ties" in " ".join(report.lines())
    pairs, _ = judged(800)
    flips = torch.randint(0, 2, (800,), generator=torch.Generator().manual_seed(1)) * 2 - 1
    random = Judged(a=pairs.a, b=pairs.b, label=pairs.label * flips, prompt=pairs.prompt)
    assert abs(fit_head(random, penalty=1e-3, share=0.25, seed=0)[1].decided - 0.5) < 0.12
    assert set(tensors) == {"layers.0.weight", "layers.0.bias"}


def write_pairs(folder: Path, num: int = 40, **changes) -> Path:
    """Pictures of even grey with noise; the brighter one is preferred."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(num):
        levels = torch.rand(2, generator=generator)
        for side, level in zip("ab", levels.tolist(), strict=True):
            picture: Tensor = level * 0.8 + 0.2 * torch.rand(3, 32, 32, generator=generator)
            save_image(folder / f"{i}{side}.png", picture)
        better = "a" if levels[0] > levels[1] else "b"
        row = {"prompt": f"prompt {i // 2}", "a": f"{i}a.png", "b": f"{i}b.png"}
        rows.append(row | {"preference": better} | changes)
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_from_pairs_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head is fitted, reported, and scores as reward `aesthetic`: brighter is better."""
    pairs, head = write_pairs(tmp_path), tmp_path / "head.safetensors"
    told = works(capsys, ["reward", "fit", str(pairs), "-o", str(head)])
    assert "fitted to 32 pairs; 8 pairs of other prompts held out; 0 ties" in told
    assert f"{{name: aesthetic, model: shapes, head: {head}}}" in told
    for name, level in (("dark", 0.1), ("light", 0.9)):
        save_image(tmp_path / f"{name}.png", torch.full((3, 32, 32), level))
    asked = AestheticReward(name="aesthetic", model="shapes", head=str(head))
    media = [str(tmp_path / f"{name}.png") for name in ("dark", "light")]
    samples = read_samples(media, [asked], prompt=None)
    scores = build_suite([asked]).score(samples).terms["aesthetic"]
    assert float(scores[1] - scores[0]) > 1.0


def test_what_cannot_be_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, the right exit code, and no head."""
    head = str(tmp_path / "head.safetensors")
    pairs = str(write_pairs(tmp_path, 6))

    def refused(code: int, words: str, *arguments: str, path: str = pairs, out: str = head):
        fails(capsys, ["reward", "fit", path, "-o", out, *arguments], code, words)

    refused(2, "is no .safetensors file", out=str(tmp_path / "head.pt"))
    refused(2, "no folder", out=str(tmp_path / "gone" / "head.safetensors"))
    refused(2, "must be between 0 and 1", "--held-out", "1.5")
    refused(2, "must be positive", "--penalty", "0")
    refused(2, "unknown device 'gpu'", "--device", "gpu")
    refused(2, "judged in preference", "--dimension", "VQ")
    refused(3, "not found", path=str(tmp_path / "gone.jsonl"))
    refused(3, "leave a side without", "--held-out", "0.01")
    ties = tmp_path / "ties"
    ties.mkdir()
    refused(3, "without a decided pair", path=str(write_pairs(ties, 6, preference="tie")))
    unjudged = tmp_path / "unjudged"
    unjudged.mkdir()
    rows = write_pairs(unjudged, 2, preference={"VQ": None, "MQ": "a"})
    refused(3, "none of the 2 pairs is judged in `VQ`", "--dimension", "VQ", path=str(rows))
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"prompt": "a", "media": "0a.png", "scores": {"clip": 1.0}}\n', "utf-8")
    refused(3, "holds no preference pairs", path=str(samples))
    assert not Path(head).exists()


def test_devices_that_are_not_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scoring asks for the device before anything is loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    picture = str(tmp_path / "a.png")
    save_image(picture, torch.rand(3, 8, 8))
    command = ["score", "--rewards", "clip", "--prompt", "a circle", picture]
    fails(capsys, [*command, "--device", "cuda"], 7, "no CUDA device here")
    fails(capsys, [*command, "--device", "foo"], 2, "unknown device 'foo'")
    fails(capsys, ["reward", "check", "jpeg", "--device", "cuda:1"], 7, "no CUDA device here")
