"""Low-rank adapters: which layers, how they start, exact views, and files that cannot mislead."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowalign.config.schema import LoraConfig
from flowalign.errors import CheckpointError, ConfigError, SecurityError
from flowalign.lora import (
    add_lora,
    base_weight,
    delta,
    inject,
    load_lora_state,
    lora_disabled,
    lora_parameters,
    lora_state,
    merged_lora,
    named_layers,
    role_of,
    target_names,
)
from flowalign.lora_files import denoisers_of, export_lora, fingerprint, import_lora
from tests.zoo.table import ZOO

WEIGHTS = "pytorch_lora_weights.safetensors"


def pipeline(name: str = "sd3") -> Any:
    pipe = ZOO[name].build()
    for module in denoisers_of(pipe).values():
        module.requires_grad_(False)
    return pipe


def modules_of(pipe: Any) -> list[nn.Module]:
    return list(denoisers_of(pipe).values())


@torch.no_grad()
def randomise(modules: list[nn.Module], seed: int = 3) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in lora_parameters(modules).values():
        parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)


def adapted(name: str = "sd3", **options: Any) -> Any:
    pipe = pipeline(name)
    add_lora(modules_of(pipe), LoraConfig(**({"rank": 4, "alpha": 6.0} | options)), seed=1)
    randomise(modules_of(pipe))
    return pipe


def picture(pipe: Any) -> Tensor:
    return pipe(
        "a red circle",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


def copied(file: Path) -> dict[str, Tensor]:
    """The file's weights in memory: safetensors maps the file, which is written anew."""
    return {name: value.clone() for name, value in load_file(file).items()}


# Which layers.


