"""Fine-tune a pipeline object with a reward and look at the result: the base script.

python samples/finetune.py
"""

from __future__ import annotations

from diffusers import StableDiffusion3Pipeline

from flowalign import finetune, gallery
from flowalign.worlds.shapes.models import sd3_path


def main() -> None:
    """Ten small steps of DiffusionNFT on the built-in model: about a minute."""
    pipe = StableDiffusion3Pipeline.from_pretrained(
        sd3_path(), text_encoder_3=None, tokenizer_3=None
    )
    result = finetune(
        pipe,
        "shapes:train",
        "shapes",
        evaluation_prompts="shapes:heldout",
        output="runs/sample_finetune",
        model={"call": {"max_sequence_length": 0}},
        rollout={"num_prompts": 8, "group_size": 12, "batch_size": 96},
        train={"steps": 10, "learning_rate": 1e-3},
        evaluation={"num_prompts": 40},
    )
    gallery([result.run], "runs/sample_finetune_gallery")


if __name__ == "__main__":
    main()
