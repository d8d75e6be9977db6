"""A guarded step of which nobody has the outcome is begun anew: nobody is a liar for it."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import trio
from guarded_world import GuardedWorld, Life, guarded_world
from guards import key
from sim.memory_host import MemoryNet
from test_guarded_run import alike, all_over
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.node.letters import send_letter
from potluck.node.runs.btard_lives import Lives
from potluck.swarm.run.lives import (
    LETTER_BYTES_MAX,
    LIVES_MAX,
    PROTOCOL,
    Stands,
    Where,
    life_of,
    moment_of,
    number_of,
)

TESTS = Path(__file__).parent
HERE, THERE = b"h" * 32, b"t" * 32
DEADLINE_S = 3000.0  # virtual


def pledged(lives: list[Life], epoch: int, in_life: int) -> trio.Event:
    """Set when one of them has heard all pledges in this life of this step."""
    heard = trio.Event()
    for life in lives:
        _notes(life, epoch, in_life, heard)
    return heard


def _notes(life: Life, epoch: int, in_life: int, heard: trio.Event) -> None:
    group = life.group.group
    perform = group._perform

    def noting(step: Any, effects: Any) -> None:
        perform(step, effects)
        if step.terms.epoch == number_of(epoch, in_life) and step.guard._attempt.is_pledged:
            heard.set()

    group._perform = noting  # type: ignore[method-assign]


async def power_cut(made: GuardedWorld, lives: list[Life], heard: trio.Event) -> list[Life]:
    """All fall at once, and come back one after another."""
    await heard.wait()
    for one in lives:
        one.scope.cancel()
    for one in lives:
        await made.kill(one)
        await one.over.wait()
    return [made.start(one.number, after_s=3.0 * at) for at, one in enumerate(lives)]


async def test_a_step_in_which_all_fall_is_begun_anew_and_costs_nobody_anything(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with guarded_world(tmp_path, 4, epochs=4) as made:
        lives = [made.start(number) for number in range(4)]
        with trio.fail_after(DEADLINE_S):
            again = await power_cut(made, lives, pledged(lives, 1, 0))
            await all_over(again)
    assert [one.ended for one in again] == [""] * 4 and alike(again)
    assert all(one.epochs == [1, 2, 3, 4] for one in again)
    assert [one.peers for one in again[0].runner.history] == [3, 3, 3, 3]
    assert not any(one.convicted for one in (*lives, *again))


async def test_a_step_in_which_all_fall_twice_is_begun_a_third_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What was said in its second life is on disk before it is said, as in the first."""
    async with guarded_world(tmp_path, 3, epochs=2) as made:
        lives = [made.start(number) for number in range(3)]
        with trio.fail_after(DEADLINE_S):
            second = await power_cut(made, lives, pledged(lives, 0, 0))
            third = await power_cut(made, second, pledged(second, 0, 1))
            await all_over(third)
    assert [one.ended for one in third] == [""] * 3 and alike(third)
    assert all(one.epochs == [1, 2] for one in third)
    assert not any(one.convicted for one in (*lives, *second, *third))


