"""A group's state, in pieces from all who have it: no liar costs more than its piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import trio
from sim.group_town import Citizen, Town
from sim.memory_host import MemoryStream
from trio.testing import MockClock

from potluck.crypto.codec import decode, encode
from potluck.crypto.keys import PEER_ID_CHARS, IdentityKey
from potluck.node.letters import receive_letter, send_letter
from potluck.node.runs.group import Settings
from potluck.node.runs.group_road import CHUNK_BYTES, seconds_for
from potluck.node.runs.group_states import KEPT_MAX, PLACE_BYTES, _packed, _place
from potluck.swarm.chunk import LETTER_BYTES_MAX, Have, Want, digest_of
from potluck.swarm.chunk import PROTOCOL as CHUNKS
from potluck.swarm.run.checkpoint import Entry, Manifest, read_manifest, write_manifest
from potluck.swarm.run.claims import LETTER_BYTES_MAX as CLAIMS_BYTES_MAX
from potluck.swarm.run.claims import PROTOCOL as STATES
from potluck.swarm.run.claims import Claim, States, Which, sign_claim
from potluck.swarm.run.group import Place
from potluck.swarm.run.group_wire import GROUP_MAX, Ask, Member, protocol_of

COUNT = 400_000  # 3.2 MB: 14 pieces, a manifest, and how it came about
UPLINK = 400_000  # bytes a second
STALLED_S = 7.0  # until another takes over from whoever is silent, and a turn


@asynccontextmanager
async def big_town(members: int, fragments: int = 1) -> AsyncIterator[Town]:
    """After one exchange, of a state that takes one of them 8 s to send."""
    dice = torch.Generator().manual_seed(7)
    async with trio.open_nursery() as nursery:
        settings = Settings(bits=32, fragments=fragments)
        town = Town(nursery, settings, torch.randn(COUNT, generator=dice))
        for number in range(members):
            await town.join(number)
        await commit(town)
        yield town
        nursery.cancel_scope.cancel()


async def commit(town: Town) -> None:
    for one in town.alive:
        one.learns(target=1.0)
    await town.exchange()
    town.assert_equal()


class Slow:
    """A stream whose sender has a home's uplink."""

    def __init__(self, stream: MemoryStream, sent: Counter[str], by: str) -> None:
        self._stream, self._sent, self._by = stream, sent, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        size = sum(map(len, parts))
        await trio.sleep(size / UPLINK)
        self._sent[self._by] += size
        await self._stream.send(*parts)


def at_home(town: Town) -> Counter[str]:
    """All that they serve from now on takes the time that it takes; by whom how many bytes."""
    sent: Counter[str] = Counter()
    for one in town.alive:
        for protocol, handler in list(one.host.handlers.items()):
            one.host.handle(protocol, slowed(handler, sent, one.host.peer_id))
    return sent


def slowed(handler: Callable[..., Any], sent: Counter[str], by: str) -> Callable[..., Any]:
    async def serve(stream: MemoryStream) -> None:
        await handler(Slow(stream, sent, by))

    return serve


async def joins(town: Town, number: int = 9) -> tuple[Citizen, float]:
    """A newcomer that has the others' state, to the bit; and how long that took."""
    late = await town.join(number)
    began_s = trio.current_time()
    joined = await late.group.join()
    assert joined is not None and late.group.place == town.citizens[0].group.place
    assert torch.allclose(joined[1], torch.cat(list(town.citizens[0].group.anchor)), atol=1e-5)
    town.assert_equal(town.citizens[0], late)
    return late, trio.current_time() - began_s


def claim_of(citizen: Citizen) -> Claim:
    """What it says of where it stands."""
    place = citizen.group.place
    cut = citizen.group._states._find(place.state)
    assert cut is not None
    (mark,) = cut.marks()
    return Claim(place.state, mark.epoch, mark.step, mark.shared.digest, mark.shared.size)


