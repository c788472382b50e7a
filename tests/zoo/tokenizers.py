"""Tokenizers built from a vocabulary in memory."""

# pyright: reportArgumentType=false
# transformers annotates merges as text; it takes pairs.

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, RobertaTokenizer, T5Tokenizer

WORDS = tuple(
    "a an the two three four red green blue yellow circle square triangle circles squares "  # noqa: SIM905
    "triangles and of above below left right on picture photo cat dog cats dogs song".split()
)


def merges(end: str) -> list[tuple[str, str]]:
    """Byte-pair merges that build each word from the left, letter by letter, up to word + end."""
    pairs: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = [*word[:-1], word[-1] + end]
        built = letters[0]
        for letter in letters[1:]:
            pairs[built, letter] = None
            built += letter
    return list(pairs)


CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def numbered(tokens: list[str]) -> dict[str, int]:
    """A vocabulary of the distinct tokens in their order."""
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    """CLIP's byte pairs with the words of `WORDS`."""
    pairs = merges("</w>")
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    vocab = numbered(tokens + [left + right for left, right in pairs])
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=length)


def roberta_tokenizer(length: int = 16) -> RobertaTokenizer:
    """RoBERTa's byte pairs; a blank is a token of its own."""
    pairs = merges("")
    tokens = ["<pad>", "</s>", "<unk>", "<s>", "<mask>", "\u0120", *LETTERS]
    vocab = numbered(tokens + [left + right for left, right in pairs])
    return RobertaTokenizer(vocab=vocab, merges=pairs, model_max_length=length)


def t5_tokenizer(length: int = 16) -> T5Tokenizer:
    """T5's unigrams: words, else letters."""
    blank = "\u2581"
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (blank, -3.0)]
    scores += [(blank + word, -1.0) for word in WORDS]
    scores += [(letter, -5.0) for letter in LETTERS]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=length)


def word_tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    """Whole words and an end token; stands in for the tokenizers of language models."""
    vocab = numbered(["<pad>", "</s>", "<unk>", *WORDS])
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
