"""Which attention kernels truly work here: each is run forward and backward, not asked.

B 1, H 2 heads, M 64 tokens, K 64 channels.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SDPA = {
    "sdpa math": SDPBackend.MATH,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
}
TOLERANCE = 3e-2  # of the largest value; bf16 has 8 bits of mantissa
NO_KERNEL = ("No viable backend", "No available kernel")  # how torch says it
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B,H,M,K) each


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One kernel on one device."""

    name: str
    device: str
    works: bool
    detail: str
    fix: str = ""


def probe_all(device: str) -> list[Probe]:
    """Every kernel of this machine on `cpu` or `cuda`."""
    probes = [probe("sdpa (default)", device, F.scaled_dot_product_attention)]
    probes += [probe(name, device, _only(kernel)) for name, kernel in SDPA.items()]
    probes += _flash_implementations(device)
    return [*probes, probe_xformers(device)]


def probe(name: str, device: str, attention: Attention) -> Probe:
    """Run forward and backward and compare both with the formula in float64."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    draws = torch.randn(3, 1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    with _quiet():
        try:
            got = _with_gradient(attention, draws.to(device, dtype))
        except (RuntimeError, ImportError, NotImplementedError, AttributeError, OSError) as error:
            reason = _reason(error, device)
            return Probe(name=name, device=device, works=False, detail=reason)
    expected = _with_gradient(_formula, draws.double())
    worst = max(
        float((a.double().cpu() - b).abs().max() / b.abs().max())
        for a, b in zip(got, expected, strict=True)
    )
    if not worst <= TOLERANCE:
        detail = f"runs, and is wrong by {100 * worst:.0f} %"
        return Probe(name=name, device=device, works=False, detail=detail, fix="do not use it")
    kind = str(dtype).removeprefix("torch.")
    return Probe(name=name, device=device, works=True, detail=f"{kind}, forward and backward")


def _with_gradient(attention: Attention, draws: Tensor) -> tuple[Tensor, Tensor]:
    """(output, gradient of its sum of squares), each (B,H,M,K)."""
    q, k, v = (draw.detach().requires_grad_() for draw in draws)
    out = attention(q, k, v)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), q)
    return out.detach(), gradient


def _formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v


def _only(kernel: SDPBackend) -> Attention:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v)

    return attention


def _flash_implementations(device: str) -> list[Probe]:
    """FlashAttention 3 and 4, which replace SDPA's flash kernel when their package is there."""
    try:
        from torch.nn.attention import (
            activate_flash_attention_impl,
            list_flash_attention_impls,
            restore_flash_attention_impl,
        )
    except ImportError:
        return []
    probes = []
    for name in list_flash_attention_impls():
        label = f"sdpa flash {name}"
        if device != "cuda":
            detail = "needs a CUDA device"
            probes.append(Probe(name=label, device=device, works=False, detail=detail))
            continue
        try:
            activate_flash_attention_impl(name)
        except (ImportError, RuntimeError) as error:
            detail = _first_line(error)
            probes.append(Probe(name=label, device=device, works=False, detail=detail))
            continue
        probes.append(probe(label, device, _only(SDPBackend.FLASH_ATTENTION)))
        restore_flash_attention_impl()
    return probes


def probe_xformers(device: str) -> Probe:
    """xformers' kernel; its real reason when it does not work."""
    name = "xformers"
    try:
        version = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        detail = "not installed, and not needed: SDPA has the same kernels"
        return Probe(name=name, device=device, works=False, detail=detail)
    problem = library_error()
    if problem is not None:
        detail, fix = explain(version, problem, torch.version.cuda)
        return Probe(name=name, device=device, works=False, detail=detail, fix=fix)
    if device != "cuda":
        detail = f"{version} loads, and needs a CUDA device"
        return Probe(name=name, device=device, works=False, detail=detail)
    return probe(name, device, _xformers)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = importlib.import_module("xformers.ops")
    parts = (part.transpose(1, 2) for part in (q, k, v))  # xformers has (B,M,H,K)
    return ops.memory_efficient_attention(*parts).transpose(1, 2)


def library_error() -> str | None:
    """What the loader says about xformers' compiled library; None when it loads."""
    spec = importlib.util.find_spec("xformers")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    libraries = [path for folder in folders for path in Path(folder).glob("_C*.so")]
    if not libraries:
        return "it was installed without its compiled library"
    try:
        ctypes.CDLL(str(libraries[0]))
    except OSError as error:
        return str(error)
    return None


def explain(version: str, problem: str, torch_cuda: str | None) -> tuple[str, str]:
    """(why xformers cannot be used, what helps) from the loader's words."""
    if torch_cuda is None:
        return (
            f"{version} cannot load: this torch is built without CUDA ({problem})",
            "install a CUDA build of torch, or stay with SDPA",
        )
    if "libcudart.so.12" in problem and not torch_cuda.startswith("12"):
        return (
            f"{version} cannot load: it needs libcudart.so.12 (CUDA 12), torch brings CUDA "
            f"{torch_cuda}, so every call would say it was built without CUDA",
            "install its CUDA 13 build from PyTorch's own wheel index (cu130), or "
            "pip install nvidia-cuda-runtime-cu12 and put its libcudart.so.12 into LD_PRELOAD",
        )
    return f"{version} cannot load: {problem}", "reinstall it for this torch, or stay with SDPA"


def _reason(error: Exception, device: str) -> str:
    text = _first_line(error)
    return f"no such kernel for {device}" if text.startswith(NO_KERNEL) else text


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of kernels that refuse."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
