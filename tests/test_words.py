"""The bytes of what peers say of each other: a change of any shows here, and in review."""

from __future__ import annotations

from pathlib import Path

from receipts import key
from testimonies import NOW, accusation, announced

from potluck.crypto.codec import encode
from potluck.crypto.envelope import sign
from potluck.dht.record import DOMAIN
from potluck.node.gossip.capability import Told
from potluck.node.net.gossip_wire import pack as gossiped
from potluck.swarm.replica import BUCKETS, NAME_BYTES, Give, Listing, Summary, Want
from potluck.swarm.rumour import DOMAIN as SWIM
from potluck.swarm.rumour import Ack, Nack, Ping, PingReq, Rumour
from potluck.swarm.rumour import pack as probed
from potluck.swarm.sampling_events import Member, Pull, View
from potluck.swarm.settlement import Answer, Claim, Greeting, greet
from potluck.swarm.tally import accept, first_of, next_of, offer
from potluck.swarm.testimony import (
    Attestation,
    check_accusation,
    contradiction_of,
    sign_accusation,
    sign_attestation,
)
from potluck.swarm.topics import EVIDENCE, Message, Rpc

GOLDEN = Path(__file__).parent / "golden" / "words.hex"
ALICE, BOB = key("alice"), key("bob")
MODEL = "ab" * 32


def evidence() -> dict[str, bytes]:
    told = sign_accusation(ALICE, accusation(BOB))
    attested = Attestation(check_accusation(told).id, "right", NOW)
    one, other = announced(BOB, stop=4).raw, announced(BOB, stop=8).raw
    return {
        "Contradiction": encode(contradiction_of(DOMAIN, one, other)),
        "Accusation": encode(told),
        "Attestation": encode(sign_attestation(ALICE, attested)),
        "Told": encode(Told(EVIDENCE, one)),
    }


def credit() -> dict[str, bytes]:
    me, other = ALICE.peer_id, BOB.peer_id
    tally = next_of(
        first_of(me, other), me, boot=7, their_boot=9, gave=1.5, took=0.25, now=NOW, since=bytes(32)
    )
    offered = offer(ALICE, tally)
    signed = accept(BOB, offered)
    return {
        "Greeting": greet(BOB, Greeting(other, me, 9, 2.0, signed, (signed,))),
        "Claim": encode(Claim(signed, offered)),
        "Answer": encode(Answer(signed)),
    }


def comparisons() -> dict[str, bytes]:
    names = bytes(range(2 * NAME_BYTES))
    return {
        "Summary": encode(Summary(bytes(BUCKETS * NAME_BYTES)))[:64],  # the rest is zeros
        "Listing": encode(Listing(b"\x01\xff", names)),
        "Give": encode(Give((announced(BOB).raw,))),
        "Want": encode(Want(names)),
        "Pull": encode(Pull()),
        "View": encode(View((Member(BOB.peer_id, "/ip4/192.0.2.7/tcp/4001"),))),
    }


def probes() -> dict[str, bytes]:
    def by_alice(claim: bytes) -> bytes:
        return sign(ALICE, SWIM, claim)

    news = (Rumour(BOB.peer_id, "suspect", 3, ALICE.peer_id),)
    said = (Ping(1, news), PingReq(2, BOB.peer_id), Ack(3), Nack(4))
    return {type(one).__name__: probed(one, MODEL, by_alice) for one in said}


def gossip() -> dict[str, bytes]:
    ids = (bytes(32), bytes(range(32)))
    rpc = Rpc(
        ((EVIDENCE, True),), (Message(EVIDENCE, b"data"),), ((EVIDENCE, ids),), ids,
        (EVIDENCE,), ((EVIDENCE, 60),), ids[:1],
    )  # fmt: skip
    return {"Rpc": gossiped(rpc)}


def lines() -> list[str]:
    words = evidence() | credit() | comparisons() | probes() | gossip()
    return [f"{name} {raw.hex()}" for name, raw in words.items()]


def test_the_bytes_of_every_word_are_those_on_file() -> None:
    assert lines() == GOLDEN.read_text(encoding="utf-8").splitlines()
