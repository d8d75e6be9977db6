"""The directory among liars, the silent, the many and the mad: nobody is kept out or deceived."""

from collections.abc import Sequence

import trio
from dht_swarm import (
    EPOCH_S,
    MODEL,
    MemoryHost,
    Peer,
    RoadStream,
    Swarm,
    announcement,
    open_swarm,
    wall,
)
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.calls import Stream
from potluck.dht.keyspace import spans_of
from potluck.dht.message import (
    PROTOCOL,
    Contact,
    Find,
    Found,
    FrameReader,
    Hello,
    Kept,
    Put,
    read_reply,
    read_request,
    to_frame,
)
from potluck.dht.record import sign_fact


class Liar:
    """Answers every question with old and forged records and with other liars only."""

    def __init__(self, key: IdentityKey, victims: Sequence[IdentityKey], old: list[bytes]) -> None:
        self.key = key
        self.friends: list[Contact] = []
        self.lies = list(old)
        for victim in victims:
            forged = sign_fact(key, announcement(victim.peer_id), boot=2**31, seq=9, now=wall())
            broken = bytearray(forged.raw)
            broken[40] ^= 1
            self.lies += [forged.raw, bytes(broken)]

    async def serve(self, stream: Stream) -> None:
        frames = FrameReader(1 << 20)
        while piece := await stream.receive():
            frames.feed(piece)
            while (raw := frames.next()) is not None:
                match read_request(raw):
                    case Hello():
                        await stream.send(to_frame(Hello((f"/p2p/{self.key.peer_id}",), True)))
                    case Find(number):
                        lies = tuple(self.lies[:40])
                        await stream.send(to_frame(Found(number, tuple(self.friends), lies)))
                    case Put(number, records):
                        await stream.send(to_frame(Kept(number, (True,) * len(records))))


async def test_30_percent_liars_hide_nothing_and_add_nothing(autojump_clock: MockClock) -> None:
    """14 honest peers announce, go on to a newer announcement, and are asked after by all; 6 liars
    keep the old ones, forge more, and know only one another."""
    async with open_swarm(14) as swarm:
        honest = list(swarm.peers)
        old = [sign_fact(p.key, announcement(p.id), boot=1, seq=1, now=wall()).raw for p in honest]
        liars = [
            Liar(IdentityKey.from_bytes(bytes([n]) * 32), [p.key for p in honest], old)
            for n in range(1, 7)
        ]
        for liar in liars:
            MemoryHost(swarm.net, liar.key.peer_id).handle(PROTOCOL, liar.serve)
            liar.friends = [Contact(friend.key.peer_id, ()) for friend in liars]
            for peer in honest:  # every honest peer knows every liar from the start
                peer.directory._neighbours.met(
                    liar.key.peer_id, Hello((f"/p2p/{liar.key.peer_id}",), True)
                )
        for _ in range(2):
            await swarm.all_announce()
        for peer in honest:
            found = await peer.directory.find(MODEL)
            assert {told.peer for told in found} == {peer.id for peer in honest}
            newest = {peer.id: peer.directory._seq - 1 for peer in honest}  # its list comes after
            assert {told.peer: told.seq for told in found} == newest
            assert all(told.boot >= EPOCH_S for told in found)


async def raw_stream(swarm: Swarm, to: Peer) -> RoadStream:
    stranger = IdentityKey.from_bytes(b"s" * 32)
    host = swarm.net.hosts.get(stranger.peer_id) or MemoryHost(swarm.net, stranger.peer_id)
    return await host.open_stream(to.id, PROTOCOL)


