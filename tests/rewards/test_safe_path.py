"""A path from data never leaves the folder that the user named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowalign.errors import SecurityError
from flowalign.safe_path import inside

PAYLOADS = {
    "parent": "../secret.png",
    "parent inside": "a/../../secret.png",
    "many parents": "../" * 40 + "etc/passwd",
    "absolute": "/etc/passwd",
    "double slash": "//etc/passwd",
    "home": "~/secret.png",
    "home of a user": "~root/secret.png",
    "prefix trap": "../data2/secret.png",
    "link out": "link_out/secret.png",
    "link to a file outside": "link_file.png",
    "chain of links": "chain/secret.png",
    "link loop": "loop/secret.png",
    "Windows drive": "C:\\secret.png",
    "Windows drive, slash": "C:/secret.png",
    "drive relative": "C:secret.png",
    "UNC": "\\\\server\\share\\secret.png",
    "backslash parent": "..\\secret.png",
    "mixed": "a\\..\\..\\secret.png",
    "NUL": "a.png\0.txt",
    "empty": "",
    "long": "a" * 5_000,
    "long by components": "a/" * 3_000 + "a.png",
    "device": "null",
    "pipe": "pipe.png",
    "http": "http://169.254.169.254/a.png",
    "https": "https://example.org/a.png",
    "file address": "file:///etc/passwd",
    "file without slashes": "file:/etc/passwd",
    "data address": "data:image/png;base64,AAAA",
    "ftp": "ftp://example.org/a.png",
    "upper case address": "HTTP://example.org/a.png",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    (data / "a" / "b.png").write_text("inside")
    (data / "link_in.png").symlink_to(data / "a" / "b.png")
    (data / "link_out").symlink_to(tmp_path)
    (data / "link_file.png").symlink_to(tmp_path / "secret.png")
    (data / "chain").symlink_to(data / "link_out")
    (data / "loop").symlink_to(data / "loop")
    (data / "null").symlink_to("/dev/null")
    os.mkfifo(data / "pipe.png")
    (tmp_path / "data2").mkdir()
    for secret in (tmp_path / "secret.png", tmp_path / "data2" / "secret.png"):
        secret.write_text("outside")
    return data


@pytest.mark.parametrize("kind", PAYLOADS)
def test_no_payload_leaves_the_root(kind: str, root: Path) -> None:
    with pytest.raises(SecurityError) as caught:
        inside(root, PAYLOADS[kind], "rows.jsonl:7")
    assert caught.value.exit_code == 8
    line = caught.value.line()
    assert "rows.jsonl:7" in line and len(line) < 700 and line.isprintable()


def test_the_catalogue_is_large_enough() -> None:
    assert len(PAYLOADS) >= 30


@pytest.mark.parametrize(
    "name", ["a/b.png", "./a/b.png", "a/../a/b.png", "link_in.png", "new.png", "a b'\".png", "..a"]
)
def test_paths_inside_are_resolved(name: str, root: Path) -> None:
    assert inside(root, name, "row").is_relative_to(root.resolve())


def test_a_root_that_is_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    assert inside(tmp_path / "alias", "a/b.png", "row") == (root / "a" / "b.png").resolve()


def test_comparing_texts_would_not_do(root: Path) -> None:
    """Negative control: the prefix trap passes `startswith`."""
    escaped = (root / PAYLOADS["prefix trap"]).resolve()
    assert str(escaped).startswith(str(root.resolve()))
    assert escaped.read_text() == "outside"
