"""A rule and a model as one reward: its ends, its bounds, its slopes, its masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign.config.load import config_from_mapping
from flowalign.config.shaping import ShapingConfig
from flowalign.config.shaping_mixes import CorrectedMix, HybridMix
from flowalign.errors import ConfigError
from flowalign.mixtures import MIX, check_ranges, corrected, hybrid, mixed
from flowalign.shaping import shaped
from flowalign.types import Scored

NAN = torch.nan


def scored(**terms: list[float]) -> Scored:
    tensors = {name: torch.tensor(values) for name, values in terms.items()}
    size = len(next(iter(tensors.values())))
    return Scored(
        group=torch.zeros(size, dtype=torch.int64),
        prompt_id=torch.zeros(size, dtype=torch.int64),
        terms=tensors,
        valid={name: ~values.isnan() for name, values in tensors.items()},
        weights={name: float(name == "rule") for name in tensors},
    )


def mix(given: Scored, memory: dict[str, Tensor] | None = None, **settings: Any) -> Scored:
    config = HybridMix(name="hybrid", rule="rule", model="model", **settings)
    return mixed(given, [config], {} if memory is None else memory)


def draws(size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rule, confidence = (torch.rand(size, generator=generator).double() for _ in range(2))
    return rule, 3 * torch.randn(size, generator=generator).double(), confidence


def test_ends_and_bounds() -> None:
    rule, z, confidence = draws()
    assert torch.equal(hybrid(rule, z, torch.ones(64)), rule)  # c = 1: the rule only
    assert torch.equal(hybrid(rule, z, torch.zeros(64)), z.sigmoid())  # c = 0: the model only
    values = hybrid(rule, z, confidence)
    assert bool(((values >= 0) & (values <= 1)).all())
    assert torch.allclose(values, confidence * rule + (1 - confidence) / (1 + (-z).exp()))


def test_slopes() -> None:
    """dR/dr = c and dR/dz = (1 - c) s (1 - s): it rises in both."""
    rule, z, confidence = draws()
    rule.requires_grad_()
    z.requires_grad_()
    by_rule, by_z = torch.autograd.grad(hybrid(rule, z, confidence).sum(), (rule, z))
    s = z.detach().sigmoid()
    torch.testing.assert_close(by_rule, confidence)
    torch.testing.assert_close(by_z, (1 - confidence) * s * (1 - s))
    assert bool((by_rule > 0).all()) and bool((by_z > 0).all())


def test_a_rule_that_is_its_own_confidence() -> None:
    """Right is 1, wrong is what the model says (BaseReward)."""
    given = scored(rule=[1.0, 0.0, 1.0, 0.0], model=[5.0, 5.0, -5.0, -5.0])
    values = mix(given, confidence="rule", mean=0.0, std=1.0).terms["rule"]
    right = 1 / (1 + torch.tensor(-5.0).exp())
    torch.testing.assert_close(values, torch.tensor([1.0, float(right), 1.0, float(1 - right)]))


def test_without_a_confidence_the_model_speaks_where_the_rule_masks() -> None:
    given = scored(rule=[0.25, NAN, 0.75, NAN], model=[9.0, 2.0, NAN, NAN])
    found = mix(given, mean=2.0, std=1.0)
    assert found.valid["rule"].tolist() == [True, True, True, False]
    assert found.terms["rule"][:3].tolist() == [0.25, 0.5, 0.75] and found.terms["rule"][3].isnan()
    # The control: with a share for both, both have to be there.
    found = mix(given, confidence=0.5, mean=2.0, std=1.0)
    assert found.valid["rule"].tolist() == [True, False, False, False]


def test_a_reward_as_confidence() -> None:
    given = scored(rule=[1.0] * 4, model=[0.0] * 4, sure=[1.0, 0.0, 0.5, NAN])
    found = mix(given, confidence="sure", mean=0.0, std=1.0)
    assert found.valid["rule"].tolist() == [True, True, True, False]
    assert found.terms["rule"][:3].tolist() == [1.0, 0.5, 0.75]
    assert found.terms["model"] is given.terms["model"] and found.weights == given.weights


def test_moving_statistics() -> None:
    """Of all valid scores so far with decay 1; in the memory, so in checkpoints."""
    generator = torch.Generator().manual_seed(1)
    memory: dict[str, Tensor] = {}
    seen: list[float] = []
    for _ in range(4):
        scores = (7 + 2 * torch.randn(6, generator=generator)).tolist()
        seen += scores[1:]
        given = scored(rule=[0.0] * 6, model=[NAN, *scores[1:]])
        found = mix(given, memory, confidence=0.0, decay=1.0).terms["rule"]
        every = torch.tensor(seen, dtype=torch.float64)
        z = (torch.tensor(scores[1:]).double() - every.mean()) / every.std(correction=0)
        torch.testing.assert_close(found[1:], z.sigmoid().float(), atol=1e-6, rtol=0)
    assert list(memory) == [MIX + "rule"] and memory[MIX + "rule"][0] == 20


def test_equal_or_absent_scores_are_the_middle() -> None:
    found = mix(scored(rule=[0.0] * 2, model=[3.0, 3.0]), confidence=0.0)
    assert found.terms["rule"].tolist() == [0.5, 0.5]
    memory: dict[str, Tensor] = {}
    found = mix(scored(rule=[1.0, NAN], model=[NAN, NAN]), memory)
    assert found.valid["rule"].tolist() == [True, False]
    assert memory[MIX + "rule"].tolist() == [0, 0, 0]


def test_corrected() -> None:
    """At a neutral rating all are the offset; a good picture is better for being right."""
    given = scored(rule=[1.0, 0.5, 1.0, 0.0, NAN], model=[3.0, 5.0, 1.0, 5.0, 5.0])
    config = CorrectedMix(name="corrected", rule="rule", model="model")
    found = mixed(given, [config], {})
    expected = torch.tensor([0.2, 1.2, -1.8, 0.2])
    torch.testing.assert_close(found.terms["rule"][:4], expected)
    assert found.valid["rule"].tolist() == [True] * 4 + [False]
    r, u = torch.tensor([0.4, 0.9]), torch.tensor([4.0, 2.0])
    assert torch.equal(corrected(r, u, neutral=0.0, offset=0.0), r * u)


def test_the_mix_goes_into_gates_and_products() -> None:
    given = scored(rule=[1.0, 1.0], model=[0.0, 0.0], veto=[1.0, 0.0])
    shaping = ShapingConfig.model_validate(
        {"gates": [{"reward": "veto", "threshold": 0.5, "value": 0.1}]}
    )
    mixes = mix(given, confidence=0.5, mean=0.0, std=1.0)
    assert shaped(mixes, shaping, {}).terms["combined"].tolist() == pytest.approx([0.75, 0.1])


# Configs.

RUN: dict[str, Any] = {
    "output": "unused",
    "algorithm": "nft",
    "rewards": ["ocr", {"name": "pickscore", "weight": 0}, {"name": "jpeg", "weight": 0}],
}


def config(*mixes: dict[str, Any], **shaping: Any) -> None:
    given = [{"name": "hybrid", "rule": "ocr", "model": "pickscore"} | one for one in mixes]
    config_from_mapping(RUN | {"shaping": {"mixes": given, **shaping}}, source="f")


def test_what_is_accepted() -> None:
    config({})
    config({"confidence": 0.5, "mean": 20, "std": 2}, combine="product")
    config({"confidence": "ocr"})
    config({"name": "corrected"})


@pytest.mark.parametrize(
    ("mixes", "shaping", "words"),
    [
        ([{"rule": "ocd"}], {}, "did you mean `ocr`"),
        ([{"confidence": "ocs"}], {}, "did you mean `ocr`"),
        ([{"confidence": 1.5}], {}, "must be <= 1"),
        ([{"mean": 1.0}], {}, "belong together"),
        ([{"std": 0.0, "mean": 1.0}], {}, "must be > 0"),
        ([{"model": "ocr"}], {}, "are one reward"),
        ([{"rule": "jpeg"}], {}, "has weight 0"),
        ([{}, {"model": "jpeg"}], {}, "is in two mixes"),
        ([{}], {"rewards": [{"name": "par", "reward": "ocr"}]}, "know nothing of the mix"),
        ([{}], {"gates": [{"reward": "ocr", "threshold": 0.5}]}, "would see the mix"),
        ([{"name": "corrected"}], {"combine": "product"}, "may be negative"),
    ],
)
def test_what_is_refused(mixes: list[dict[str, Any]], shaping: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*mixes, **shaping)
    assert any(words in line for line in caught.value.lines()), caught.value.lines()


def test_a_model_with_a_weight_would_count_twice() -> None:
    run = RUN | {"rewards": ["ocr", "pickscore"]}
    run["shaping"] = {"mixes": [{"name": "hybrid", "rule": "ocr", "model": "pickscore"}]}
    with pytest.raises(ConfigError, match="would count twice"):
        config_from_mapping(run, source="f")


def test_a_rule_of_another_range_is_refused_before_the_first_step() -> None:
    hybrids = [HybridMix(name="hybrid", rule="rule", model="model", confidence="sure")]
    check_ranges(hybrids, {"rule": (0.0, 1.0), "model": (-9.0, 9.0), "sure": (0.0, 1.0)})
    for name in ("rule", "sure"):
        ranges = {"rule": (0.0, 1.0), "model": (-9.0, 9.0), "sure": (0.0, 1.0)}
        with pytest.raises(ConfigError, match=f"`{name}` ranges from"):
            check_ranges(hybrids, ranges | {name: (0.0, 20.0)})
