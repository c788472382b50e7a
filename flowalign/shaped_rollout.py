"""Shaping inside training: the step's rewards as they are taught, with references where needed."""

from __future__ import annotations

from dataclasses import replace

import torch

from flowalign.assembly import Session
from flowalign.collection import Collected, collect
from flowalign.config.shaping_checks import DISAGREEMENT
from flowalign.constraints import multiplier_numbers
from flowalign.mixtures import mixed
from flowalign.rollout import Request, training_plan
from flowalign.scoring import combine
from flowalign.shaping import num_references, remember, shaped, without_reference
from flowalign.types import Needs


def taught(session: Session, collected: Collected) -> Collected:
    """`collected` with shaped rewards in the place of scores; itself without `shaping`."""
    if session.shaping is None:
        return collected
    memory = session.state.memory
    if num_references(session.shaping):
        draw_references(session, without_reference(collected.scored.prompt_id, memory))
    scored = mixed(collected.scored, session.shaping.mixes, memory)
    scored = shaped(scored, session.shaping, memory)
    rollout, index = collected.rollout, collected.index
    if rollout is not None:
        reward, usable = combine(scored.terms, scored.valid, scored.weights)
        rollout = replace(
            rollout,
            reward=reward[index],
            valid=usable[index],
            reward_terms={name: value[index] for name, value in scored.terms.items()},
            term_valid={name: scored.valid[name][index] for name in scored.terms},
            weights=scored.weights,
        )
    return replace(collected, scored=scored, rollout=rollout)


def shaping_numbers(session: Session, lesson: Collected) -> dict[str, float]:
    """What a step's metrics tell of shaping: multipliers, an ensemble's disagreement."""
    if session.shaping is None:
        return {}
    scored, constraints = lesson.scored, session.shaping.constraints
    found = multiplier_numbers(constraints, session.state.memory)
    if DISAGREEMENT in scored.terms and scored.valid[DISAGREEMENT].any():
        apart = scored.terms[DISAGREEMENT][scored.valid[DISAGREEMENT]]
        found[f"shaping/{DISAGREEMENT}"] = float(apart.double().mean())
    return found


def draw_references(session: Session, prompts: list[int]) -> None:
    """Sample the frozen start for `prompts` (ids), score the samples and keep the scores.

    They are drawn as the rollout's samples are, from noise of their own.
    """
    assert session.shaping is not None, "only shaping needs references"
    if not prompts:
        return
    config, progress = session.config, session.state.progress
    count = num_references(session.shaping)
    texts = {prompt.prompt_id: prompt.text for prompt in session.train_prompts}
    wanted = [
        Request(prompt=texts[one], prompt_id=one, sample_id=k, start_id=k, group=group)
        for group, one in enumerate(prompts)
        for k in range(count)
    ]
    plan = training_plan(
        session.generator, config.sampler, training_step=progress.step, seed=config.seed
    )
    with session.policy.reference(), session.processes.accelerator.autocast():
        found = collect(
            session.policy,
            plan,
            wanted,
            cache=session.cache,
            suite=session.train_rewards,
            weights=session.weights,
            processes=session.processes,
            chunk_size=config.rollout.batch_size // count * count,  # whole prompts in a chunk
            seed=config.seed,
            dtype=torch.float32 if config.rollout.latent_dtype == "fp32" else torch.bfloat16,
            needs=Needs(),
            stream="reference",
        )
    progress.evaluations += len(wanted) * config.sampler.num_steps
    remember(prompts, found.scored, session.shaping, session.state.memory)
