"""The short names of what ships: one explicit table, nothing registers itself. Torch-free.

`flowalign list` prints it; `resolve` imports what a name stands for, only when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowalign.config.load import shipped_configs
from flowalign.config.suggest import did_you_mean
from flowalign.errors import ConfigError
from flowalign.worlds.shapes import grammar
from flowalign.worlds.shapes.scene import CATEGORIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A short name, what it is, and where it lives."""

    name: str
    doc: str
    target: str | None = None  # "module:attribute"; None for what is no object


ALGORITHMS = (
    Entry(
        name="grpo",
        doc="group-relative policy optimisation of the stochastic steps (Flow-GRPO and relatives)",
        target="flowalign.algorithms.grpo:GRPO",
    ),
    Entry(
        name="nft",
        doc="DiffusionNFT: good against bad samples on the forward process, no log-probs needed",
        target="flowalign.algorithms.nft:NFT",
    ),
    Entry(
        name="ddpo",
        doc="policy gradient with rewards normalised per prompt (DDPO; DPOK with `beta`)",
        target="flowalign.algorithms.ddpo:DDPO",
    ),
    Entry(
        name="d3po",
        doc="preferences between samples, from rewards or from people, at every step",
        target="flowalign.algorithms.d3po:D3PO",
    ),
    Entry(
        name="dragon",
        doc="a better set of samples against a worse one; takes rewards of whole sets (DRAGON)",
        target="flowalign.algorithms.dragon:DRAGON",
    ),
    Entry(
        name="sft",
        doc="fine-tuning on data, or on the best samples of each group",
        target="flowalign.algorithms.sft:SFT",
    ),
    Entry(
        name="rwr",
        doc="reward-weighted regression: samples learned in proportion to exp(reward / beta)",
        target="flowalign.algorithms.rwr:RWR",
    ),
    Entry(
        name="dpo",
        doc="pairs of samples on the forward process (Diffusion-DPO, Flow-DPO)",
        target="flowalign.algorithms.dpo:DPO",
    ),
)

MODELS = (
    Entry(name="shapes", doc="Stable Diffusion 3 (rectified flow) on the shapes world; 7 MB"),
    Entry(name="shapes_sd", doc="Stable Diffusion (U-Net, epsilon) on the shapes world; 6 MB"),
)

