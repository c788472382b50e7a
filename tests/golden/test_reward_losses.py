"""Losses and accuracies of reward models against the references' own code."""

from __future__ import annotations

import torch
from torch import Tensor

from flowalign.reward_losses import bradley_terry, masked_mean, pick_loss
from flowalign.reward_metrics import accuracy_with_ties, accuracy_without_ties
from tests.golden.vectors import Case, cases, each


def leaves(case: Case, *names: str) -> list[Tensor]:
    return [case.given[name].clone().requires_grad_() for name in names]


def check(case: Case, loss: Tensor, inputs: dict[str, Tensor]) -> None:
    case.close(loss, case.out["loss"])
    for name, leaf in inputs.items():
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        case.close(gradient, case.out[f"dloss_d{name}"])


def videoalign(case: Case, a: Tensor, b: Tensor) -> Tensor:
    """(B, N) losses of VideoAlign's rules, 0 where it masks."""
    label, score_a, score_b = case.given["label"], case.given["score_A"], case.given["score_B"]
    kind = case.hyper["loss_type"]
    difference = torch.where(label == 1, a - b, b - a)
    rated = torch.where(label == 1, score_a - score_b, score_b - score_a)
    margin = case.hyper["constant_margin"] if kind == "constant_margin" else 0.0
    weight = rated if kind == "scaled" else torch.ones_like(rated)
    losses = weight * bradley_terry(difference, margin=margin)
    return torch.where(label.abs() == 1, losses, 0.0)


def test_videoalign() -> None:
    """Its mean runs over all entries; ours over those that count, which is more."""
    found = [case for case in cases("reward_model_loss") if "videoalign" in case.name]
    assert {case.hyper["loss_type"] for case in found} == {"constant_margin", "scaled"}
    for case in found:
        a, b = leaves(case, "r_A", "r_B")
        losses = videoalign(case, a, b)
        check(case, losses.mean(), {"r_A": a, "r_B": b})
        kept = case.given["label"].abs() == 1
        if case.hyper["loss_type"] == "constant_margin":
            torch.testing.assert_close(
                masked_mean(losses, kept) * kept.double().mean(), case.out["loss"]
            )


def test_image_reward() -> None:
    (case,) = (c for c in cases("reward_model_loss") if c.name == "imagereward__pair_loss")
    (rewards,) = leaves(case, "rewards")
    losses = bradley_terry(rewards[:, 0] - rewards[:, 1])
    case.close(losses, case.out["per_pair"])
    check(case, losses.mean(), {"rewards": rewards})
    difference = rewards.detach()[:, 0] - rewards.detach()[:, 1]
    ones = torch.ones(len(difference), dtype=torch.long)
    assert abs(accuracy_without_ties(difference, ones) - float(case.out["acc"])) < 1e-6


def test_pickscore() -> None:
    """Weighted by 1 / examples of the prompt, with weights that sum to one."""
    (case,) = (c for c in cases("reward_model_loss") if "pickscore" in c.name)
    given = case.given
    difference = given["logit_scale"] * (given["text"] * (given["img0"] - given["img1"])).sum(-1)
    weight = 1.0 / given["num_examples"]
    losses = pick_loss(difference, given["label0"])
    case.close((losses * weight).sum() / weight.sum(), case.out["loss"])
    without = bradley_terry(difference, given["label0"])  # without the entropy of ties
    assert float(((without * weight).sum() / weight.sum() - case.out["loss"]).abs()) > 0.05


@each("reward_model_metrics")
def test_accuracy(case: Case) -> None:
    found = accuracy_with_ties(case.given["model_diff"], case.given["human"])
    assert abs(found.accuracy - float(case.out["acc_with_ties"])) < 1e-12
    without = accuracy_without_ties(case.given["model_diff"], case.given["human"])
    assert abs(without - float(case.out["acc_without_ties"])) < 1e-12
