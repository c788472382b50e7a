"""The tokens that say yes, and those that say no.

A model writes its first word with or without a space before it and in any casing, and each of these
is a token of its own. All that the vocabulary has count (arXiv 2509.08826 reads "yes" alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowalign.errors import CheckpointError

MARKERS = ("\u0120", "\u2581")  # a space, as byte-level and SentencePiece vocabularies write it


@dataclass(frozen=True, kw_only=True, slots=True)
class YesNo:
    """Ids of tokens, sorted and disjoint."""

    yes: Sequence[int]
    no: Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Log-sums of exp(logit) over tokens, (N,) float32 each on the CPU."""

    yes: Tensor
    no: Tensor
    whole: Tensor  # over the vocabulary

    @property
    def full(self) -> Tensor:
        """P(yes) under the softmax over the vocabulary: VQAScore (arXiv 2404.01291, eq. 1)."""
        return (self.yes - self.whole).exp()

    @property
    def two_token(self) -> Tensor:
        """P(yes) / (P(yes) + P(no)) = sigmoid(lse yes - lse no)."""
        return torch.sigmoid(self.yes - self.no)

    @property
    def mass(self) -> Tensor:
        """P(yes) + P(no) under the softmax over the vocabulary."""
        return (torch.logaddexp(self.yes, self.no) - self.whole).exp()


def yes_no_of(tokenizer: Any, where: str) -> YesNo:
    """The tokens of a tokenizer of transformers.

    CheckpointError where no spelling of a word is one token, or one token would say both.
    """
    yes, no = (spelled(tokenizer, word) for word in ("yes", "no"))
    for word, found in (("yes", yes), ("no", no)):
        if not found:
            what = f"no spelling of '{word}' is one token of its tokenizer"
            fix = "use a model whose first token is a whole word"
            raise CheckpointError("CKPT-MODEL", where, what, fix)
    if shared := yes & no:
        what = f"token {min(shared)} of its tokenizer stands for 'yes' and for 'no'"
        raise CheckpointError("CKPT-MODEL", where, what, "use the model's own tokenizer")
    return YesNo(yes=sorted(yes), no=sorted(no))


def spelled(tokenizer: Any, word: str) -> set[int]:
    """Ids of all single tokens that spell `word`: lower, capital, upper; with a space or not."""
    vocabulary = tokenizer.get_vocab()
    found = set()
    for form in (word.lower(), word.capitalize(), word.upper()):
        found |= {
            vocabulary[token]
            for token in (form, *(marker + form for marker in MARKERS))
            if token in vocabulary
        }
        for text in (form, f" {form}"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) == 1:
                found.add(ids[0])
    return found


def answers_of(logits: Tensor, tokens: YesNo) -> Answers:
    """Of next-token logits (N, V)."""
    logits = logits.detach().float()
    return Answers(
        yes=torch.logsumexp(logits[:, list(tokens.yes)], 1).cpu(),
        no=torch.logsumexp(logits[:, list(tokens.no)], 1).cpu(),
        whole=torch.logsumexp(logits, 1).cpu(),
    )