def manifest_of(citizen: Citizen) -> Manifest:
    claim = claim_of(citizen)
    raw = citizen.group._states.get(claim.manifest)
    assert raw is not None
    return read_manifest(raw, claim.chunk, claim.run)


def claims(citizen: Citizen, claim: Claim) -> None:
    key = IdentityKey.from_bytes(bytes([citizen.number + 1]) * 32)

    async def serve(stream: MemoryStream) -> None:
        raw = await receive_letter(stream, CLAIMS_BYTES_MAX)
        assert raw is not None
        assert decode(raw, Which).run == claim.run
        await send_letter(stream, encode(States((sign_claim(key, claim),))))
        await stream.close()

    citizen.host.handle(STATES, serve)


def gives(citizen: Citizen, name: bytes, raw: bytes) -> None:
    states = citizen.group._states
    honest = states.get
    states.get = lambda asked: raw if asked == name else honest(asked)  # type: ignore[method-assign]


@pytest.mark.parametrize("fragments", [1, 3])
async def test_a_newcomer_fetches_the_state_from_all_of_them_at_the_same_time(
    autojump_clock: MockClock, fragments: int
) -> None:
    async with big_town(4, fragments) as town:
        sent = at_home(town)
        late, lasted_s = await joins(town)
        size = 8 * COUNT
        assert lasted_s < 0.5 * size / UPLINK, "one alone would take twice as long and more"
        assert len(sent) == 4 and max(sent.values()) < 0.5 * size
        assert 0.7 * size < sum(sent.values()) < 1.05 * size, "nothing comes twice"
        assert late.blamed == [] and 0.7 * size < late.group.received_bytes


async def test_whoever_falls_silent_costs_its_piece(autojump_clock: MockClock) -> None:
    async with big_town(4) as town:
        silent = town.citizens[0]

        async def says_nothing(stream: MemoryStream) -> None:
            await stream.receive()
            await trio.sleep_forever()

        at_home(town)
        silent.host.handle(CHUNKS, says_nothing)
        late, lasted_s = await joins(town)
        assert lasted_s < 8 * COUNT / 3 / UPLINK + 2 * STALLED_S
        assert late.blamed == []


async def test_whoever_dies_in_the_middle_costs_its_piece(autojump_clock: MockClock) -> None:
    async with big_town(4) as town:
        at_home(town)
        doomed = town.citizens[3]

        async def dies() -> None:
            await trio.sleep(1.0)  # the whole takes 2 s
            await doomed.die()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dies)
            late, lasted_s = await joins(town)
        assert lasted_s < 8 * COUNT / 3 / UPLINK + STALLED_S
        assert late.blamed == []


async def test_whoever_sends_other_bytes_is_blamed_and_costs_its_piece(
    autojump_clock: MockClock,
) -> None:
    async with big_town(4) as town:
        liar = town.citizens[2]
        honest = liar.group._states.get

        def bent(name: bytes) -> bytes | None:
            raw = honest(name)
            return None if raw is None else bytes([raw[0] ^ 1]) + raw[1:]

        liar.group._states.get = bent  # type: ignore[method-assign]
        at_home(town)
        late, lasted_s = await joins(town)
        assert late.blamed == [liar.host.peer_id]
        assert lasted_s < 0.5 * 8 * COUNT / UPLINK
        assert late.group.received_bytes < 1.5 * 8 * COUNT


async def test_a_manifest_of_another_state_costs_its_tellers_their_names_and_nobody_the_state(
    autojump_clock: MockClock,
) -> None:
    """Two tell the same lie, of numbers that are there to be fetched; one tells what is so."""
    async with big_town(3) as town:
        *liars, honest = town.citizens
        true, other = manifest_of(honest), bytes(CHUNK_BYTES)
        anchor = true.entries[0]
        chunks = (digest_of(other), *anchor.chunks[1:])
        lie = replace(true, entries=(replace(anchor, chunks=chunks), *true.entries[1:]))
        raw = write_manifest(lie)
        for one in liars:
            claims(one, replace(claim_of(one), manifest=digest_of(raw), size=len(raw)))
            gives(one, digest_of(raw), raw)
            gives(one, digest_of(other), other)
        late = await town.join(9)
        joined = await late.group.join()
        assert joined is not None and late.group.place == honest.group.place
        assert sorted(late.blamed) == sorted(one.host.peer_id for one in liars)
        assert late.group.received_bytes < 2.1 * 8 * COUNT


