"""The project's metadata agrees with the tree and with itself."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import flowalign
from tests.project import LINKS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and line[0] != "#"]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_links_are_relative() -> None:
    for name in LINKS:
        link = ROOT / "flowalign" / name
        assert link.is_symlink(), f"{link} is a copy: clone with core.symlinks=true"
        assert link.readlink() == Path("..") / name


def test_packages_are_those_on_disk() -> None:
    """Each folder with Python files is listed, and nothing else is."""
    inside = {p.parent for p in (ROOT / "flowalign").rglob("*.py") if p.name == "__init__.py"}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in inside}
    names |= {f"flowalign.{name}" for name in LINKS}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names


def test_pins_cover_and_satisfy_the_requirements() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [Requirement(r) for r in PROJECT["project"]["dependencies"] + extras["dev"]]
    for requirement in wanted:
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"


def test_pins_name_no_host() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text and "sha256" not in text


def test_version_is_in_the_changelog() -> None:
    assert f"\n## {flowalign.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
