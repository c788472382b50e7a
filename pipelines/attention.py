"""The attention backend of the denoiser: PyTorch's own, or one of diffusers' dispatcher."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from flowalign.errors import ConfigError, ResourceError

DEFAULT = ("auto", "sdpa")  # PyTorch chooses among its kernels, also in diffusers


def use_attention(modules: Sequence[nn.Module], backend: str, device: torch.device) -> None:
    """Set the backend of the modules; `auto` and `sdpa` leave diffusers' default.

    diffusers' own switch is silently without effect for classes whose attention does not go
    through its dispatcher; here that is an error.

    Raises:
        ConfigError: the class does not obey, or the name is unknown.
        ResourceError: the backend does not run on this machine.
    """
    if backend in DEFAULT:
        return
    known = [*DEFAULT, *(name.value for name in AttentionBackendName)]
    if backend not in known:
        near = difflib.get_close_matches(backend, known, n=1, cutoff=0.0)[0]
        raise ConfigError(
            "MODEL-ATTENTION", "model.attention", f"no backend {backend!r}", f"did you mean {near}?"
        )
    for module in modules:
        assert isinstance(module, ModelMixin)
        if not obeys(module):
            raise ConfigError(
                "MODEL-ATTENTION",
                "model.attention",
                f"{type(module).__name__} takes no backend, its attention is PyTorch's own",
                "use `auto`",
            )
        if device.type == "cpu" and "native" not in backend:
            raise ResourceError(
                "ATTENTION-DEVICE", "model.attention", f"{backend!r} needs a GPU", "use `auto`"
            )
        try:
            module.set_attention_backend(backend)
        except (RuntimeError, ImportError, ValueError) as error:
            raise ResourceError(
                "ATTENTION-MISSING",
                "model.attention",
                f"{backend!r} cannot be used here: {error}",
                "see `flowalign doctor`, or use `auto`",
            ) from None


def obeys(module: nn.Module) -> bool:
    """Whether some attention processor of the module reads the backend."""
    return any(
        "_attention_backend" in dir(vars(layer).get("processor")) for layer in module.modules()
    )
