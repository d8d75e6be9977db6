"""What is made of answers that should be the same: another word, or a way not gone, shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .same_words import Way, summary

PLAIN = Way(["a", "b", "c"])
GONE = Way(["a", "b", "c"], guesses=9, accepted=4, pushed=30, lost=2, kills=1)
WAYS = dict.fromkeys(("guesses", "chain", "batch", "all", "killed"), GONE)
CODED = {"int8": (PLAIN, GONE)}


def test_the_same_words_in_every_way_hold() -> None:
    found = summary(PLAIN, WAYS, CODED)
    assert found["holds"] and found["gone"]
    assert found["ways"]["int8 killed"]["same"] == 3


@pytest.mark.parametrize("name", WAYS)
def test_one_other_answer_falls_short(name: str) -> None:
    found = summary(PLAIN, WAYS | {name: replace(GONE, digests=["a", "x", "c"])}, CODED)
    assert not found["holds"] and found["ways"][name]["same"] == 2


def test_another_answer_in_a_codec_falls_short() -> None:
    assert not summary(PLAIN, WAYS, {"int8": (PLAIN, replace(GONE, digests=["", "b", "c"]))})[
        "holds"
    ]


@pytest.mark.parametrize(
    ("name", "what"),
    [("guesses", "accepted"), ("chain", "pushed"), ("all", "pushed"), ("killed", "lost")],
)
def test_a_way_that_was_not_gone_shows_nothing(name: str, what: str) -> None:
    found = summary(PLAIN, WAYS | {name: replace(GONE, **{what: 0})}, CODED)
    assert not found["holds"] and found["ways"][name]["same"] == 3
