"""What this machine can do: versions, devices, attention kernels that truly work, missing parts.

Torch-free at import; torch itself may be what is broken.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DISTRIBUTION = "flowalign-diffusion"
EXTRAS = {  # what an extra is for, in the words of the table
    "gpu": "xformers attention on CUDA",
    "audio": "Stable Audio's own scheduler",
    "video": "reading and writing videos",
    "judge": "judges and reward servers",
    "server": "`flowalign serve`",
    "open-clip": "reward open_clip",
    "ocr": "reward ocr",
    "data": "data sets in parquet files",
}
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9_.-]+)(?P<parts>\[[^\]]*\])?>=(?P<minimum>[0-9.]+)"
    r"(?: *; *extra == \"(?P<extra>[^\"]+)\")?"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report."""

    group: str  # versions, devices, attention, built in
    name: str
    state: str  # ok, missing, broken, none
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at everything; never raises for what is broken, it says so."""
    return [*versions(), *devices(), *attention(), *built_in()]


def versions() -> list[Finding]:
    """Installed versions against what flowalign needs."""
    found = [Finding(group="versions", name="python", state="ok", detail=platform.python_version())]
    for name, parts, minimum, extra in requirements():
        pip = f"pip install '{name}{parts}>={minimum}'"
        use = f"for {EXTRAS[extra]}" if extra else "needed"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            state = "none" if extra else "missing"
            detail, fix = f"not installed, {'optional, ' if extra else ''}{use}", pip
        else:
            old = _numbers(version) < _numbers(minimum)
            state = "broken" if old else "ok"
            detail, fix = version + (f", needs >= {minimum}" if old else ""), pip if old else ""
        found.append(Finding(group="versions", name=name, state=state, detail=detail, fix=fix))
    return found


def requirements() -> list[tuple[str, str, str, str]]:
    """(distribution, extras of it, least version, extra of flowalign or "") as published."""
    try:
        published = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [match for text in published if (match := _REQUIREMENT.match(text))]
    wanted = [match for match in found if match["extra"] in (None, *EXTRAS)]
    return [(m["name"], m["parts"] or "", m["minimum"], m["extra"] or "") for m in wanted]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def devices() -> list[Finding]:
    """Processor, GPUs, and why there is none."""
    try:
        import torch
    except (ImportError, OSError) as error:
        fix = "pip install --force-reinstall torch"
        return [_device("torch", "broken", f"cannot be imported: {error}", fix)]
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    detail = f"{cores} cores, {torch.get_num_threads()} threads used, {capability}"
    found = [_device("cpu", "ok", detail)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            memory = f"{card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}"
            found.append(_device(f"cuda:{index}", "ok", f"{card.name}, {memory}"))
    else:
        found.append(_device("cuda", "none", *_why_no_cuda(torch.version.cuda)))
    if torch.backends.mps.is_available():
        found.append(_device("mps", "ok", "Apple GPU"))
    return found


def _device(name: str, state: str, detail: str, fix: str = "") -> Finding:
    return Finding(group="devices", name=name, state=state, detail=detail, fix=fix)


def _why_no_cuda(built_for: str | None) -> tuple[str, str]:
    if built_for is None:
        return "this torch is built without CUDA", "fine on a CPU; else install a CUDA build"
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia").exists():
        return f"torch is built for CUDA {built_for}; no NVIDIA driver here", ""
    fix = "update the driver, or install a torch for an older CUDA"
    return f"torch is built for CUDA {built_for} and finds no usable GPU", fix


def attention() -> list[Finding]:
    """Names of `model.attention`, each run forward and backward on each device, with its time."""
    try:
        import torch

        from flowalign.attention.probe import probe_all
    except (ImportError, OSError):
        return []
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [
        Finding(
            group="attention",
            name=f"{probe.name} on {probe.device}",
            state="ok" if probe.works else "none",
            detail=probe.detail,
            fix=probe.fix,
        )
        for kind in kinds
        for probe in probe_all(kind)
    ]


def built_in() -> list[Finding]:
    """The files that ship with flowalign."""
    from flowalign.config.load import shipped_configs

    folder = Path(__file__).parent / "worlds" / "shapes" / "models"
    weights = sorted(folder.rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in weights) / 1e6
    model = Finding(
        group="built in",
        name="shapes model",
        state="ok" if weights else "missing",
        detail=f"{len(weights)} files of weights, {size:.1f} MB" if weights else "not there",
        fix="" if weights else "install flowalign again",
    )
    names = shipped_configs()
    configs = Finding(
        group="built in",
        name="configs",
        state="ok" if names else "missing",
        detail=", ".join(names) or "not there",
        fix="" if names else "install flowalign again",
    )
    return [model, configs]


def as_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """The report as plain values."""
    return [asdict(finding) for finding in findings]


def as_text(findings: list[Finding]) -> str:
    """The report as a table, and what to install at its end."""
    words = {"ok": "ok", "none": "-", "missing": "MISSING", "broken": "BROKEN"}
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        lines.append(f"  {words[finding.state]:8}{finding.name:{width}}  {finding.detail}")
        if finding.fix and finding.state != "ok" and not finding.fix.startswith("pip install"):
            lines.append(f"  {'':8}{'':{width}}  fix: {finding.fix}")
    pips = [f for f in findings if f.fix.startswith("pip install")]
    if pips:
        lines += ["", "to install"]
        lines += [f"  {finding.fix:44}  # {finding.name}: {finding.detail}" for finding in pips]
    return "\n".join(lines).lstrip("\n") + "\n"
