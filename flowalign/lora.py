"""Low-rank adapters W + (alpha / r) B A on the denoiser's linear layers (arXiv 2106.09685).

The layers are peft's. Names of weights are `<module index>.<name inside the module>`, because a
pipeline may have two denoisers. Files are those of diffusers, see `flowalign.lora_files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flowalign.config.schema import LoraConfig
from flowalign.errors import CheckpointError, ConfigError
from flowalign.randomness import generator

ADAPTER = "default"
FEED_FORWARD = re.compile(r"feed_?forward|mlp|swiglu|glumb|^ffn?(_|$)", re.IGNORECASE)
ATTENTION = re.compile(r"(attention|attn)(?!s$|\w*block)", re.IGNORECASE)


def add_lora(modules: Sequence[nn.Module], config: LoraConfig, *, seed: int) -> list[str]:
    """Add an adapter to each module and return the names of the adapted layers.

    The start is the base model exactly (B = 0). A is uniform in +-1/sqrt(fan_in), drawn from
    `seed` and the layer's name, so that the global random state is neither read nor moved.

    Raises:
        ConfigError: a target matches no linear layer, or a module has an adapter already.
    """
    adapted = []
    for index, module in enumerate(modules):
        if any(isinstance(layer, LoraLayer) for layer in module.modules()):
            raise ConfigError(
                "LORA-PRESENT",
                type(module).__name__,
                "the model has an adapter already, and the reference is the model without one",
                "call pipe.unload_lora_weights(), or pipe.fuse_lora() to make it part of the base",
            )
        names = target_names(module, config.target_modules)
        inject(module, names, rank=config.rank, alpha=config.alpha)
        adapted += [f"{index}.{name}" for name in names]
    for name, layer in named_layers(modules):
        start(layer, generator(seed, f"lora/{name}"))
    return adapted


def inject(module: nn.Module, names: Sequence[str], *, rank: int, alpha: float) -> None:
    """Put untrained LoRA layers around the linear layers `names`."""
    config = PeftConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=pattern(names),
    )
    with torch.random.fork_rng(devices=[]):
        if isinstance(module, PeftAdapterMixin):
            module.add_adapter(config, ADAPTER)  # lets pipe.disable_lora() and the like work
        else:
            inject_adapter_in_model(config, module, ADAPTER)
    for _, layer in named_layers([module]):
        for weight in factors(layer):
            weight.data = weight.data.float()


def pattern(names: Sequence[str]) -> str:
    """A pattern for exactly these names; as a list, peft would also take them as endings."""
    return "|".join(map(re.escape, names))


def factors(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """A (r, in) and B (out, r)."""
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    assert isinstance(a, nn.Parameter) and isinstance(b, nn.Parameter)
    return a, b


@torch.no_grad()
def start(layer: LoraLayer, random: torch.Generator) -> None:
    """A uniform, B zero."""
    a, b = factors(layer)
    bound = a.shape[1] ** -0.5
    a.copy_((torch.rand(a.shape, generator=random) * 2 - 1) * bound)
    b.zero_()


def target_names(module: nn.Module, targets: Sequence[str]) -> list[str]:
    """Names of the linear layers that `targets` mean: roles, `all`, or endings of names."""
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    roles = {"all": linear, "attention": [], "feed_forward": []}
    for name in linear:
        roles.setdefault(role_of(module, name), []).append(name)
    chosen: set[str] = set()
    for target in targets:
        matched = roles.get(target, [n for n in linear if f".{n}".endswith(f".{target}")])
        if not matched and target not in roles:
            raise ConfigError(
                "LORA-TARGET",
                "lora.target_modules",
                f"{target!r} matched 0 of {len(linear)} linear layers of {type(module).__name__}",
                f"use attention, feed_forward, all, or an ending such as {endings(linear)}",
            )
        chosen.update(matched)
    if not chosen:
        raise ConfigError(
            "LORA-TARGET",
            "lora.target_modules",
            f"{list(targets)} matched 0 of {len(linear)} linear layers of {type(module).__name__}",
            f"use all, or an ending such as {endings(linear)}",
        )
    return [name for name in linear if name in chosen]


def role_of(module: nn.Module, name: str) -> str:
    """`attention`, `feed_forward` or `other`: what the innermost part around the layer says."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        inside = module.get_submodule(".".join(parts[:depth]))
        words = [parts[depth - 1], "" if depth == len(parts) else type(inside).__name__]
        if any(map(FEED_FORWARD.search, words)):
            return "feed_forward"
        if any(map(ATTENTION.search, words)):
            return "attention"
    return "other"


