"""Evidence among nodes: who contradicts himself is shunned by all, who is accused falsely by none.

Twelve nodes with their own gossip, evidence and trust, over memory roads, in virtual time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio
from courts import MODEL, Host, Node, Town, town, wall
from receipts import key
from testimonies import NOW, accusation, announced
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import DOMAIN, Announcement, read
from potluck.errors import TransportError
from potluck.node.bans import BANS
from potluck.node.net.gossip_wire import pack
from potluck.swarm.blocks import BlockRange
from potluck.swarm.evidence import KEEP_S
from potluck.swarm.recent import KEPT_BYTES_MAX, SEEN_MAX
from potluck.swarm.testimony import (
    Attestation,
    Case,
    Item,
    SignedAccusation,
    check_accusation,
    contradiction_of,
    sign_accusation,
    sign_attestation,
)
from potluck.swarm.topics import EVIDENCE, MESSAGE_BYTES_MAX, PROTOCOL, Message, Rpc, topic_of

MALLORY, VICTIM = key("m"), key("victim")
SEGMENT = topic_of(MODEL, 0)
PROOF = contradiction_of(DOMAIN, announced(MALLORY, stop=4).raw, announced(MALLORY, stop=8).raw)


def case_of(
    accused: IdentityKey, accuser: IdentityKey, *, gave: bytes = b"gave", now: float = NOW
) -> SignedAccusation:
    """As of the blocks 0:2 of the model that all here serve."""
    return sign_accusation(accuser, accusation(accused, gave=gave, now=now))


async def says(host: Host, to: Node, *rpcs: Rpc | bytes) -> None:
    with suppress(TransportError):
        stream = await host.open_stream(to.id, PROTOCOL)
        await stream.send(*(pack(rpc) if isinstance(rpc, Rpc) else rpc for rpc in rpcs))
        await stream.close()
    await trio.testing.wait_all_tasks_blocked()


def news(*items: Item, topic: str = EVIDENCE) -> Rpc:
    return Rpc(messages=tuple(Message(topic, encode(item)) for item in items))


async def stranger(place: Town, to: Node, letter: str = "stranger") -> Host:
    """Somebody who is connected, and says what it likes."""
    host = place.host(key(letter))

    async def listen(stream: object) -> None:
        while await stream.receive():  # type: ignore[attr-defined]
            pass

    host.handle(PROTOCOL, listen)
    host.dial(to.host)
    await trio.testing.wait_all_tasks_blocked()
    return host


# ---- contradictions


@pytest.mark.parametrize("seed", range(3))
async def test_an_equivocator_is_shunned_by_all_within_ten_seconds(
    autojump_clock: MockClock, seed: int
) -> None:
    """One node reads both records. The equivocator is connected to some, who send it away."""
    async with town(seed) as place:
        for number in range(12):
            await place.add(key(f"node {number}"))
        place.link(3)
        await trio.sleep(5)
        mallory = place.host(MALLORY)
        for node in place.nodes[:4]:
            mallory.dial(node.host)
        assert len(mallory.links) == 4
        for stop in (4, 8):
            raw = announced(MALLORY, stop=stop).raw
            place.nodes[0].checker.check(raw, None, NOW)
        took_s = await place.until(lambda: place.all_ban(MALLORY.peer_id), 10)
        assert took_s < 10
        assert mallory.links == {}
        mallory.dial(place.nodes[5].host)
        assert mallory.links == {}
        assert all(not node.trust.usable(MALLORY.peer_id) for node in place.nodes)


async def test_who_joins_later_is_told_of_whoever_is_still_there(
    autojump_clock: MockClock,
) -> None:
    """Gossip keeps nothing for long; but of bans for ever each node repeats one now and then, if
    it saw the banned of late. Of who is gone nobody speaks any more."""
    async with town() as place:
        for number in range(8):
            await place.add(key(f"node {number}"))
        place.link(3)
        await trio.sleep(5)
        place.nodes[0].court.take(PROOF)
        await place.until(lambda: place.all_ban(MALLORY.peer_id), 10)
        place.nodes[0].court.take(
            contradiction_of(DOMAIN, announced(VICTIM, stop=4).raw, announced(VICTIM).raw)
        )
        await trio.sleep(200)
        late = await place.add(key("late"))
        for node in place.nodes[:4]:
            late.host.dial(node.host)
        await trio.sleep(150)
        assert late.court.bans() == ()  # both are gone
        for node in place.nodes[:8]:
            place.records.told = [read(announced(MALLORY, seq=9, now=wall()), Announcement)]
            await node.court.cleared(place.records).find(MODEL)
        await place.until(lambda: late.court.banned(MALLORY.peer_id), 90)
        assert len(late.court.bans()) == 1
        assert min(node.court.gossip.score(late.id) for node in place.nodes[:4]) >= 0
        assert min(late.court.gossip.score(node.id) for node in place.nodes[:4]) >= 0


async def test_a_banned_peer_is_left_out_of_what_is_found(autojump_clock: MockClock) -> None:
    async with town() as place:
        node = await place.add(key("node"))
        place.records.told = [read(announced(one), Announcement) for one in (MALLORY, VICTIM)]
        finds = node.court.cleared(place.records)
        assert {told.peer for told in await finds.find(MODEL)} == {MALLORY.peer_id, VICTIM.peer_id}
        node.court.take(PROOF)
        assert {told.peer for told in await finds.find(MODEL)} == {VICTIM.peer_id}


async def written(path: Path) -> None:
    """Until a thread has written it: no matter of virtual time, which runs on meanwhile."""
    deadline_s = time.monotonic() + 20
    while not await trio.to_thread.run_sync(path.exists):
        assert time.monotonic() < deadline_s, f"{path} is not written"
        await trio.sleep(0.05)


async def test_a_ban_survives_a_restart_and_a_lost_book_of_trust(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with town() as place:
        node = await place.add(key("node"), home=tmp_path)
        node.court.take(PROOF)
        await written(tmp_path / BANS / MALLORY.peer_id)
        node.scope.cancel()
        await trio.sleep(1)
        (tmp_path / "trust").unlink(missing_ok=True)
        again = await place.add(key("node"), home=tmp_path)
        (ban,) = again.court.bans()
        assert (ban.peer, ban.until_s, ban.proof) == (MALLORY.peer_id, math.inf, PROOF)
        assert not again.trust.usable(MALLORY.peer_id)
        place.host(MALLORY).dial(again.host)
        assert again.host.links == {}


async def test_a_ban_of_the_last_moment_is_on_disk(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with town() as place:
        node = await place.add(key("node"), home=tmp_path)
        await trio.sleep(1)
        node.court.take(PROOF)
        node.scope.cancel()
        await trio.sleep(1)
        assert (tmp_path / BANS / MALLORY.peer_id).exists()


async def test_nobody_bans_himself_but_says_that_he_has_a_twin(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with town() as place:
        node = await place.add(MALLORY)
        other = await place.add(key("other"))
        node.host.dial(other.host)
        await trio.sleep(6)
        sender = await stranger(place, node)
        for _ in range(2):
            await says(sender, node, news(PROOF))
        assert not node.court.banned(MALLORY.peer_id)
        assert capsys.readouterr().err.count("signs with our key") == 1


# ---- accusations


Find = Callable[[Case], Awaitable[str | None]]


def finding(right: set[str]) -> Find:
    """Computing takes a while; those in `right` did right."""

    async def compute(case: Case) -> str | None:
        await trio.sleep(0.5)
        return "right" if case.told.accused in right else "wrong"

    return compute


async def servers(place: Town, count: int, right: set[str]) -> None:
    """All serve the first blocks, and are found in the directory."""
    for number in range(count):
        one = key(f"node {number}")
        compute = finding(right)
        await place.add(one, compute=compute, blocks=BlockRange(0, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(2))
async def test_a_flood_of_false_accusations_bans_nobody_honest(
    autojump_clock: MockClock, seed: int
) -> None:
    """Three of nine accuse the others, again and again, and attest each other's lies."""
    async with town(seed) as place:
        honest = {key(f"node {number}").peer_id for number in range(9)}
        await servers(place, 9, honest)
        place.link(4)
        await trio.sleep(10)
        liars, others = place.nodes[:3], place.nodes[3:]
        for round_ in range(5):
            for liar in liars:
                victim = place.dice.choice(others)
                item = case_of(victim.key, liar.key, gave=b"%d" % round_, now=wall())
                told = Attestation(check_accusation(item).id, "wrong", wall())
                for to in others:
                    liar.host.dial(to.host)
                liar.court.gossip.publish(SEGMENT, encode(item))
                for other in liars:
                    if other is not liar:
                        signed = sign_attestation(other.key, told)
                        other.court.gossip.publish(SEGMENT, encode(signed))
            await trio.sleep(10)
        await trio.sleep(60)  # to compute it is given a tenth of the time
        for node in others:
            assert {ban.peer for ban in node.court.bans()} <= {liar.id for liar in liars}
        for liar in liars:  # who lied more than once is shunned by whoever computed it
            assert sum(node.court.banned(liar.id) for node in others) == len(others)


