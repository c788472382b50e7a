"""Tokenizers built from a vocabulary in memory."""

from __future__ import annotations

from transformers import CLIPTokenizer, PreTrainedTokenizerFast

WORDS = tuple(
    "a an the two three four red green blue yellow circle square triangle circles squares "  # noqa: SIM905
    "triangles and of above below left right on picture photo cat dog cats dogs song".split()
)


def merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte-pair merges that build each word from the left, letter by letter."""
    pairs: dict[tuple[str, str], None] = {}
    for word in words:
        letters = [*word[:-1], word[-1] + "</w>"]
        built = letters[0]
        for letter in letters[1:]:
            pairs[built, letter] = None
            built += letter
    return list(pairs)


CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    """CLIP's tokenizer with whole words and single characters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pairs = merges(WORDS)
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    tokens += [left + right for left, right in pairs]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=length)


def word_tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    """Whole words with T5's special tokens; stands in for T5, Llama, Qwen and Gemma."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    core.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        chat_template=CHAT,
    )
