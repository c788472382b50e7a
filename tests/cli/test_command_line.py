"""Commands, options, exit codes, and what may not be imported or created."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowalign.catalog import KINDS
from flowalign.cli import main as main_module
from flowalign.cli import train as train_module
from flowalign.cli.main import COMMANDS, build, main
from flowalign.config.load import load_config, shipped_configs
from flowalign.errors import HealthError, StopRequested, warn
from tests.cli.commands import edited, fails, works
from tests.project import ROOT

TORCH_FREE = """
import sys
from flowalign.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "diffusers", "accelerate", "peft"} & set(sys.modules)
print("heavy:", sorted(heavy))
sys.exit(code)
"""


def shell(
    arguments: list[str], code: str | None = None, **settings: object
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; `code` replaces `-m flowalign`."""
    start = ["-m", "flowalign"] if code is None else ["-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *start, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        **settings,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = works(capsys, [command, "--help"])
    assert "usage: flowalign " + command in text
    assert f"  flowalign {command}" in text.rpartition("\nexample")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_help_are_valid(command: str) -> None:
    """Each line of an example is taken by its command's parser, and one is of this command."""
    _, commands = build()
    shown = set()
    for line in COMMANDS[command].EXAMPLE.splitlines():
        words = line.split("#")[0].replace('"', "").split()
        if words[:1] == ["flowalign"]:
            shown.add(words[1])
            _, extra = commands[words[1]].parse_known_args(words[2:])
            assert not [word for word in extra if word.startswith("-")]
    assert command in shown


def test_help_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = works(capsys, ["--help"])
    assert all(name in text for name in COMMANDS)
    assert works(capsys, []) == text
    assert works(capsys, ["--version"]).startswith("flowalign ")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["trian", "x"], 2, "unknown command 'trian'; did you mean `train`?")


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["train", "shapes_nft", "--sead", "1"], 2, "unknown option --sead", "--seed?")
    fails(capsys, ["train", "shapes_nft", "--st", "1"], 2, "unknown option --st")
    fails(capsys, ["train", "shapes_nft", "extra"], 2, "unexpected argument 'extra'")


def test_bad_numbers_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["train", "shapes_nft", "--steps", "0"], 2, "--steps: must be >= 1, got 0")
    fails(capsys, ["train", "shapes_nft", "--seed", "1.5"], 2, "must be an integer, got '1.5'")
    fails(capsys, ["train", "shapes_nft", "--seed", "-1"], 2, "must be >= 0")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pipelines"])
def test_list(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = works(capsys, ["list", kind]).splitlines()
    assert len(lines) == len(KINDS[kind]())
    assert all(len(line.split("  ")[-1]) > 5 for line in lines)


def test_list_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["list", "reward"], 2, "unknown kind 'reward'; did you mean `rewards`?")


