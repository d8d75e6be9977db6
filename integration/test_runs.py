"""Runs of real processes: who began one is killed, comes back, and another joins late."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from .lesson import Lesson
from .run_group import Member, Wanted, open_group

# all of it takes a few times as long as a process to begin, and who comes late finds half of it
LONG = Wanted(steps=16, epochs=16)
PATIENCE_S = 900.0


def test_a_run_goes_on_without_whoever_began_it_and_takes_it_back(tmp_path: Path) -> None:
    with open_group(tmp_path, LONG, patience_s=PATIENCE_S) as group:
        first = group.start("first", peers=2)
        address = first.address
        others = [group.start(name, address, peers=2) for name in ("second", "third")]
        for one in others:
            one.reaches(2)
        before = first.events("epoch")
        first.kill()
        late = group.start("late", others[0].address)
        again = group.start("first", others[1].address)
        ends = {one.name: one.finishes() for one in (*others, late, again)}
        started = late.events("started")[0]

        # the late one began where the others were, and the killed one where it was
        assert late.events("epoch")[0]["epoch"] > 1
        assert again.events("epoch")[0]["epoch"] >= before[-1]["epoch"]
        assert again.events("epoch")[0]["steps"] >= before[-1]["steps"]
        for one in (*others, late, again):
            told = one.events("epoch")
            epochs = [epoch["epoch"] for epoch in told]
            assert epochs == sorted(set(epochs)) and epochs[-1] == LONG.epochs  # none twice
            assert max(epoch["peers"] for epoch in told) >= 1
            assert told[-1]["sent_bytes"] > started["trained"]  # a byte a number, and more
            assert one.complaints() == ""

        # and it learned: all of them end below where all of them began
        start = max(one.events("epoch")[0]["held_out"] for one in others)
        assert all(end["held_out"] < start for end in ends.values())
        config = json.loads((tmp_path / "late" / "adapter" / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA" and config["r"] == 4
        assert (tmp_path / "late" / "adapter.png").read_bytes()[:4] == b"\x89PNG"


def states(member: Member) -> dict[int, str]:
    """Of each exchange that it took part in, by how many came before: where it stood then."""
    told = re.findall(r"exchanged .*commits=(\d+) .*state=(\w+)", member.all_complaints())
    return {int(commits): state for commits, state in told}


def were_together(member: Member, count: int) -> bool:
    """Whether so many took part in the last exchange that it tells of."""
    told = re.findall(r"exchanged .*members=(\d+)", member.all_complaints())
    return bool(told) and int(told[-1]) == count


def test_survivors_of_a_group_stand_at_one_state_after_each_exchange(tmp_path: Path) -> None:
    options = partial(open_group, tmp_path, replace(LONG, kind="group"))
    with options(options=lambda name: ["--log-level", "info"], patience_s=PATIENCE_S) as group:
        first = group.start("first", peers=2)
        others = [group.start(name, first.address, peers=2) for name in ("second", "third")]
        for one in others:
            one.reaches(2)
        # else the one who is killed could have been half of those whose word counts
        first.until(lambda one: were_together(one, 3), "all were in an exchange")
        first.kill()
        before = max(states(first))
        # two, for the one who comes back may itself be at the beginning yet
        late = group.start("late", others[0].address, peers=2)
        again = group.start("first", others[1].address, peers=1)
        ends = {one.name: one.finishes() for one in (*others, late, again)}
        # whom it met it asks where they are, before it begins
        assert late.events("epoch")[0]["epoch"] > 1
        everybody = (first, *others, late, again)
        for one in everybody[1:]:
            epochs = [told["epoch"] for told in one.events("epoch")]
            assert epochs == sorted({*epochs}) and epochs[-1] == LONG.epochs  # none twice
        stood = [states(one) for one in everybody]
        for commits in {*chain.from_iterable(stood)}:
            assert len({one[commits] for one in stood if commits in one}) == 1
        shared = stood[1].keys() & stood[2].keys()
        assert len(shared) > 3 and max(shared) > before  # the survivors, after the death too
        start = Lesson.of(tmp_path, LONG.tokens).loss()
        assert all(end["held_out"] < start for end in ends.values()), (start, ends)