async def test_most_lie_and_one_who_tells_what_is_so_is_enough(autojump_clock: MockClock) -> None:
    """Each lie for itself, and the truth comes last."""
    async with big_town(6) as town:
        *liars, honest = town.citizens
        true = manifest_of(honest)
        first, *rest = true.entries
        wider = replace(first, shape=(first.shape[0] + 1,))
        lies = [
            encode(first),  # no manifest at all
            write_manifest(replace(true, epoch=7)),  # of another moment than is claimed
            write_manifest(replace(true, entries=tuple(rest))),
            write_manifest(replace(true, entries=(wider, *rest))),
            write_manifest(replace(true, run=bytes(32))),
        ]
        for one, raw in zip(liars, lies, strict=True):
            claims(one, replace(claim_of(one), manifest=digest_of(raw), size=len(raw)))
            gives(one, digest_of(raw), raw)
        told = honest.host.handlers[STATES]

        async def hesitates(stream: MemoryStream) -> None:
            await trio.sleep(1.0)
            await told(stream)

        honest.host.handle(STATES, hesitates)
        late = await town.join(9)
        joined = await late.group.join()
        assert joined is not None and late.group.place == honest.group.place
        assert sorted(late.blamed) == sorted(one.host.peer_id for one in liars)
        assert late.group.received_bytes < 1.05 * 8 * COUNT, "no number of a lie was fetched"


async def test_a_claim_of_gigabytes_is_not_fetched(autojump_clock: MockClock) -> None:
    async with big_town(3) as town:
        liar, sent = town.citizens[0], 0
        claims(liar, replace(claim_of(liar), manifest=bytes(32), size=4 << 20))

        async def floods(stream: MemoryStream) -> None:
            nonlocal sent
            raw = await receive_letter(stream, LETTER_BYTES_MAX)
            assert raw is not None and decode(raw, Want).chunks
            await send_letter(stream, encode(Have(4 << 20)))
            while not stream.outward.broken:
                await stream.send(bytes(1 << 20))
                sent += 1 << 20
                await trio.sleep(0.01)

        liar.host.handle(CHUNKS, floods)
        late = await town.join(9)
        joined = await late.group.join()
        assert joined is not None and late.group.place == town.citizens[1].group.place
        assert sent < 64 << 20
        assert late.group.received_bytes < 1.05 * 8 * COUNT + (4 << 20)


async def test_members_of_an_older_version_give_the_state_as_a_whole(
    autojump_clock: MockClock,
) -> None:
    async with big_town(3) as town:
        for one in town.alive:
            one.group._states.close()
        await joins(town)
        assert all(one.blamed == [] for one in town.citizens)
        assert town.net.faults == []  # nothing is proposed that they do not speak


async def test_a_newcomer_of_an_older_version_is_given_the_state_as_a_whole(
    autojump_clock: MockClock,
) -> None:
    async with big_town(2) as town:
        late = await town.join(9)
        roads, place = late.group._roads, town.citizens[0].group.place
        assert roads is not None
        member = town.citizens[0]
        given, data = await roads.ask(member.host.peer_id, Ask(place.state), 8 * COUNT)
        assert given.commits == 1 and data == member.group._sums.at.pack()


