"""Runs by one byte a step: equal bits through churn, kills, liars and late joins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from scalar_world import RULES, apart, equal, world
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError, UserError
from potluck.swarm.run.scalars import FIRST, Log, Page, read_page, sign_page
from potluck.swarm.run.seeds import ABSENT


async def test_peers_that_hear_in_different_orders_end_with_equal_bits_and_learn(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        await made.go(0, 1, 2, 3, rounds=20)
        assert equal(*made.members.values())
        assert apart(made.members[0]) < 0.5 and made.blamed == []
        floors = {member.floor for member in made.members.values()}
        assert min(floors) >= 12, "what is older is folded"
        newest = {member.kept.marks()[0].shared.digest for member in made.members.values()}
        assert len(newest) == len(floors)
        codes = b"".join(
            read_page(raw, RULES)[1].codes
            for member in made.members.values()
            for raw in member.run._journal.read()
        )
        assert codes.count(ABSENT & 255) < len(codes) / 4, "nobody was absent for being second"


async def test_a_joiner_rebuilds_the_weights_from_a_snapshot_and_the_log(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        await made.go(0, 1, 2, 3, rounds=20)
        joiner = made.add(9)
        await joiner.run.begin()
        await joiner.run.settle()
        assert joiner.floor >= 12 and equal(joiner, made.members[0])
        await made.go(0, 1, 2, 3, 9, rounds=30)
        assert equal(*made.members.values())
        codes = joiner.run.hearing.log
        assert codes.next(joiner.key.peer_id) == 30


async def test_a_joiner_of_a_young_run_needs_no_snapshot(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 3) as made:
        await made.go(0, 1, 2, rounds=5)
        joiner = made.add(9)
        await joiner.run.begin()
        await joiner.run.settle()
        assert joiner.floor == 0 and equal(joiner, made.members[0])


async def test_who_was_killed_goes_on_from_its_disk_and_contradicts_itself_in_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        with trio.CancelScope() as life:
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(made.members[number].run.run, 14)

                async def die() -> None:
                    while made.members[3].run.round < 9:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    life.cancel()

                nursery.start_soon(die)
                nursery.start_soon(made.members[3].run.run, 14)
        before = [made.members[number].run.round for number in range(4)]
        for number in range(4):  # all of them: nothing is left but their disks
            made.add(number)
        for member in made.members.values():
            await member.run.begin()
        after = [made.members[number].run.round for number in range(4)]
        assert all(one >= other for one, other in zip(after, before, strict=True))
        await made.go(0, 1, 2, 3, rounds=20)
        assert equal(*made.members.values()) and apart(made.members[0]) < 0.6
        assert all(member.run.hearing.log.convicted == () for member in made.members.values())


async def test_who_is_away_for_epochs_joins_anew_and_is_not_held_a_liar(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        await made.go(0, 1, 2, 3, rounds=6)
        old = made.members[0].run.hearing.log.pages()
        away = made.members.pop(3)
        await made.go(0, 1, 2, rounds=25)
        made.members[3] = away
        await made.go(0, 1, 2, 3, rounds=30)
        assert equal(*made.members.values())
        for raw in old:  # who kept what it once said, cannot use it against it
            made.members[0].run.hearing.log.merge(raw)
        assert made.members[0].run.hearing.log.convicted == ()


async def test_who_lost_its_disk_is_told_by_others_what_it_said(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        await made.go(0, 1, 2, 3, rounds=6)
        shutil.rmtree(tmp_path / "3")
        await made.add(3).run.begin()
        await made.go(0, 1, 2, 3, rounds=12)
        assert equal(*made.members.values())
        assert all(member.run.hearing.log.convicted == () for member in made.members.values())


async def test_who_begins_with_an_older_snapshot_still_knows_all_that_it_said(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 3) as made:
        await made.go(0, 1, 2, rounds=20)
        run, kept = made.members[0].run, made.members[0].kept
        said = run.round
        oldest = kept.marks()[-1]
        found = kept.load(oldest.manifest)
        assert found is not None and 4 * found.epoch < run.hearing.log.floor
        await run._begin_with(found)
        assert run.round == said and not run._mute
        run._journal.rewrite(run._journal.read()[-1:])
        run.hearing.log = Log(RULES, run.hearing.log.floor)
        await run._begin_with(found)
        assert run._mute and run.round < said, "and so it says nothing"


async def test_a_joiner_that_finds_no_majority_is_told_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 2) as made:
        await made.go(0, 1, rounds=10)
        joiner = made.add(9)
        with pytest.raises(TransportError, match="begin again when more can be reached"):
            await joiner.run.begin()


async def test_a_slow_peer_holds_up_nobody_and_says_that_it_was_absent(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        slow = made.members[3]
        slope = slow.run._slope

        async def slowly(round_: int) -> int:
            await trio.sleep(100.0)
            return await slope(round_)

        slow.run._slope = slowly  # type: ignore[method-assign]
        began_s = trio.current_time()
        await made.go(0, 1, 2, 3, rounds=16)
        assert trio.current_time() - began_s < 16 * 100 / 2
        assert equal(*made.members.values())
        said = b"".join(read_page(raw, RULES)[1].codes for raw in slow.run._journal.read())
        assert said == bytes((ABSENT & 255,)) * len(said), "what it measured came too late"


async def test_a_liar_that_climbs_fifty_times_as_fast_does_not_turn_the_others(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        made.add(9, lies=True)
        await made.go(0, 1, 2, 3, 9, rounds=20)
        assert equal(*(made.members[number] for number in range(4)))
        assert apart(made.members[0]) < 0.7


async def test_one_that_tells_each_another_story_is_convicted_by_all_and_counts_for_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 3) as made:
        forger = IdentityKey.from_bytes(b"forger! " * 4)
        for number in range(3):
            page = Page(RULES.run, 0, FIRST, bytes((100 + number,)) * 3)
            member = made.members[number].run.hearing
            member._took(member.log.merge(sign_page(forger, page)).changes)
        await made.go(0, 1, 2, rounds=6)
        for member in made.members.values():
            assert member.run.hearing.log.convicted == (forger.peer_id,)
        assert equal(*made.members.values())


async def test_whose_snapshot_is_not_what_most_have_begins_with_theirs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 4) as made:
        await made.go(0, 1, 2, 3, rounds=8)
        odd = made.members[3]
        odd.weights.total[0] += 12345  # a bit that fell over, or a page that only it had in time
        await made.go(0, 1, 2, 3, rounds=24)
        assert equal(*made.members.values())


async def test_what_differs_in_the_last_snapshot_of_all_is_mended_when_all_are_done(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """There is no later one at which it would be seen."""
    async with world(tmp_path, 4) as made:
        await made.go(0, 1, 2, 3, rounds=8)
        odd = made.members[3]
        odd.weights.total[0] += 12345
        odd.kept.drop_after(-1, 0)
        odd.kept.save(odd.weights.snapshot(odd.floor, odd.run.hearing.log.steps(odd.floor)))
        assert not equal(*made.members.values())
        await odd.run.finish(8)
        assert equal(*made.members.values())


async def test_who_has_said_more_than_anybody_knows_is_told_so_in_the_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Its disk lost what it said, and whoever heard it has gone."""
    async with world(tmp_path, 1) as made:
        run = made.members[0].run
        await made.go(0, rounds=6)
        run._journal.rewrite(run._journal.read()[-1:])
        run.hearing.log = Log(RULES)
        with trio.fail_after(100.0), pytest.raises(TransportError, match="more in this run than"):
            await run.run(9)


async def test_of_two_the_one_behind_says_that_it_was_absent(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 2) as made:
        await made.members[0].run.run(30)
        await made.go(0, 1, rounds=31)
        assert equal(*made.members.values())
        said = [read_page(raw, RULES)[1] for raw in made.members[1].run._journal.read()]
        codes = b"".join(page.codes for page in said)
        assert codes.count(ABSENT & 255) >= len(codes) - 1


async def test_a_full_disk_ends_the_run_before_anything_is_said(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, 2) as made:
        run = made.members[0].run
        await made.go(0, 1, rounds=2)

        def fail(page: bytes) -> None:
            raise UserError("said: cannot be written (No space left on device); free the disk")

        monkeypatch.setattr(run._journal, "append", fail)
        with pytest.raises(UserError, match="No space left"):
            await run._say([1])
        assert run.round == 2


async def test_a_convicted_key_is_told_that_it_has_no_voice(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 1) as made:
        member = made.members[0]
        for code in (1, 2):
            page = Page(RULES.run, 0, FIRST, bytes((code,)))
            member.run.hearing.log.merge(sign_page(member.key, page))
        with pytest.raises(UserError, match="no voice in this run"):
            await member.run.run(3)
