"""The tokenizer and chat template of the tiny vision-language model.

Byte-level BPE in which each word of the grammar, with the space before it, is one token, and the
fixed words of the rewards' questions are one token as a whole. Other text falls into bytes and
parts of words.
"""

# transformers declares wider types where these calls give objects.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flowalign.config.rewards_vlm import ANSWER, COMPARISON, PLACE, QUESTION
from flowalign.worlds.shapes.grammar import vocabulary
from flowalign.worlds.shapes.questions import vocabulary_texts

IMAGE, START, PAD = "<image>", "<answer>", "<pad>"
SPACE = "\u0120"  # as byte-level BPE writes it
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)


def phrases() -> list[str]:
    """The fixed parts of the questions that the rewards ask."""
    parts = [part for text in (QUESTION, COMPARISON) for part in text.split(PLACE)]
    return [f'{parts[0]}"', f'"{parts[1]}', f'{parts[2]}"', f'"{parts[3]}', f" {ANSWER}"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, the same each time."""
    words = {word for word in vocabulary() if word.isalpha()}
    words |= set(re.findall(r"[A-Za-z]+", " ".join(vocabulary_texts())))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    # Words after a space first: their chains of merges then win inside of every word.
    for form in [SPACE + word for word in sorted(words)] + sorted(words):
        for end in range(1, len(form)):
            merges[form[:end], form[end]] = None
    tokens = alphabet + [left + right for left, right in merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
            merges=list(merges),
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([IMAGE, START, PAD])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in phrases()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=PAD, model_max_length=2048
    )
