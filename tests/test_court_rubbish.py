"""What is no evidence: it costs its sender its score, bounded memory, and nobody anything else."""

from __future__ import annotations

from random import Random

import pytest
import trio
from courts import (
    MALLORY,
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
from sim.turned import turned
from testimonies import NOW, announced
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.dht.record import DOMAIN
from potluck.node.testnet.mischief import false_tallies
from potluck.swarm.evidence import KEEP_S
from potluck.swarm.recent import KEPT_BYTES_MAX, SEEN_MAX
from potluck.swarm.testimony import (
    Attestation,
    check_accusation,
    contradiction_of,
    forks_of,
    sign_attestation,
)
from potluck.swarm.topics import EVIDENCE, MESSAGE_BYTES_MAX, Message, Rpc

TALLIES = false_tallies(MALLORY, key("accomplice"), NOW)  # two for one place


def rubbish(dice: Random, now: float) -> dict[str, Rpc | bytes]:
    honest, liar = announced(VICTIM), key("s")
    forged = contradiction_of(DOMAIN, honest.raw, turned(honest.raw))
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
        "of tallies that agree": news(contradiction_of("tally of low", TALLIES[0], TALLIES[0])),
        "of half a tally": news(contradiction_of("tally of high", TALLIES[0], dice.randbytes(9))),
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
        for item in (PROOF, forks_of(*TALLIES)[0], accused, attested):
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
