"""Do the objects of a picture satisfy a check?

GenEval (arXiv 2310.11513), section 3: every `include` clause and no `exclude` clause must hold.
Colour and position are asked of the `count` most confident objects of a clause. Dense scores as
reward fine-tuning uses them (Flow-GRPO, arXiv 2505.05470): the mean over what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from flowalign.detection.clauses import Check, Include
from flowalign.detection.objects import Found, relations

Objects = Mapping[str, Sequence[Found]]  # by label, most confident first
Colour = Callable[[Found], str]


def parts(check: Check, objects: Objects, colour: Colour, *, margin: float = 0.1) -> list[float]:
    """How far each thing that is asked for is there, in [0, 1]: all 1 exactly when all is right.

    Of a clause: its count; then, where asked for, the share of right colours and the share of
    right positions, 0 where the count (or the colour, or the other clause) is wrong. We differ
    from the published dense form: a surplus costs only where an `exclude` clause forbids it, as
    in the strict form; a wrong position is 0, not one half.
    """
    most = {}  # largest allowed number of a label
    for clause in check.exclude:
        most[clause.label] = min(clause.count - 1, most.get(clause.label, clause.count - 1))
    found: list[float] = []
    matched: list[Sequence[Found] | None] = []  # what each clause found; None where it is wrong
    for clause in check.include:
        number = len(objects[clause.label])
        asked = [count_part(number, clause.count, most.get(clause.label))]
        chosen = objects[clause.label][: clause.count]
        right = number >= clause.count
        if clause.colour is not None:
            hits = sum(colour(one) == clause.colour for one in chosen) if right else 0
            asked.append(hits / clause.count)
            right = hits == clause.count
        if clause.position is not None:
            asked.append(_position_part(clause, chosen, matched, margin) if right else 0.0)
            right = asked[-1] == 1.0
        matched.append(chosen if right else None)
        found += asked
    included = {clause.label for clause in check.include}
    found += [
        count_part(len(objects[label]), 0, allowed)
        for label, allowed in most.items()
        if label not in included
    ]
    return found


def count_part(number: int, least: int, most: int | None) -> float:
    """1 within [least, most] (most None: without end), else max(0, 1 - distance / least).

    Where nothing is asked for (`least` 0) the distance is divided by the first forbidden number.
    """
    if number < least:
        return number / least
    if most is None or number <= most:
        return 1.0
    return max(0.0, 1.0 - (number - most) / (least or most + 1))


def _position_part(
    clause: Include,
    chosen: Sequence[Found],
    matched: Sequence[Sequence[Found] | None],
    margin: float,
) -> float:
    """Share of the pairs of objects that stand as the clause says; 0 without the other clause."""
    assert clause.position is not None, "asked for"
    relation, target = clause.position
    others = matched[target]
    if others is None:
        return 0.0
    hits = [
        relation in relations(one.box, other.box, margin=margin)
        for one, other in product(chosen, others)
    ]
    return sum(hits) / len(hits)
