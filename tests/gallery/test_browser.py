"""The page in a real browser: from a file, without a complaint, usable by hand and by keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from flowalign.gallery import build_gallery
from tests.gallery.browser import CHROMIUM, Browser, chromium
from tests.gallery.histories import HISTORIES, write_job
from tests.gallery.payloads import PAYLOADS
from tests.gallery.synthetic import write_run
from tests.gallery.test_escaping import poisoned

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
PROMPTS = "[...document.querySelectorAll('.row:not([hidden]) .prompt')].map(e => e.textContent)"
GAINS = (
    "[...document.querySelectorAll('.row:not([hidden])')]"
    ".map(e => Number(e.dataset.g.split(',')[{}]))"
)
SHOWN = "document.querySelector('#box').open && document.querySelector('#box .where').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(stored_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "gallery"
    return build_gallery([stored_runs / "nft", stored_runs / "grpo"], output)


@pytest.fixture(autouse=True)
def no_complaints(browser: Browser) -> Iterator[None]:
    """No message on the console, and no request but for the page's own file and data."""
    browser.complaints.clear()
    browser.requests.clear()
    yield
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:///", "data:"))] == []


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        f"(() => {{ const e = document.querySelector('#{name}'); e.value = '{value}';"
        f"e.dispatchEvent(new Event('{'input' if name == 'search' else 'change'}')); }})()"
    )


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844), (820, 1180)])
def test_it_fits_the_screen(
    width: int, height: int, dark: bool, browser: Browser, page: Path, tmp_path: Path
) -> None:
    browser.open(page, width=width, height=height, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    loaded = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    browser.run("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    assert browser.run(loaded)
    assert browser.run("document.images.length") == 36
    size = browser.run("document.querySelector('.cell img').getBoundingClientRect().width")
    assert 96 <= size <= 160
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 20, 23)") == dark
    browser.screenshot(tmp_path / "shot.png")
    assert imageio.imread(tmp_path / "shot.png").std() > 5


def test_sorting_by_gain(browser: Browser, page: Path) -> None:
    browser.open(page)
    order = browser.run(PROMPTS)
    assert browser.run("document.querySelector('#model').selectedOptions[0].text").startswith(
        "of nft"
    )
    choose(browser, "sort", "down")
    gains = browser.run(GAINS.format(0))  # columns nft, grpo; three scores each
    assert gains == sorted(gains, reverse=True) and gains[0] > gains[-1]
    choose(browser, "model", "1")
    choose(browser, "score", "1")
    choose(browser, "sort", "up")
    gains = browser.run(GAINS.format(4))
    assert gains == sorted(gains) and gains[0] < gains[-1]
    badge = browser.run("document.querySelector('.row:last-child .badge b').textContent")
    assert badge == "+1.000"
    choose(browser, "sort", "order")
    assert browser.run(PROMPTS) == order


def test_filtering_by_text_and_category(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert len(browser.run(PROMPTS)) == 12
    choose(browser, "search", "  RED   circle ")
    found = browser.run(PROMPTS)
    assert 0 < len(found) < 12 and all("red" in p and "circle" in p for p in found)
    assert browser.run("document.querySelector('#count').textContent") == str(len(found))
    choose(browser, "search", "")
    choose(browser, "category", "0")
    assert all(" and " not in prompt for prompt in browser.run(PROMPTS))
    choose(browser, "search", "no such prompt")
    assert browser.run(PROMPTS) == []
    assert browser.run("document.querySelector('#none').checkVisibility()")


def test_enlarging_by_mouse_and_keys(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click(".row:nth-child(2) .cell:nth-of-type(2) .open")
    assert browser.run(SHOWN) == "nft step 40"
    prompt = "document.querySelector('#box .what').textContent"
    second = browser.run(prompt)
    assert second == browser.run(PROMPTS)[1]
    assert browser.run("document.querySelector('#box img').width") > 500
    assert "shapes" in browser.run("document.querySelector('#box .values').textContent")
    browser.press("ArrowRight")
    assert browser.run(SHOWN) == "grpo step 40" and browser.run(prompt) == second
    browser.press("ArrowRight")
    assert browser.run(SHOWN) == "base before training"
    browser.press("ArrowLeft")
    browser.press("ArrowDown")
    assert browser.run(SHOWN) == "grpo step 40"
    assert browser.run(prompt) == browser.run(PROMPTS)[2]
    browser.press("ArrowUp")
    browser.press("ArrowUp")
    browser.press("ArrowUp")  # already the first
    assert browser.run(prompt) == browser.run(PROMPTS)[0]
    browser.press("Escape")
    assert browser.run(SHOWN) is False
    focus = "document.activeElement.closest('.row') === document.querySelector('.row')"
    assert browser.eventually(focus)  # in the dialog's close event
    browser.click(".row .open")
    browser.click("#box [data-go=close]")
    assert browser.run(SHOWN) is False


def test_switches(browser: Browser, page: Path) -> None:
    browser.open(page)
    visible = "[...document.querySelectorAll('.panel')].filter(e => e.checkVisibility()).length"
    by_time = visible.replace(".panel", ".panel.axis-time")
    assert (browser.run(visible), browser.run(by_time)) == (3, 0)
    browser.click("[data-axis=time]")
    assert (browser.run(visible), browser.run(by_time)) == (3, 3)
    width = "document.querySelector('.cell img').getBoundingClientRect().width"
    middle = browser.run(width)
    browser.click("button[data-size=l]")
    assert browser.run(width) > middle * 1.4
    browser.click("button[data-size=s]")
    assert browser.run(width) < middle
    browser.click("#theme")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 23)"


@pytest.mark.parametrize("place", ["prompt", "negative_prompt", "category", "rationale"])
def test_a_browser_too_sees_only_text(place: str, browser: Browser, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        steps=(0, 1),
        num_prompts=len(PAYLOADS),
        edit=lambda row: poisoned(place, row),
    )
    browser.open(build_gallery([run], tmp_path / "out", names=["<b>'\"`x"]))
    assert browser.run("document.scripts.length") == 1
    strange = (
        "[...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => "
        "/^on/i.test(a.name) || /^(src|href)$/.test(a.name) && "
        "!/^(#|index\\.html|data:)/.test(a.value))).length"
    )
    assert browser.run(strange) == 0
    browser.click(".row .open")  # what the script puts together is text as well
    assert browser.run("document.querySelectorAll('#box script, #box iframe, #box a').length") == 0
    assert browser.run(strange) == 0


def test_clips_and_sounds_play_under_the_policy(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=(0, 1), num_prompts=3)
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    moving = imageio.imwrite("<bytes>", frames, extension=".webp", duration=100, loop=0)
    clip = imageio.imwrite(
        "<bytes>", frames, extension=".webm", plugin="FFMPEG", codec="libvpx-vp9", fps=8
    )
    for folder in (run / "eval").iterdir():
        (folder / "0000-0.png").write_bytes(clip)  # the type is told by the bytes
        (folder / "0001-0.png").write_bytes(moving)
        (folder / "0002-0.png").write_bytes(tone())
    path = build_gallery([run], tmp_path / "out")
    browser.open(path)
    browser.run(
        "window.state = Promise.all([...document.querySelectorAll('video, audio')].map(m => "
        "new Promise(done => m.readyState ? done(m.duration) : "
        "m.addEventListener('loadedmetadata', () => done(m.duration)))))"
    )
    durations = browser.wait_for("window.state")
    assert len(durations) == 4 and min(durations) > 0.4
    browser.click(".row .open")
    assert browser.run("document.querySelector('#box video').controls")
    browser.press("Escape")


def test_a_refused_script_is_noticed(browser: Browser, page: Path, tmp_path: Path) -> None:
    """Negative control of `no_complaints`: a script whose hash the policy does not name."""
    html = page.read_text().replace("</main>", "</main><script>window.broken = 1</script>")
    (tmp_path / "page.html").write_text(html)
    browser.open(tmp_path / "page.html")
    assert browser.run("window.broken") is None
    assert any("Content Security Policy" in text for text in browser.complaints)
    browser.complaints.clear()


def tone() -> bytes:
    """Half a second of 440 Hz as a WAV file."""
    import io
    import wave

    samples = np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((samples * 30000).astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a steering job with a history of every kind."""
    folder = tmp_path_factory.mktemp("steered")
    histories = [HISTORIES[name] for name in HISTORIES]
    job = write_job(folder / "job", histories, labels=list(HISTORIES), num_prompts=4)
    return build_gallery([job], folder / "gallery")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_family_trees_open_and_fit(
    width: int, height: int, browser: Browser, steered: Path, tmp_path: Path
) -> None:
    """Nothing of a tree is laid out before it is opened; then its words and circles are there."""
    browser.open(steered, width=width, height=height)
    shown = "[...document.querySelectorAll('.row .tree')].filter(e => e.checkVisibility()).length"
    assert browser.run(shown) == 0
    browser.click(".trees summary")
    assert browser.run(shown) == 5
    assert browser.run("document.documentElement.scrollWidth") <= width
    for part in (".limbs circle", ".limbs .won", ".limbs .when"):
        box = f"document.querySelector({part!r}).getBoundingClientRect().width"
        assert browser.run(box) > 5
    inside = (
        "[...document.querySelectorAll('.row .trees[open] .limbs svg')].every(svg => {"
        "const b = svg.getBBox(); return b.x >= 0 && b.y >= 0"
        " && b.x + b.width <= svg.width.baseVal.value"
        " && b.y + b.height <= svg.height.baseVal.value; })"
    )
    assert browser.run(inside)
    colours = (
        "new Set([...document.querySelectorAll('.row .trees[open] .limbs circle')]"
        ".map(e => getComputedStyle(e).fill)).size"
    )
    assert browser.run(colours) > 4
    browser.screenshot(tmp_path / "shot.png")
    assert imageio.imread(tmp_path / "shot.png").std() > 5


def test_family_trees_need_no_script(browser: Browser, steered: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(steered)
        browser.click(".trees summary")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("document.querySelector('.trees').open")
    assert browser.run("document.querySelector('.tree svg').checkVisibility()")
