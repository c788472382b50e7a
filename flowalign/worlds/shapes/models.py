"""Where the built-in models lie, and the CLIP's weights under open_clip's names.

The folders are plain diffusers / transformers checkpoints; nothing here is needed to load them.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flowalign.worlds.shapes.folders import BUILT_IN, MODELS


def sd3_path() -> Path:
    """Folder of the StableDiffusion3Pipeline; pass `text_encoder_3=None, tokenizer_3=None` to
    `from_pretrained`."""
    return BUILT_IN["shapes"]


def sd_path() -> Path:
    """Folder of the StableDiffusionPipeline; pass `safety_checker=None, feature_extractor=None,
    requires_safety_checker=False` to `from_pretrained`."""
    return BUILT_IN["shapes_sd"]


def clip_path() -> Path:
    """Folder of the CLIPModel with its tokenizer and image processor (`from_pretrained` of
    transformers)."""
    return MODELS / "clip"


def vlm_path() -> Path:
    """Folder of the LlavaForConditionalGeneration with its processor (`AutoProcessor` and
    `AutoModelForImageTextToText` of transformers)."""
    return MODELS / "vlm"


def open_clip_config_path() -> Path:
    """JSON file with open_clip's `model_cfg` and `preprocess_cfg` of the same CLIP."""
    return clip_path() / "open_clip_config.json"


def open_clip_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' CLIPModel under the names of `open_clip.model.CLIP`, float32.

    Load with `CLIP(**json.load(open(open_clip_config_path()))["model_cfg"])` and `load_state_dict`.
    Both models then compute the same features up to rounding: pre-norm, quick GELU, causal text,
    pooling at the end-of-text token.
    """
    out = {"logit_scale": weights["logit_scale"]}
    text, vision = "text_model.", "vision_model."
    out["token_embedding.weight"] = weights[text + "embeddings.token_embedding.weight"]
    out["positional_embedding"] = weights[text + "embeddings.position_embedding.weight"]
    out["text_projection"] = weights["text_projection.weight"].T
    out["visual.class_embedding"] = weights[vision + "embeddings.class_embedding"]
    out["visual.positional_embedding"] = weights[vision + "embeddings.position_embedding.weight"]
    out["visual.conv1.weight"] = weights[vision + "embeddings.patch_embedding.weight"]
    out["visual.proj"] = weights["visual_projection.weight"].T
    norms = {
        "ln_final": text + "final_layer_norm",
        "visual.ln_pre": vision + "pre_layrnorm",
        "visual.ln_post": vision + "post_layernorm",
    }
    for new, old in norms.items():
        out |= {f"{new}.{kind}": weights[f"{old}.{kind}"] for kind in ("weight", "bias")}
    for new_tower, old_tower in (("transformer", text), ("visual.transformer", vision)):
        number = 1 + max(
            int(name.split(".")[3])
            for name in weights
            if name.startswith(old_tower + "encoder.layers.")
        )
        for layer in range(number):
            out |= _block(
                weights,
                old=f"{old_tower}encoder.layers.{layer}",
                new=f"{new_tower}.resblocks.{layer}",
            )
    return {name: value.float().contiguous() for name, value in out.items()}


def _block(weights: Mapping[str, Tensor], *, old: str, new: str) -> dict[str, Tensor]:
    """One transformer block; open_clip keeps query, key and value in one matrix."""
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    out = {
        f"{new}.{n}.{kind}": weights[f"{old}.{o}.{kind}"]
        for n, o in parts.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        joined = [weights[f"{old}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
        out[f"{new}.attn.in_proj_{kind}"] = torch.cat(joined)
    return out
