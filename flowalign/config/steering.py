"""Schema of one steering job: a YAML file is a `SteerConfig`. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.flow_nrg import FlowNRGConfig
from flowalign.config.gradient_methods import GuidanceConfig
from flowalign.config.learned_value import LearnedValueConfig
from flowalign.config.noise_methods import NoiseOptimizationConfig, NoiseSearchConfig
from flowalign.config.rewards import RewardConfig
from flowalign.config.sampling import SamplerConfig, Section
from flowalign.config.schema import ModelConfig

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)] | None
Preview = Literal["decode", "linear"]


class AdapterConfig(Section):
    """An adapter that is put on the model before it is steered."""

    init_from: str
    """A folder or file of LoRA weights, for example the folder `lora` of a training run."""


class SteerPromptsConfig(Section):
    """What is drawn."""

    source: str | tuple[str, ...] = "shapes:heldout"
    """`shapes:heldout`, a `.txt` (a prompt a line) or `.jsonl` (key `prompt`) file, or a list."""
    num_prompts: Annotated[int, Field(ge=1)] | None = None
    """At most so many, those that a training run of this seed evaluates; all when absent."""
    categories: tuple[str, ...] = ()
    """Only these categories of the shapes world; all when empty."""
    duplicates: Literal["keep", "dedupe", "fail"] = "keep"
    """What to do with prompts that stand twice in the file; `keep` warns."""
    strict_length: bool = False
    """Fail, instead of warn, when the encoder cuts a prompt."""
    allow_empty_prompt: bool = False
    """Accept prompts of white space only."""


class NoneConfig(Section):
    """Plain sampling, as a reference."""

    name: Literal["none"]


class BestOfNConfig(Section):
    """Draw several, keep the best; with `halvings`, drop the worse half on the way."""

    name: Literal["best_of_n"]
    candidates: Count = None
    """Samples drawn of each prompt; when absent what `budget` pays, 4 without one."""
    halvings: Annotated[int, Field(ge=0)] = 0
    """How often the worse half is dropped, judged by its predicted end (successive halving)."""
    start: Share = 0.4
    """Share of the steps before the first halving."""
    stop: Share = 0.8
    """Share of the steps before the last halving."""
    preview: Preview = "decode"
    """How a predicted end becomes media: `decode`, or `linear`, a map fitted on the spot."""
    output: Literal["best", "all"] = "best"
    """What is returned: the best, or all that were finished."""


class FKConfig(Section):
    """Feynman-Kac steering (arXiv 2501.06848): particles that target p(x) exp(lambda r(x))."""

    name: Literal["fk"]
    particles: Count = None
    """Particles of each prompt; when absent what `budget` pays, 4 without one."""
    strength: Annotated[float, Field(ge=0)] = 10.0
    """lambda. lambda times the reward's spread should be some 2 to 10."""
    potential: Literal["difference", "max", "sum", "reward_to_go"] = "difference"
    """How rewards on the way become weights; the target is the same for all."""
    resampling: Literal["multinomial", "stratified", "systematic", "ssp"] = "systematic"
    """How ancestors are drawn."""
    ess_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Resample when the effective sample size is below this share of the particles; 1 is always."""
    looks: Annotated[int, Field(ge=1)] | Literal["every_step"] = 4
    """How often the particles are judged and may be resampled before the end."""
    start: Share = 0.2
    """Share of the noisy steps before the first look."""
    stop: Share = 0.8
    """Share of the noisy steps before the last look."""
    preview: Preview = "decode"
    """How a predicted end becomes media: `decode`, or `linear`, a map fitted on the spot."""
    learned: LearnedValueConfig | None = None
    """Judge states on the way by a network trained for it, decode only ends; the target is the
    same."""
    proposal: Literal["sampler", "gradient"] = "sampler"
    """Draw next states from the sampler, or from its law moved up the gradient of the rewards
    (TDS, arXiv 2306.17775; with `tempering` DAS, 2501.05803): the target is the same, fewer
    particles do. Each twisted step takes 3 evaluations; use `looks: every_step`."""
    tempering: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Raise lambda from look to look only as far as this share of the effective sample size
    remains (less than `ess_threshold`); when absent lambda is the same at every look."""
    output: Literal["best", "draw", "all"] = "best"
    """What is returned: the best, one drawn by weight, or all with their weights."""


class SVDDConfig(Section):
    """Of several next states, one by its value, at every step (arXiv 2408.08252)."""

    name: Literal["svdd"]
    candidates: Count = None
    """Next states tried at each step; when absent what `budget` pays, 4 without one."""
    strength: Annotated[float, Field(ge=0)] = 10.0
    """lambda: a state is chosen with probability proportional to exp(lambda r)."""
    preview: Preview = "decode"
    """How a predicted end becomes media: `decode`, or `linear`, a map fitted on the spot."""
    learned: LearnedValueConfig | None = None
    """Judge states by a network trained for it, and decode only ends."""


MethodConfig = Annotated[
    NoneConfig
    | BestOfNConfig
    | FKConfig
    | SVDDConfig
    | NoiseSearchConfig
    | NoiseOptimizationConfig
    | FlowNRGConfig
    | GuidanceConfig,
    Field(discriminator="name"),
]


class ComparedConfig(Section):
    """A further method, with its title."""

    label: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    """What galleries and tables call it; the method's name when absent."""
    method: MethodConfig
    """How samples are steered."""


class CompareConfig(Section):
    """What is run beside `method`, on the same prompts, seeds and rewards."""

    methods: tuple[ComparedConfig, ...] = ()
    """Further methods, each at the budget of `method`."""
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Further budgets; every method is run at each of them as well."""


class SteerConfig(Section):
    """One complete steering job: better samples from a model as it is."""

    output: str
    """Directory of the job: config, samples, scores, the particles' history."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random number of the job is a function of this and of its own key."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    model: ModelConfig = ModelConfig()
    lora: AdapterConfig | None = None
    """The adapter of a tuned model; none when absent."""
    prompts: SteerPromptsConfig = SteerPromptsConfig()
    rewards: Annotated[tuple[RewardConfig, ...], Field(min_length=1)]
    """What is steered by: a weighted list."""
    held_out_rewards: tuple[RewardConfig, ...] = ()
    """Scored at the end only: reward hacking shows here."""
    reward_failure: Literal["raise", "drop"] = "raise"
    """A reward that fails for a sample stops the job, or the sample is masked and counted."""
    reward_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds one reward call of one batch may take."""
    sampler: SamplerConfig = SamplerConfig()
    method: MethodConfig
    """How samples are steered."""
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    """Independent repetitions of the method for each prompt."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """Network evaluations that one repetition may take; decides the number of particles."""
    compare: CompareConfig = CompareConfig()
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples of one network call or decoding."""
    baseline: bool = True
    """Draw plain samples of the same seeds as well, to compare with; outside the budget."""