def roles(name: str) -> dict[str, set[str]]:
    (module, *_) = modules_of(pipeline(name))
    linear = [n for n, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    found: dict[str, set[str]] = {"attention": set(), "feed_forward": set(), "other": set()}
    for layer in linear:
        found[role_of(module, layer)].add(layer)
    return found


def test_roles_are_those_of_the_parts_around_a_layer() -> None:
    found = roles("sd3")
    block = "transformer_blocks.0"
    assert {f"{block}.attn.to_q", f"{block}.attn.to_out.0", f"{block}.attn.add_k_proj"} <= found[
        "attention"
    ]
    assert {f"{block}.ff.net.0.proj", f"{block}.ff_context.net.2"} <= found["feed_forward"]
    assert {"proj_out", "context_embedder", f"{block}.norm1.linear"} <= found["other"]


@pytest.mark.parametrize("name", ZOO)
def test_every_class_has_attention_layers_and_no_output_among_them(name: str) -> None:
    found = roles(name)
    assert found["attention"]
    assert found["feed_forward"] or name == "sana"  # whose are convolutions
    assert not {n for n in found["attention"] if "norm" in n or n.startswith("proj_out")}


def test_an_output_layer_that_is_a_list_in_one_block_and_a_layer_in_another_is_found() -> None:
    """Flux 2: `to_out` ends the names of linear layers and of lists."""
    (module,) = modules_of(pipeline("flux2_klein"))
    names = target_names(module, ["to_out", "to_out.0"])
    assert {type(module.get_submodule(name)) for name in names} == {nn.Linear}
    assert len(names) == 2


def test_all_and_endings() -> None:
    (module,) = modules_of(pipeline())
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    assert target_names(module, ["all"]) == linear
    assert target_names(module, ["to_q"]) == [n for n in linear if n.endswith(".to_q")]
    with pytest.raises(ConfigError, match="'_q' matched 0"):
        target_names(module, ["_q"])  # an ending is one of whole parts


def test_a_target_that_matches_nothing_shows_examples() -> None:
    with pytest.raises(ConfigError, match=r"matched 0 of \d+ linear layers") as caught:
        add_lora(modules_of(pipeline()), LoraConfig(target_modules=("nope",)), seed=0)
    assert caught.value.fix.count(",") >= 5


def test_a_name_is_not_taken_as_an_ending() -> None:
    """A layer chosen by its whole name leaves those alone whose names only end in it."""
    net = nn.Sequential()
    net.add_module("out", nn.Linear(2, 2))
    net.add_module("block", nn.Sequential())
    net.get_submodule("block").add_module("out", nn.Linear(2, 2))
    inject(net, ["out"], rank=1, alpha=1.0)
    assert [name for name, _ in named_layers([net])] == ["0.out"]


# The start.


def test_the_start_depends_on_seed_and_name_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = pipeline(), pipeline(), pipeline()
    torch.set_rng_state(state)
    add_lora(modules_of(first), LoraConfig(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    add_lora(modules_of(second), LoraConfig(target_modules=("attention",)), seed=1)
    add_lora(modules_of(other), LoraConfig(), seed=2)
    one, two, three = (lora_state(modules_of(p)) for p in (first, second, other))
    assert all(torch.equal(one[name], value) for name, value in two.items())
    differing = [name for name in one if not torch.equal(one[name], three[name])]
    assert differing == [name for name in one if name.endswith("lora_A")]
    assert not any(value.any() for name, value in one.items() if name.endswith("lora_B"))


def test_weights_of_the_adapter_are_float32_on_a_bfloat16_base() -> None:
    pipe = pipeline().to(dtype=torch.bfloat16)
    add_lora(modules_of(pipe), LoraConfig(), seed=0)
    kinds = {p.dtype for p in lora_parameters(modules_of(pipe)).values()}
    assert kinds == {torch.float32}
    assert all(p.requires_grad for p in lora_parameters(modules_of(pipe)).values())


def test_a_model_with_an_adapter_is_refused() -> None:
    pipe = adapted()
    with pytest.raises(ConfigError, match="has an adapter already"):
        add_lora(modules_of(pipe), LoraConfig(), seed=0)
    pipe.unload_lora_weights()  # what the message says
    add_lora(modules_of(pipe), LoraConfig(), seed=0)


# Views.


def test_merging_gives_the_very_weights_back() -> None:
    modules = modules_of(adapted())
    before = {n: base_weight(layer).clone() for n, layer in named_layers(modules)}
    with merged_lora(modules):
        for name, layer in named_layers(modules):
            torch.testing.assert_close(base_weight(layer), before[name] + delta(layer))
    for name, layer in named_layers(modules):
        assert torch.equal(base_weight(layer), before[name])


def test_subtracting_the_adapter_again_would_not() -> None:
    """Negative control: W + D - D is not W in floating point."""
    modules = modules_of(adapted())
    changed = [
        not torch.equal(base_weight(layer) + delta(layer) - delta(layer), base_weight(layer))
        for _, layer in named_layers(modules)
    ]
    assert all(changed)


def test_views_end_when_an_error_passes_through_them() -> None:
    modules = modules_of(adapted())
    before = {n: base_weight(layer).clone() for n, layer in named_layers(modules)}
    for view in (merged_lora, lora_disabled):
        with pytest.raises(ValueError, match="inside"), view(modules):
            raise ValueError("inside")
        for name, layer in named_layers(modules):
            assert torch.equal(base_weight(layer), before[name])
            assert not layer.disable_adapters


def test_views_are_not_nested() -> None:
    """Off inside merged would be the trained weights, called the reference."""
    modules = modules_of(adapted())
    with pytest.raises(AssertionError), merged_lora(modules), lora_disabled(modules):
        pass


# State and files.


def test_files_are_written_over_those_they_were_read_from(tmp_path: Path) -> None:
    export_lora(adapted(), tmp_path)
    pipe = pipeline()
    mapped = load_file(tmp_path / WEIGHTS)  # a reader keeps what it has
    before = {name: value.clone() for name, value in mapped.items()}
    import_lora(pipe, tmp_path)
    randomise(modules_of(pipe), seed=4)
    export_lora(pipe, tmp_path)
    assert all(torch.equal(mapped[name], value) for name, value in before.items())
    after = copied(tmp_path / WEIGHTS)
    assert not any(torch.equal(after[name], value) for name, value in before.items())
    assert [file.name for file in tmp_path.iterdir()] == [WEIGHTS]


def test_state_comes_back() -> None:
    source, target = adapted(), pipeline()
    add_lora(modules_of(target), LoraConfig(rank=4, alpha=6.0), seed=9)
    load_lora_state(modules_of(target), lora_state(modules_of(source)))
    ours, theirs = lora_state(modules_of(target)), lora_state(modules_of(source))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_plain_diffusers_makes_the_same_picture(name: str, tmp_path: Path) -> None:
    trained = adapted(name)
    want = picture(trained)
    export_lora(trained, tmp_path)
    plain = pipeline(name)
    assert not torch.equal(picture(plain), want)
    plain.load_lora_weights(str(tmp_path))
    for module in modules_of(plain):
        module.requires_grad_(False)
    torch.testing.assert_close(picture(plain), want, rtol=0, atol=1e-6)


def test_without_alpha_the_picture_would_differ(tmp_path: Path) -> None:
    """Negative control: the metadata carries alpha, without it diffusers takes alpha = rank."""
    trained = adapted()
    want = picture(trained)
    file = export_lora(trained, tmp_path) / WEIGHTS
    save_file(copied(file), file, metadata={"format": "pt"})
    plain = pipeline()
    plain.load_lora_weights(str(tmp_path))
    assert float((picture(plain) - want).abs().max()) > 1e-3


def test_an_adapter_that_is_there_is_loaded_into(tmp_path: Path) -> None:
    export_lora(adapted(), tmp_path)
    pipe = pipeline()
    add_lora(modules_of(pipe), LoraConfig(rank=4, alpha=6.0), seed=5)
    import_lora(pipe, tmp_path / WEIGHTS)
    want = load_file(tmp_path / WEIGHTS)
    ours = {f"transformer.{n[2:]}.weight": v for n, v in lora_state(modules_of(pipe)).items()}
    assert all(torch.equal(ours[name], value) for name, value in want.items())


def test_another_rank_names_the_weight_and_both_shapes(tmp_path: Path) -> None:
    export_lora(adapted(rank=8), tmp_path)
    pipe = pipeline()
    add_lora(modules_of(pipe), LoraConfig(rank=4), seed=0)
    with pytest.raises(CheckpointError, match=r"shape \(8, .*\) in the file, \(4, .*\) in the"):
        import_lora(pipe, tmp_path)


def test_other_layers_are_refused(tmp_path: Path) -> None:
    export_lora(adapted(target_modules=("attention",)), tmp_path)
    pipe = pipeline()
    add_lora(modules_of(pipe), LoraConfig(rank=4), seed=0)
    with pytest.raises(CheckpointError, match="weights are missing"):
        import_lora(pipe, tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    export_lora(adapted(), tmp_path)
    other = pipeline()
    with torch.no_grad():
        other.transformer.proj_out.weight.add_(0.1)
    with pytest.raises(CheckpointError, match="trained on another base"):
        import_lora(other, tmp_path)


def test_the_fingerprint_is_that_of_the_base_in_any_storage_type() -> None:
    plain, with_adapter, half = pipeline(), adapted(), pipeline().to(dtype=torch.bfloat16)
    want = fingerprint(plain.transformer)
    assert fingerprint(with_adapter.transformer) == want
    assert fingerprint(half.transformer) == want


def test_zeros_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = pipeline()
    add_lora(modules_of(pipe), LoraConfig(), seed=0)
    export_lora(pipe, tmp_path)
    with caplog.at_level(logging.WARNING):
        import_lora(pipeline(), tmp_path)
    assert "has no effect" in caplog.text


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    pipe = adapted()
    next(iter(lora_parameters(modules_of(pipe)).values())).data[0, 0] = float("nan")
    export_lora(pipe, tmp_path)
    with pytest.raises(CheckpointError, match="NaN"):
        import_lora(pipeline(), tmp_path)


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "lora.ckpt"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    bomb = tmp_path / name
    bomb.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for path in (bomb, tmp_path):
        with pytest.raises(SecurityError, match="pickle"):
            import_lora(pipeline(), path)
    assert not Path("ran").exists()


def test_files_that_are_missing_damaged_or_foreign(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        import_lora(pipeline(), tmp_path)
    file = export_lora(adapted(), tmp_path) / WEIGHTS
    whole, state = file.read_bytes(), copied(file)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not readable"):
        import_lora(pipeline(), tmp_path)
    save_file({"lora_unet_down_blocks_0.alpha": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match=r"load it with pipe\.load_lora_weights"):
        import_lora(pipeline(), tmp_path)
    renamed = {name.replace("blocks.0", "blocks.9"): value for name, value in state.items()}
    save_file(renamed, file)
    with pytest.raises(CheckpointError, match="unknown"):
        import_lora(pipeline(), tmp_path)


def test_the_metadata_is_what_diffusers_writes(tmp_path: Path) -> None:
    file = export_lora(adapted(), tmp_path) / WEIGHTS
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["transformer.r"] == 4
    assert config["transformer.lora_alpha"] == 6.0
