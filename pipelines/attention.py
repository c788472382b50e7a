"""The attention backend of the denoiser: PyTorch's own, or one of diffusers' dispatcher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
        except ValueError as error:
            raise ConfigError(
                "MODEL-ATTENTION", "model.attention", f"{backend!r}: {error}", "use `auto`"
            ) from None
        except (RuntimeError, ImportError) as error:
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
