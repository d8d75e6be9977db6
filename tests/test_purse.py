"""Giver and taker: what was taken is signed for, once, by both, whatever fails."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import trio
from homes import Home, until, world
from homes import impatient as impatient
from sim.memory_host import MemoryNet, MemoryStream

from potluck.crypto.keys import IdentityKey
from potluck.node.credit import till as till_module
from potluck.node.credit.tallies import FILE, Tallies
from potluck.node.credit.till import Till
from potluck.swarm.settlement import PROTOCOL
from potluck.swarm.tally import Tally, contradiction


async def test_what_was_taken_is_signed_by_both_and_survives_both(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        work = await client.take(giver, 100) + await client.take(giver, 1)
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (work, 0.0))
        assert taker.sums(giver) == (0.0, work)
        work += await client.take(giver, 7)
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (pytest.approx(work), 0.0))
        assert taker.tallies.pair(giver.key.peer_id).tally.seq == 2
        # the giver has credit at the taker's node, though it was a client that signed
        await until(lambda: taker.credit(giver) > 0)
        assert made.net.faults == []
    again = Home(tmp_path / "giver", MemoryNet(None), giver.key)  # type: ignore[arg-type]
    assert again.sums(taker) == (pytest.approx(work), 0.0)


async def test_a_giver_that_claims_too_much_is_not_signed(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()

        async def claims_double(stream: MemoryStream) -> None:
            await Till._greet(giver.till, stream)

        real = till_module.make_offer

        def boast(*args, gave, **rest):  # type: ignore[no-untyped-def]
            return real(*args, gave=2 * gave, **rest)

        giver.host.handlers[PROTOCOL] = claims_double
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(till_module, "make_offer", boast)
            await client.take(giver, 100)
            await client.purse.settle()
        assert taker.sums(giver) == giver.sums(taker) == (0.0, 0.0)
        assert made.net.faults == []  # it is told so, in order


async def test_an_answer_that_never_came_is_shown_next_time(tmp_path: Path) -> None:
    """The taker is killed when it has kept the tally, before it can tell."""
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        with pytest.MonkeyPatch.context() as patched:
            client.purse.opens(giver.key.peer_id)
            await until(lambda: client.host.peer_id in giver.till._account_of)
            patched.setattr("potluck.node.credit.purse.encode", lambda answer: b"\xc1")
            work = await client.take(giver, 100)
            await client.purse.settle()
        assert taker.sums(giver) == (0.0, pytest.approx(work))
        assert giver.sums(taker) == (0.0, 0.0)
        assert sum(giver.till._given.values()) == pytest.approx(work)
        client = taker.client()
        client.purse.opens(giver.key.peer_id)
        await until(lambda: giver.sums(taker) == (pytest.approx(work), 0.0))
        await until(lambda: sum(giver.till._given.values()) == 0)  # nothing is left to be signed


@pytest.mark.parametrize("whose", ["giver", "taker"])
async def test_a_restored_disk_is_healed_and_contradicts_nobody(whose: str, tmp_path: Path) -> None:
    """Every tally that was ever signed is remembered here; no two convict either."""
    seen: set[Tally] = set()
    real = Tallies.keep

    def watched(self: Tallies, raw: bytes, tally: Tally) -> bool:
        seen.add(tally)
        return real(self, raw, tally)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tallies, "keep", watched)
        async with world(tmp_path) as made:
            giver, taker = made.home("giver"), made.home("taker")
            restored = giver if whose == "giver" else taker
            work = 0.0
            for round_ in range(4):
                client = taker.client()
                work += await client.take(giver, 10 + round_)
                await client.purse.settle()
                both = pytest.approx(work)
                await until(lambda both=both: giver.sums(taker)[0] == both)  # type: ignore[misc]
                if round_ == 0:
                    shutil.copy(restored.folder / FILE, tmp_path / "snapshot")
                if round_ == 2:
                    for suffix in ("-wal", "-shm"):
                        (restored.folder / (FILE + suffix)).unlink(missing_ok=True)
                    shutil.copy(tmp_path / "snapshot", restored.folder / FILE)
            assert taker.sums(giver) == (0.0, pytest.approx(work))
    for one, other in itertools.combinations(seen, 2):
        assert contradiction(one, other) == ()
    assert len(seen) == 4


async def test_two_clients_of_a_home_and_two_homes_at_once(tmp_path: Path) -> None:
    """All of it is signed in the end, in both directions."""
    async with world(tmp_path) as made:
        one, other = made.home("one"), made.home("other")
        gave: dict[str, float] = {"one": 0.0, "other": 0.0}
        clients = [(one.client(), other, "other") for _ in range(2)]
        clients += [(other.client(), one, "one") for _ in range(2)]
        for client, giver, name in clients:
            gave[name] += await client.take(giver, 50)
        mine = pytest.approx(gave["one"]), pytest.approx(gave["other"])

        def settled() -> bool:
            return one.sums(other) == mine and other.sums(one) == mine[::-1]

        while not settled():  # of two clients at once one is told to come back
            async with trio.open_nursery() as nursery:
                for client, _, _ in clients:
                    nursery.start_soon(client.purse.settle)


async def test_of_many_givers_those_go_first_that_nothing_is_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potluck.node.credit.purse.GIVERS_MAX", 2)
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        work = await client.take(giver, 100)
        await client.purse.settle()
        work += await client.take(giver, 100)  # of which it will tell later
        for _ in range(4):
            client.purse.opens(IdentityKey.generate().peer_id)
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (pytest.approx(work), 0.0))
