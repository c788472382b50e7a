"""The page as a whole: policy, self-containment, sizes, the same bytes for the same runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from flowalign.gallery import build_gallery
from flowalign.gallery.page import MAX_PAGE_BYTES, csp_hash
from tests.gallery.payloads import Page
from tests.gallery.synthetic import write_run


def build(runs: Path, *names: str, **options) -> Page:
    path = build_gallery([runs / name for name in names], runs / "out", **options)
    return Page(path.read_text())


def test_policy_allows_the_two_inline_texts_and_nothing_else(runs: Path) -> None:
    page = build(runs, "nft", "grpo")
    script, style = ("".join(page.inline[tag]) for tag in ("script", "style"))
    assert page.policy == (
        "default-src 'none'; img-src 'self' data:; media-src 'self' data:; "
        f"style-src '{csp_hash(style)}'; script-src '{csp_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert page.findings == []
    assert csp_hash(script + " ") not in page.policy


def test_the_hash_is_that_of_the_standard() -> None:
    # The example of the CSP specification, section 2.3.1 (hash-source).
    assert csp_hash("alert('Hello, world.');") == (
        "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
    )


def test_one_file_with_every_picture_inside(runs: Path) -> None:
    page = build(runs, "nft", "grpo")
    assert [path.name for path in (runs / "out").iterdir()] == ["index.html"]
    assert page.counts["img"] == 12 * 3  # the base is shared by both runs
    assert str(runs) not in (runs / "out" / "index.html").read_text()


def test_summary_says_gain_interval_and_number(runs: Path) -> None:
    text = re.sub(r"\s+", " ", " ".join(build(runs, "nft", "grpo").texts))
    assert "12 prompts, equal seeds: base, nft and grpo side by side." in text
    assert re.search(r"nft raised shapes from 0\.\d{3} to 0\.\d{3}: \+0\.\d{3}", text)
    assert re.search(r"\(95\s% interval \+0\.\d{3} to \+0\.\d{3}\)", text)
    assert re.search(r"Not trained on: strict \+0\.\d{3} \(\+0\.\d{3} to \+0\.\d{3}\), clip", text)


def test_configs_and_their_differences_are_shown(runs: Path) -> None:
    page = build(runs, "nft", "grpo")
    text = "".join(page.texts)
    assert "algorithm.name" in text and "name: grpo\n" in text
    assert (runs / "nft" / "config.yaml").read_text() in text


def test_secrets_of_a_config_are_not_shown(runs: Path) -> None:
    secret = "hf_" + "Q7" * 12
    with (runs / "nft" / "config.yaml").open("a") as file:
        file.write(f"token: {secret}\nurl: https://me:{secret}@host/x\n")
    (runs / "nft" / "status.json").write_text(f'{{"state": "failed", "reason": "{secret}"}}')
    build(runs, "nft", "grpo")
    assert secret not in (runs / "out" / "index.html").read_text()


@pytest.mark.parametrize("value", ["0", "1"])
def test_other_process_same_bytes(value: str, stored_runs: Path, tmp_path: Path) -> None:
    """Another interpreter, hash seed, working directory and place of the runs: equal bytes."""
    ours = build_gallery([stored_runs / "nft", stored_runs / "grpo"], tmp_path / "ours")
    copies = shutil.copytree(stored_runs, tmp_path / "elsewhere")
    code = (
        "import sys; from flowalign.gallery import build_gallery;"
        "build_gallery(sys.argv[1:3], sys.argv[3]);"
        "assert not {'torch', 'transformers', 'diffusers'} & sys.modules.keys()"
    )
    arguments = [str(copies / "nft"), str(copies / "grpo"), str(tmp_path / "theirs")]
    subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        env={
            **os.environ,
            "PYTHONHASHSEED": value,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    theirs = tmp_path / "theirs" / "index.html"
    assert theirs.read_bytes() == ours.read_bytes()
    scores = copies / "nft" / "eval" / "step-000040" / "scores.jsonl"
    scores.write_text(scores.read_text().replace('"clip": 0.3', '"clip": 0.4'))
    changed = build_gallery([copies / "nft", copies / "grpo"], tmp_path / "changed")
    assert changed.read_bytes() != ours.read_bytes()  # the comparison can fail


def test_ten_thousand_cells(tmp_path: Path) -> None:
    """Paged, at most 5 MB a page, and within a minute of processor time (4 s when written)."""
    run = write_run(tmp_path / "run", steps=(0, 1, 2, 3), num_prompts=2500, pictures=None)
    begun = time.process_time()  # not the clock: other tests run beside this one
    build_gallery([run], tmp_path / "out")
    assert time.process_time() - begun < 60
    pages = sorted((tmp_path / "out").iterdir())
    assert len(pages) >= 2
    assert max(path.stat().st_size for path in pages) <= MAX_PAGE_BYTES
    texts = [path.read_text() for path in pages]
    assert sum(text.count("<img ") for text in texts) == 10_000
    assert not Page(texts[-1]).findings
    names = {path.name for path in pages}
    linked = set(re.findall(r'href="([a-z0-9-]+\.html)"', texts[0]))
    assert names == linked


def test_large_pictures_become_previews(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1), num_prompts=2)
    grain = Image.effect_noise((90, 90), 80).convert("RGB").resize((900, 900))
    for path in (run / "eval").glob("*/*.png"):
        grain.save(path)
        assert path.stat().st_size > 300_000
    page = build(tmp_path, "run")
    assert (tmp_path / "out" / "index.html").stat().st_size < 1_600_000
    assert "4 large pictures are shown as smaller WebP previews" in "".join(page.texts)


def test_a_run_without_a_base_makes_no_claim(runs: Path) -> None:
    shutil.rmtree(runs / "nft" / "eval" / "step-000000")
    text = "".join(build(runs, "nft").texts)
    assert "no evaluation at step 0" in text and "raised" not in text


def test_lower_is_better_turns_the_colours(runs: Path) -> None:
    config = runs / "nft" / "config.yaml"
    config.write_text(config.read_text().replace("weight: 1.0", "weight: -1.0"))
    html = build_gallery([runs / "nft"], runs / "turned").read_text()
    assert "lower is better" in html
    assert re.search(r'<strong class="down">\+0\.', html)
