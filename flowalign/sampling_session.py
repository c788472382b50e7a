"""Sampling from the command line and from Python: a pipeline, maybe an adapter, some prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flowalign.config.schema import ModelConfig, PromptsConfig
from flowalign.errors import DataError, ResourceError
from flowalign.lora_files import import_lora
from flowalign.media import save_media
from flowalign.pipelines.load import load_pipeline, make_generator
from flowalign.processes import start_processes
from flowalign.prompts import Prompt, read_prompts
from flowalign.rollout import PromptCache, Request, finished, ode_plan, walk
from flowalign.types import Sample


def prompts_from(source: str | Sequence[str]) -> list[Prompt]:
    """Prompts of a list, or of a source as in a config (`file.txt`, `shapes:heldout`)."""
    if isinstance(source, str):
        return read_prompts(source, config=PromptsConfig(), origin="prompts")
    if not source:
        raise DataError("DATA-EMPTY", "prompts", "0 prompts", "give at least one prompt")
    return [Prompt(text=t, category=None, prompt_id=i) for i, t in enumerate(source)]


def draw(
    model: ModelConfig,
    prompts: Sequence[Prompt],
    *,
    lora: str | Path | None = None,
    samples_per_prompt: int = 1,
    num_steps: int = 28,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
) -> list[Sample]:
    """Deterministic samples of `prompts`, each with its own keyed noise.

    `lora` is a folder written by `flowalign export`, or the `lora` folder of a run.
    """
    processes = start_processes(device, "no")
    pipe = load_pipeline(model, processes.device)
    if lora is not None:
        import_lora(pipe, lora)
    generator = make_generator(pipe, model)
    cache, plan = PromptCache(generator), ode_plan(generator, num_steps)
    wanted = [
        Request(prompt=p.text, prompt_id=p.prompt_id, sample_id=k, start_id=k, group=g)
        for g, p in enumerate(prompts)
        for k in range(samples_per_prompt)
    ]
    samples: list[Sample] = []
    for start in range(0, len(wanted), batch_size):
        chunk = wanted[start : start + batch_size]
        cond = cache.conditions([request.prompt for request in chunk])
        trajectory = walk(generator, plan, cond, chunk, seed=seed, stream="sample")
        samples.extend(finished(generator, trajectory, chunk, seed=seed))
    return samples


def sample(
    model: ModelConfig,
    prompts: str | Sequence[str],
    output: str | Path,
    **options: int | str | None,
) -> Path:
    """Draw samples and write them to `output` with a manifest that `flowalign score` reads.

    Raises ResourceError (exit 7) when `output` exists and is not an empty folder.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResourceError(
            "RUN-OUTPUT", str(folder), "exists and is not empty", "choose another output"
        )
    samples = draw(model, prompts_from(prompts), **options)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for drawn in samples:
        suffix = {"image": "png", "video": "mp4", "audio": "wav"}[drawn.modality]
        name = f"{drawn.prompt_id:04d}-{drawn.sample_id}.{suffix}"
        save_media(folder / name, drawn)
        row = {"image": name, "prompt": drawn.prompt, "sample_id": drawn.sample_id}
        rows.append(json.dumps({**row, "seed": drawn.seed}, ensure_ascii=False))
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