async def test_a_group_whose_roads_all_failed_goes_on_when_they_are_back(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Nobody was killed: each found too few left."""
    async with guarded_world(tmp_path, 4, epochs=3) as made:
        lives = [made.start(number) for number in range(4)]
        with trio.fail_after(DEADLINE_S):
            await pledged(lives, 1, 0).wait()
            for one in lives:
                await one.host.die()
            await trio.sleep(60.0)
            assert all(one.group.group.place.epoch == 1 for one in lives)
            for one in lives:
                one.host.dead = False
            await all_over(lives)
    assert alike(lives) and all(one.epochs == [1, 2, 3] for one in lives)
    assert not any(one.convicted for one in lives)


# ---- the rule


def test_a_number_tells_step_and_life_and_the_first_life_is_as_it_always_was() -> None:
    assert number_of(7, 0) == 7
    moments = [(epoch, life) for epoch in (0, 7, 1_000_000) for life in (0, 1, LIVES_MAX)]
    assert [moment_of(number_of(*one)) for one in moments] == moments
    assert number_of(1_000_000, LIVES_MAX) < 1 << 40, "what a message holds"


@pytest.mark.parametrize(
    ("lives", "mine", "found"),
    [
        ((1, 1, 0, 0), 1, None),  # half of them: the others may have the outcome
        ((1, 1, 1, 0), 1, 1),
        ((2, 1, 1, 0), 1, 1),
        ((2, 1, 1, 0), 2, None),  # it has spoken there: when the others have failed too
        ((2, 2, 2, 0), 1, 2),
        ((9, 9, 1, 1, 1), 1, 1),  # fewer than half lead nobody on
        ((9, 9, 1, 1, 0), 1, 1),
        ((0, 0, 0), 1, None),
        ((256, 256, 256), 256, None),
    ],
)
def test_a_step_is_begun_anew_in_the_life_that_more_than_half_have_come_to(
    lives: tuple[int, ...], mine: int, found: int | None
) -> None:
    roster = [f"peer{seat}" for seat in range(len(lives))]
    for order in set(permutations(lives)):
        told = {**dict(zip(roster, order, strict=True)), "stranger": 9}
        assert life_of(mine, told, roster) == found
    assert life_of(1, {"peer0": 1}, ["peer0"]) is None, "nobody else has a seat"


# ---- what is said of it


def test_the_bytes_of_every_message_are_those_on_file() -> None:
    said = {"Where": Where(HERE), "Stands": Stands(3)}
    golden = (TESTS / "golden" / "lives.hex").read_text("utf-8").splitlines()
    assert [f"{title} {encode(one).hex()}" for title, one in said.items()] == golden
    assert len(encode(Where(HERE))) <= LETTER_BYTES_MAX


async def answered(host: Any, peer: str, place: bytes) -> dict[str, int]:
    mine = Lives(host, key(0), host.blame)
    mine.stand(place, 3)
    return await mine.ask([peer])


async def test_only_who_stands_at_the_same_place_counts(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        ours, theirs = (net.host(key(number).peer_id) for number in range(2))
        other = Lives(theirs, key(1), theirs.blame)
        other.open()
        other.stand(HERE, 2)
        me, peer = key(0).peer_id, key(1).peer_id
        assert await answered(ours, peer, HERE) == {me: 3, peer: 2}
        assert await answered(ours, peer, THERE) == {me: 3, peer: 0}
        other.close()
        assert await answered(ours, peer, HERE) == {me: 3}, "an older version"
        nursery.cancel_scope.cancel()


async def test_who_answers_nonsense_is_blamed_and_who_answers_nothing_is_nowhere(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        ours, theirs = (net.host(key(number).peer_id) for number in range(2))

        async def nonsense(stream: Any) -> None:
            await send_letter(stream, b"nonsense")

        async def nothing(stream: Any) -> None:
            await trio.sleep_forever()

        me, peer = key(0).peer_id, key(1).peer_id
        theirs.handle(PROTOCOL, nonsense)
        assert await answered(ours, peer, HERE) == {me: 3}
        assert [blamed for blamed, _ in ours.blamed] == [peer]
        theirs.handle(PROTOCOL, nothing)
        with trio.fail_after(60):
            assert await answered(ours, peer, HERE) == {me: 3}
        nursery.cancel_scope.cancel()


async def test_one_who_asks_without_end_is_refused_and_nobody_else(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        greedy, other, theirs = (net.host(key(number).peer_id) for number in range(3))
        told = Lives(theirs, key(2), theirs.blame)
        told.open()
        told.stand(HERE, 1)
        peer = key(2).peer_id
        found = [await answered(greedy, peer, HERE) for _ in range(20)]
        assert peer in found[0] and peer not in found[-1]
        mine = Lives(other, key(1), other.blame)
        mine.stand(HERE, 1)
        assert (await mine.ask([peer]))[peer] == 1
        nursery.cancel_scope.cancel()
