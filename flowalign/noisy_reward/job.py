"""From a config to a finished noisy reward: examples, network, card. Nothing is written before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from flowalign.config.noisy_card import Card, NetworkCard
from flowalign.config.noisy_reward import (
    NoisyRewardConfig,
    NoisyTrainConfig,
    ObjectiveConfig,
    SoftValueConfig,
)
from flowalign.errors import ResourceError, StopRequested
from flowalign.metrics import Progress
from flowalign.noisy_reward.examples import Drawing, Examples, drawn_examples, read_examples
from flowalign.noisy_reward.files import save_reward
from flowalign.noisy_reward.fit import (
    Fit,
    accuracy,
    network_card,
    new_network,
    scaled_rewards,
    split_by_prompt,
    train,
)
from flowalign.noisy_reward.network import NoisyReward
from flowalign.noisy_reward.objectives import BradleyTerry, Objective, SoftValue
from flowalign.pipelines.load import load_pipeline, make_generator
from flowalign.processes import Processes, start_processes
from flowalign.protocols import Path as FlowPath
from flowalign.rollout import PromptCache, training_plan
from flowalign.scoring import build_suite
from flowalign.signals import Signals
from flowalign.steering.session import check_alone, read_steer_prompts

TOLD_SAMPLES = 1024  # a line for so many


def train_noisy(
    config: NoisyRewardConfig, *, allow_code: Sequence[str] = (), told: bool = True
) -> Card:
    """Train the reward of a config and write its folder.

    Raises:
        ResourceError: the output exists and is not an empty folder.
    """
    folder = Path(config.output)
    check_new(folder)
    processes = start_processes(config.device, "no")
    check_alone(processes, "flowalign reward train-noisy")
    with Signals() as signals:
        watch = Watch(config.train.steps, config.train.batch_size, told, signals)
        path, examples = gathered(config, processes, allow_code, watch.gathered)
        network, card = fitted(
            examples,
            path,
            objective=config.objective,
            sizes=config.network,
            settings=config.train,
            seed=config.seed,
            device=processes.device,
            on_step=watch.step,
        )
        watch.close()
    card = card.model_copy(update={"trained": {"model": config.model.name, **card.trained}})
    save_reward(folder, network, card)
    return card


def check_new(folder: Path) -> None:
    """Raise ResourceError unless a folder may be made there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "choose another output"
        raise ResourceError("RUN-OUTPUT", str(folder), "exists and is not empty", fix)


def gathered(
    config: NoisyRewardConfig,
    processes: Processes,
    allow_code: Sequence[str],
    on_samples: Callable[[int], None],
) -> tuple[FlowPath, Examples]:
    """The model's path, and own samples or those of a file; `on_samples` hears how many so far."""
    suite = build_suite(
        config.rewards,
        allow_code=allow_code,
        device=processes.device,
        failure=config.reward_failure,
        timeout_s=config.reward_timeout_s,
    )
    prompts = [] if config.data else read_steer_prompts(config.prompts, config.seed)
    generator = make_generator(load_pipeline(config.model, processes.device), config.model)
    if config.data is not None:
        return generator.path, read_examples(config.data, generator, on_samples)
    drawing = Drawing(
        generator=generator,
        plan=training_plan(generator, config.sampler, training_step=0, seed=config.seed),
        cache=PromptCache(generator),
        batch_size=config.batch_size,
        seed=config.seed,
    )
    examples = drawn_examples(drawing, prompts, suite, config.samples_per_prompt, on_samples)
    return generator.path, examples


def fitted(
    examples: Examples,
    path: FlowPath,
    *,
    objective: ObjectiveConfig,
    sizes: NetworkCard,
    settings: NoisyTrainConfig,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, float], None] | None = None,
    measured: torch.Tensor | None = None,
) -> tuple[NoisyReward, Card]:
    """A trained network and its card, with the accuracy on prompts that it never saw.

    `measured` (N,) bool says which examples accuracy is told of; all when absent.
    """
    split = split_by_prompt(examples, settings.held_out, seed)
    card = network_card(examples, path, sizes, split.train)
    fit = Fit(
        network=new_network(card, seed).to(device),
        path=path,
        examples=examples,
        scaled=scaled_rewards(examples, card.heads),
        rows=split.train,
        objective=objective_of(objective),
        settings=settings,
        seed=seed,
        device=device,
    )
    train(fit, on_step)
    told = split.held_out if measured is None else split.held_out[measured[split.held_out]]
    trained = {
        "objective": objective.model_dump(),
        "samples": len(split.train),
        "held_out_samples": len(told),
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seed": seed,
        "pairwise_accuracy_by_level": accuracy(fit, told),
    }
    return fit.network, card.model_copy(update={"trained": trained})


def objective_of(config: ObjectiveConfig) -> Objective:
    """The loss of a config's section."""
    if isinstance(config, SoftValueConfig):
        return SoftValue(strength=config.strength)
    return BradleyTerry(ties=config.ties)


class Watch:
    """What is told while the network learns, and where a signal is obeyed."""

    def __init__(self, total: int, batch_size: int, told: bool, signals: Signals) -> None:
        self.signals, self.batch_size = signals, batch_size
        self.progress = Progress(total, label="loss") if told else None

    def gathered(self, count: int) -> None:
        """After so many samples in all. Raises StopRequested when a signal asked for it."""
        self.obey()
        if self.progress is not None and not count % TOLD_SAMPLES:
            self.progress.message(f"{count} samples")

    def step(self, step: int, loss: float) -> None:
        """After a step. Raises StopRequested when a signal asked for it; nothing is written."""
        self.obey()
        if self.progress is not None:
            self.progress.update(step + 1, reward=loss, samples=self.batch_size)

    def obey(self) -> None:
        """Stop where a signal asked for it."""
        action = self.signals.poll()
        if action.stop:
            raise StopRequested(action.exit_code)

    def close(self) -> None:
        """End the line."""
        if self.progress is not None:
            self.progress.close()
