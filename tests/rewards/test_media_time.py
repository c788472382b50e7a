"""Videos and recordings: there and back, and what is refused."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flowalign import media_video
from flowalign.errors import DataError, FlowalignError, HealthError, SecurityError
from flowalign.media import load_image, save_media
from flowalign.media_audio import load_audio, save_audio
from flowalign.media_video import load_video, save_video
from flowalign.types import Sample

# imageio-ffmpeg leaves the pipes of a process that ended to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def clip(frames: int = 6, side: int = 32) -> Tensor:
    """A grey square that gets brighter, frame by frame."""
    levels = torch.linspace(0.1, 0.9, frames)
    return levels.view(-1, 1, 1, 1).expand(frames, 3, side, side).clone()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for suffix in (".mp4", ".webm"):
        save_video(folder / f"a{suffix}", clip(), 8.0)
    return folder


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_video_comes_back_frame_by_frame(suffix: str, files: Path) -> None:
    loaded, fps = load_video(files / f"a{suffix}")
    assert loaded.shape == (6, 3, 32, 32) and loaded.dtype == torch.float32 and fps == 8.0
    # Lossy, and 8-bit limited range: about 2 levels of 255.
    assert (loaded - clip()).abs().max() < 0.03
    assert (loaded.flip(0) - clip()).abs().max() > 0.5  # negative control: the order is seen
    assert not list(files.glob(".tmp*"))


def test_the_same_frames_give_the_same_bytes(files: Path, tmp_path: Path) -> None:
    save_video(tmp_path / "a.mp4", clip(), 8.0)
    assert (tmp_path / "a.mp4").read_bytes() == (files / "a.mp4").read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_half_a_video_is_refused_in_one_line(suffix: str, files: Path, tmp_path: Path) -> None:
    data = (files / f"a{suffix}").read_bytes()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="unreadable video") as caught:
        load_video(path)
    assert len(caught.value.line()) < 400


def test_a_playlist_that_calls_itself_a_video_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    for suffix in (".mp4", ".webm"):
        path = tmp_path / f"a{suffix}"
        path.write_text("#EXTM3U\n#EXTINF:1,\nsecret.txt\n")
        with pytest.raises(DataError, match="unreadable video"):
            load_video(path)


@pytest.mark.parametrize(
    ("limit", "value", "fragment"),
    [("MAX_FRAMES", 4, "at most 4 frames"), ("MAX_DECODED_BYTES", 9_000, "6 frames of 32x32")],
)
def test_a_video_beyond_the_limits_is_refused_by_its_header(
    limit: str, value: int, fragment: str, files: Path, monkeypatch
) -> None:
    monkeypatch.setattr(media_video, limit, value)
    with pytest.raises(SecurityError, match=fragment) as caught:
        load_video(files / "a.mp4")
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(("limit", "value"), [("MAX_FRAMES", 4), ("MAX_DECODED_BYTES", 9_000)])
def test_a_header_that_lies_does_not_help(limit: str, value: int, files: Path, monkeypatch) -> None:
    header = media_video._header

    def lying(reader, place: str) -> tuple[int, int, float, int]:
        width, height, fps, _ = header(reader, place)
        monkeypatch.setattr(media_video, limit, value)
        return width, height, fps, 0

    monkeypatch.setattr(media_video, "_header", lying)
    with pytest.raises(SecurityError, match="more than"):
        load_video(files / "a.mp4")


def test_a_video_without_a_rate_is_refused(files: Path, monkeypatch) -> None:
    def reader(path: Path, demuxer: str):
        yield {"size": (32, 32), "fps": 0.0, "duration": 1.0}

    monkeypatch.setattr(media_video, "_reader", reader)
    with pytest.raises(DataError, match="no frame rate; a video needs one constant rate"):
        load_video(files / "a.mp4")


def test_one_frame_is_no_video(tmp_path: Path) -> None:
    save_video(tmp_path / "a.mp4", clip(1), 8.0)
    with pytest.raises(DataError, match="too short"):
        load_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("shape", [(3, 32, 32), (4, 1, 32, 32), (4, 3, 31, 32), (4, 3, 32, 33)])
def test_only_even_rgb_frames_are_written(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="even H and W"):
        save_video(tmp_path / "a.mp4", torch.zeros(shape), 8.0)


def test_a_frame_of_nan_is_never_written(tmp_path: Path) -> None:
    broken = clip()
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(HealthError):
        save_video(tmp_path / "a.mp4", broken, 8.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.avi", "a.m3u8", "a"])
def test_other_video_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="videos are not kept as"):
        load_video(tmp_path / name)


# Audio.


def tone(channels: int = 2, length: int = 800) -> Tensor:
    steps = torch.arange(length) / 40
    return torch.stack([torch.sin(steps * (k + 1)) for k in range(channels)])


@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_comes_back(channels: int, tmp_path: Path) -> None:
    save_audio(tmp_path / "a.wav", tone(channels), 8000)
    loaded, rate = load_audio(tmp_path / "a.wav")
    assert loaded.shape == (channels, 800) and rate == 8000.0
    assert (loaded - tone(channels)).abs().max() < 0.6 / 32767  # half a level of 16 bits
    mono, _ = load_audio(tmp_path / "a.wav", mono=True)
    assert torch.allclose(mono, loaded.mean(0, keepdim=True))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_integer_pcm_has_the_same_loudness(width: int, tmp_path: Path) -> None:
    wanted = np.array([0.0, 0.5, -0.5, 0.25])
    levels = (wanted * 2.0 ** (8 * width - 1)).astype(np.int64) + (128 if width == 1 else 0)
    data = b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in levels)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, width, 8000, 0, "NONE", ""))
        file.writeframes(data)
    loaded, _ = load_audio(tmp_path / "a.wav")
    assert loaded[0].tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def write_wav(path: Path, *, tag: int = 1, rate: int = 8000, claim: int = 8, data: bytes) -> None:
    form = struct.pack("<HHIIHH", tag, 1, rate, rate * 2, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", claim)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data)


def test_bad_recordings_are_refused(tmp_path: Path) -> None:
    cases: dict[str, tuple[dict, type[FlowalignError], str]] = {
        "float samples": ({"tag": 3, "data": b"\0" * 8}, DataError, "not an integer PCM"),
        "no samples": ({"claim": 0, "data": b""}, DataError, "0 samples"),
        "cut": ({"claim": 800, "data": b"\0" * 100}, DataError, "truncated"),
        "too long": ({"rate": 1, "claim": 1300, "data": b"\0" * 1300}, SecurityError, "600 s"),
    }
    for name, (fields, error, fragment) in cases.items():
        write_wav(tmp_path / "a.wav", **fields)
        with pytest.raises(error) as caught:
            load_audio(tmp_path / "a.wav")
        assert fragment in caught.value.line(), name
    (tmp_path / "a.wav").write_text("hello")
    with pytest.raises(DataError, match="not an integer PCM WAV file"):
        load_audio(tmp_path / "a.wav")


def test_bad_audio_tensors_are_not_written(tmp_path: Path) -> None:
    broken = tone()
    broken[0, 5] = torch.inf
    with pytest.raises(HealthError):
        save_audio(tmp_path / "a.wav", broken, 8000)
    for shape in ((800,), (1, 0), (1, 2, 3)):
        with pytest.raises(DataError, match=r"expected \(C, L\)"):
            save_audio(tmp_path / "a.wav", torch.zeros(shape), 8000)
    with pytest.raises(DataError, match="not written as"):
        save_audio(tmp_path / "a.mp3", tone(), 8000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("modality", "name", "rate"),
    [("image", "a.png", None), ("video", "a.mp4", 8.0), ("audio", "a.wav", 8000.0)],
)
def test_a_sample_is_written_as_what_it_is(modality, name: str, rate, tmp_path: Path) -> None:
    media = {"image": clip()[0], "video": clip(), "audio": tone()}[modality]
    given = Sample(
        prompt="", media=media, modality=modality, rate=rate, prompt_id=0, sample_id=0, seed=0
    )
    save_media(tmp_path / name, given)
    read = {"image": load_image, "video": load_video, "audio": load_audio}[modality]
    back = read(tmp_path / name)
    found, found_rate = back if isinstance(back, tuple) else (back, None)
    assert found_rate == rate and (found - media).abs().max() < 0.03