@pytest.mark.parametrize("config", shipped_configs())
def test_shipped_configs_load_by_name(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert works(capsys, ["config", "show", config]).startswith(f"output: runs/{config}\n")


def test_config_check(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = str(edited(tmp_path, name="good.yaml"))
    bad = str(edited(tmp_path, ("seed: 3", "sead: 3"), name="bad.yaml"))
    worse = str(edited(tmp_path, ("  steps: 20", "  steps: 0"), name="worse.yaml"))
    assert works(capsys, ["config", "check", good]) == f"{good}: ok\n"
    assert main(["config", "check", good, bad, worse]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{good}: ok\n"
    assert "bad.yaml:3: sead" in captured.err
    assert "worse.yaml:36: train.steps" in captured.err


def test_options_are_short_for_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(edited(tmp_path))
    short = ["--output", "1e3", "--seed", "7", "--steps", "9", "--device", "cuda:1"]
    long = ["--set", 'output="1e3"', "--set", "seed=7", "--set", "train.steps=9"]
    shown = works(capsys, ["train", path, *short, "--print-config"])
    assert shown == works(
        capsys, ["train", path, *long, "--set", "device=cuda:1", "--print-config"]
    )
    assert "output: '1e3'" in shown


ODD_NAMES = [
    "with space.yaml",
    "quo'te\".yaml",
    "new\nline.yaml",
    "-dash.yaml",
    "\u00e9\U0001f642.yaml",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_x19_odd_paths_work(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a config's name, and as the output's name through --output."""
    edited(tmp_path, name=name)
    shown = works(capsys, ["train", "--print-config", f"--output={name}", "--", name])
    (tmp_path / "again.yaml").write_text(shown, encoding="utf-8")
    assert load_config("again.yaml").config.output == name


@pytest.mark.parametrize("name", ODD_NAMES)
def test_x19_odd_paths_in_messages_stay_on_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(tmp_path, ("seed: 3", "sead: 3"), name=name)
    line = fails(capsys, ["train", "--", name], 2, "did you mean `seed`")
    assert line.isprintable()


def test_a_path_with_a_dash_and_no_dashes_before(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["train", "-dash.yaml"], 2, "goes behind ` -- `")


def test_resume_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """K01, K02: exit 4, whether the run is named by its directory or by its config."""
    fails(capsys, ["train", "--resume", "none_there/"], 4, "nothing to resume: no such directory")
    (tmp_path / "empty").mkdir()
    fails(capsys, ["train", "--resume", "empty"], 4, "nothing to resume", "without --resume")
    path = edited(tmp_path, ("output: unused", "output: never_started"))
    assert main(["train", str(path), "--resume"]) == 4
    assert "nothing to resume" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "never_started").exists()


def test_resume_takes_the_stored_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's directory is the output even when it was moved since."""
    run = tmp_path / "moved"
    run.mkdir()
    edited(run, name="config.yaml")
    arguments = build()[1]["train"].parse_args(["moved", "--resume", "--set", "train.steps=30"])
    config = train_module.loaded(arguments).config
    assert (config.output, config.train.steps) == ("moved", 30)


def test_x01_output_under_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    path = edited(tmp_path, ("output: unused", "output: file/run"))
    fails(capsys, ["train", str(path)], 7, "file")


def test_x02_output_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unused").mkdir()
    (tmp_path / "unused" / "run.json").write_text("{}", encoding="utf-8")
    before = sorted((tmp_path / "unused").iterdir())
    fails(capsys, ["train", str(edited(tmp_path))], 7, "unused", "--resume")
    assert sorted((tmp_path / "unused").iterdir()) == before


def test_c31_no_such_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    path = str(edited(tmp_path))
    fails(capsys, ["train", path, "--device", "cuda"], 7, "no CUDA", "cpu")
    assert not (tmp_path / "unused").exists()


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `flowalign doctor` end in `error`."""

    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr(COMMANDS["doctor"], "run", run)


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (HealthError("A-B", "here", "odd\nthing", "fix"), 9, "error[A-B] here: odd\\nthing; fix"),
        (StopRequested(143), 143, "stopped with exit code 143"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ZeroDivisionError("by zero"),
            1,
            "error[INTERNAL] flowalign: ZeroDivisionError: by zero; ",
        ),
        (MemoryError(), 1, "error[INTERNAL] flowalign: MemoryError"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each fault is its code and one line; --debug adds the traceback and leaves the line last."""
    raising(error, monkeypatch)
    assert main(["doctor"]) == code
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[-1].startswith(last)
    assert main(["doctor", "--debug"]) == code
    debugged = capsys.readouterr().err.splitlines()
    assert debugged[-1] == told[-1]
    asked_to_stop = code in (130, 143)
    assert debugged[0].startswith("Traceback") != asked_to_stop


def test_other_ranks_do_not_repeat_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is the same on all; rank 0 alone tells what all see."""
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "nope.yaml"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    fails(capsys, ["train", "nope.yaml"], 2, "not found")


def test_warnings_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: object) -> int:
        warn("prompts.txt", "2 duplicates\x1b[31m", "drop them")
        return 0

    monkeypatch.setattr(COMMANDS["doctor"], "run", run)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().err
    assert told == "warning: prompts.txt: 2 duplicates\\x1b[31m; drop them\n"


def test_torch_free_and_fast_on_bad_configs(tmp_path: Path) -> None:
    """A mistake is told before torch is imported, within two seconds."""
    path = edited(tmp_path, ("seed: 3", "sead: 3"))
    start = time.perf_counter()
    done = shell(["train", str(path)], TORCH_FREE)
    assert time.perf_counter() - start < 2 * slowness()
    assert done.returncode == 2
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "shapes_nft", "--print-config"],
        ["list", "rewards"],
        ["list", "rewards", "--long"],
        ["list", "prompts"],
        ["config", "schema"],
        ["config", "docs"],
        ["gallery", "no_such_run", "-o", "out"],
        ["export", "no_such_run", "-o", "out"],
    ],
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    assert "heavy: []" in shell(arguments, TORCH_FREE).stdout


def test_control_doctor_imports_torch() -> None:
    """The probe above sees torch when it is there."""
    assert "torch" in shell(["doctor"], TORCH_FREE).stdout.splitlines()[-1]


def slowness() -> float:
    """How much slower this loaded machine starts Python than the 0.05 s of an idle one, >= 1."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import json, logging"], check=True, timeout=60)
    return max(1.0, (time.perf_counter() - start) / 0.05)


def test_x20_closed_stdout() -> None:
    """`flowalign config docs | head -1`: no traceback, exit 141 or 0."""
    command = f"{sys.executable} -m flowalign config docs | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "# Config reference: `flowalign train`\n"
    assert done.stderr == ""
    assert done.returncode in (0, main_module.EXIT_BROKEN_PIPE)


def test_x20_stdout_closed_before_the_first_word() -> None:
    command = f"{sys.executable} -m flowalign config docs | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    assert done.returncode == main_module.EXIT_BROKEN_PIPE
