"""A run by a guarded group: who may take part, and what becomes of those who are killed in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trio
from guarded_world import Life, guarded_world, numerics, terms_of
from guards import key
from trio.testing import MockClock

from potluck.errors import UserError
from potluck.node.compute.mixing import Vector
from potluck.node.compute.repeats import check_numerics
from potluck.node.runs.exchange import Carries, Exchanged, Joins, Serves, Works
from potluck.node.runs.guarded import Guarded, check_seat
from potluck.swarm.run.tables import Guarding


def alike(lives: list[Life]) -> bool:
    return all(torch.equal(one.weights, lives[0].weights) for one in lives)


async def all_over(lives: list[Life]) -> None:
    for one in lives:
        await one.over.wait()


async def test_all_members_end_with_equal_bits_and_have_learned(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with guarded_world(tmp_path, 3, epochs=3) as made:
        lives = [made.start(number) for number in range(3)]
        await all_over(lives)
    assert [one.ended for one in lives] == [""] * 3
    assert alike(lives) and all(one.epochs == [1, 2, 3] for one in lives)
    assert float((1 - lives[0].weights).square().mean()) < 0.3
    assert all(one.runner.history[-1].peers == 2 for one in lives)
    kinds = (Carries, Joins, Serves, Works)
    assert all(isinstance(lives[0].group, kind) for kind in kinds)


async def test_who_is_killed_before_its_first_word_sits_that_step_out_and_is_no_liar(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its checkpoint is on disk; what it said, nobody can know, and so it says nothing."""
    async with guarded_world(tmp_path, 4, epochs=4) as made:
        lives = [made.start(number) for number in range(4)]
        doomed = lives[2]
        keep = doomed.group._keep

        async def die_behind() -> bool:
            kept = await keep()
            if doomed.group.group.place.epoch == 1:
                await made.kill(doomed)
                await trio.lowlevel.checkpoint()
            return kept

        doomed.group._keep = die_behind
        with trio.fail_after(600):
            await doomed.over.wait()
        again = made.start(2)
        others = [one for one in lives if one is not doomed]
        await all_over([*others, again])
    assert again.ended == "" and alike([*others, again])
    assert again.epochs == [1, 2, 3, 4], "the second was others' work"
    assert again.runner.history[1].peers == 0 and again.runner.history[2].peers == 3
    assert not any(one.convicted for one in (*others, again))
    assert all(one.group.group.place == again.group.group.place for one in others)


async def test_who_is_killed_when_the_coin_is_known_has_lost_its_seat_and_is_told_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A liar that is drawn would leave and come back: so this costs the seat, and no more."""
    async with guarded_world(tmp_path, 4, epochs=3) as made:
        lives = [made.start(number) for number in range(4)]
        doomed = lives[1]
        dies = trio.Event()
        perform = doomed.group.group._perform

        def until_the_coin(step: object, effects: list[object]) -> None:
            perform(step, effects)  # type: ignore[arg-type]
            if getattr(step, "guard")._attempt.coin is not None:  # noqa: B009
                dies.set()

        doomed.group.group._perform = until_the_coin  # type: ignore[assignment,method-assign]
        await dies.wait()
        await made.kill(doomed)
        await doomed.over.wait()
        again = made.start(1)
        others = [one for one in lives if one is not doomed]
        await all_over([*others, again])
    assert "our seat in this guarded group is lost" in again.ended
    assert alike(others) and not any(one.convicted for one in others)


async def test_a_member_that_comes_late_begins_where_the_others_are(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with guarded_world(tmp_path, 4, epochs=4) as made:
        lives = [made.start(number) for number in range(3)]
        while lives[0].group.group.place.epoch < 1:  # noqa: ASYNC110  # virtual time
            await trio.sleep(1.0)
        late = made.start(3)
        await all_over([*lives, late])
    assert late.ended == "" and alike([*lives, late])
    assert late.epochs[0] > 1 and late.runner.history[-1].peers == 3


async def test_a_disk_that_is_full_costs_a_step_and_nothing_that_was_promised(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What is not on disk is not said."""
    async with guarded_world(tmp_path, 4, epochs=3) as made:
        lives = [made.start(number) for number in range(4)]
        full = lives[0]
        keep = full.group._keep

        async def keep_but_once() -> bool:
            return False if full.group.group.place.epoch == 1 else await keep()

        full.group._keep = keep_but_once
        await all_over(lives)
    assert [one.ended for one in lives] == [""] * 4 and alike(lives)
    assert [one.peers for one in full.runner.history] == [3, 0, 3]
    assert not any(one.convicted for one in lives)


async def test_a_liar_is_convicted_in_a_run_and_its_case_is_handed_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with guarded_world(tmp_path, 4, epochs=12) as made:
        lives = [made.start(number) for number in range(4)]
        liar, honest = lives[0], lives[1:]
        exchange = liar.group.group.exchange

        async def lie(epoch: int, weights: Vector, tokens: int) -> Exchanged:
            return await exchange(epoch, 2 * liar.group.group.anchor - weights, tokens)

        liar.group.group.exchange = lie  # type: ignore[method-assign]
        await all_over(lives)
    peer = key(0).peer_id
    for one in honest:
        assert [found.peer for found in one.convicted] == [peer] and one.convicted[0].file
        assert peer not in one.company.members
    assert alike(honest) and "seat" in liar.ended


async def test_strangers_and_other_machines_are_refused_in_one_line(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with guarded_world(tmp_path, 2, epochs=1) as made:
        stranger = made.start(7)
        other = made.start(1, other=1e-7)
        await all_over([stranger, other])
    assert f'you are "{key(7).peer_id}" in this run, of numerics' in stranger.ended
    assert "this machine's arithmetic is of class" in other.ended
    assert "\n" not in stranger.ended + other.ended


def test_a_members_list_is_of_different_ones() -> None:
    me = key(1).peer_id
    check_seat(me, "a", Guarding((me, key(2).peer_id), "a"))
    for members in ((me,), (me, me)):
        with pytest.raises(UserError, match="two members or more, each once"):
            check_seat(me, "a", Guarding(members, "a"))
    with pytest.raises(UserError, match="numerics is not said"):
        check_numerics("a", "")


def test_the_class_of_numerics_is_of_what_is_computed() -> None:
    assert numerics() == numerics() != numerics(1e-7)
    assert terms_of(3, 1).exchange.guarded.numerics == numerics()


async def test_what_is_kept_of_another_adapter_is_refused(tmp_path: Path) -> None:
    async with guarded_world(tmp_path, 2, epochs=1) as made:
        group: Guarded = made.life(0).group
        with pytest.raises(UserError, match="another adapter"):
            group.carry_on({}, 1)
