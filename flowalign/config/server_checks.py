"""Rewards behind HTTP: values that are possible one by one and impossible together. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.config.problems import Problem
from flowalign.config.rewards import PAIRWISE, JudgeReward, RemoteReward, ServedBase
from flowalign.config.schema import RunConfig
from flowalign.config.steering import SteerConfig
from flowalign.config.yaml12 import KeyPath

CODE = "CFG-CONFLICT"
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")


def served_rule(config: RunConfig | SteerConfig | NoisyRewardConfig) -> Iterator[Problem]:
    """Rewards that live on a server."""
    for section, entries in (
        ("rewards", config.rewards),
        ("held_out_rewards", config.held_out_rewards),
    ):
        for index, entry in enumerate(entries):
            if isinstance(entry, ServedBase):
                yield from _address(entry, (section, index))
            if isinstance(entry, JudgeReward):
                yield from _variable(entry.api_key_env, (section, index, "api_key_env"))
                yield from _judge(entry, (section, index))
            if isinstance(entry, RemoteReward):
                yield from _variable(entry.token_env, (section, index, "token_env"))


def _address(entry: ServedBase, path: KeyPath) -> Iterator[Problem]:
    fix = "write for example `url: http://127.0.0.1:8000`"
    try:
        parts = urlsplit(entry.url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        yield _conflict((*path, "url"), "is no address", fix)
        return
    if parts.username or parts.password:
        # Never shown: it would be a secret.
        fix = "give the secret in an environment variable, and name the variable"
        yield _conflict((*path, "url"), "holds a user name or a password", fix)
    elif not good or parts.query or parts.fragment or re.search(r"\s", entry.url):
        what = f"'{entry.url}' is no address of a server"
        yield _conflict((*path, "url"), what, fix)


def _variable(name: str | None, path: KeyPath) -> Iterator[Problem]:
    if name is not None and not VARIABLE.fullmatch(name):
        # Not shown: it may be the secret itself.
        what = "is no name of an environment variable"
        fix = "write its name in capitals, not the secret itself"
        yield _conflict(path, what, fix)


def _judge(entry: JudgeReward, path: KeyPath) -> Iterator[Problem]:
    kind = entry.instruction
    if kind == "rubric" and not entry.questions:
        what = "a rubric without questions"
        yield _conflict((*path, "questions"), what, "write a list of yes/no questions")
    if kind != "rubric" and entry.questions:
        what = f"questions belong to `instruction: rubric`, this is {kind}"
        yield _conflict((*path, "questions"), what, "remove them, or use rubric")
    if kind == "rubric" and entry.question is not None:
        what = "a rubric has `questions`"
        yield _conflict((*path, "question"), what, "move it into the list")
    if entry.text_answer and kind.startswith("unified_"):
        what = f"{kind} has its own form of text and is never read by log-probabilities"
        yield _conflict((*path, "text_answer"), what, "remove it")
    if entry.opponents is not None and kind not in PAIRWISE:
        what = f"{kind} compares nothing"
        fix = f"remove it, or use {', '.join(PAIRWISE)}"
        yield _conflict((*path, "opponents"), what, fix)
    if not entry.model.strip():
        yield _conflict((*path, "model"), "is empty", "name the served model")


def _conflict(path: KeyPath, what: str, fix: str) -> Problem:
    return Problem(path=path, code=CODE, what=what, fix=fix)
