"""The directory over simulated swarms: up to 64 peers, a road of 20 ms, deaths and liars."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from trio.testing import MockClock

from potluck.crypto.keys import IdentityKey
from potluck.dht.calls import Stream
from potluck.dht.directory import Directory
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.keyspace import spans_of
from potluck.dht.memory import MemoryDirectory, MemoryShelf
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
from potluck.dht.record import TTL_MAX_S, Announcement, sign_fact
from potluck.errors import Refused, RemoteError, TransportError

EPOCH_S = 1_790_000_000.0
DELAY_S = 0.02
MODEL, OTHER_MODEL = "ab" * 32, "cd" * 32


Parcel = tuple[float, bytes]  # when it arrives, what


def wall() -> float:
    return EPOCH_S + trio.current_time()


def announcement(peer: str, *, model: str = MODEL, start: int = 0, stop: int = 8) -> Announcement:
    return Announcement(
        model=model, name="org/name", start=start, stop=stop, blocks=64, state="online",
        device="cpu", dtype="float32", quantization="none", decode_tokens_s=900.0,
        prefill_tokens_s=9000.0, addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}",),
        cache_tokens_free=8192, context_tokens_max=2048, numerics="none", version="0.1.0",
    )  # fmt: skip


class MemoryStream:
    """Half of a stream; a dead end swallows everything and never answers."""

    def __init__(
        self, net: "MemoryNetwork", ends: tuple[str, str],
        out: "trio.MemorySendChannel[Parcel]", into: "trio.MemoryReceiveChannel[Parcel]",
    ) -> None:  # fmt: skip
        self.me, self.peer = ends
        self._net, self._out, self._into = net, out, into
        self._next: Parcel | None = None

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        if self._net.dead & {self.me, self.peer}:
            return
        try:
            await self._out.send((trio.current_time() + DELAY_S, b"".join(parts)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TransportError("the stream broke") from None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            if self._next is None:
                self._next = await self._into.receive()
        except trio.EndOfChannel:
            return b""
        except trio.ClosedResourceError:
            raise TransportError("the stream was reset") from None
        await trio.sleep_until(self._next[0])
        (_, piece), self._next = self._next, None
        return piece

    async def close(self) -> None:
        self._out.close()

    async def reset(self) -> None:
        self._out.close()
        self._into.close()


class MemoryHost:
    def __init__(self, net: "MemoryNetwork", peer_id: str) -> None:
        self.peer_id = peer_id
        self.handlers: dict[str, Callable[[Stream], Awaitable[None]]] = {}
        self._net = net
        net.hosts[peer_id] = self

    def addresses(self) -> tuple[str, ...]:
        return (f"/ip4/127.0.0.1/tcp/4001/p2p/{self.peer_id}",)

    async def connect(self, addresses: Sequence[str]) -> str:
        await self._net.reach(addresses[0].rpartition("/")[2])
        return addresses[0].rpartition("/")[2]

    async def open_stream(self, peer: str, protocol: str) -> MemoryStream:
        handler = (await self._net.reach(peer)).handlers.get(protocol)
        if handler is None:
            raise TransportError(f"{peer} does not speak {protocol}")
        here_out, there_into = trio.open_memory_channel[Parcel](64)
        there_out, here_into = trio.open_memory_channel[Parcel](64)
        theirs = MemoryStream(self._net, (peer, self.peer_id), there_out, there_into)
        self._net.nursery.start_soon(self._net.serve, handler, theirs)
        return MemoryStream(self._net, (self.peer_id, peer), here_out, here_into)

    def learn(self, peer: str, addresses: Sequence[str]) -> None:
        pass

    def handle(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None:
        self.handlers[protocol] = handler


class MemoryNetwork:
    """Hosts that reach one another, 20 ms away."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.hosts: dict[str, MemoryHost] = {}
        self.dead: set[str] = set()
        self.blamed: Counter[str] = Counter()

    async def reach(self, peer: str) -> MemoryHost:
        await trio.sleep(2 * DELAY_S)
        if peer in self.dead:
            await trio.sleep_forever()  # a machine that was switched off refuses nothing
        if peer not in self.hosts:
            raise TransportError(f"there is no {peer}")
        return self.hosts[peer]

    async def serve(self, handler: Callable[[Stream], Awaitable[None]], to: MemoryStream) -> None:
        try:
            await handler(to)
        except (RemoteError, TransportError, Refused) as fault:
            self.blamed[to.peer] += isinstance(fault, RemoteError)
            await to.reset()


