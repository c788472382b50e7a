"""Cards and weights: what is written loads to the same answers; nothing else loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowalign.config.noisy_card import CARD, WEIGHTS
from flowalign.errors import FlowalignError
from flowalign.noisy_reward.files import load_reward, save_reward
from flowalign.noisy_reward.fit import new_network
from flowalign.noisy_reward.network import NoisyReward
from tests.noisy_reward.toy import card

CPU = torch.device("cpu")


def network() -> NoisyReward:
    """Random, the last layer too: a new one answers 0."""
    found = new_network(card(), seed=1)
    torch.nn.init.normal_(found.answer.weight, generator=torch.Generator().manual_seed(2))
    return found


def answers(of: NoisyReward) -> torch.Tensor:
    key = torch.Generator().manual_seed(3)
    x, text = torch.randn(4, 2, 4, 4, generator=key), torch.randn(4, 3, 5, generator=key)
    return of(x, torch.linspace(0.1, 1.0, 4), text)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    saved = network()
    save_reward(tmp_path / "new" / "reward", saved, card())
    found, read = load_reward(str(tmp_path / "new" / "reward"), CPU)
    assert read == card() and torch.equal(answers(found), answers(saved))
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert sorted(p.name for p in (tmp_path / "new" / "reward").iterdir()) == [CARD, WEIGHTS]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["reward"]
    save_reward(tmp_path / "half", saved, card(), torch.bfloat16)
    rounded = answers(load_reward(str(tmp_path / "half"), CPU)[0])
    torch.testing.assert_close(rounded, answers(saved), rtol=0.1, atol=0.1)
    assert not torch.equal(rounded, answers(saved))


def test_latents_without_a_grid_are_tokens() -> None:
    sizes = {"width": 16, "layers": 1, "attention_heads": 2, "patch": 1}
    flat = new_network(card(latent_shape=(6, 4), network=sizes), seed=0)
    x, text = torch.randn(2, 6, 4), torch.randn(2, 3, 5)
    assert flat(x, torch.ones(2), text).shape == (2, 2)


def edit_card(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / CARD).read_text()) | changes
        (folder / CARD).write_text(json.dumps(value))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return edit


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


ONE_HEAD = [{"name": "colour", "mean": 0.0, "std": 1.0}]
WIDE = {"width": 65_536, "layers": 64, "attention_heads": 2, "patch": 2}
BROKEN = {
    "no card": (lambda f: (f / CARD).unlink(), "CKPT-MISSING"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "CKPT-MISSING"),
    "no JSON": (lambda f: (f / CARD).write_text("{"), "CKPT-MODEL"),
    "unknown key": (edit_card(code="x.py"), "CKPT-MODEL"),
    "another format": (edit_card(version=2), "CKPT-MODEL"),
    "two of a name": (edit_card(heads=ONE_HEAD * 2), "CKPT-MODEL"),
    "fewer heads": (edit_card(heads=ONE_HEAD), "CKPT-SHAPE"),
    "another latent": (edit_card(latent_shape=[4, 4, 4]), "CKPT-SHAPE"),
    "no patches": (edit_card(latent_shape=[2, 5, 5]), "CKPT-SHAPE"),
    "a huge network": (edit_card(network=WIDE), "CKPT-SHAPE"),
    "cut weights": (cut, "CKPT-MODEL"),
    "a missing tensor": (edit_weights(lambda t: t.pop("answer.weight")), "CKPT-SHAPE"),
    "a further tensor": (edit_weights(lambda t: t.update(x=torch.ones(1))), "CKPT-SHAPE"),
    "not finite": (edit_weights(lambda t: t["answer.bias"].fill_(torch.nan)), "CKPT-MODEL"),
}


@pytest.mark.parametrize(("damage", "code"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_does_not_load(
    damage: Callable[[Path], None], code: str, tmp_path: Path
) -> None:
    folder = tmp_path / "reward"
    save_reward(folder, network(), card())
    load_reward(str(folder), CPU)
    damage(folder)
    with pytest.raises(FlowalignError) as error:
        load_reward(str(folder), CPU)
    assert error.value.code == code and error.value.exit_code == 4