async def test_who_did_wrong_is_shunned_by_all_who_can_compute_it(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        await servers(place, 8, set())
        place.link(3)
        await trio.sleep(10)
        place.nodes[0].court.take(case_of(MALLORY, place.nodes[0].key, now=wall()))
        await place.until(lambda: place.all_ban(MALLORY.peer_id, place.nodes), 60)
        assert all(0 < ban.until_s < math.inf for node in place.nodes for ban in node.court.bans())


async def test_what_was_attested_before_its_accusation_came_is_heard(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        await servers(place, 1, set())
        (node,) = place.nodes
        mallory = await stranger(place, node)
        await trio.sleep(10)
        item = case_of(MALLORY, key("a"), now=wall())
        id = check_accusation(item).id
        attested = [
            sign_attestation(key(f"w {n}"), Attestation(id, "wrong", wall())) for n in (1, 2)
        ]
        await says(mallory, node, news(*attested, topic=SEGMENT))
        await says(mallory, node, news(item, topic=SEGMENT))
        (opened,) = node.court._machine._cases.values()
        assert len(opened.passed) == 2 and not node.court._early


async def test_a_node_that_serves_other_blocks_hears_of_contradictions_only(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        await place.add(key("far"), blocks=BlockRange(40, 48))
        await servers(place, 2, set())
        place.link(2)
        await trio.sleep(10)
        place.nodes[1].court.take(case_of(MALLORY, place.nodes[1].key, now=wall()))
        await trio.sleep(30)
        far, *near = place.nodes
        assert all(node.court.banned(MALLORY.peer_id) for node in near)
        assert not far.court.banned(MALLORY.peer_id)
        near[0].court.take(
            contradiction_of(DOMAIN, announced(VICTIM, stop=4).raw, announced(VICTIM).raw)
        )
        await place.until(lambda: far.court.banned(VICTIM.peer_id), 10)


# ---- bad input


def rubbish(dice: Random, now: float) -> dict[str, Rpc | bytes]:
    honest, liar = announced(VICTIM), key("s")
    forged = contradiction_of(DOMAIN, honest.raw, honest.raw[:-1] + b"\0")
    later = announced(VICTIM, seq=dice.randrange(2, 1 << 31))
    fresh = case_of(VICTIM, liar, now=now)
    stale = case_of(VICTIM, liar, gave=dice.randbytes(4), now=now - KEEP_S - 1)
    future = case_of(VICTIM, liar, gave=dice.randbytes(4), now=now + 86_400)
    attested = Attestation(dice.randbytes(32), "wrong", now + 86_400)
    return {
        "no evidence": Rpc(messages=(Message(EVIDENCE, dice.randbytes(100)),)),
        "a record alone": Rpc(messages=(Message(EVIDENCE, honest.raw),)),
        "forged": news(forged),
        "no contradiction": news(contradiction_of(DOMAIN, honest.raw, later.raw)),
        "of an unknown kind": news(contradiction_of("letter", honest.raw, dice.randbytes(50))),
        "in the wrong order": news(type(PROOF)(DOMAIN, PROOF.other, PROOF.one)),
        "under the wrong topic": news(fresh, topic=EVIDENCE),
        "oversized": Rpc(messages=(Message(EVIDENCE, bytes(MESSAGE_BYTES_MAX + 1)),)),
        "of an hour ago": news(stale, topic=SEGMENT),
        "of tomorrow": news(future, topic=SEGMENT),
        "an attestation of tomorrow": news(sign_attestation(liar, attested), topic=SEGMENT),
        "of another topic": Rpc(messages=(Message("/other", dice.randbytes(8)),)),
        "malformed": dice.randbytes(60),
    }  # fmt: skip


@pytest.mark.parametrize("what", rubbish(Random(0), NOW))
async def test_rubbish_costs_its_sender_its_score_and_bounded_memory(
    autojump_clock: MockClock, what: str
) -> None:
    """Again and again, until it is heard no more; nobody is banned, and evidence is still heard."""
    dice = Random(what)
    async with town() as place:
        await servers(place, 2, {VICTIM.peer_id})
        node, other = place.nodes
        node.host.dial(other.host)
        await trio.sleep(10)
        mallory = await stranger(place, node)
        for _ in range(60):
            await says(mallory, node, rubbish(dice, wall())[what])
            if mallory.peer_id not in node.court.gossip.neighbours():
                break
            await trio.sleep(0.01)
        score = node.court.gossip.score(mallory.peer_id)
        assert mallory.peer_id not in node.court.gossip.neighbours(), score
        counts = node.court.counts()
        assert counts["gossip_seen"] <= SEEN_MAX and counts["gossip_bytes"] <= KEPT_BYTES_MAX
        assert counts["cases"] == counts["bans"] == other.court.counts()["bans"] == 0
        assert node.court.gossip.score(other.id) >= 0 <= other.court.gossip.score(node.id)
        other.court.take(PROOF)
        await place.until(lambda: node.court.banned(MALLORY.peer_id), 5)


async def test_no_bit_that_is_turned_makes_evidence(autojump_clock: MockClock) -> None:
    """Each item with one bit changed, or cut short, under each topic: nobody is banned by it, no
    case is opened, and nothing else is raised."""
    accused = case_of(VICTIM, key("s"))
    attested = sign_attestation(key("s"), Attestation(check_accusation(accused).id, "wrong", NOW))
    dice = Random(7)
    async with town() as place:
        await servers(place, 1, set())
        (node,) = place.nodes
        await trio.sleep(10)
        for item in (PROOF, accused, attested):
            whole = encode(item)
            for _ in range(400):
                spoilt = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
                if len(spoilt) == len(whole):
                    spoilt[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
                topic = dice.choice([EVIDENCE, SEGMENT, "/other"])
                assert node.court._judge(Message(topic, bytes(spoilt))) in ("wrong", "stale")
        assert node.court.counts()["bans"] == node.court.counts()["cases"] == 0
        assert node.court._judge(Message(EVIDENCE, encode(PROOF))) == "pass"


async def test_one_word_heard_twice_from_many_costs_nobody_and_bans_once(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        node = await place.add(key("node"))
        told: list[str] = []
        node.court.told.append(told.append)
        await trio.sleep(6)
        senders = [await stranger(place, node, f"s {number}") for number in range(4)]
        for sender in senders:
            await says(sender, node, news(PROOF))
        assert told == [MALLORY.peer_id]
        assert all(node.court.gossip.score(one.peer_id) >= 0 for one in senders)


async def test_a_clock_that_jumps_by_hours_bans_nobody_honest(autojump_clock: MockClock) -> None:
    """One node's clock goes five hours ahead, then as far behind, then right again. It may be
    heard by nobody meanwhile, but is believed, and believes, when it is right again."""
    off = {"s": 0.0}
    async with town() as place:
        await place.add(key("odd"), clock=lambda: wall() + off["s"], blocks=BlockRange(0, 8))
        await servers(place, 4, set())
        odd, *others = place.nodes
        place.link(3)
        await trio.sleep(10)
        for jump_s in (5 * 3600.0, -5 * 3600.0):
            off["s"] = jump_s
            liar = key(f"liar {jump_s}")
            others[0].court.take(case_of(liar, others[0].key, now=wall()))
            odd.court.take(case_of(VICTIM, odd.key, gave=b"%f" % jump_s, now=wall() + jump_s))
            await trio.sleep(60)
            assert all(node.court.banned(liar.peer_id) for node in others)
        honest = {node.id for node in place.nodes} | {VICTIM.peer_id}
        assert all(ban.peer not in honest for node in place.nodes for ban in node.court.bans())
        off["s"] = 0.0
        await trio.sleep(300)
        others[1].court.take(PROOF)
        await place.until(lambda: place.all_ban(MALLORY.peer_id), 60)