@dataclass
class Peer:
    key: IdentityKey
    host: MemoryHost
    directory: KadDirectory

    @property
    def id(self) -> str:
        return self.key.peer_id

    async def announce(self, **change: object) -> int:
        return await self.directory.announce(announcement(self.id, **change))  # type: ignore[arg-type]


class Swarm:
    """Peers that join by the first one, in turn."""

    def __init__(self, net: MemoryNetwork, stack: AsyncExitStack, seed: int) -> None:
        self.net = net
        self.peers: list[Peer] = []
        self.dice = random.Random(seed)
        self._stack = stack

    async def join(self, *, serve: bool = True, by: Peer | None = None) -> Peer:
        key = IdentityKey.from_bytes(self.dice.randbytes(32))
        host = MemoryHost(self.net, key.peer_id)
        by = by or (self.peers[0] if self.peers else None)
        opened = open_directory(
            host, key, boot=int(wall()), serve=serve, wall=wall, dice=self.dice,
            bootstrap=by.host.addresses() if by else (),
        )  # fmt: skip
        peer = Peer(key, host, await self._stack.enter_async_context(opened))
        self.peers.append(peer)
        return peer

    async def all_announce(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in self.peers:
                nursery.start_soon(peer.announce)

    def kill(self, share: float) -> None:
        """Switch off some, but not the first: they answer nothing from now on."""
        for peer in self.dice.sample(self.peers[1:], round(share * len(self.peers))):
            self.net.dead.add(peer.id)
            self.peers.remove(peer)

    async def found_by_all(self, model: str = MODEL) -> list[set[str]]:
        found = []
        for peer in self.peers:
            found.append({told.peer for told in await peer.directory.find(model)})
        return found


@asynccontextmanager
async def open_swarm(count: int = 0, *, seed: int = 1) -> AsyncIterator[Swarm]:
    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            swarm = Swarm(MemoryNetwork(nursery), stack, seed)
            for _ in range(count):
                await swarm.join()
            yield swarm
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 21])
async def test_whoever_announces_is_found_by_all(count: int, autojump_clock: MockClock) -> None:
    async with open_swarm(count) as swarm:
        everybody = {peer.id for peer in swarm.peers}
        await swarm.all_announce()
        assert await swarm.found_by_all() == [everybody] * count
        offers = await swarm.peers[-1].directory.models()
        assert [(offer.name, set(offer.peers)) for offer in offers] == [("org/name", everybody)]


async def test_a_newcomer_is_seen_within_a_second(autojump_clock: MockClock) -> None:
    async with open_swarm(8) as swarm:
        begun = trio.current_time()
        newcomer = await swarm.join()
        assert await newcomer.announce() == 8
        assert trio.current_time() - begun < 1
        for peer in swarm.peers:
            (told,) = await peer.directory.find(MODEL)
            assert told.peer == newcomer.id and told.addresses == newcomer.host.addresses()


