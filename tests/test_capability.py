"""Who comes, drains or leaves is known to its segment at once; lies and floods go no further."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest
import trio
from courts import MODEL, Node, Town, town, wall
from dht_swarm import announcement
from receipts import key
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import spans_of
from potluck.dht.record import REFRESH_S, Announcement, Record, sign_fact
from potluck.node.gossip.capability import CHANGES_SAVED, Capabilities, Told
from potluck.node.gossip.registry import Registrar
from potluck.swarm.blocks import BlockRange
from potluck.swarm.topics import CAPABILITY, Message, topic_of, topics_of

MALLORY = key("m")
FIRST, SECOND = (topic_of(MODEL, block, CAPABILITY) for block in (0, 8))


@dataclass
class Able:
    """A node of the town with a registry that compares with nobody."""

    node: Node
    registrar: Registrar
    capabilities: Capabilities
    banned: set[str]

    def stops(self) -> dict[str, int]:
        held = self.registrar.at(spans_of(MODEL))
        return {one.slot.peer: one.seq for one in held}


async def add(place: Town, name: str, blocks: BlockRange) -> Able:
    node = await place.add(key(name), blocks=blocks)
    registrar = Registrar(node.host, lambda count: (), Random(1), wall=wall)  # type: ignore[arg-type]
    banned: set[str] = set()
    made = Capabilities(node.court.gossip, registrar, shunned=banned.__contains__)
    node.court.capability = made.judge
    return Able(node, registrar, made, banned)


def said(who: IdentityKey, seq: int, *, now: float | None = None, **change: object) -> Record:
    fact = replace(announcement(who.peer_id, model=MODEL, stop=16), **change)  # type: ignore[arg-type]
    return sign_fact(who, fact, boot=1, seq=seq, now=wall() if now is None else now)


def of(record: Record, topic: str = FIRST) -> Message:
    return Message(topic, encode(Told(topic, record.raw)))


async def test_a_change_is_known_to_its_segments_within_seconds_and_a_refresh_is_not_told(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        wide = [await add(place, f"wide {n}", BlockRange(0, 16)) for n in range(3)]
        first = [await add(place, f"first {n}", BlockRange(0, 8)) for n in range(3)]
        other = await add(place, "other", BlockRange(16, 24))
        place.link(3)
        await trio.sleep(10)
        me = wide[0].node
        for seq, change in ((1, {}), (2, {}), (3, {"state": "draining"})):
            record = said(me.key, seq, **change)
            wide[0].registrar.put(record)
            wide[0].capabilities.tell(record)
            await trio.sleep(3)
            newest = {1: 1, 2: 1, 3: 3}[seq]  # the second says what the first said
            for one in wide[1:] + first:
                assert one.stops() == {me.id: newest}
        assert other.stops() == {}  # it serves none of these blocks
        scores = [one.node.court.gossip.score(two.node.id) for one in wide for two in wide]
        assert min(scores) >= 0


async def test_what_is_said_before_anybody_is_there_is_said_again(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        one = await add(place, "one", BlockRange(0, 8))
        one.capabilities.tell(said(one.node.key, 1, stop=8))
        await trio.sleep(60)
        two = await add(place, "two", BlockRange(0, 8))
        one.node.host.dial(two.node.host)
        await trio.sleep(10)
        assert two.stops() == {}
        one.capabilities.tell(said(one.node.key, 2, stop=8))
        await trio.sleep(3)
        assert two.stops() == {one.node.id: 2}


async def test_who_comes_back_to_blocks_it_left_says_so_once_more(
    autojump_clock: MockClock,
) -> None:
    """Its record is as it was when it went, but for its number."""
    async with town() as place:
        one = await add(place, "one", BlockRange(0, 16))
        two = await add(place, "two", BlockRange(0, 8))
        one.node.host.dial(two.node.host)
        await trio.sleep(10)
        for seq, start in ((1, 0), (2, 8), (3, 0)):
            one.capabilities.tell(said(one.node.key, seq, start=start, stop=start + 8))
            await trio.sleep(3)
        assert two.stops() == {one.node.id: 3}


async def test_only_what_is_true_new_and_of_this_segment_is_passed_on(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        one = await add(place, "one", BlockRange(0, 8))
        judge = one.capabilities.judge
        record = said(MALLORY, 5)
        assert judge(of(record)) == "pass" == judge(of(record, SECOND))
        assert judge(of(said(MALLORY, 4))) == "drop"  # it may have been overtaken
        assert judge(of(said(MALLORY, 3, now=wall() - REFRESH_S - 1))) == "stale"
        assert judge(of(said(MALLORY, 9, now=wall() - 3600))) == "stale"
        assert judge(of(said(MALLORY, 9, now=wall() + 3600))) == "stale"
        assert one.stops() == {MALLORY.peer_id: 5}
        one.banned.add(MALLORY.peer_id)
        assert judge(of(said(MALLORY, 6))) == "drop"


@pytest.mark.parametrize("what", ["noise", "a bit", "topic", "segment", "body"])
async def test_what_nobody_honest_passes_on_is_wrong(what: str, autojump_clock: MockClock) -> None:
    async with town() as place:
        one = await add(place, "one", BlockRange(0, 8))
        record = said(MALLORY, 5, stop=8)
        changed = bytearray(record.raw)
        changed[len(changed) // 2] ^= 1
        message = {
            "noise": Message(FIRST, b"\xff" * 40),
            "a bit": Message(FIRST, encode(Told(FIRST, bytes(changed)))),
            "topic": Message(FIRST, encode(Told(SECOND, record.raw))),
            "segment": of(record, SECOND),
            "body": of(said(MALLORY, 5, addresses=("/ip4/1.2.3.4/tcp/1/p2p/another",))),
        }[what]
        assert one.capabilities.judge(message) == "wrong"
        assert one.stops() == {}


async def test_who_changes_without_end_is_passed_on_no_faster_than_records_are_refreshed(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        one = await add(place, "one", BlockRange(0, 8))
        verdicts = [one.capabilities.judge(of(said(MALLORY, seq))) for seq in range(1, 11)]
        assert verdicts == ["pass"] * int(CHANGES_SAVED) + ["drop"] * (10 - int(CHANGES_SAVED))
        assert one.stops() == {MALLORY.peer_id: 10}  # it is known here all the same
        await trio.sleep(REFRESH_S)
        assert one.capabilities.judge(of(said(MALLORY, 11))) == "pass"


async def test_who_contradicts_himself_by_gossip_is_proved_a_liar(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        one = await add(place, "one", BlockRange(0, 8))
        one.registrar.proved.append(one.node.court.take)
        for stop in (8, 16):
            one.capabilities.judge(of(said(MALLORY, 5, stop=stop)))
        assert one.node.court.banned(MALLORY.peer_id)


def test_a_record_of_many_segments_is_one_message_in_each() -> None:
    told = announcement(MALLORY.peer_id, model=MODEL, stop=64)
    record = sign_fact(MALLORY, told, boot=1, seq=1, now=1e9)
    topics = topics_of(MODEL, BlockRange(0, 64), CAPABILITY)
    assert len(topics) == 8 == len({of(record, topic).data for topic in topics})
    assert isinstance(told, Announcement)
