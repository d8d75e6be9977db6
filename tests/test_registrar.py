"""The registry of real drivers over memory roads, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import trio
from sim.memory_swarm import BLOCKS, MODEL, announcement
from sim.parted import Citizen, Town, open_town, wall
from trio.testing import MockClock

from potluck.crypto.codec import decode, encode
from potluck.crypto.envelope import Envelope
from potluck.dht.keyspace import spans_of
from potluck.dht.record import REFRESH_S, Record, sign_fact
from potluck.errors import RemoteError
from potluck.node.gossip.registry import KINDS, OF_EACH
from potluck.node.gossip.talks import Talk
from potluck.swarm.replica import (
    LETTER_BYTES_MAX,
    PROTOCOL,
    SLOTS_PER_PEER,
    Give,
    Listing,
    Replica,
    Want,
)
from potluck.swarm.testimony import Contradiction, check_contradiction


async def until_alike(town: Town, within_s: float) -> None:
    with trio.fail_after(within_s):
        while not town.alike():  # noqa: ASYNC110  # virtual time
            await trio.sleep(0.25)


async def open_talk(one: Citizen, other: Citizen) -> Talk:
    one.host.learn(other.id, other.host.addresses())
    stream = await one.host.open_stream(other.id, PROTOCOL)
    return Talk(stream, KINDS, LETTER_BYTES_MAX)


async def give(one: Citizen, other: Citizen, *records: bytes) -> None:
    """As a peer does that holds nothing but these."""
    talk = await open_talk(one, other)
    await talk.send(Replica().summary(wall()))
    assert isinstance(await talk.receive(), Listing)
    await talk.send(Give(records), Want(b""))
    assert await talk.receive() in (None, Give(()))


def said(one: Citizen, *, seq: int, model: str = MODEL, start: int = 0) -> Record:
    told = replace(announcement(start, BLOCKS, one.host), model=model)
    return sign_fact(one.key, told, boot=2, seq=seq, now=wall())


async def test_halves_that_were_parted_for_half_an_hour_agree_within_one_refresh(
    autojump_clock: MockClock,
) -> None:
    """Each half's records of the other have expired, and so has whom it knew there. From the
    healing on nobody refreshes, or hashes would never be equal: what heals is the comparing."""
    async with open_town(4) as town:
        await trio.sleep(120)
        everybody = {one.id for one in town.citizens}
        assert all(one.holds() == everybody for one in town.citizens)
        town.part()
        await trio.sleep(1800)
        for half in (town.citizens[::2], town.citizens[1::2]):
            assert all(one.holds() == {other.id for other in half} for one in half)
        town.heal()
        town.refreshing = False
        await until_alike(town, REFRESH_S)
        assert all(one.holds() == everybody for one in town.citizens)
        assert town.net.faults == []


async def test_what_one_holds_a_reader_finds_under_its_place(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        await trio.sleep(60)
        for one in town.citizens:
            found = one.registrar.at(spans_of(MODEL))
            assert {record.slot.peer for record in found} == {each.id for each in town.citizens}
            assert one.registrar.at(spans_of("cd" * 32)) == []


async def test_who_contradicts_itself_is_told_of_with_the_proof(autojump_clock: MockClock) -> None:
    """One record to each of two peers: neither sees anything wrong until they compare."""
    async with open_town(3) as town:
        await trio.sleep(60)
        town.refreshing = False
        liar, one, other = town.citizens
        proofs: list[Contradiction] = []
        for each in (one, other):
            each.registrar.proved.append(proofs.append)
        await give(liar, one, said(liar, seq=9, start=0).raw)
        await give(liar, other, said(liar, seq=9, start=1).raw)
        with trio.fail_after(60):
            while not proofs:  # noqa: ASYNC110  # virtual time
                await trio.sleep(1)
        assert check_contradiction(proofs[0]) == liar.id
        await until_alike(town, 60)


async def test_what_is_forged_is_its_givers_fault_and_what_is_rolled_back_is_not_taken(
    autojump_clock: MockClock,
) -> None:
    async with open_town(3) as town:
        await trio.sleep(60)
        town.refreshing = False
        foe, one, other = town.citizens
        await until_alike(town, 60)
        newest = one.registrar.at(spans_of(MODEL))
        first = sign_fact(other.key, announcement(0, BLOCKS, other.host), boot=1, seq=0, now=wall())
        await give(foe, one, first.raw)
        assert one.registrar.at(spans_of(MODEL)) == newest and town.net.faults == []
        envelope = decode(said(other, seq=9).raw, Envelope)
        forged = encode(replace(envelope, signature=foe.key.sign(envelope.body)))
        talk = await open_talk(foe, one)
        await talk.send(Replica().summary(wall()))
        await talk.receive()
        await talk.send(Give((forged,)), Want(b""))
        await trio.sleep(1)
        [(who, error)] = town.net.faults
        assert who == one.id and isinstance(error, RemoteError)
        assert one.registrar.at(spans_of(MODEL)) == newest


async def test_a_signer_of_too_much_gets_nobody_blamed_who_passes_it_on(
    autojump_clock: MockClock,
) -> None:
    """It shows each peer other slots; honest ones pass them on to each other, and agree."""
    async with open_town(3) as town:
        await trio.sleep(60)
        town.refreshing = False
        liar, one, other = town.citizens
        records = [said(liar, seq=5, model=f"{n:064x}") for n in range(2 * SLOTS_PER_PEER)]
        await give(liar, one, *(record.raw for record in records[::2]))
        await give(liar, other, *(record.raw for record in records[1::2]))
        await until_alike(town, 60)
        assert town.net.faults == [] and not any(each.host.blamed for each in town.citizens)
        held = [record for record in one.registrar._replica.live(wall())]
        assert sum(record.slot.peer == liar.id for record in held) == SLOTS_PER_PEER


async def test_nothing_is_believed_of_who_is_shunned(autojump_clock: MockClock) -> None:
    async with open_town(3) as town:
        await trio.sleep(60)
        banned, one, other = town.citizens
        one.registrar._shunned = banned.id.__eq__
        one.registrar.shun(banned.id)
        assert banned.id not in one.holds()
        await trio.sleep(60)
        assert one.holds() == {one.id, other.id} and banned.id in other.holds()
        assert town.net.faults == []


async def test_whoever_floods_is_not_read(autojump_clock: MockClock) -> None:
    async with open_town(2) as town:
        flooder, other = town.citizens
        other.registrar.put(other.record())
        for _ in range(int(OF_EACH[1])):
            talk = await open_talk(flooder, other)
            await talk.send(Replica().summary(wall()))
            assert isinstance(await talk.receive(), Listing)
            await talk.close()
        stream = await flooder.host.open_stream(other.id, PROTOCOL)
        await stream.broken()
