"""Every reward's card is visible and has the facts that users choose by."""

from __future__ import annotations

import pytest

from flowalign.cards import FACTS, card_of, facts_of, fields_of
from flowalign.catalog import KINDS, REWARDS, SAMPLERS, SCHEDULES, Entry
from tests.cli.commands import fails, works


@pytest.mark.parametrize("entry", REWARDS, ids=lambda entry: entry.name)
def test_a_card_is_whole(entry: Entry) -> None:
    fields = fields_of(card_of(entry, REWARDS))
    needed = {"Measures", "Licence", *FACTS}
    if "Set reward" in fields:
        needed -= {"Differentiable", "Group-only"}
    assert needed <= set(fields), needed - set(fields)
    assert all(text and "\n" not in text for text in fields.values())
    assert "Checkpoint" not in fields["Licence"]  # each heading ends the one before


def test_headings() -> None:
    card = (
        "A score.\n\nMeasures   this\n           and that.\n"
        "Range      [0, 1]; Range is no heading.\n"
        "Licence    ours. Differentiable: no. Group-only: yes, in\npairs.\nCheckpoint none.\n"
        "Cost       little.\n\nMore words.\n"
    )
    fields = fields_of(card)
    assert fields == {
        "Measures": "this and that.",
        "Range": "[0, 1]; Range is no heading.",
        "Licence": "ours.",
        "Differentiable": "no.",
        "Group-only": "yes, in pairs.",
        "Checkpoint": "none.",
        "Cost": "little.",
    }
    assert [name for name, _ in facts_of(card)] == list(FACTS)
    assert facts_of("A score.") == []


def test_one_reward_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    told = works(capsys, ["list", "rewards", "jpeg"])
    assert told.startswith("JPEG size: ") and "Range      0 to infinity" in told
    assert "quality (integer >= 1 and <= 95; 95)" in told and "weight (number; 1.0)" in told
    assert "measure" not in told  # another reward's


def test_the_facts_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    told = works(capsys, ["list", "rewards", "--long"])
    assert told.count("\n  Range ") == len(REWARDS)
    assert "  Group-only      the pairwise instructions." in told


def test_entries_of_one_file_have_words_of_their_own() -> None:
    cards = {entry.name: card_of(entry, SCHEDULES) for entry in SCHEDULES}
    assert len(set(cards.values())) == len(SCHEDULES)
    assert card_of(SAMPLERS[0], SAMPLERS) != SAMPLERS[0].doc
    model = KINDS["models"]()[0]
    assert card_of(model, KINDS["models"]()) == model.doc  # no file of its own


def test_what_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["list", "rewards", "jpg"], 2, "did you mean `jpeg`")
    fails(capsys, ["list", "samplers", "--long"], 2, "--long is for all rewards")
    fails(capsys, ["list", "rewards", "jpeg", "--long"], 2, "--long is for all rewards")