REWARDS = (
    Entry(
        name="shapes",
        doc="exact verifier of the shapes world: soft, hierarchical or strict",
        target="flowalign.rewards.shapes:from_config",
    ),
    Entry(
        name="clip",
        doc="CLIP or SigLIP score by transformers: the built-in tiny CLIP, a folder or a Hub id",
        target="flowalign.rewards.clip:from_config",
    ),
    Entry(
        name="open_clip",
        doc="CLIP score by open_clip (extra `open_clip`)",
        target="flowalign.rewards.open_clip:from_config",
    ),
    Entry(
        name="pickscore",
        doc="which picture of a prompt people would pick: CLIP ViT-H on Pick-a-Pic",
        target="flowalign.rewards.pickscore:from_config",
    ),
    Entry(
        name="hpsv2",
        doc="human preference score v2 and v2.1: CLIP ViT-H on HPDv2",
        target="flowalign.rewards.hpsv2:from_config",
    ),
    Entry(
        name="clap",
        doc="CLAP score of sound by transformers: how close CLAP finds recording and prompt",
        target="flowalign.rewards.clap:from_config",
    ),
    Entry(
        name="hpsv3",
        doc="human preference score v3: a head on Qwen2-VL 7B, trained on HPDv3",
        target="flowalign.rewards.hpsv3:from_config",
    ),
    Entry(
        name="image_reward",
        doc="ImageReward: a head on BLIP, trained on ranked pictures",
        target="flowalign.rewards.image_reward:from_config",
    ),
    Entry(
        name="video_reward",
        doc="VideoAlign: visual quality, motion quality, text alignment of a video (Qwen2-VL 2B)",
        target="flowalign.rewards.video_reward:from_config",
    ),
    Entry(
        name="aesthetic",
        doc="LAION aesthetics: a head on CLIP's picture features; reads no prompt",
        target="flowalign.rewards.aesthetic:from_config",
    ),
    Entry(
        name="goal_baseline",
        doc="how far a picture has come from a plain text to the wished one (VLM-RM)",
        target="flowalign.rewards.goal_baseline:from_config",
    ),
    Entry(
        name="jpeg",
        doc="size as JPEG in kB; a negative weight asks for compressible pictures",
        target="flowalign.rewards.jpeg:from_config",
    ),
    Entry(
        name="picture",
        doc="brightness, saturation, contrast or sharpness of the picture; differentiable",
        target="flowalign.rewards.picture:from_config",
    ),
    Entry(
        name="ocr",
        doc="text accuracy: what can be read against the prompt's quoted text (extra `ocr`)",
        target="flowalign.rewards.ocr:from_config",
    ),
    Entry(
        name="geneval",
        doc="right objects, numbers, colours and positions, by a detector (GenEval)",
        target="flowalign.rewards.geneval:from_config",
    ),
    Entry(
        name="nsfw",
        doc="how safe an image classifier finds a picture: a veto for `shaping.gates`",
        target="flowalign.rewards.nsfw:from_config",
    ),
    Entry(
        name="vendi",
        doc="diversity of a set: Vendi score of CLIP features (set reward: dragon, evaluation)",
        target="flowalign.rewards.vendi:from_config",
    ),
    Entry(
        name="frechet",
        doc="a set against exemplars: minus the Frechet distance (set reward)",
        target="flowalign.rewards.frechet:from_config",
    ),
    Entry(
        name="mmd",
        doc="a set against exemplars: minus the squared MMD (set reward)",
        target="flowalign.rewards.mmd:from_config",
    ),
    Entry(
        name="centroid",
        doc="a set against exemplars: cosine of the means (set reward)",
        target="flowalign.rewards.centroid:from_config",
    ),
    Entry(
        name="exemplar",
        doc="a sample against exemplars: cosine to their mean or the nearest; Frechet of patches",
        target="flowalign.rewards.exemplar:from_config",
    ),
    Entry(
        name="dino",
        doc="a sample against reference pictures: cosine of DINO features",
        target="flowalign.rewards.dino:from_config",
    ),
    Entry(
        name="vqascore",
        doc="VQAScore: a vision-language model's yes to 'does this figure show the prompt?'",
        target="flowalign.rewards.vqascore:from_config",
    ),
    Entry(
        name="rewarddance",
        doc="RewardDance: a vision-language model finds it better than reference pictures",
        target="flowalign.rewards.rewarddance:from_config",
    ),
    Entry(
        name="questions",
        doc="yes/no questions of each prompt, in levels, to a vision-language model (HiCoGen)",
        target="flowalign.rewards.questions:from_config",
    ),
    Entry(
        name="judge",
        doc="a vision-language model behind vLLM or SGLang: yes/no, ratings, rubrics, pairs "
        "(VQAScore, UnifiedReward; extra `judge`)",
        target="flowalign.rewards.judge:from_config",
    ),
    Entry(
        name="remote",
        doc="a reward in another environment, behind `flowalign serve` (extra `judge`)",
        target="flowalign.rewards.remote:from_config",
    ),
    Entry(
        name="recorded",
        doc="what people said of these very samples: scores of a JSONL file",
        target="flowalign.rewards.recorded:from_config",
    ),
    Entry(
        name="code",
        doc="your own: `my_rewards.py:Sharpness` with --allow-code my_rewards.py",
        target="flowalign.user_code:load_reward",
    ),
)

METHODS = (
    Entry(
        name="none",
        doc="plain sampling, as a reference",
        target="flowalign.config.steering:NoneConfig",
    ),
    Entry(
        name="best_of_n",
        doc="draw several and keep the best; with halvings, drop the worse on the way",
        target="flowalign.steering.best_of_n:best_of_n",
    ),
    Entry(
        name="fk",
        doc="Feynman-Kac steering: particles that target p(x) exp(lambda r(x)), with log Z",
        target="flowalign.steering.feynman_kac:feynman_kac",
    ),
    Entry(
        name="svdd",
        doc="of several next states one by its value, at every step (SVDD, the sampling form)",
        target="flowalign.steering.svdd:svdd",
    ),
    Entry(
        name="noise_search",
        doc="better initial noises: random, zero-order, or over paths; ranks of several rewards",
        target="flowalign.steering.noise_cases:searched",
    ),
    Entry(
        name="noise_optimization",
        doc="gradient ascent on the initial noise of a few-step model (ReNO)",
        target="flowalign.steering.noise_cases:climbed",
    ),
    Entry(
        name="flow_nrg",
        doc="guidance by a reward network on noisy latents, weights of its heads chosen now",
        target="flowalign.steering.noisy_guidance:GuidedChain",
    ),
    Entry(
        name="guidance",
        doc="universal guidance: each prediction moves up the gradient of differentiable rewards",
        target="flowalign.steering.gradient_cases:guided",
    ),
)

