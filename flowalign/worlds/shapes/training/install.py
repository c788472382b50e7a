"""Put trained models into the package: `python -m flowalign.worlds.shapes.training.install --out
DIR`.

Reads DIR/{vae,vae_decoder,clip,flow}.safetensors and writes models/sd3 and models/clip as bfloat16
checkpoints. Each folder is written beside its place and renamed, so that a reader never meets half
a model.
"""

# diffusers and transformers declare tuples, None or wider types where these calls give objects.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalCall=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import argparse
import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors import safe_open
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModelWithProjection

from flowalign.worlds.shapes.models import clip_path, sd3_path
from flowalign.worlds.shapes.training.checkpoint import load_state
from flowalign.worlds.shapes.training.flow import build_transformer
from flowalign.worlds.shapes.training.latents import trained_clip, trained_vae
from flowalign.worlds.shapes.training.tokenizer import MAX_LENGTH, build_tokenizer


def text_encoder(clip: CLIPModel) -> CLIPTextModelWithProjection:
    """The CLIP's text tower as the pipeline wants it."""
    config = clip.config.text_config
    encoder = CLIPTextModelWithProjection(config)
    weights = {
        k: v
        for k, v in clip.state_dict().items()
        if k.startswith(("text_model.", "text_projection."))
    }
    encoder.load_state_dict(weights)
    return encoder.eval()


def assemble(folder: Path) -> StableDiffusion3Pipeline:
    """The pipeline in float32 from the training folder, with the averaged weights of the flow."""
    vae, clip = trained_vae(folder), trained_clip(folder)
    groups = load_state(folder / "flow.safetensors")[0]
    transformer: SD3Transformer2DModel = build_transformer()
    transformer.load_state_dict(groups["model"] | groups["average"])
    with safe_open(folder / "latents.safetensors", "pt") as cache:
        shift, scale = cache.get_tensor("shift_scale").tolist()
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    encoder, tokenizer = text_encoder(clip), build_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def open_clip_config(clip: CLIPModel) -> dict[str, object]:
    """open_clip's description of the same network and of its picture preprocessing."""
    text, vision = clip.config.text_config, clip.config.vision_config
    return {
        "model_cfg": {
            "embed_dim": clip.config.projection_dim,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.hidden_size,
                "layers": vision.num_hidden_layers,
                "head_width": vision.hidden_size // vision.num_attention_heads,
            },
            "text_cfg": {
                "context_length": MAX_LENGTH,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def save_clip(clip: CLIPModel, target: Path) -> None:
    """Model, tokenizer, image processor and open_clip config."""
    # The text positions of the checkpoint are 16 long: so must be what the tokenizer pads to.
    clip.to(torch.bfloat16).save_pretrained(target)
    build_tokenizer().save_pretrained(target)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(target)
    (target / "open_clip_config.json").write_text(
        json.dumps(open_clip_config(clip), indent=2) + "\n"
    )


def load_as_float32(config: Path) -> None:
    """Make transformers load the bfloat16 weights of this config as float32, as diffusers does with
    its own.

    Left alone, a pipeline loaded without `torch_dtype` has a bfloat16 text encoder beside a float32
    transformer.
    """
    fields = json.loads(config.read_text())
    assert fields["dtype"] == "bfloat16"
    config.write_text(json.dumps(fields | {"dtype": "float32"}, indent=2) + "\n")


def replace_folder(source: Path, target: Path) -> None:
    """Exchange `target` for `source` by renaming files, so that an open reader keeps what it
    has."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    shutil.rmtree(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the training folder")
    parser.add_argument("--sd3", type=Path, default=sd3_path(), help="where to put the pipeline")
    parser.add_argument("--clip", type=Path, default=clip_path(), help="where to put the CLIP")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(
        logging.WARNING
    )  # two lines about absent T5 parts, which are meant to be absent
    for target in (arguments.sd3, arguments.clip):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target.with_name(f".{target.name}.unfinished"), ignore_errors=True)
    unfinished = arguments.sd3.with_name(f".{arguments.sd3.name}.unfinished")
    assemble(arguments.out).to(torch.bfloat16).save_pretrained(unfinished, safe_serialization=True)
    for encoder in ("text_encoder", "text_encoder_2"):
        load_as_float32(unfinished / encoder / "config.json")
    replace_folder(unfinished, arguments.sd3)
    unfinished = arguments.clip.with_name(f".{arguments.clip.name}.unfinished")
    save_clip(trained_clip(arguments.out), unfinished)
    load_as_float32(unfinished / "config.json")
    replace_folder(unfinished, arguments.clip)
    size = sum(
        path.stat().st_size
        for folder in (arguments.sd3, arguments.clip)
        for path in folder.rglob("*")
        if path.is_file()
    )
    print(f"installed {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
