"""What the verifier says about a batch of pictures. Letters: B pictures."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One object seen in a picture."""

    colour: str  # nearest palette name
    shape: str  # best fitting shape
    box: tuple[
        int, int, int, int
    ]  # left, top, right, bottom in pixels of the 32-pixel picture, ends excluded
    radius: float  # pixels, of the best fitting shape
    confidence: float  # [0, 1], colour share times shape confidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Scores of B pictures against B prompts, float32 in [0, 1] unless said otherwise."""

    score: Tensor  # (B,), graded truth: subject ** 1.7 * global_score * relation factor
    strict: Tensor  # (B,) bool, everything that the prompt says is right and nothing else is there
    global_score: Tensor  # (B,), number of objects, background, no stray pixels
    subject: Tensor  # (B,), mean over the named things of colour times shape times size
    relation: Tensor  # (B,), 0 where the prompt names none; read it where has_relation
    has_relation: Tensor  # (B,) bool
    found: tuple[tuple[Found, ...], ...]  # per picture, largest object first
