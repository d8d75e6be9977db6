"""What a hostile peer says to the directory, to identify and ping, and before it says anything."""

from __future__ import annotations

import time

from potluck.dht import message as directory
from potluck.node.net import identify, negotiate
from potluck.swarm import wire

from .foe import HUGE, Foe, mutated
from .forgery import forged_records


def _directory_words(foe: Foe) -> bytes:
    dice = foe.dice
    addresses = (f"/ip4/127.0.0.1/tcp/{dice.randrange(1, 65536)}/p2p/{foe.key.peer_id}",)
    words: list[directory.Request] = [
        directory.Hello(addresses, dice.random() < 0.5),
        directory.Find(dice.randrange(99), dice.randbytes(32), dice.random() < 0.5, b""),
        directory.Put(dice.randrange(99), (dice.randbytes(dice.randrange(300)),)),
    ]
    return b"".join(directory.to_frame(word) for word in dice.sample(words, dice.randint(1, 3)))


async def directory_bytes(foe: Foe) -> int:
    await foe.talk(directory.PROTOCOL, mutated(foe.dice, _directory_words(foe)))
    return 1


async def directory_lengths(foe: Foe) -> int:
    size = foe.dice.choice([HUGE, 1 << 31, directory.REQUEST_BYTES_MAX + 1])
    said = size.to_bytes(4) + foe.dice.randbytes(foe.dice.randrange(2048))
    await foe.talk(directory.PROTOCOL, said, finish=foe.dice.random() < 0.9)
    return 1


async def directory_forged(foe: Foe) -> int:
    """Records that their signer may not put: another's, moved, stale, far ahead, out of order."""
    records = forged_records(foe.dice, foe.key, foe.target.model, now=time.time())
    raw = foe.dice.choice(records).raw
    await foe.talk(directory.PROTOCOL, directory.to_frame(directory.Put(1, (raw,))))
    return 1


async def claims(foe: Foe) -> int:
    """Identify with words of our own; pings that are none."""
    dice = foe.dice
    if dice.random() < 0.5:
        await foe.talk(identify.IDENTIFY, dice.randbytes(dice.randrange(2048)))
    else:
        await foe.talk(identify.PING, dice.randbytes(dice.choice([1, 31, 32, 33, 320, 5000])))
    return 1


async def negotiation(foe: Foe) -> int:
    """A stream that never agrees on what it is."""
    dice = foe.dice
    good = negotiate.proposal(wire.PROTOCOL)
    stream = await foe.open(wire.PROTOCOL)
    stream.preface, stream.answer = b"", None  # what an honest host would say, and expect
    said = dice.choice([
        mutated(dice, good),
        dice.randbytes(dice.randrange(1, 200)),
        b"\xff\xff\xff\xff\x0f" + bytes(100),
        negotiate.HEADER + negotiate.message("/" + "x" * 1000),
        negotiate.HEADER + negotiate.message("/nobody/speaks/this") * dice.randrange(40),
        negotiate.HEADER + negotiate.message("na") + negotiate.message("ls"),
    ])  # fmt: skip
    await foe.say(stream, said)
    return 1


async def keeper(foe: Foe) -> int:
    """Be met as one who keeps records, and answer with nonsense whoever asks."""
    hello = directory.Hello(foe.host.addresses()[:8], True)
    find = directory.Find(1, foe.dice.randbytes(32), True, b"")
    await foe.talk(directory.PROTOCOL, directory.to_frame(hello) + directory.to_frame(find))
    return 2
