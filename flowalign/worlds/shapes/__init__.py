"""The shapes world: 32 x 32 pictures of coloured shapes, a grammar of prompts, an exact verifier,
tiny models.

    prompts, parse, caption, category, split_of    text, no torch needed
    pictures, verify                               ground truth and its judge
    sd3_path, sd_path, clip_path                   real Stable Diffusion 3 and Stable Diffusion
    pipelines of 7 and 6 MB, and a CLIP of 2 MB

Names are loaded on first use, so that listing prompts does not import torch.
"""

import importlib

_HOMES = {
    "caption": "grammar",
    "category": "grammar",
    "parse": "grammar",
    "prompts": "grammar",
    "split_of": "grammar",
    "Scene": "scene",
    "Thing": "scene",
    "corrupt": "corruptions",
    "training_scenes": "dataset",
    "pictures": "render",
    "place": "render",
    "render": "render",
    "Found": "verdict",
    "Verdict": "verdict",
    "verify": "verifier",
    "clip_path": "models",
    "open_clip_config_path": "models",
    "open_clip_state": "models",
    "sd3_path": "models",
    "sd_path": "models",
    "vlm_path": "models",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
