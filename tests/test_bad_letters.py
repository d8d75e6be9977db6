"""Letters that no honest peer sends, to whoever keeps views, records and exhibits: each ends its
own stream, is its sender's fault or passed over, and changes nothing of what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random

import msgpack
import pytest
import trio
from receipts import key
from sim.memory_host import MemoryStream
from sim.memory_swarm import BLOCKS, announcement
from sim.parted import Citizen, Town, open_town, wall
from sim.turned import turned
from trio.testing import MockClock

from potluck.crypto.codec import decode, encode
from potluck.crypto.envelope import Envelope
from potluck.dht.record import CHUNK_TTL_MAX_S, Provider, Record, sign_fact
from potluck.errors import Refused, RemoteError, TransportError
from potluck.node.gossip.talks import TALK_S
from potluck.node.trust.exhibit import PROTOCOL as EXHIBIT
from potluck.node.trust.exhibit import SHOWN_AT_ONCE, Exhibits, fetch
from potluck.swarm import replica
from potluck.swarm.replica import BUCKETS, NAME_BYTES, Give, Listing, Summary, Want
from potluck.swarm.sampling import ROUND_S
from potluck.swarm.sampling_events import PROTOCOL as SAMPLE
from potluck.swarm.sampling_events import Member, Pull, View

HOUR_S = 3600.0
OTHERS = Summary(bytes(BUCKETS * NAME_BYTES))  # of one who holds nothing like what we hold


def letter(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


def told(*messages: object) -> bytes:
    return b"".join(letter(encode(one)) for one in messages)


def unknown(**fields: object) -> bytes:
    packed: bytes = msgpack.packb({"": "nobody knows this", **fields})
    return letter(packed)


# ---- records: what is told in a comparison


class Signer:
    """Whose records are told of: one that the registry holds, and a stranger."""

    def __init__(self, known: Citizen) -> None:
        self.known, self.foe = known, key("foe")
        self.held = known.record()

    def said(self, *, by: str = "", now: float = 0.0, seq: int = 9, boot: int = 1) -> Record:
        fact = announcement(0, BLOCKS, self.known.host)
        signer = key(by) if by else self.known.key
        return sign_fact(signer, fact, boot=boot, seq=seq, now=wall() + now)

    def resigned(self) -> bytes:
        envelope = decode(self.said().raw, Envelope)
        return encode(replace(envelope, signature=self.foe.sign(envelope.body)))

    def chunk(self) -> bytes:
        fact = Provider(bytes(32), ())
        return sign_fact(self.known.key, fact, boot=1, seq=9, now=wall(), ttl_s=CHUNK_TTL_MAX_S).raw


RECORDS: dict[str, tuple[Callable[[Signer], bytes], bool]] = {  # and whether its giver is to blame
    "malformed": (lambda one: b"\xc1" * 40, True),
    "nothing": (lambda one: b"", True),
    "a bit is turned": (lambda one: turned(one.said().raw), True),
    "wrongly signed": (Signer.resigned, True),
    "of an hour ahead": (lambda one: one.said(now=HOUR_S).raw, False),
    "of an hour ago": (lambda one: one.said(now=-HOUR_S).raw, False),
    "rolled back by seq": (lambda one: one.said(seq=0).raw, False),
    "rolled back by boot": (lambda one: one.said(boot=0).raw, False),
    "twice the same": (lambda one: one.held.raw, False),
    "another's addresses": (lambda one: one.said(by="foe").raw, False),
    "of a kind that is not compared": (lambda one: one.chunk(), False),
}


async def send(foe: Citizen, to: Citizen, protocol: str, said: bytes) -> None:
    """Say it, finish, and read what comes back."""
    foe.host.learn(to.id, to.host.addresses())
    stream = await foe.host.open_stream(to.id, protocol)
    with suppress(TransportError):  # it may be ended before all is said
        await stream.send(said)
        await stream.close()
        while await stream.receive():
            pass


def faults(town: Town, whose: Citizen) -> list[BaseException]:
    return [error for who, error in town.net.faults if who == whose.id]


@pytest.mark.parametrize("what", RECORDS)
async def test_a_record_that_nobody_may_believe_changes_no_registry(
    autojump_clock: MockClock, what: str
) -> None:
    make, blamed = RECORDS[what]
    async with open_town(3) as town:
        town.refreshing = False
        foe, known, other = town.citizens
        signer = Signer(known)
        other.registrar.put(signer.held)
        await trio.sleep(2 * ROUND_S)
        held = other.registrar.digest()
        await send(foe, other, replica.PROTOCOL, told(OTHERS, Give((make(signer),)), Want(b"")))
        assert other.registrar.digest() == held
        assert bool(faults(town, other)) is blamed
        assert all(isinstance(error, RemoteError) for error in faults(town, other))
        newer = signer.said(seq=10)
        await send(foe, other, replica.PROTOCOL, told(OTHERS, Give((newer.raw,)), Want(b"")))
        assert other.registrar._replica.of(newer.slot) == newer  # what is true is taken


CONVERSATIONS: dict[str, bytes] = {
    "malformed": b"\0\0\0\x02\xc1\xc1",
    "an empty letter": letter(b""),
    "oversized": (replica.LETTER_BYTES_MAX + 1).to_bytes(4) + bytes(64),
    "four gigabytes": b"\xff\xff\xff\xff" + bytes(64),
    "broken off": told(OTHERS)[:-1],
    "broken off in its length": b"\0\0",
    "of no known kind": unknown(),
    "of a kind with a field more": unknown(buckets=bytes(BUCKETS * NAME_BYTES)),
    "a summary that is too short": letter(encode(OTHERS).replace(b"\xc5\x08\0", b"\xc5\x07\xff")),
    "a want first": told(Want(b"")),
    "a listing first": told(Listing(b"", b"")),
    "in another order": told(OTHERS, Want(b""), Give(())),
    "again and again": told(OTHERS, OTHERS, OTHERS),
    "names that are none": told(OTHERS, Give(()), Want(b"12345")),
}


@pytest.mark.parametrize("what", CONVERSATIONS)
async def test_a_comparison_that_no_honest_peer_has_is_its_senders_fault(
    autojump_clock: MockClock, what: str
) -> None:
    async with open_town(2) as town:
        foe, other = town.citizens
        await trio.sleep(4 * ROUND_S)
        known = other.holds()
        await send(foe, other, replica.PROTOCOL, CONVERSATIONS[what])
        await trio.sleep(2 * TALK_S)
        assert [type(error) for error in faults(town, other)] == [RemoteError]
        assert other.holds() == known == {foe.id, other.id}


async def test_a_clock_that_jumps_by_hours_gets_nobody_blamed_and_heals(
    autojump_clock: MockClock,
) -> None:
    """Ahead, all that others say is old for it, and what it says is of the future for them; behind,
    the other way round. All are honest, so that nobody is to blame; and right again, all hold all.
    """
    async with open_town(3) as town:
        odd = town.citizens[0]
        everybody = {one.id for one in town.citizens}

        async def until_all_hold_all() -> None:
            with trio.fail_after(40 * ROUND_S):
                while any(one.holds() != everybody for one in town.citizens):  # noqa: ASYNC110
                    await trio.sleep(1)  # virtual time

        await until_all_hold_all()
        for hours in (5.0, -5.0):
            odd.registrar._wall = lambda hours=hours: wall() + hours * HOUR_S
            await trio.sleep(25 * ROUND_S)  # longer than a record lives
            assert all(one.holds() >= everybody - {odd.id} for one in town.citizens[1:])
            odd.registrar._wall = wall
            await until_all_hold_all()
        assert town.net.faults == [] and not any(one.host.blamed for one in town.citizens)


# ---- views


LIES: dict[str, Callable[[Citizen, Citizen], bytes]] = {
    "an empty letter": lambda foe, other: letter(b""),
    "of no known kind": lambda foe, other: unknown(),
    "a view with a field more": lambda foe, other: unknown(members=[]),
    "oversized": lambda foe, other: b"\xff\xff\xff\xff" + bytes(64),
    "too many members": lambda foe, other: letter(
        encode(View((Member(foe.id, foe.host.place),) * 200)).replace(
            b"\xdc\0\xc8", b"\xdc\x27\x10"
        )
    ),
    "a name that is none": lambda foe, other: letter(
        encode(View((Member(foe.id, "/ip4/1.2.3.4/tcp/1"),))).replace(b"12D3", b"12\xff3")
    ),
}


@pytest.mark.parametrize("what", LIES)
async def test_a_view_that_nobody_can_read_is_its_senders_fault(
    autojump_clock: MockClock, what: str
) -> None:
    async with open_town(2) as town:
        foe, other = town.citizens
        await trio.sleep(2 * ROUND_S)
        known = set(other.sampler._machine.members())
        await send(foe, other, SAMPLE, LIES[what](foe, other))
        assert [type(error) for error in faults(town, other)] == [RemoteError]
        assert set(other.sampler._machine.members()) == known


async def test_a_view_that_is_told_twice_or_names_its_reader_and_nonsense_adds_nobody(
    autojump_clock: MockClock,
) -> None:
    """Nobody is to blame for whom it heard of: each is tried, and forgotten."""
    async with open_town(3) as town:
        foe, other, _ = town.citizens
        await trio.sleep(4 * ROUND_S)
        honest = {one.id for one in town.citizens} - {other.id}
        ghosts = (
            Member(key("ghost").peer_id, "/ip4/99.9.9.9/tcp/1"),
            Member(other.id, "/nonsense"),
        )
        for said in (told(View(ghosts)) * 3, told(Pull(), View(ghosts)), told(View(()), Pull())):
            await send(foe, other, SAMPLE, said)
            await trio.sleep(ROUND_S)
        with trio.fail_after(60 * ROUND_S):
            while {one.peer for one in other.sampler._machine.members()} != honest:  # noqa: ASYNC110
                await trio.sleep(1)  # virtual time
        assert faults(town, other) == [] and other.host.blamed == []


# ---- exhibits


async def test_whoever_asks_for_no_exhibit_or_for_too_many_is_told_nothing_and_others_are_shown(
    autojump_clock: MockClock,
) -> None:
    async with open_town(3) as town:
        foe, other, honest = town.citizens
        exhibits = Exhibits()
        name = exhibits.put(b"exhibit" * 1000)
        other.host.handle(EXHIBIT, exhibits.serve)
        dice = Random(1)
        for said in (b"", bytes(31), dice.randbytes(32), name + b"more", bytes(9000)):
            await send(foe, other, EXHIBIT, said)
            await trio.sleep(30)  # or it has asked too often
        assert [type(error) for error in faults(town, other)] == [RemoteError, RemoteError]
        for _ in range(30):
            await send(foe, other, EXHIBIT, dice.randbytes(32))
        assert isinstance(faults(town, other)[-1], Refused)
        honest.host.learn(other.id, other.host.addresses())
        assert await fetch(honest.host, other.id, name) == b"exhibit" * 1000  # type: ignore[arg-type]


async def test_who_asks_for_an_exhibit_and_says_no_name_or_reads_nothing_is_cut_off(
    autojump_clock: MockClock,
) -> None:
    async with open_town(2) as town:
        foe, other = town.citizens
        exhibits = Exhibits()
        other.host.handle(EXHIBIT, exhibits.serve)
        foe.host.learn(other.id, other.host.addresses())
        silent: Sequence[MemoryStream] = [
            await foe.host.open_stream(other.id, EXHIBIT) for _ in range(SHOWN_AT_ONCE)
        ]
        await trio.sleep(1)
        assert exhibits._showing == SHOWN_AT_ONCE
        await trio.sleep(120)
        assert exhibits._showing == 0 and len(silent) == SHOWN_AT_ONCE
        assert {type(error) for error in faults(town, other)} == {TransportError}
