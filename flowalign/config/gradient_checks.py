"""Values of the methods that follow gradients that are impossible together. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.checks import conflict
from flowalign.config.gradient_methods import GuidanceConfig
from flowalign.config.problems import Problem
from flowalign.config.rewards import RewardConfig
from flowalign.config.steering import FKConfig, SteerConfig

WITHOUT_GRADIENT = (  # with `differentiable = False` in rewards/, which a test compares
    "geneval",
    "jpeg",
    "judge",
    "ocr",
    "questions",
    "recorded",
    "remote",
    "rewarddance",
    "shapes",
    "vqascore",
)


def may_have_gradient(reward: RewardConfig) -> bool:
    """Whether it is not known to have none; the others are asked when they are loaded."""
    patches = reward.name == "exemplar" and reward.measure == "frechet"
    return reward.name not in WITHOUT_GRADIENT and not patches


def gradients_needed(config: SteerConfig, who: str, instead: str) -> Iterator[Problem]:
    """Every reward that counts must have a gradient."""
    for number, reward in enumerate(config.rewards):
        if reward.weight != 0 and not may_have_gradient(reward):
            what = f"{who} follows gradients, and {reward.name} has none"
            fix = f"use a differentiable reward, for example clip, or {instead}"
            yield conflict(("rewards", number), what, fix)


def guidance_rule(config: SteerConfig) -> Iterator[Problem]:
    """Guidance needs gradients, and steps to guide."""
    method = config.method
    if not isinstance(method, GuidanceConfig):
        return
    yield from gradients_needed(config, method.name, "method fk")
    if method.start >= method.stop:
        what = f"start {method.start:g} is not before stop {method.stop:g}: nothing is guided"
        yield conflict(("method", "start"), what, f"less than {method.stop:g}")


def twist_rule(config: SteerConfig) -> Iterator[Problem]:
    """A twisted proposal needs gradients, through the decoder."""
    method = config.method
    if not isinstance(method, FKConfig) or method.proposal != "gradient":
        return
    yield from gradients_needed(config, "proposal gradient", "proposal sampler")
    if method.preview != "decode":
        what = "the gradient of a proposal goes through the decoder"
        yield conflict(("method", "preview"), what, "use `preview: decode`")
    if method.learned is not None:
        what = "a learned value judges states, and the gradient is that of the rewards"
        yield conflict(("method", "proposal"), what, "use proposal sampler, or leave `learned` out")


GRADIENT_RULES = (guidance_rule, twist_rule)