async def test_who_reads_a_state_may_end_when_its_members_have_gone_on(
    autojump_clock: MockClock,
) -> None:
    async with big_town(3) as town:
        before, anchor = town.citizens[0].group.place, town.citizens[0].group.anchor[0].clone()
        late = await town.join(9)
        at_home(town)
        found: list[Any] = []

        async def fetches() -> None:
            roads = late.group._roads
            assert roads is not None
            having = [one.host.peer_id for one in town.citizens[:3]]
            found.append(await late.group._states.fetch(roads, before.state, having))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetches)
            await trio.sleep(1.0)  # of three
            members = town.citizens[:3]
            for one in members:
                one.learns(target=1.0)
                one.host.handlers[protocol_of(town.run)] = one.group._roads.serve  # type: ignore
            await town.exchange(*members)
            assert town.citizens[0].group.place.commits == 2 and not found
        ((at, place),) = found
        assert place == before and torch.equal(at.anchors[0], anchor)


async def test_who_has_come_to_it_since_gives_of_it_too(autojump_clock: MockClock) -> None:
    async with big_town(4) as town:
        first, *others = (one.host.peer_id for one in town.citizens)
        late, place = await town.join(9), town.citizens[0].group.place
        sent = at_home(town)
        roads = late.group._roads
        assert roads is not None
        found = await late.group._states.fetch(roads, place.state, [first], others)
        assert found is not None and found[1] == place
        assert {first, *others} <= set(sent) and max(sent.values()) < 0.5 * 8 * COUNT


async def test_many_who_only_say_that_they_have_it_hide_nobody_who_has(
    autojump_clock: MockClock,
) -> None:
    async with big_town(2) as town:
        late = await town.join(9)
        roads, place = late.group._roads, town.citizens[0].group.place
        assert roads is not None
        said = [f"{number:02}" + late.host.peer_id[2:] for number in range(80)]
        having = [*said, *(one.host.peer_id for one in town.citizens[:2])]
        found = await late.group._states.fetch(roads, place.state, having)
        assert found is not None and found[1] == place


async def test_a_whole_state_that_is_another_costs_its_name_and_is_not_taken(
    autojump_clock: MockClock,
) -> None:
    async with big_town(3) as town:
        liar, *others = town.citizens
        for one in town.alive:
            one.group._states.close()
        wrong = bytes(8 * COUNT)
        given = liar.group._states.whole

        async def lies(peer: str, ask: Ask) -> Any:
            found = await given(peer, ask)
            return None if found is None else (found[0], wrong)

        liar.group._states.whole = lies  # type: ignore[method-assign]
        told = others[0].group.place
        late = await town.join(9)
        joined = await late.group.join()
        assert joined is not None and late.group.place == told
        assert set(late.blamed) <= {liar.host.peer_id}


async def test_what_is_cut_is_bounded_and_let_go(autojump_clock: MockClock) -> None:
    async with big_town(2) as town:
        states = town.citizens[0].group._states
        assert states._cuts == {}, "nothing is cut before somebody asks"
        old = claim_of(town.citizens[0])
        for _ in range(KEPT_MAX):
            await commit(town)
            claim_of(town.citizens[0])
        assert len(states._cuts) == KEPT_MAX and states.get(old.manifest) is None
        newest = claim_of(town.citizens[0])
        await trio.sleep(2 * seconds_for(8 * COUNT))
        await commit(town)
        assert set(states._cuts) == {newest.run}, "it is given for a while yet"
        await trio.sleep(2 * seconds_for(8 * COUNT))
        await commit(town)
        assert states._cuts == {}


def test_however_a_state_came_about_fits_its_place() -> None:
    members = tuple(Member("1" * PEER_ID_CHARS, 2**53) for _ in range(GROUP_MAX))
    place = Place(bytes(32), b"\xff" * 32, 2**53, members)
    packed = _packed(place)
    assert packed.shape == (PLACE_BYTES,)
    entry = Entry("place", None, "f32", (PLACE_BYTES,), (bytes(32),))
    manifest = Manifest(place.state, place.commits, 0, (), 1 << 20, (entry,))
    assert _place(packed, manifest) == place
