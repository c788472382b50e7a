"""A random Qwen2-VL of the real classes with reward heads, under the names of the releases."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLModel
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

WIDTH, PATCH = 32, 4
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def write_base(folder: Path) -> Path:
    """Sizes, tokenizer, preprocessing: letters are tokens; patches of 4 pixels, 2 x 2 a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={a: i for i, a in enumerate(letters)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, additional_special_tokens=list(SPECIAL), pad_token="<|im_end|>"
    )
    tokenizer.save_pretrained(folder)
    tiny_config(len(tokenizer)).save_pretrained(folder)
    Qwen2VLImageProcessor(patch_size=PATCH, merge_size=2).save_pretrained(folder)
    return folder


def tiny_config(vocabulary: int) -> Qwen2VLConfig:
    start = len(pre_tokenizers.ByteLevel.alphabet())
    ids = {name.strip("<|>"): start + i for i, name in enumerate(SPECIAL)}
    return Qwen2VLConfig(
        text_config={  # type: ignore[arg-type]
            "vocab_size": vocabulary,
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 1e4,
            },
        },
        vision_config={  # type: ignore[arg-type]
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": WIDTH,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": PATCH,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )


def body(num_added: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under the names of `Qwen2VLModel`, with rows for the added tokens."""
    start = len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2VLModel(tiny_config(start + num_added))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.15)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers 4.45 saved a `Qwen2VLForConditionalGeneration`, its language head too."""
    named = {
        name.replace("language_model.", "model.", 1): tensor for name, tensor in tensors.items()
    }
    return named | {"lm_head.weight": torch.zeros(4, WIDTH)}


def linear_layers(widths: tuple[int, ...], places: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    layers = {}
    for place, width, out in zip(places, widths, widths[1:], strict=False):
        weight = torch.randn(out, width, generator=generator) * (2 / width) ** 0.5
        layers[f"rm_head.{place}.weight"] = weight
        layers[f"rm_head.{place}.bias"] = torch.randn(out, generator=generator)
    return layers


def write_hpsv3(path: Path) -> Path:
    """One added token; the head D-1024-16-2."""
    head = linear_layers((WIDTH, 1024, 16, 2), (0, 3, 5))
    save_file(old_names(body(1)) | head, path)
    return path


def video_head() -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(8))


def write_video_reward(path: Path) -> Path:
    """Three added tokens; the head without bias."""
    save_file(old_names(body(3)) | {"rm_head.weight": video_head()}, path)
    return path


def with_adapters(tensors: dict[str, Tensor], rank: int = 4) -> dict[str, Tensor]:
    """As peft saves them: adapters on the queries of the language model, the head saved twice."""
    generator = torch.Generator().manual_seed(9)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem = f"base_model.model.{name}"
        if name == "rm_head.weight":
            named["base_model.model.rm_head.modules_to_save.default.weight"] = tensor
            named["base_model.model.rm_head.original_module.weight"] = torch.zeros_like(tensor)
        elif name.startswith("model.") and name.endswith("q_proj.weight"):
            stem = stem.removesuffix(".weight")
            named[f"{stem}.base_layer.weight"] = tensor
            shapes = (("A", (rank, tensor.shape[1])), ("B", (tensor.shape[0], rank)))
            for side, shape in shapes:
                random = 0.1 * torch.randn(*shape, generator=generator)
                named[f"{stem}.lora_{side}.default.weight"] = random
        else:
            named[stem] = tensor
    return named
