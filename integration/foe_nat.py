"""What a hostile peer says where NATs are crossed: to a relay, of a punch, of who it is and where.

The node passes on for others (--relay yes), so all that a relay hears is heard; it holds no place
at a relay, so whoever calls as one is refused. A punch on a direct connection is refused too: what
is said over a relay is in fuzz_punch.py.
"""

from __future__ import annotations

import random

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.node.net import circuit, identify, protobuf, punch, reach
from potluck.node.net.address import Address
from potluck.node.net.host import HostConfig, open_host
from potluck.node.net.stream import Stream

from .foe import HUGE, Foe, mutated


def places(dice: random.Random, peer: str, count: int) -> list[Address]:
    """Where nobody listens, but on this machine: nobody else shall hear of it."""
    relays = [None, IdentityKey.from_bytes(dice.randbytes(32)).peer_id]
    return [
        Address("ip4", "127.0.0.1", dice.choice([0, 1, 9, 65535]), peer, dice.choice(relays))
        for _ in range(count)
    ]


def behind_length(raw: bytes) -> bytes:
    return protobuf.varint(len(raw)) + raw


def spoiled(dice: random.Random, raw: bytes) -> bytes:
    """A message that was honest: changed inside its length, or with its length, or as it was."""
    match dice.randrange(4):
        case 0:
            return behind_length(raw)
        case 1:
            return mutated(dice, behind_length(raw))
        case 2:
            return protobuf.varint(dice.choice([HUGE, 4097, 1 << 62, 0])) + raw
        case _:
            return behind_length(mutated(dice, raw))


def _message(foe: Foe) -> circuit.Message:
    """Of a relay or to one, any kind, any peer."""
    dice = foe.dice
    someone = IdentityKey.from_bytes(dice.randbytes(32)).peer_id
    peer = dice.choice([None, someone, foe.key.peer_id, foe.target.peer])
    reservation = circuit.Reservation(
        dice.choice([0, 1, 1 << 40, (1 << 63) - 1]),
        tuple(places(dice, someone, dice.randrange(20))),
        dice.choice([b"", dice.randbytes(99), circuit.voucher(foe.key, someone, 1 << 40)]),
    )
    return circuit.Message(
        dice.choice([0, 1, 2, 3, 127, HUGE]),
        peer,
        dice.choice([None, reservation]),
        dice.choice([None, circuit.Limit(HUGE, (1 << 63) - 1)]),
        dice.choice([None, 0, 100, 203, HUGE]),
    )


async def relay_hop(foe: Foe) -> int:
    """To the relay that the node is: reservations, calls, and what no client says."""
    said = spoiled(foe.dice, circuit.encode_hop(_message(foe)))
    await foe.talk(circuit.HOP, said, finish=foe.dice.random() < 0.95)
    return 1


async def relay_stop(foe: Foe) -> int:
    """As the relay that the node has never asked."""
    said = spoiled(foe.dice, circuit.encode_stop(_message(foe)))
    await foe.talk(circuit.STOP, said, finish=foe.dice.random() < 0.95)
    return 1


async def circuits(foe: Foe) -> int:
    """Reserve, and be called by oneself: the callee takes the call, or answers with nonsense."""
    dice = foe.dice

    async def take(stream: Stream) -> None:
        await stream.receive()
        yes = circuit.encode_stop(circuit.Message(circuit.STOP_STATUS, status=100))
        await stream.send(behind_length(yes) if dice.random() < 0.5 else spoiled(dice, yes))
        await stream.send(dice.randbytes(dice.randrange(1, 4096)))
        if dice.random() < 0.5:
            await stream.reset()

    foe.host.handle(circuit.STOP, take)
    reserve = circuit.encode_hop(circuit.Message(circuit.RESERVE))
    await foe.talk(circuit.HOP, behind_length(reserve))
    call = circuit.encode_hop(circuit.Message(circuit.HOP_CONNECT, foe.key.peer_id))
    said = behind_length(call) + dice.randbytes(dice.randrange(4096))
    await foe.talk(circuit.HOP, said, finish=dice.random() < 0.8)
    return 2


def punch_words(dice: random.Random, peer: str) -> bytes:
    """A punch's bytes, as in fuzz_punch.py."""
    kind = dice.choice([punch.CONNECT, punch.SYNC, 0, 1, HUGE])
    return punch._encode(kind, places(dice, peer, dice.randrange(6)))


async def dcutr(foe: Foe) -> int:
    await foe.talk(punch.PROTOCOL, spoiled(foe.dice, punch_words(foe.dice, foe.key.peer_id)))
    return 1


async def dial_back(foe: Foe) -> int:
    """Questions on reachability, right or spoiled, and what is none."""
    dice = foe.dice
    ports = tuple(dice.choice([1, 9, 4001, 65535]) for _ in range(dice.randrange(1, 5)))
    good = encode(reach.Ask(ports))
    answer = encode(reach.Answer("127.0.0.1", 1, (), tried=False))
    raw = dice.choice([good, mutated(dice, good), answer, dice.randbytes(dice.randrange(99))])
    size = dice.choice([len(raw)] * 8 + [0, 1, 0xFFFF, len(raw) + 1])
    await foe.talk(reach.PROTOCOL, size.to_bytes(2) + raw, finish=dice.random() < 0.95)
    return 1


def claims(dice: random.Random, peer: str) -> bytes:
    """An identify message, right or spoiled."""
    described = identify.describe(
        IdentityKey.from_bytes(dice.randbytes(32)).public,
        agent=dice.choice(["", "x" * 5000, "\x00\U0001f95e"]),
        protocols=dice.choice([[], [circuit.HOP, reach.PROTOCOL, identify.PUSH], ["/x"] * 2000]),
        addresses=places(dice, peer, dice.choice([0, 3, 200])),
        observed=dice.choice([None, *places(dice, peer, 1)]),
    )
    return described if dice.random() < 0.4 else mutated(dice, described)


async def pushed_claims(foe: Foe) -> int:
    await foe.talk(identify.PUSH, claims(foe.dice, foe.key.peer_id))
    return 1


async def asked_claims(foe: Foe) -> int:
    """A new connection, whose question on who we are gets such an answer."""
    dice = foe.dice
    async with open_host(HostConfig(seed=dice.randbytes(32), listen=())) as host:

        async def say(stream: Stream) -> None:
            await stream.send(claims(dice, host.peer_id))
            foe.ended["answered"] += 1

        host.handle(identify.IDENTIFY, say)
        peer = await host.connect([foe.target.address])
        await host.identified(peer)  # by then it has asked us as well, most times
    return 1
