"""Train the built-in noisy reward: `python -m flowalign.worlds.shapes.training.noisy_reward`.

Learns from the flow's own samples (where the wrong ones are) and from rendered pictures, right and
wrong in one respect, all of the training split and labelled by the exact verifier's parts. Both
are kept in DIR/examples.safetensors; the folder DIR/noisy_reward is the result. Weights are
rounded to bfloat16 before accuracy is measured.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowalign.config.jobs import NOISY
from flowalign.config.load import load_for
from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.noisy_reward.examples import Drawing, Examples, drawn_examples, joined, texts_of
from flowalign.noisy_reward.files import save_reward
from flowalign.noisy_reward.job import fitted
from flowalign.pipelines.load import load_pipeline, make_generator
from flowalign.prompts import Prompt
from flowalign.protocols import Generator
from flowalign.rollout import PromptCache, Request, as_samples, training_plan
from flowalign.scoring import RewardSuite, build_suite
from flowalign.worlds.shapes.corruptions import corrupt
from flowalign.worlds.shapes.grammar import parse, prompts
from flowalign.worlds.shapes.render import pictures
from flowalign.worlds.shapes.scene import Scene

# Prompts of each category. Relations are the hardest to read, and most often wrong.
OWN = {"relation": 360, "two": 160, "count": 160, "three": 100, "single": 60}
RENDERED = {"relation": 900, "two": 300, "count": 300, "three": 150, "single": 100}
SAMPLES_PER_PROMPT = 8
OTHER_PROMPTS = 2
KINDS = ("relation", "binding", "colour", "count")  # what is wrong in rendered pictures
CHUNK = 64
TOLD_STEPS = 50


def chosen(counts: dict[str, int], seed: int) -> list[str]:
    """So many different prompts of the training split, by category."""
    rng = random.Random(f"noisy reward/{seed}")
    return [text for name, n in counts.items() for text in rng.sample(prompts("train", name), n)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Renders:
    """Prompts, and pictures of their scenes and of those wrong in one respect."""

    texts: list[str]
    owner: list[int]  # of each picture, place of its prompt
    media: Tensor  # (n, 3, H, W)


def renders(seed: int) -> Renders:
    """Of each prompt its own scene first."""
    rng, key = random.Random(seed), torch.Generator().manual_seed(seed)
    texts = chosen(RENDERED, seed + 1)
    scenes: list[tuple[int, Scene]] = []
    for place, text in enumerate(texts):
        scene = parse(text)
        wrong = [corrupt(scene, kind, rng) for kind in KINDS]
        scenes += [(place, each) for each in (scene, *wrong) if each is not None]
    media = pictures([scene for _, scene in scenes], key)
    return Renders(texts=texts, owner=[place for place, _ in scenes], media=media)


def rendered_examples(generator: Generator, suite: RewardSuite, seed: int) -> list[Examples]:
    """Renders under their own prompts, and twice under prompts of others.

    Few of a model's samples have wrong colours. Other prompts have, so that the network soon finds
    out that words and pictures have to do with each other.
    """
    found = renders(seed)
    with torch.no_grad():
        parts = [generator.encode_media(media).float() for media in found.media.split(CHUNK)]
    latents = torch.cat(parts)
    text, card = texts_of(PromptCache(generator), found.texts)
    examples = []
    for turn in range(1 + OTHER_PROMPTS):
        key = torch.Generator().manual_seed(seed + turn)
        order = torch.randperm(len(found.texts), generator=key) if turn else None
        owner = torch.tensor(found.owner)
        owner = owner if order is None else order[owner]
        requests = [
            Request(prompt=found.texts[p], prompt_id=p, sample_id=i, start_id=i, group=p)
            for i, p in enumerate(owner.tolist())
        ]
        scores = suite.score(as_samples(generator, found.media, requests, seed=0))
        examples.append(
            Examples(
                heads=tuple(suite.names),
                latents=latents,
                prompt=owner,
                reward=torch.stack([scores.terms[name] for name in suite.names], dim=1),
                valid=torch.stack([scores.valid[name] for name in suite.names], dim=1),
                text=text,
                text_card=card,
            )
        )
    return examples


def prepare(config: NoisyRewardConfig, generator: Generator, cache: Path) -> Examples:
    """Draw, render and score; read the cache where it exists."""
    suite = build_suite(config.rewards)
    if cache.exists():
        tensors = load_file(cache)
        _, card = texts_of(PromptCache(generator), ["a red circle"])
        return Examples(heads=tuple(suite.names), text_card=card, **tensors)
    drawing = Drawing(
        generator=generator,
        plan=training_plan(generator, config.sampler, training_step=0, seed=config.seed),
        cache=PromptCache(generator),
        batch_size=config.batch_size,
        seed=config.seed,
    )
    own = [
        Prompt(text=text, category=None, prompt_id=i)
        for i, text in enumerate(chosen(OWN, config.seed))
    ]
    found = joined(
        [
            drawn_examples(drawing, own, suite, SAMPLES_PER_PROMPT),
            *rendered_examples(generator, suite, config.seed),
        ]
    )
    tensors = {name: getattr(found, name) for name in ("latents", "prompt", "reward", "valid")}
    save_file({**tensors, "text": found.text}, cache)
    return found


def main() -> None:
    """Prepare, train, round, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sets = [f"seed={args.seed}", f"train.steps={args.steps}"]
    config = load_for(NOISY, "shapes_noisy_reward", sets).config
    device = torch.device("cpu")
    generator = make_generator(load_pipeline(config.model, device), config.model)
    examples = prepare(config, generator, args.out / "examples.safetensors")
    counts = examples.valid.sum(0).tolist()
    known = [f"{name} {n}" for name, n in zip(examples.heads, counts, strict=True)]
    print(f"examples: {', '.join(known)}; cpu {time.process_time():.0f} s", flush=True)

    recent: list[float] = []

    def log(step: int, loss: float) -> None:
        recent.append(loss)
        if len(recent) == TOLD_STEPS:
            mean = sum(recent) / TOLD_STEPS
            print(f"step {step + 1} loss {mean:.4f} cpu {time.process_time():.0f} s", flush=True)
            recent.clear()

    network, card = fitted(
        examples,
        generator.path,
        objective=config.objective,
        sizes=config.network,
        settings=config.train,
        seed=config.seed,
        device=device,
        on_step=log,
        measured=examples.prompt < sum(OWN.values()),
    )
    save_reward(args.out / "noisy_reward", network, card, torch.bfloat16)
    print(card.trained["pairwise_accuracy_by_level"], f"cpu {time.process_time():.0f} s")


if __name__ == "__main__":
    main()
