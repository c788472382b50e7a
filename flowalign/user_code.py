"""A user's own reward: `my_rewards.py:Sharpness`, run only when its file was named by hand.

Measures   what you want: a function or class that takes a list of samples and answers values (N,),
           or (values, valid). `flowalign reward check` tells whether it is sound.
Range      its attribute `score_range`; any number when absent. Higher is better.
Source     yours.
Licence    yours.
Differentiable: as its attribute says; no when absent. Group-only: as its attribute says; no when
absent.
Cost       yours.

No config can import code. The file must have been given to `--allow-code` on the command line;
what ran is what was hashed, because the module is compiled from the very bytes of the digest.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from flowalign.errors import RewardError, SecurityError
from flowalign.protocols import Reward
from flowalign.types import Modality, Sample

EXPECTED = "score(samples) -> values (N,), or (values, valid)"


@dataclass(frozen=True, kw_only=True, slots=True)
class UserReward:
    """A user's callable with the attributes of `flowalign.protocols.Reward`.

    Attributes that the user's object does not have take the most careful value: a picture reward,
    black box, comparable between prompts, of any range.
    """

    name: str
    score: Callable[..., Any]
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (-math.inf, math.inf)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """What the user's code answers; `flowalign.answers` decides whether that is a score."""
        return self.score(samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedCode:
    """Which bytes ran."""

    file: Path
    sha256: str


def load_reward(
    target: str, args: Mapping[str, bool | int | float | str], *, allow_code: Sequence[str]
) -> tuple[Reward, LoadedCode]:
    """(reward, its file) of `file.py:Name`: a class or factory called with `args`, or a function.

    Raises SecurityError unless `file.py` resolves to a file of `allow_code`, and RewardError when
    the file or the name is missing, the code fails, or the signature is not that of a reward.
    """
    found, code = load_attribute(target, allow_code=allow_code)
    return _reward(found, target.rpartition(":")[2], args, target), code


def load_attribute(target: str, *, allow_code: Sequence[str]) -> tuple[object, LoadedCode]:
    """(what `Name` of `file.py:Name` is, its file); raises as `load_reward`."""
    file, name = allowed_file(target, allow_code)
    if not file.is_file():
        what = f"cannot take `{name}` from `{file}`: no such file"
        raise RewardError("RWD-MISSING", f"reward `{target}`", what, "correct the path")
    source = file.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    module = _module(file, source, digest, target)
    if name not in vars(module):
        what = f"`{file}` has no attribute `{name}`"
        names = [key for key, value in vars(module).items() if _own(value, module)]
        fix = f"it defines: {', '.join(names) or 'nothing callable'}"
        raise RewardError("RWD-MISSING", f"reward `{target}`", what, fix)
    return vars(module)[name], LoadedCode(file=file, sha256=digest)


def allowed_file(target: str, allow_code: Sequence[str]) -> tuple[Path, str]:
    """(resolved file, attribute) of `file.py:Name`; SecurityError unless the file was allowed."""
    where = f"reward `{target}`"
    file, separator, name = target.rpartition(":")
    fix = "write `file.py:Name` and name the file on the command line: `--allow-code file.py`"
    if not separator or "://" in target or not file.endswith(".py") or not name.isidentifier():
        what = "is not a local `file.py:Name`; modules and addresses are never imported"
        raise SecurityError("SEC-CODE", where, what, fix)
    if "\0" in file:
        raise SecurityError("SEC-CODE", where, "has a NUL in its path", fix)
    path = Path(file).resolve()
    if path not in {Path(allowed).resolve() for allowed in allow_code}:
        what = "its file was not allowed on the command line"
        raise SecurityError("SEC-CODE", where, what, f"add `--allow-code {file}` if you trust it")
    return path, name


class _SourceBytes(importlib.abc.SourceLoader):
    """Compiles the bytes that were hashed; without path_stats nothing is cached on disk."""

    def __init__(self, file: Path, source: bytes) -> None:
        self.file, self.source = file, source

    def get_filename(self, fullname: str) -> str:
        return str(self.file)

    def get_data(self, path: str | bytes) -> bytes:
        if os.fsdecode(path) != str(self.file):
            raise FileNotFoundError(path)
        return self.source


def _module(file: Path, source: bytes, digest: str, target: str) -> ModuleType:
    """`file` as a module under a name of its own, so that it shadows nothing."""
    name = f"flowalign_user_code_{digest[:16]}"
    spec = importlib.machinery.ModuleSpec(name, _SourceBytes(file, source), origin=str(file))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        what = f"`{file}` cannot be imported: {type(error).__name__}: {error}"
        fix = f"try `python {file}`"
        raise RewardError("RWD-CODE", f"reward `{target}`", what, fix) from error
    return module


def _own(value: object, module: ModuleType) -> bool:
    """Whether `value` is a class or function that `module` itself defines."""
    return (
        inspect.isclass(value) or inspect.isfunction(value)
    ) and value.__module__ == module.__name__


def _reward(
    found: object, name: str, args: Mapping[str, bool | int | float | str], target: str
) -> Reward:
    """`found` as a reward: a plain scoring function as it is, a class or factory after a call."""
    where = f"reward `{target}`"
    if not callable(found):
        what = f"`{name}` is a {type(found).__name__}, not a class or function"
        raise RewardError("RWD-SIGNATURE", where, what, f"expected {EXPECTED}")
    made = found
    if inspect.isclass(found) or args or not _takes_samples(found):
        if inspect.isfunction(found) and not args and _required(found):
            what = f"`{name}{inspect.signature(found)}` does not take one list of samples"
            raise RewardError("RWD-SIGNATURE", where, what, f"expected {EXPECTED}")
        made = _construct(found, args, name, where)
    if not callable(made) or not _takes_samples(made):
        shown = inspect.signature(made) if callable(made) else f" is a {type(made).__name__}"
        what = f"what `{name}` gives, {shown}, does not take one list of samples"
        raise RewardError("RWD-SIGNATURE", where, what, f"expected {EXPECTED}")
    return UserReward(name=name, score=made, **_declared(made))


def _construct(
    factory: Callable[..., object],
    args: Mapping[str, bool | int | float | str],
    name: str,
    where: str,
) -> object:
    try:
        inspect.signature(factory).bind(**args)
    except TypeError as error:
        what = f"`{name}{inspect.signature(factory)}` does not accept args {dict(args)}: {error}"
        raise RewardError("RWD-SIGNATURE", where, what, "correct `args`") from error
    try:
        return factory(**args)
    except Exception as error:
        what = f"`{name}` failed: {type(error).__name__}: {error}"
        raise RewardError("RWD-CODE", where, what, "correct `args` or the code") from error


def _takes_samples(function: Callable[..., object]) -> bool:
    """Whether one positional argument is enough, and possible."""
    try:
        inspect.signature(function).bind([])
    except TypeError:
        return False
    return True


def _required(function: Callable[..., object]) -> bool:
    """Whether a call without arguments is impossible."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    return False


def _declared(made: object) -> dict[str, Any]:
    """The reward attributes that a user's object has by itself."""
    names = ("modality", "differentiable", "group_only", "score_range")
    return {name: getattr(made, name) for name in names if hasattr(made, name)}
