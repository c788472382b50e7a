"""No secret gets into a config or a message, and no config runs code by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowalign.cli.main import main
from flowalign.config.load import dump_config, load_config
from flowalign.errors import ConfigError, FlowalignError, SecurityError, warn
from flowalign.redaction import BLOT, redact
from tests.cli.commands import edited, fails, works

SECRETS = {
    "hub token": "hf_AbCdEfGhIjKlMnOpQrStUv",
    "api key": "sk-proj-abcdefghijklmnop1234",
    "cloud key": "AKIAIOSFODNN7EXAMPLE",
    "code host": "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "chat": "xoxb-123456789012-abcdef",
    "web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijk",
}
IN_CONTEXT = {
    "url": ("https://user:pass123word@host/x", "pass123word"),
    "option": ("--api-key topsecretvalue", "topsecretvalue"),
    "environment": ("OPENAI_API_KEY=topsecretvalue", "topsecretvalue"),
    "header": ("Authorization: Bearer topsecretvalue", "topsecretvalue"),
    "cookie": ("Set-Cookie: session=topsecretvalue", "topsecretvalue"),
    "mapping": ("{'password': 'topsecretvalue'}", "topsecretvalue"),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secret_as_a_value_is_refused_and_not_shown(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(tmp_path, ("  guidance_scale: 1.0", f"  call: {{note: '{SECRETS[kind]}'}}"))
    line = fails(capsys, ["train", str(path)], 2, "model.call.note", "looks like a secret")
    assert SECRETS[kind] not in line


@pytest.mark.parametrize("key", ["api_key", "hf_token", "password", "client_secret", "API_KEY"])
def test_secret_by_its_name_is_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a free mapping and where the key does not exist alike; the value is never shown."""
    for edit in (
        ("  guidance_scale: 1.0", f"  call: {{{key}: topsecretvalue}}"),
        ("seed: 3", f"seed: 3\n{key}: topsecretvalue"),
    ):
        assert main(["train", str(edited(tmp_path, edit))]) == 2
        error = capsys.readouterr().err
        assert "a secret by value" in error
        assert "environment variable" in error
        assert "topsecretvalue" not in error


@pytest.mark.parametrize("key", ["api_key_env", "max_tokens", "tokenizer", "secretary"])
def test_control_other_names_are_no_secrets(key: str, tmp_path: Path) -> None:
    load_config(edited(tmp_path, ("  guidance_scale: 1.0", f"  call: {{{key}: value}}")))


def test_secret_variable_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "topsecretvalue")
    path = edited(tmp_path, ("output: unused", "output: ${HF_TOKEN}"))
    line = fails(capsys, ["train", str(path)], 2, "would write a secret")
    assert "topsecretvalue" not in line


def test_secret_that_came_in_by_a_variable_of_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", SECRETS["hub token"])
    path = edited(tmp_path, ("output: unused", "output: ${WHERE}"))
    line = fails(capsys, ["train", str(path)], 2, "looks like a secret")
    assert SECRETS["hub token"] not in line


@pytest.mark.parametrize("kind", [*SECRETS, *IN_CONTEXT])
def test_errors_and_warnings_are_redacted(kind: str) -> None:
    text, secret = IN_CONTEXT.get(kind, (f"got {SECRETS.get(kind)}", SECRETS.get(kind, "")))
    error = FlowalignError("X", text, text, text, [text])
    assert secret not in "\n".join(error.lines())
    assert BLOT in error.line()
    with pytest.warns(UserWarning) as caught:
        warn(text, text, text)
    assert secret not in str(caught[0].message)


def test_control_redaction_leaves_ordinary_text_alone() -> None:
    """The blot is not everywhere: messages keep their values."""
    text = "max_tokens=5, token 3 of `tokenizer`, sk-learn, https://host:8080/a@b, key 'steps'"
    assert redact(text) == text


def test_resolved_config_holds_no_variable_and_reruns_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is what ran: printing, loading and printing again changes nothing."""
    monkeypatch.setenv("WHERE", "runs")
    path = edited(tmp_path, ("output: unused", "output: ${WHERE}/a"))
    printed = works(capsys, ["train", str(path), "--print-config", "--set", "algorithm=nft"])
    stored = tmp_path / "stored.yaml"
    stored.write_text(printed, encoding="utf-8")
    assert "WHERE" not in printed
    assert dump_config(load_config(stored).config) == printed
    assert works(capsys, ["config", "show", str(stored)]) == printed


CODE = {
    "module": "os:system",
    "parent": "../x.py:f",
    "absolute": "/tmp/x.py:f",
    "address": "https://host/x.py:f",
    "package": "my_package.rewards:Score",
    "dotted attribute": "x.py:a.b",
    "call": "x.py:f()",
    "no name": "x.py:",
}


@pytest.mark.parametrize("kind", CODE)
def test_code_needs_the_command_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 8, in the short form and in the long one, in both lists."""
    target = CODE[kind]
    for text in (f"rewards=[{target!r}]", f"held_out_rewards=[{{name: code, target: {target!r}}}]"):
        fails(capsys, ["train", str(edited(tmp_path)), "--set", text], 8, "code")


def test_r01_own_reward_without_permission(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(edited(tmp_path))
    line = fails(capsys, ["train", path, "--set", "rewards=my.py:score"], 8)
    assert "add --allow-code my.py" in line


def test_permission_is_for_that_file_only(tmp_path: Path) -> None:
    """Allowed by the exact file, through another spelling of its path too, not by its name."""
    path, target = edited(tmp_path), "rewards=[my.py:score]"
    for spelling in ("my.py", "./my.py", str(Path.cwd() / "my.py")):
        load_config(path, [target], [spelling])
    for other in ("other/my.py", "my.pyc", "y.py"):
        with pytest.raises(SecurityError):
            load_config(path, [target], [other])


def test_permission_cannot_stand_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(tmp_path, ("seed: 3", "allow_code: [my.py]"))
    fails(capsys, ["train", str(path), "--set", "rewards=my.py:score"], 8)


@pytest.mark.parametrize(
    "edit",
    [
        ("  guidance_scale: 1.0", "  custom_pipeline: some_name"),
        ("  guidance_scale: 1.0", "  call: {custom_pipeline: some_name}"),
        ("  guidance_scale: 1.0", "  trust_remote_code: true"),
    ],
)
def test_k23_code_of_a_model(
    edit: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, ["train", str(edited(tmp_path, edit))], 8, "would run code")


def test_a_refusal_comes_before_other_mistakes(tmp_path: Path) -> None:
    """With a typo beside it the exit code is still 8, and both are told."""
    path = edited(tmp_path, ("seed: 3", "sead: 3"))
    with pytest.raises(SecurityError) as caught:
        load_config(path, ["rewards=[os:system]"])
    assert any("sead" in line for line in caught.value.earlier)


def test_control_a_config_without_secrets_and_code_is_good(tmp_path: Path) -> None:
    load_config(edited(tmp_path))


def test_errors_survive_a_trip_between_processes() -> None:
    """Workers send errors to their parent: all parts arrive."""
    error = ConfigError("A", "b", "c", "d", ["e"])
    kind, arguments = error.__reduce__()
    assert kind(*arguments).lines() == error.lines()
