"""A run's file: what it says is what is run, and what it says wrongly is named."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from itertools import pairwise

import pytest

from potluck.crypto.codec import encode
from potluck.errors import RemoteError, UserError
from potluck.swarm.run.plan import (
    Plan,
    Terms,
    Training,
    agree,
    differences,
    rate_at,
    read_plan,
    read_terms,
)

LEAST = """
name = "tales"
model = "demo"
[data]
files = ["tales.jsonl"]
"""
FULL = """
name = "tales"
model = "org/name"
seed = 7
[adapter]
rank = 4
alpha = 8
targets = ["q_proj", "down_proj"]
blocks = [1, 2]
[data]
files = ["tales.jsonl", "more.txt"]
field = "body"
tokens = 64
held_out = 0.1
[training]
batch = 2
inner_steps = 50
epochs = 3
epoch_s = 9
learning_rate = 3e-3
schedule = "constant"
warmup = 5
weight_decay = 0
clip = 0.5
[exchange]
kind = "gossip"
aggregator = "mean"
asked = 4
liars = 1
bits = 4
gate = 0
"""


def plan_of(text: str) -> Plan:
    return read_plan(tomllib.loads(text))


def terms(text: str = FULL) -> Terms:
    return agree(plan_of(text), b"m" * 32, (b"d" * 32, b"e" * 32), b"s" * 32)


def test_what_is_not_said_has_a_default() -> None:
    plan = plan_of(LEAST)
    assert (plan.name, plan.model, plan.data.files) == ("tales", "demo", ("tales.jsonl",))
    assert (plan.exchange.kind, plan.exchange.asked, plan.exchange.liars) == ("gossip", 6, 2)
    assert plan.adapter.blocks == ()


def test_every_key_is_read() -> None:
    plan = plan_of(FULL)
    assert plan.adapter.alpha == 8.0 and plan.adapter.targets == ("q_proj", "down_proj")
    assert plan.data.files == ("tales.jsonl", "more.txt") and plan.data.field == "body"
    assert plan.training == Training(2, 50, 3, 9.0, 3e-3, "constant", 5, 0.0, 0.5)
    assert (plan.exchange.aggregator, plan.exchange.bits, plan.exchange.gate) == ("mean", 4, 0.0)


@pytest.mark.parametrize(
    ("was", "now", "named"),
    [
        ('name = "tales"', "", "name is missing"),
        ('files = ["tales.jsonl"]', "", "data.files is missing"),
        ('files = ["tales.jsonl"]', "files = []", "data.files has 0"),
        ('files = ["tales.jsonl"]', 'files = "tales.jsonl"', "data.files must be a list"),
        ('files = ["tales.jsonl"]', "files = [1]", r"data.files\[0\] is 1"),
        ("[data]", "[training]\nsteps = 3\n[data]", "training.steps is no key; there are batch"),
        ("[data]", "colour = 1\n[data]", "colour is no key"),
        ("[data]", "seed = 1.5\n[data]", "seed is 1.5: it must be a whole number"),
        ("[data]", "seed = true\n[data]", "seed is True: it must be a whole number"),
        ("[data]", "adapter = 3\n[data]", "adapter must be a table"),
        ("[data]", "[adapter]\nrank = 0\n[data]", "adapter.rank is 0: choose 1 to 512"),
        ("[data]", "[adapter]\nblocks = [1, 1]\n[data]", "names a block twice"),
        ("[data]", "[training]\nlearning_rate = nan\n[data]", "training.learning_rate is nan"),
        ("[data]", '[training]\nschedule = "up"\n[data]', "training.schedule is 'up': choose one"),
        ("[data]", '[exchange]\nkind = "x"\n[data]', "gossip, group, guarded, scalar"),
        ("[data]", "[exchange]\nbits = 5\n[data]", "exchange.bits is 5: choose 4, 8 or 32"),
        ("[data]", "[exchange]\nliars = 3\n[data]", "exchange.liars is 3, of 6"),
        ('name = "tales"', 'name = "../x"', "without slashes"),
        ('name = "tales"', 'name = ".."', "choose another"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(was: str, now: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as told:
        plan_of(LEAST.replace(was, now, 1))
    assert "\n" not in str(told.value)


def test_a_run_is_named_by_all_that_matters_and_by_nothing_else() -> None:
    mine = terms()
    elsewhere = FULL.replace("org/name", "/disk/name").replace("more.txt", "moved.txt")
    assert terms(elsewhere).run == mine.run
    for one in (
        replace(mine, model=b"n" * 32),
        replace(mine, data=(b"d" * 32,)),
        replace(mine, start=b"t" * 32),
        replace(mine, seed=8),
        replace(mine, tokens=65),
        terms(FULL.replace("rank = 4", "rank = 5")),
        terms(FULL.replace("epochs = 3", "epochs = 4")),
        terms(FULL.replace("bits = 4", "bits = 8")),
    ):
        assert one.run != mine.run


def test_who_has_another_file_is_told_by_what_it_differs() -> None:
    other = terms(FULL.replace("rank = 4", "rank = 5").replace("3e-3", "1e-3"))
    assert differences(terms(), terms()) == []
    assert differences(terms(), other) == [
        "adapter.rank is 4 here and 5 there",
        "training.learning_rate is 0.003 here and 0.001 there",
    ]
    (said,) = differences(terms(), replace(terms(), model=b"n" * 32))
    assert said == "model is 6d6d6d6d6d6d... here and 6e6e6e6e6e6e... there"


def test_what_strangers_call_things_is_printed_as_text() -> None:
    """It comes to a terminal, where some characters do things."""
    strange = replace(terms(), name="\x1b[2Jall is well\n")
    (said,) = differences(terms(), strange)
    assert said.isprintable() and "\\x1b[2Jall is well" in said


def test_terms_come_back_as_they_were_sent_and_rubbish_does_not() -> None:
    raw = encode(terms())
    assert read_terms(raw) == terms()
    with pytest.raises(RemoteError):
        read_terms(raw[:-1])


def test_the_rate_rises_in_the_warmup_and_falls_to_nothing() -> None:
    training = Training(inner_steps=50, epochs=2, learning_rate=1.0, warmup=10)
    rates = [rate_at(training, step) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0
    assert all(one > other for one, other in pairwise(rates[10:]))
    assert rates[100] == 0.0 and rate_at(training, 1000) == 0.0
    assert rate_at(replace(training, schedule="constant"), 99) == 1.0


GROUP = FULL.replace('kind = "gossip"', 'kind = "group"')


def test_what_groups_have_is_read_of_groups_alone() -> None:
    plan = plan_of(GROUP + "fragments = 4\noverlap = 5\ngrid = true\n")
    assert (plan.exchange.fragments, plan.exchange.overlap, plan.exchange.grid) == (4, 5, True)
    for key in ("fragments = 4", "overlap = 5"):
        with pytest.raises(UserError, match="are of groups"):
            plan_of(FULL + key)
    with pytest.raises(UserError, match=r"exchange\.overlap is 50, of 50 inner steps"):
        plan_of(GROUP + "overlap = 50")
    with pytest.raises(UserError, match=r"exchange\.grid is 1: it must be true or false"):
        plan_of(GROUP + "grid = 1")


def test_terms_with_all_that_groups_have_come_back() -> None:
    one = terms(GROUP + "fragments = 4\noverlap = 5\ngrid = true\n")
    assert read_terms(encode(one)) == one
    other = terms(GROUP + "fragments = 2\n")
    assert "exchange.grid is True here and False there" in differences(one, other)
