"""What a hostile peer says of others: credit, exhibits, records, views, gossip, probes, vouches.

A unit is a stream of one conversation in which something is wrong: with what is said (signed by
another, of tomorrow, of nobody, about another model, more than there can be), or with its bytes:
spoilt, announced as too long, said twice, in another order, of no known kind, or broken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgpack

from potluck.crypto.codec import encode
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.dht.record import DOMAIN
from potluck.node.net.gossip_wire import pack
from potluck.node.trust.exhibit import PROTOCOL as EXHIBIT
from potluck.swarm.replica import BUCKETS, NAME_BYTES, Give, Listing, Summary, Want
from potluck.swarm.replica import PROTOCOL as REGISTRY
from potluck.swarm.rumour import DOMAIN as SWIM
from potluck.swarm.rumour import Claim, Letter, protocol_of
from potluck.swarm.sampling_events import PROTOCOL as SAMPLE
from potluck.swarm.sampling_events import Member, Pull, View
from potluck.swarm.settlement import PROTOCOL as CREDIT
from potluck.swarm.settlement import SHOWN_MAX, Answer, Greeting, greet
from potluck.swarm.tally import accept, first_of, next_of, offer
from potluck.swarm.testimony import Attestation, contradiction_of, sign_attestation
from potluck.swarm.topics import CAPABILITY, EVIDENCE, Message, Rpc, topic_of
from potluck.swarm.topics import PROTOCOL as GOSSIP
from potluck.swarm.vouch import PROTOCOL as VOUCH
from potluck.swarm.vouch import Ask, Told, Vouch, give

from .foe import HUGE, Foe, mutated
from .forgery import forged_records

DAY_S = 86_400.0
SHIFTS_S = (0.0, 45.0, DAY_S, 365 * DAY_S, -DAY_S)  # of a clock

Words = list[bytes]


def credit_words(foe: Foe) -> Words:
    """A greeting that boasts, on somebody's account, and a tally that was never offered."""
    dice, (eve, other) = foe.dice, (_stranger(foe), _stranger(foe))
    tally = next_of(
        first_of(eve.peer_id, other.peer_id), eve.peer_id, boot=dice.randrange(1 << 32),
        gave=dice.choice([0.0, 1.0, 1e17]), took=0.0, now=_time(foe), since=bytes(32),
    )  # fmt: skip
    signed = accept(dice.choice([eve, other]), offer(eve, tally))
    ends = [foe.key.peer_id, eve.peer_id]
    greeting = Greeting(
        dice.choice(ends), dice.choice([foe.target.peer, eve.peer_id]), dice.randrange(1 << 32),
        dice.choice([0.0, 1.0, 1e18]), dice.choice([b"", signed, dice.randbytes(90)]),
        (signed,) * dice.randrange(SHOWN_MAX + 1),
    )  # fmt: skip
    raw = greet(dice.choice([foe.key, eve]), greeting)
    return [_letter(raw), _letter(encode(Answer(dice.choice([b"", signed]))))]


def exhibit_words(foe: Foe) -> Words:
    return [foe.dice.randbytes(foe.dice.choice([31, 32, 33, 5000]))]


def registry_words(foe: Foe) -> Words:
    """A comparison in which forged records are given, and what nobody has is wanted."""
    dice = foe.dice
    forged = forged_records(dice, foe.key, foe.target.model, now=time.time())
    names = dice.randbytes(NAME_BYTES * dice.randrange(40))
    said: list[object] = [
        Summary(dice.randbytes(BUCKETS * NAME_BYTES)),
        Give(tuple(one.raw for one in dice.sample(forged, dice.randrange(len(forged))))),
        Want(names),
    ]
    if dice.random() < 0.2:
        said[0] = Listing(dice.randbytes(dice.randrange(40)), names)
    return [_letter(encode(one)) for one in said]


def sample_words(foe: Foe) -> Words:
    dice = foe.dice
    hosts = ("/ip4/127.0.0.1/tcp/9", "/ip4/203.0.113.1/tcp/0", "/nonsense", "", "/dns/x/tcp/1")
    names = [foe.target.peer, foe.key.peer_id, *(_stranger(foe).peer_id for _ in range(20))]
    members = tuple(Member(name, dice.choice(hosts)) for name in dice.sample(names, 12))
    return [_letter(encode(dice.choice([Pull(), View(members), View(members * 10)])))]