async def test_64_peers_find_every_record_in_a_few_round_trips(autojump_clock: MockClock) -> None:
    """A round trip is 40 ms. A look-up needs one or two, and one more to open streams to those
    who have not been asked before (40 ms for the stream)."""
    async with open_swarm(64) as swarm:
        for peer in swarm.peers[::4]:
            await peer.announce()
        everybody = {peer.id for peer in swarm.peers[::4]}
        took = []
        for peer in swarm.peers[::6]:
            begun = trio.current_time()
            assert {told.peer for told in await peer.directory.find(MODEL)} == everybody
            took.append(trio.current_time() - begun)
        assert sorted(took)[len(took) // 2] < 0.3


async def test_after_30_percent_died_at_once_the_living_are_found(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(40) as swarm:
        await swarm.all_announce()
        swarm.kill(0.3)
        living = {peer.id for peer in swarm.peers}
        took = []
        for peer in swarm.peers[::3]:
            begun = trio.current_time()
            assert living <= {told.peer for told in await peer.directory.find(MODEL)}
            took.append(trio.current_time() - begun)
        assert sorted(took)[len(took) // 2] < 0.5


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
            assert all(told.boot >= EPOCH_S and told.seq == 3 for told in found)


async def test_a_reader_never_gets_an_older_word_than_the_last(autojump_clock: MockClock) -> None:
    async with open_swarm(6) as swarm:
        owner, reader = swarm.peers[2], swarm.peers[4]
        for stop in range(8, 13):
            await owner.announce(stop=stop)
            (told,) = await reader.directory.find(MODEL)
            assert told.stop == stop


async def test_what_is_not_announced_again_expires(autojump_clock: MockClock) -> None:
    async with open_swarm(4) as swarm:
        await swarm.peers[1].announce()
        await trio.sleep(TTL_MAX_S - 1)
        assert await swarm.peers[2].directory.find(MODEL)
        await trio.sleep(1.1)
        assert not await swarm.peers[2].directory.find(MODEL)
        assert not await swarm.peers[1].directory.find(MODEL)
        assert not await swarm.peers[2].directory.models()


async def test_what_is_kept_stays_and_what_is_withdrawn_is_gone_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(5) as swarm, trio.open_nursery() as nursery:
        owner = swarm.peers[3].directory
        kept = await nursery.start(owner.keep, lambda: announcement(swarm.peers[3].id))
        assert kept == 4
        for _ in range(20):
            await trio.sleep(47)
            assert await swarm.peers[1].directory.find(MODEL)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await owner.withdraw()
            assert not await swarm.peers[1].directory.find(MODEL)
            assert not await swarm.peers[2].directory.models()


async def test_who_announced_while_alone_is_found_as_soon_as_others_come(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery, open_swarm(1) as swarm:
        first = swarm.peers[0]
        assert await nursery.start(first.directory.keep, lambda: announcement(first.id)) == 0
        newcomer = await swarm.join()
        assert len(await newcomer.directory.find(MODEL)) == 1
        await trio.sleep(1)
        swarm.net.dead.add(first.id)  # and now it is kept by the newcomer too
        assert len(await newcomer.directory.find(MODEL)) == 1
        nursery.cancel_scope.cancel()


async def test_a_peer_that_lost_everybody_joins_again(autojump_clock: MockClock) -> None:
    async with open_swarm(2) as swarm:
        first, second = swarm.peers
        swarm.net.dead.add(first.id)
        await trio.sleep(300)
        assert second.directory.peers() == ()
        swarm.net.dead.clear()
        await trio.sleep(30)
        assert second.directory.peers() == (first.id,)


async def test_two_models_do_not_mix(autojump_clock: MockClock) -> None:
    async with open_swarm(4) as swarm:
        await swarm.peers[0].announce()
        await swarm.peers[1].announce(model=OTHER_MODEL)
        await swarm.peers[1].announce()
        found = [await swarm.peers[2].directory.find(model) for model in (MODEL, OTHER_MODEL)]
        assert [len(told) for told in found] == [2, 1]
        offers = await swarm.peers[3].directory.models()
        assert [(offer.model, len(offer.peers)) for offer in offers] == [
            (MODEL, 2),
            (OTHER_MODEL, 1),
        ]


async def test_a_client_is_told_to_nobody(autojump_clock: MockClock) -> None:
    async with open_swarm(3) as swarm:
        client = await swarm.join(serve=False)
        await swarm.peers[1].announce()
        assert len(await client.directory.find(MODEL)) == 1
        assert all(client.id not in peer.directory.peers() for peer in swarm.peers)


async def test_nobody_to_join_is_a_transport_error_and_no_group(autojump_clock: MockClock) -> None:
    async with open_swarm(2) as swarm:
        swarm.net.dead.add(swarm.peers[0].id)
        with pytest.raises(TransportError, match="no answer"):
            await swarm.join()
        key = IdentityKey.generate()
        with pytest.raises(ZeroDivisionError):
            async with open_directory(MemoryHost(swarm.net, key.peer_id), key, boot=1, wall=wall):
                raise ZeroDivisionError  # what the body raises passes as it is


async def raw_stream(swarm: Swarm, to: Peer) -> MemoryStream:
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


async def test_the_directory_in_memory_behaves_the_same(autojump_clock: MockClock) -> None:
    shelf = MemoryShelf()
    keys = [IdentityKey.from_bytes(bytes([n]) * 32) for n in (1, 2)]
    one, two = (MemoryDirectory(key, shelf) for key in keys)
    directory: Directory = one
    assert await directory.announce(announcement(keys[0].peer_id)) == 1
    (told,) = await two.find(MODEL)
    assert told.peer == keys[0].peer_id and (await two.models())[0].peers == (told.peer,)
    await directory.announce(replace(announcement(keys[0].peer_id), stop=9))
    assert [told.stop for told in await two.find(MODEL)] == [9]
    await directory.withdraw()
    assert not await two.find(MODEL) and not await two.models()
    await directory.announce(announcement(keys[0].peer_id))
    await trio.sleep(TTL_MAX_S)
    assert not await two.find(MODEL)


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
