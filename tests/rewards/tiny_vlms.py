"""Random vision-language models of the real classes, with processors and chat templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Config,
    Idefics3ImageProcessor,
    InternVLConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessor,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

SPACE = "\u0120"
WORDS = ("yes", "Yes", "no", "No", SPACE + "yes", SPACE + "no")
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
}


def build_tokenizer(special: tuple[str, ...], **named: str) -> PreTrainedTokenizerFast:
    """Bytes, the words of WORDS as one token each, and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = dict.fromkeys((w[:end], w[end]) for w in WORDS for end in range(1, len(w)))
    tokens = dict.fromkeys([*alphabet, *(a + b for a, b in merges)])
    vocab = {token: index for index, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|pad|>", "<|user|>", "<|assistant|>", *special])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", **named)


def chat(image: str) -> str:
    return (
        "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def id_of(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(name)
    assert isinstance(found, int)
    return found


def write_qwen(folder: Path) -> Path:
    """Qwen2.5-VL."""
    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = build_tokenizer(special)
    ids = {name: id_of(tokenizer, name) for name in special}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},  # type: ignore[arg-type]
        vision_config={  # type: ignore[arg-type]
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    from transformers import Qwen2VLVideoProcessor

    pictures = Qwen2VLImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)
    processor = Qwen2_5_VLProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=4, merge_size=2),
        chat_template=chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _write(folder, config, processor)


def write_internvl(folder: Path) -> Path:
    """InternVL in transformers' own format."""
    special = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    extra = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = build_tokenizer(special, extra_special_tokens=extra)  # type: ignore[arg-type]
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tokenizer)},  # type: ignore[arg-type]
        vision_config={  # type: ignore[arg-type]
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [16, 16],
            "patch_size": [4, 4],
        },
        image_token_id=id_of(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size={"height": 16, "width": 16}, crop_to_patches=False
        ),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": 16, "width": 16}),
        image_seq_length=4,
        chat_template=chat("<IMG_CONTEXT>"),
    )
    return _write(folder, config, processor)


def write_idefics(folder: Path) -> Path:
    """Idefics3, the class of SmolVLM's first models."""
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = build_tokenizer(special)
    config = Idefics3Config(
        text_config={  # type: ignore[arg-type]
            "model_type": "llama",
            **TEXT,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={  # type: ignore[arg-type]
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
        scale_factor=2,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(
            size={"longest_edge": 16},
            max_image_size={"longest_edge": 16},
            do_image_splitting=False,
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat("<image>"),
    )
    return _write(folder, config, processor)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": write_qwen,
    "internvl": write_internvl,
    "idefics3": write_idefics,
}


def _write(folder: Path, config: Any, processor: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # the default start tells nothing apart
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