def endings(names: Sequence[str]) -> str:
    """Up to five different endings of layer names."""
    short = dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", name) for name in names)
    return ", ".join(list(short)[:5])


def named_layers(modules: Sequence[nn.Module]) -> list[tuple[str, LoraLayer]]:
    """The adapted layers with their names."""
    return [
        (f"{index}.{name}", layer)
        for index, module in enumerate(modules)
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    ]


def lora_parameters(modules: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """The adapter's parameters A and B by name."""
    return {
        f"{name}.{part}": weight
        for name, layer in named_layers(modules)
        for part, weight in zip(("lora_A", "lora_B"), factors(layer), strict=True)
    }


def lora_state(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The adapter's weights, detached, by name."""
    return {name: value.detach() for name, value in lora_parameters(modules).items()}


@torch.no_grad()
def load_lora_state(modules: Sequence[nn.Module], state: Mapping[str, Tensor]) -> None:
    """Copy weights into the adapter.

    Raises:
        CheckpointError: a name is missing or unknown, a shape differs, a value is not finite.
    """
    parameters = lora_parameters(modules)
    check_names(parameters, state)
    for name, parameter in parameters.items():
        check_weight(name, state[name], parameter.shape)
        parameter.copy_(state[name])


def check_names(expected: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Refuse weights of other layers."""
    missing, unknown = sorted(expected.keys() - given), sorted(given.keys() - expected)
    if missing or unknown:
        example = (missing + unknown)[0]
        raise CheckpointError(
            "LORA-KEYS",
            example,
            f"{len(missing)} weights are missing and {len(unknown)} are unknown",
            "use the lora.target_modules with which the adapter was trained",
        )


def check_weight(name: str, value: Tensor, shape: torch.Size) -> None:
    """Refuse a weight of another shape or with NaN or infinity."""
    if value.shape != shape:
        raise CheckpointError(
            "LORA-SHAPE",
            name,
            f"shape {tuple(value.shape)} in the file, {tuple(shape)} in the model",
            "set lora.rank and lora.target_modules as when the adapter was trained",
        )
    if not torch.isfinite(value).all():
        raise CheckpointError(
            "LORA-NON-FINITE", name, "holds NaN or infinity", "use an earlier checkpoint"
        )


@contextmanager
def lora_disabled(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the modules are the base model, bit for bit."""
    layers = [layer for _, layer in named_layers(modules)]
    with switched_off(layers):
        yield


@contextmanager
def switched_off(layers: Sequence[LoraLayer]) -> Iterator[None]:
    """Inside, the layers use their base alone.

    peft's public switch also changes `requires_grad`; the flag behind it does nothing else.
    """
    assert not any(layer.disable_adapters for layer in layers), "the adapter is already off"
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def merged_lora(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, W + (alpha / r) B A stands in place of W: no adapter pass, for use without gradient.

    Afterwards the very tensors W are back, so nothing is rounded twice.
    """
    layers = [layer for _, layer in named_layers(modules)]
    bases = [base_weight(layer) for layer in layers]
    kept = [base.data for base in bases]
    merged = [
        (weight.float() + delta(layer)).to(weight.dtype)
        for weight, layer in zip(kept, layers, strict=True)
    ]
    for base, weight in zip(bases, merged, strict=True):
        base.data = weight
    try:
        with switched_off(layers):
            yield
    finally:
        for base, weight in zip(bases, kept, strict=True):
            base.data = weight


def base_weight(layer: LoraLayer) -> nn.Parameter:
    """W of an adapted linear layer."""
    base = layer.get_base_layer()
    assert isinstance(base, nn.Linear) and isinstance(base.weight, nn.Parameter)
    return base.weight


@torch.no_grad()
def delta(layer: LoraLayer) -> Tensor:
    """(alpha / r) B A, (out, in) float32."""
    a, b = factors(layer)
    return layer.scaling[ADAPTER] * (b @ a)
