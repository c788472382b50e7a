"""The schema of one run: a YAML file is a `RunConfig`, and nothing else decides what runs.

Torch-free, so that every mistake in a config is told within a second. A field's comment-string
below it is its documentation (`flowalign config docs`) and its help in editors (JSON schema).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.algorithms import AlgorithmConfig
from flowalign.config.attention import DenoiserAttention
from flowalign.config.data import DataConfig
from flowalign.config.monitor import MonitorConfig
from flowalign.config.rewards import RewardConfig
from flowalign.config.sampling import SamplerConfig, Section
from flowalign.config.shaping import ShapingConfig

Scalar = bool | int | float | str


class ModelConfig(Section):
    """Which generator, and how it is called."""

    name: str = "shapes"
    """`shapes` or `shapes_sd` (built in), a local folder in diffusers format, or a Hub id."""
    revision: str | None = None
    """Commit of the Hub repository; pin it for a reproducible run."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Storage type of the frozen weights. Trained weights are float32."""
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0
    """Guidance of rollout and training alike; 1 is none where the pipeline doubles the batch."""
    resolution: Annotated[int, Field(ge=1)] | None = None
    """Height and width in pixels; the pipeline's default when absent."""
    num_frames: Annotated[int, Field(ge=1)] | None = None
    """Frames of a video; the pipeline's default when absent."""
    call: dict[str, Scalar] = Field(default_factory=dict)
    """Further keyword arguments of the pipeline's call, for example `max_sequence_length: 0`."""
    attention: DenoiserAttention = "auto"
    """Kernel of the denoiser's attention: `sdpa` (PyTorch's), `xformers`, `fa3`, `fa4`, a backend
    of diffusers' dispatcher, or `auto`: on a GPU the fastest that is right on this model's calls.
    Times differ from run to run; name a kernel where two runs must agree bit for bit."""


class LoraConfig(Section):
    """The low-rank adapter that is trained; the base stays as it is and is the reference."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank r of the update B A."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ("attention", "feed_forward")
    """Linear layers to adapt: `attention`, `feed_forward`, `all`, or endings of module names."""
    init_from: str | None = None
    """A folder or file of LoRA weights to start from."""


class PromptsConfig(Section):
    """Where prompts come from."""

    train: str | tuple[str, ...] = "shapes:train"
    """`shapes:train`, a `.txt` (a prompt a line) or `.jsonl` (key `prompt`) file, or a list."""
    evaluation: str | tuple[str, ...] = "shapes:heldout"
    """The same for evaluation; never trained on."""
    categories: tuple[str, ...] = ()
    """Only these categories of the shapes world; all when empty."""
    max_train: Annotated[int, Field(ge=1)] | None = None
    """At most so many training prompts, chosen by the seed."""
    duplicates: Literal["keep", "dedupe", "fail"] = "keep"
    """What to do with prompts that stand twice in the file; `keep` warns."""
    strict_split: bool = False
    """Fail, instead of warn, when training and evaluation share a prompt."""
    strict_length: bool = False
    """Fail, instead of warn, when the encoder cuts a prompt."""
    allow_empty_prompt: bool = False
    """Accept prompts of white space only."""


class RolloutConfig(Section):
    """How many samples an update learns from."""

    num_prompts: Annotated[int, Field(ge=1)] = 24
    """Distinct prompts of one training step, over all processes."""
    group_size: Annotated[int, Field(ge=1)] = 16
    """Samples of each prompt; 2 where `data:` are pairs."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples of one network call; a multiple of `group_size`. The same on any process count."""
    same_initial_noise: bool = False
    """Start a group from one initial noise, so that only the stochastic steps differ."""
    policy: Literal["trained", "reference"] = "trained"
    """Samples are drawn by the policy as it is trained, or by the frozen start, so that what
    people said of them stays true; on-policy algorithms need `trained`."""
    repeat_samples: bool = False
    """A prompt that comes again has the same sample ids: with `policy: reference` the very same
    samples, for example those that people scored."""
    latent_dtype: Literal["fp32", "bf16"] = "fp32"
    """Latents are stored and fed back in this type; log-probs are computed after rounding."""

    @property
    def num_samples(self) -> int:
        """Samples of one training step."""
        return self.num_prompts * self.group_size


class TrainConfig(Section):
    """The optimiser's side."""

    steps: Annotated[int, Field(ge=1)] = 100
    """Training steps; each is one rollout and the algorithm's updates."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """AdamW's step size after warm-up."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or cosine down to 0 at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises linearly."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first-moment decay."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's second-moment decay."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """AdamW's decoupled decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient's global norm is clipped to this."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples of one forward and backward pass (micro-batch); gradients accumulate to an update."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Autocast of network passes in rollout and training alike."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per update of the averaged weights used for evaluation; none when absent."""
    guidance_gradient: Literal["full", "conditional"] = "full"
    """`full`: through both halves of guidance; `conditional`: the unconditional half is a constant,
    as in Flow-GRPO's code, and costs no backward pass."""
    exact_speedups: bool = True
    """Save passes where the gradient stays equal: LoRA merged while sampling; with a conditional
    gradient no graph of the unconditional half, and its rollout's output at the first update."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A NaN in loss or gradient: stop (exit 9), or skip the update (5 in a row stop)."""
    save_every: Annotated[int, Field(ge=1)] | Literal["never"] = 25
    """Training steps between checkpoints; the last step is always saved."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Complete checkpoints kept."""


class EvaluationConfig(Section):
    """Held-out prompts with fixed seeds, before, during and after training."""

    every: Annotated[int, Field(ge=1)] | Literal["never"] = 25
    """Training steps between evaluations; step 0 and the last are always evaluated."""
    num_prompts: Annotated[int, Field(ge=1)] = 100
    """Held-out prompts, chosen by the seed, the same at every step."""
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    """Samples of each prompt, each with its own seed."""
    num_steps: Annotated[int, Field(ge=1)] = 10
    """Steps of the deterministic sampler."""
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    """Guidance in evaluation; the model's when absent."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples of one network call."""
    save_images: Annotated[int, Field(ge=0)] = 64
    """Samples of each evaluation written as files for the gallery."""


class RunConfig(Section):
    """One complete training run."""

    output: str
    """Directory of the run: config, metrics, checkpoints, evaluation samples."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random number of the run is a function of this and of its own key."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    model: ModelConfig = ModelConfig()
    lora: LoraConfig | None = LoraConfig()
    """The adapter; `null` trains all weights of the denoiser (a second copy is the reference)."""
    prompts: PromptsConfig = PromptsConfig()
    data: DataConfig | None = None
    """Learn from pairs or scored samples; then `rewards`, `prompts.train` and the way samples are
    drawn have no say, and held-out rewards evaluate."""
    rewards: tuple[RewardConfig, ...] = ()
    """What is trained on: a weighted list; needed unless there is `data:`."""
    held_out_rewards: tuple[RewardConfig, ...] = ()
    """Scored in evaluation only: reward hacking shows here."""
    shaping: ShapingConfig | None = None
    """How rewards are shaped and combined before they become credit; a weighted sum when absent."""
    reward_failure: Literal["raise", "drop"] = "raise"
    """A reward that fails for a sample stops the run, or the sample is masked and counted."""
    reward_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds one reward call of one batch may take."""
    peer_timeout_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """Seconds after which a process that does not answer the others is lost, and all end; more
    than the longest evaluation or reward call of one process."""
    sampler: SamplerConfig = SamplerConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig
    """The objective, and how rewards become credit."""
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    monitor: MonitorConfig = MonitorConfig()
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Beside the built-in metrics.jsonl."""