async def test_silent_streams_keep_nobody_out(autojump_clock: MockClock) -> None:
    """py-libp2p's directory server stops for everybody at twelve (libp2p.md, K1)."""
    async with open_swarm(3) as swarm:
        idle = [await raw_stream(swarm, swarm.peers[0]) for _ in range(50)]
        assert await swarm.peers[1].announce() == 2
        assert len(await swarm.peers[2].directory.find(MODEL)) == 1
        open_still = swarm.peers[0].directory.answers._open.values()
        assert sum(opened.peer == idle[0].me for opened in open_still) == 2
        await trio.sleep(200)  # and the last two are reaped
        assert not [
            o for o in swarm.peers[0].directory.answers._open.values() if o.peer == idle[0].me
        ]


def puts(swarm: Swarm) -> list[tuple[str, bytes]]:
    owner, mallory = swarm.peers[1], IdentityKey.from_bytes(b"s" * 32)
    good = sign_fact(owner.key, announcement(owner.id), boot=1, seq=1, now=wall()).raw
    own = sign_fact(mallory, announcement(mallory.peer_id), boot=1, seq=1, now=wall()).raw
    return [
        ("somebody else's", to_frame(Put(1, (good,)))),
        ("broken", to_frame(Put(1, (own[:-1] + bytes([own[-1] ^ 1]),)))),
        ("no record", to_frame(Put(1, (b"x",)))),
        ("too long", (1 << 31).to_bytes(4)),
        ("no message", (5).to_bytes(4) + b"\xc1abcd"),
        ("an answer", to_frame(Kept(1, (True,)))),
    ]


async def test_nonsense_closes_its_stream_and_is_counted_and_nothing_else(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(3) as swarm:
        for number, (_, frame) in enumerate(puts(swarm), start=1):
            stream = await raw_stream(swarm, swarm.peers[0])
            await stream.send(frame)
            assert await stream.receive() == b""
            assert swarm.net.blamed[stream.me] == number
        assert not await swarm.peers[2].directory.find(MODEL)
        assert await swarm.peers[1].announce() == 2


async def test_a_flood_of_questions_is_slowed_down_and_others_are_not(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(3) as swarm, trio.open_nursery() as nursery:
        stream = await raw_stream(swarm, swarm.peers[0])
        answers = 0

        async def flood() -> None:
            while True:
                await stream.send(*[to_frame(Find(1, spans_of(MODEL), True, b""))] * 50)

        async def count() -> None:
            nonlocal answers
            frames = FrameReader(1 << 20)
            while piece := await stream.receive():
                frames.feed(piece)
                while (raw := frames.next()) is not None:
                    read_reply(raw)
                    answers += 1

        nursery.start_soon(flood)
        nursery.start_soon(count)
        await trio.sleep(2)  # 200 at once, then 50 a second
        assert 200 <= answers <= 310
        begun = trio.current_time()
        assert await swarm.peers[1].announce() == 2
        assert trio.current_time() - begun < 0.5
        nursery.cancel_scope.cancel()


async def test_answers_of_random_bytes_harm_nobody(autojump_clock: MockClock) -> None:
    """Each question to this peer is answered by something else that is not an answer."""
    async with open_swarm(4) as swarm:
        babbler = IdentityKey.from_bytes(b"b" * 32)
        good = to_frame(Found(1, (Contact(swarm.peers[1].id, ()),), ()))
        asked = 0

        async def babble(stream: Stream) -> None:
            nonlocal asked
            while await stream.receive():
                asked += 1
                broken = bytearray(good)
                broken[swarm.dice.randrange(len(broken))] ^= swarm.dice.randrange(1, 256)
                noise = swarm.dice.randbytes(swarm.dice.randrange(1, 60))
                await stream.send(bytes(broken), noise)

        MemoryHost(swarm.net, babbler.peer_id).handle(PROTOCOL, babble)
        reader = swarm.peers[2].directory
        await swarm.peers[1].announce()
        for _ in range(100):
            reader._neighbours._shunned.clear()  # as after ten minutes
            reader._neighbours.met(babbler.peer_id, Hello((f"/p2p/{babbler.peer_id}",), True))
            assert len(await reader.find(MODEL)) == 1
        assert asked >= 100