def gossip_words(foe: Foe) -> Words:
    """A neighbour's words: evidence that proves nothing, ids that nobody has, topics of nobody."""
    dice, model = foe.dice, foe.target.model
    forged = [one.raw for one in forged_records(dice, foe.key, model, now=time.time())]
    attested = Attestation(dice.randbytes(32), "wrong", _time(foe))
    data = [
        dice.randbytes(dice.randrange(300)),
        dice.choice(forged),
        encode(contradiction_of(DOMAIN, *dice.sample(forged, 2))),
        encode(sign_attestation(_stranger(foe), attested)),
    ]
    topics = [EVIDENCE, topic_of(model, 0), topic_of(model, 0, CAPABILITY), "/nobody", "x" * 200]
    topic, ids = dice.choice(topics), tuple(dice.randbytes(32) for _ in range(dice.randrange(60)))
    rpcs = [
        Rpc(subscriptions=tuple((one, dice.random() < 0.5) for one in topics)),
        Rpc(messages=tuple(Message(topic, one) for one in data)),
        Rpc(ihave=((topic, ids),), iwant=ids, idontwant=ids),
        Rpc(graft=(topic,) * dice.randrange(30), prune=((topic, dice.randrange(1 << 30)),)),
    ]
    return [pack(rpc) for rpc in dice.sample(rpcs, dice.randint(1, 4))]


def swim_words(foe: Foe) -> Words:
    """A probe with rumours: in another's name, of another model, beyond all incarnations."""
    dice, eve = foe.dice, _stranger(foe)
    news = []
    for _ in range(dice.randrange(9)):
        about = dice.choice([foe.target.peer, eve.peer_id, foe.key.peer_id])
        model = dice.choice([foe.target.model, "0" * 64])
        claim = Claim(
            model, about, dice.choice(["alive", "suspect", "dead"]), dice.choice([0, 9, 1 << 40])
        )
        news.append(sign(dice.choice([foe.key, eve]), dice.choice([SWIM, DOMAIN]), encode(claim)))
    kind = dice.choice(["ping", "pingreq", "ack", "nack"])
    target = dice.choice(["", foe.target.peer, eve.peer_id])
    letter = Letter(foe.target.model, kind, dice.randrange(1 << 53), target, tuple(news))  # type: ignore[arg-type]
    return [encode(letter)]


def vouch_words(foe: Foe) -> Words:
    """A question about whomever, or an answer where a question belongs."""
    dice, eve = foe.dice, _stranger(foe)
    if dice.random() < 0.5:
        return [_letter(encode(Ask((foe.target.peer, eve.peer_id)[: dice.randrange(3)])))]
    issued_s = _time(foe)
    told = Vouch(dice.choice([eve.peer_id, foe.key.peer_id]), issued_s, issued_s + DAY_S)
    return [_letter(encode(Told((give(foe.key, told).raw,) * dice.randrange(200))))]


async def credit(foe: Foe) -> int:
    return await _spoilt(foe, CREDIT, credit_words)


async def exhibit(foe: Foe) -> int:
    return await _spoilt(foe, EXHIBIT, exhibit_words)


async def registry(foe: Foe) -> int:
    return await _spoilt(foe, REGISTRY, registry_words)


async def sample(foe: Foe) -> int:
    return await _spoilt(foe, SAMPLE, sample_words)


async def gossip(foe: Foe) -> int:
    return await _spoilt(foe, GOSSIP, gossip_words)


async def swim(foe: Foe) -> int:
    return await _spoilt(foe, protocol_of(foe.target.model), swim_words)


async def vouch(foe: Foe) -> int:
    return await _spoilt(foe, VOUCH, vouch_words)


async def _spoilt(foe: Foe, protocol: str, words: Callable[[Foe], Words]) -> int:
    dice, said = foe.dice, words(foe)
    whole = b"".join(said)
    match dice.randrange(8):
        case 0:
            whole += whole
        case 1:
            dice.shuffle(said)
            whole = b"".join(said)
        case 2:
            whole = HUGE.to_bytes(4) + whole
        case 3:
            whole = _letter(msgpack.packb({"": "nobody knows this"})) + whole
        case 4:
            whole = whole[: dice.randrange(len(whole))]
        case 5 | 6:
            whole = mutated(dice, whole)
        case _:
            pass  # what it says is wrong enough
    await foe.talk(protocol, whole, finish=dice.random() < 0.95)
    return 1


def _letter(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


def _stranger(foe: Foe) -> IdentityKey:
    return IdentityKey.from_bytes(foe.dice.randbytes(32))


def _time(foe: Foe) -> float:
    return time.time() + foe.dice.choice(SHIFTS_S)