SAMPLERS = (
    Entry(
        name="ddim",
        doc="DDIM-eta on any path; keeps the marginals for every schedule; the default",
        target="flowalign.samplers.ddim:DDIM",
    ),
    Entry(
        name="flow_sde",
        doc="Flow-GRPO's SDE of rectified flows",
        target="flowalign.samplers.flow_sde:FlowSDE",
    ),
    Entry(
        name="cps",
        doc="coefficients-preserving sampling (Flow-CPS)",
        target="flowalign.samplers.cps:CPS",
    ),
    Entry(
        name="dance",
        doc="DanceGRPO's SDE",
        target="flowalign.samplers.dance:Dance",
    ),
    Entry(
        name="ode",
        doc="deterministic; for nft and for evaluation",
        target="flowalign.samplers.ode:ODE",
    ),
)

SCHEDULES = (
    Entry(
        name="constant",
        doc="the same noise level at every step",
        target="flowalign.config.sampling:ConstantNoise",
    ),
    Entry(
        name="linear",
        doc="falls linearly over the trajectory",
        target="flowalign.config.sampling:LinearNoise",
    ),
    Entry(
        name="cosine",
        doc="falls as a half cosine; the usual decaying schedule",
        target="flowalign.config.sampling:CosineNoise",
    ),
    Entry(
        name="exponential",
        doc="falls exponentially; `rate` 3 to 5",
        target="flowalign.config.sampling:ExponentialNoise",
    ),
    Entry(
        name="first_k",
        doc="noise in the first k steps only",
        target="flowalign.config.sampling:FirstKNoise",
    ),
    Entry(
        name="hicogen",
        doc="cosine between eta_max and eta_min (HiCoGen)",
        target="flowalign.config.sampling:HiCoGenNoise",
    ),
    Entry(
        name="window",
        doc="noise in a moving or fixed window of steps (MixGRPO, Flow-GRPO-Fast)",
        target="flowalign.config.sampling:WindowNoise",
    ),
)


def configs() -> tuple[Entry, ...]:
    """The shipped configs; what each is stands in its first line."""
    return tuple(
        Entry(name=name, doc=path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# "))
        for name, path in shipped_configs().items()
    )


def prompt_sets() -> tuple[Entry, ...]:
    """The built-in prompts, with how many there are of each category."""
    entries = []
    for split in grammar.SPLITS:
        counts = {name: len(grammar.prompts(split, name)) for name in CATEGORIES}
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        entries.append(Entry(name=f"shapes:{split}", doc=f"{sum(counts.values())}: {listed}"))
    files = Entry(name="FILE.txt, FILE.jsonl", doc="a prompt a line; or a key `prompt` a line")
    return (*entries, files)


def pipelines() -> tuple[Entry, ...]:
    """The pipeline classes of diffusers that were tried, and how each of them works."""
    families = importlib.import_module("flowalign.families").FAMILIES
    return tuple(Entry(name=family.name, doc=family.status) for family in families)


KINDS: Mapping[str, Callable[[], tuple[Entry, ...]]] = {
    "algorithms": lambda: ALGORITHMS,
    "methods": lambda: METHODS,
    "rewards": lambda: REWARDS,
    "samplers": lambda: SAMPLERS,
    "schedules": lambda: SCHEDULES,
    "models": lambda: MODELS,
    "pipelines": pipelines,
    "configs": configs,
    "prompts": prompt_sets,
}


def resolve(kind: str, name: str) -> Any:
    """The object that the short name stands for, imported now.

    Raises ConfigError with the nearest name for one that is not in the table.
    """
    table = {entry.name: entry for entry in KINDS[kind]()}
    if name not in table:
        what = f"unknown name '{name}'"
        raise ConfigError("CFG-CHOICE", kind, what, did_you_mean(name, table))
    target = table[name].target
    assert target is not None, f"{kind} have no objects"
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)
