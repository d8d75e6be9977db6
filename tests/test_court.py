"""Evidence among nodes: who contradicts himself is shunned by all, who is accused falsely by none.

Twelve nodes with their own gossip, evidence and trust, over memory roads, in virtual time.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import trio
from courts import (
    MALLORY,
    MODEL,
    PROOF,
    SEGMENT,
    VICTIM,
    case_of,
    news,
    says,
    servers,
    stranger,
    town,
    wall,
)
from receipts import key
from testimonies import NOW, announced
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.dht.record import DOMAIN, Announcement, read
from potluck.node.trust.bans import BANS
from potluck.swarm.banned import STRANGER, Acquaintance
from potluck.swarm.blocks import BlockRange
from potluck.swarm.testimony import (
    Attestation,
    check_accusation,
    contradiction_of,
    sign_attestation,
)

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
            node.court.is_about(announced(MALLORY, seq=9, now=wall()))
        await place.until(lambda: late.court.banned(MALLORY.peer_id), 90)
        assert len(late.court.bans()) == 1
        assert min(node.court.gossip.score(late.id) for node in place.nodes[:4]) >= 0
        assert min(late.court.gossip.score(node.id) for node in place.nodes[:4]) >= 0


async def test_how_the_banned_was_known_is_kept_with_the_ban(autojump_clock: MockClock) -> None:
    """So that no flood of strangers' bans displaces it (swarm/banned.py)."""
    async with town() as place:
        node = await place.add(key("node"))
        node.court.met = {VICTIM.peer_id}.__contains__
        other = await place.add(key("other"))
        place.host(key("liar"), "8.8.4.4").dial(node.host)
        node.court.cleared(place.records)._standings.learn(  # type: ignore[attr-defined]
            [read(announced(MALLORY, now=wall()), Announcement)]
        )
        await trio.sleep(7200)
        for who in (MALLORY, VICTIM, key("liar"), key("stranger")):
            records = announced(who, stop=4).raw, announced(who, stop=8).raw
            node.court.take(contradiction_of(DOMAIN, *records))
        known = {ban.peer: ban.known for ban in node.court.bans()}
        assert known == {
            MALLORY.peer_id: Acquaintance(7200.0, "none"),
            VICTIM.peer_id: Acquaintance(1.0),
            key("liar").peer_id: Acquaintance(1.0, "8.8.0.0/16"),
            key("stranger").peer_id: STRANGER,
        }
        assert other.court.bans() == ()


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


async def test_who_has_something_to_say_waits_until_somebody_wants_to_hear_it(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        await place.add(key("client"))
        client = place.nodes[0]
        with trio.move_on_after(60) as alone:
            await client.court.gossip.until_wanted(SEGMENT)
        assert alone.cancelled_caught
        await servers(place, 1, set())
        client.host.dial(place.nodes[1].host)
        with trio.fail_after(20):
            await client.court.gossip.until_wanted(SEGMENT)


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
