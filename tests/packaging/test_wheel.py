"""What is shipped: the wheel holds every file of the packages, and `flowalign` only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.project import LINKS, ROOT, files

SHIPPED = ("flowalign", *LINKS, "pyproject.toml", "README.md", "LICENSE")


def run(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def copy_of_the_project(folder: Path) -> Path:
    """The checkout without what git ignores, so that a build leaves nothing in it."""
    source = folder / "source"
    source.mkdir()
    caches = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=caches)
        else:
            shutil.copy(ROOT / name, source / name)
    return source


def names_on_disk() -> set[str]:
    """The names under which the files of the packages belong into the wheel."""
    own = {path.relative_to(ROOT).as_posix() for path in files("flowalign")}
    mapped = {"flowalign/" + path.relative_to(ROOT).as_posix() for path in files(*LINKS)}
    return own | mapped


def names_in(wheel: Path) -> set[str]:
    """File names in the wheel without its own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    return {name for name in names if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    source, out = copy_of_the_project(folder), folder / "dist"
    run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)], source
    )
    return out


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """A folder into which the wheel was installed, to be put before all others on the path."""
    target = built.parent / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    run([*pip, *options, str(next(built.glob("*.whl")))], built)
    return target


def test_wheel_holds_each_file_and_only_flowalign(built: Path) -> None:
    names = names_in(next(built.glob("*.whl")))
    assert {name.split("/")[0] for name in names} == {"flowalign"}
    assert names == names_on_disk()


def test_sdist_has_the_licence_and_the_mapped_folders(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in files(*LINKS)} <= names


def test_a_forgotten_package_is_seen(built: Path) -> None:
    """Negative control: a wheel without one package differs from the disk."""
    names = names_in(next(built.glob("*.whl")))
    without = {name for name in names if not name.startswith("flowalign/rewards/")}
    assert without != names_on_disk()


def test_installed_wheel_works_beside_a_users_own_rewards(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("OWNER = 'user'\n")
    code = (
        "import flowalign, flowalign.rewards, flowalign.configs, rewards\n"
        "print(flowalign.__file__, flowalign.rewards.__file__, flowalign.configs.__file__)\n"
        "assert rewards.OWNER == 'user'\n"
    )
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed))
    assert all(name.startswith(str(installed)) for name in done.stdout.split())


def test_installed_command_works(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("raise SystemExit('the wrong rewards')\n")
    command = [sys.executable, str(installed / "bin" / "flowalign"), "list", "algorithms"]
    done = run(command, tmp_path, PYTHONPATH=str(installed))
    assert "grpo" in done.stdout and "nft" in done.stdout
