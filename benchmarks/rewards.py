"""What rewards cost: pictures a second, the share of an epoch, and what overlap hides.

    python -m benchmarks.rewards                # everything: about a minute of one core
    python -m benchmarks.rewards --rounds 7     # tighter

On the CPU, 32 x 32 pictures of the shapes world. Heads run on tiny random towers of their real
classes, so their lines are the cost of the path around a tower, not of a published checkpoint;
`remote` and `judge` count both sides, since client and server share this process. Costs are CPU
seconds (medians), so that a busy machine does not change them. The share is against the rest of a
DiffusionNFT step on the built-in model, at the same number of samples.

Overlap: a sampler that waits for its device as long as its reward sleeps. Hidden is
1 - (time with the reward - time without) / (time asleep), medians of interleaved pairs; the exit
code is 1 below 80 percent.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.training import cpu_seconds, paired
from flowalign.assembly import assemble
from flowalign.collection import collect, requests
from flowalign.config.load import load_config
from flowalign.config.sampling import SamplerConfig
from flowalign.judges import questions
from flowalign.media import save_image
from flowalign.policy import full_policy
from flowalign.processes import Processes, start_processes
from flowalign.prompts import Prompt
from flowalign.reward_call import Entry
from flowalign.rollout import PromptCache, training_plan
from flowalign.run_directory import open_run
from flowalign.scoring import RewardSuite, build_suite
from flowalign.signals import Signals
from flowalign.trainer import Loop
from flowalign.types import Needs, Sample
from tests.fault_server import FaultServer
from tests.judges.stub import MODELS, judge, says_yes, scores_by
from tests.rewards.served import client, served
from tests.rewards.test_heads import HEADS
from tests.rewards.tiny_heads import write_head, write_tiny_dino, write_tiny_siglip
from tests.rewards.world import Scorer, true_samples, write_tiny_clip
from tests.toy_run import ToyGenerator

BUILT_IN = (
    {"name": "shapes"},
    {"name": "clip"},
    {"name": "jpeg"},
    {"name": "picture", "measure": "saturation"},
)
NUM_SAMPLES = 64
CHUNKS, STEPS, WAIT_S = 8, 4, 0.2  # of the overlap; seconds for a chunk's sampling, and its score
MUST_HIDE = 0.8


@contextmanager
def suites(folder: Path) -> Iterator[dict[str, RewardSuite]]:
    """Every reward that runs here, by name, each alone in a suite."""
    write_tiny_clip(folder / "clip")
    write_tiny_siglip(folder / "siglip")
    write_tiny_dino(folder / "dino")
    write_head(folder / "head.safetensors")
    (folder / "pictures").mkdir()
    for i, one in enumerate(true_samples(3)):
        save_image(folder / "pictures" / f"{i}.png", one.media)
    sets = f"rewards={json.dumps(BUILT_IN)}"
    config = load_config("shapes_nft", [sets, "held_out_rewards=[]"], []).config
    found = {one.name: build_suite([one]) for one in config.rewards}
    found |= {f"{name} (tiny)": build_suite([head(folder)]) for name, head in HEADS.items()}
    with ExitStack() as stack:
        url = stack.enter_context(served(found["jpeg"].entries))
        found["remote (jpeg)"] = alone(client(url))
        server = stack.enter_context(FaultServer(says_yes, models=MODELS))
        instruction = questions.yes_no("image", None, text_answer=False)
        found["judge (stub)"] = alone(scores_by(judge(server.url), instruction))
        yield found


def alone(reward: Any) -> RewardSuite:
    return RewardSuite(entries=[Entry(label="reward", reward=reward)], timeout_s=120.0)


def seconds_a_picture(suite: RewardSuite, samples: Sequence[Sample], rounds: int) -> float:
    """CPU seconds; the first call, which fills caches of texts, is not counted."""
    suite.score(samples)
    return median(cpu_seconds(lambda: suite.score(samples)) for _ in range(rounds)) / len(samples)


def seconds_a_sample(rounds: int) -> float:
    """CPU seconds a sample of a DiffusionNFT step on the built-in model, rollout and updates."""
    with tempfile.TemporaryDirectory(prefix="flowalign-") as name, Signals() as signals:
        output = Path(name) / "run"
        small = {
            "output": str(output),
            "rewards": [{"name": "jpeg"}],
            "rollout.num_prompts": 4,
            "rollout.group_size": 8,
            "rollout.batch_size": 32,
            "train.batch_size": 32,
        }
        sets = [f"{key}={json.dumps(value)}" for key, value in small.items()]
        config = load_config("shapes_nft", sets, []).config
        run = open_run(output, "{}\n")
        session = assemble(config, processes=start_processes("cpu", "no"))
        loop = Loop(session=session, run=run, outlets=None, signals=signals)
        try:
            loop.training_step()
            times = [cpu_seconds(loop.training_step) for _ in range(rounds)]
        finally:
            run.close()
    return median(times) / config.rollout.num_samples


def speeds(rounds: int) -> None:
    """The table of part one."""
    rest = seconds_a_sample(rounds)
    print(f"a step of DiffusionNFT on the built-in model: {1e3 * rest:.1f} ms of CPU a sample\n")
    print(f"{'reward':24}{'pictures/s':>12}{'share of an epoch':>20}")
    with tempfile.TemporaryDirectory(prefix="flowalign-") as name:
        samples = true_samples(NUM_SAMPLES)
        with suites(Path(name)) as found:
            for label, suite in found.items():
                cost = seconds_a_picture(suite, samples, rounds)
                print(f"{label:24}{1 / cost:12.0f}{cost / (cost + rest):20.1%}", flush=True)


def asleep(seconds: float, samples: Sequence[Sample]) -> Tensor:
    """A reward that takes a known time and no processor."""
    time.sleep(seconds)
    return torch.stack([sample.media.mean() for sample in samples])


def rollout_seconds(reward_s: float) -> float:
    """Wall time of a rollout of CHUNKS chunks whose scores take `reward_s` each."""
    generator = ToyGenerator()
    prompts = [Prompt(text=f"prompt {k}", category=None, prompt_id=k) for k in range(CHUNKS)]
    process: Any = SimpleNamespace(
        process_index=0, num_processes=1, device=torch.device("cpu"), is_main_process=True
    )
    suite = alone(Scorer(answer=partial(asleep, reward_s)))
    begin = time.monotonic()
    collect(
        full_policy(generator),
        training_plan(generator, SamplerConfig(num_steps=STEPS), training_step=0, seed=1),
        requests(prompts, 0, CHUNKS, 4, seed=1, shared=False),
        cache=PromptCache(generator),
        suite=suite,
        weights=suite.weights,
        processes=Processes(process),
        chunk_size=4,
        seed=1,
        dtype=torch.float32,
        needs=Needs(),
        on_step=partial(time.sleep, WAIT_S / STEPS),
    )
    return time.monotonic() - begin


def overlap(rounds: int) -> bool:
    """Part two, for rewards of half the sampling's time, of the same, and of double."""
    print(f"\noverlap, {CHUNKS} chunks sampled in {WAIT_S} s each")
    print(f"{'reward / sampling':24}{'hidden':>12}{'possible':>12}")
    good = True
    for ratio in (0.5, 1.0, 2.0):
        slow = ratio * WAIT_S
        with_reward: Callable[[], float] = partial(rollout_seconds, slow)
        pairs = paired(with_reward, partial(rollout_seconds, 0.0), rounds)
        hidden = 1 - median(a - b for a, b in pairs) / (CHUNKS * slow)
        sampling = median(b for _, b in pairs) / CHUNKS
        # Beside each chunk but the first a score runs; the last score has nothing beside it.
        possible = min(1.0, sampling / slow) * (CHUNKS - 1) / CHUNKS
        print(f"{ratio:<24g}{hidden:12.1%}{possible:12.1%}", flush=True)
        good = good and (ratio > 1 or hidden >= MUST_HIDE)
    return good


def main() -> int:
    """Both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    speeds(args.rounds)
    return 0 if overlap(args.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
