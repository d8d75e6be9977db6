"""What a hostile client says in a session, and instead of one."""

from __future__ import annotations

import math
import struct

import msgpack
import trio

from potluck.errors import TransportError
from potluck.swarm import frame
from potluck.swarm.wire import PROTOCOL

from .foe import HUGE, Foe, mutated


def _open(foe: Foe, **changes: object) -> dict[str, object]:
    target = foe.target
    return {
        "session": foe.dice.randbytes(16), "model": target.model, "start": 0,
        "stop": target.blocks, "tokens": 64, "dtype": "f32",
    } | changes  # fmt: skip


def _frame(tag: int, header: object, payload: bytes = b"", claimed: int | None = None) -> bytes:
    """A frame of whatever: the header need be no message, the length need not be true."""
    if isinstance(header, dict):
        header = {name: header[name] for name in sorted(header, key=str)}
    packed: bytes = msgpack.packb(header)
    size = len(payload) if claimed is None else claimed
    return frame.PREFIX.pack(tag, 0, len(packed), size) + packed + payload


def _step(foe: Foe, at: int, **changes: object) -> bytes:
    rows = struct.pack(f"<{foe.target.width}f", *([0.5] * foe.target.width))
    return _frame(3, {"at": at, "sizes": [1], "rows": 1} | changes, rows)


def _conversation(foe: Foe) -> bytes:
    """An honest session's bytes."""
    said = [_frame(1, _open(foe)), *(_step(foe, at) for at in range(foe.dice.randint(1, 3)))]
    said += [_frame(5, {"at": 1}), _frame(6, {})]
    return b"".join(said[: foe.dice.randint(1, len(said))])


async def session_bytes(foe: Foe) -> int:
    await foe.talk(PROTOCOL, mutated(foe.dice, _conversation(foe)))
    return 1


async def session_values(foe: Foe) -> int:
    """Well-formed messages that say what no client says."""
    dice, wide = foe.dice, foe.target.width * 4
    number = dice.choice([-1, 0, 1, 63, 64, 65, 1 << 16, 1 << 24, 1 << 31, 1 << 63, 1.5, None, "1"])
    rows = dice.choice(
        [bytes(wide), b"\x7f\xc0" * (wide // 2), b"\xff" * wide, b"", bytes(wide - 1)]
    )
    opened = _frame(1, _open(foe))
    said = dice.choice([
        _frame(1, _open(foe, tokens=number)),
        _frame(1, _open(foe, start=number)),
        _frame(1, _open(foe, stop=number)),
        _frame(1, _open(foe, model=dice.randbytes(32).hex())),
        _frame(1, _open(foe, dtype=dice.choice(["f64", "", "f3", "utf-16", 32]))),
        _frame(1, _open(foe, session=dice.randbytes(dice.randrange(40)))),
        _frame(1, _open(foe, extra=1)),
        opened + opened,
        opened + _frame(3, {"at": number, "sizes": [1], "rows": 1}, rows),
        opened + _frame(3, {"at": 0, "sizes": [number], "rows": 1}, rows),
        opened + _frame(3, {"at": 0, "sizes": [1], "rows": number}, rows),
        opened + _frame(3, {"at": 0, "sizes": [1] * dice.randrange(2000), "rows": 1}, rows),
        opened + _frame(3, {"at": 0, "sizes": [], "rows": 0}, rows),
        opened + _frame(5, {"at": number}),
        opened + _frame(1, _open(foe), rows),
    ])  # fmt: skip
    await foe.talk(PROTOCOL, said)
    return 1


async def session_lengths(foe: Foe) -> int:
    """Prefixes that announce up to 4 GiB, before and after `Open`."""
    dice = foe.dice
    before = dice.choice([b"", _frame(1, _open(foe)), _frame(1, _open(foe)) + _step(foe, 0)])
    claimed = dice.choice([HUGE, 1 << 31, 1 << 25, (1 << 25) + 1, 64 * foe.target.width * 4 + 1])
    header = dice.choice([0, 30, 16 * 1024, 0xFFFF])
    said = before + frame.PREFIX.pack(dice.choice([1, 3, 5]), 0, header, claimed)
    await foe.talk(PROTOCOL, said + bytes(dice.randrange(4096)), finish=dice.random() < 0.9)
    return 1


async def session_unknown(foe: Foe) -> int:
    """Messages of no known tag, of a server's tags, or that are no message at all."""
    dice = foe.dice
    nested: object = 0
    for _ in range(dice.randrange(200)):
        nested = [nested]
    header = dice.choice([nested, {}, [], None, 7, "x" * 5000, {"": 1}, {1: 2}, math.inf])
    tag = dice.choice([0, 2, 4, 7, 8, 9, 77, 255, 1, 3])
    before = dice.choice([b"", _frame(1, _open(foe))])
    await foe.talk(PROTOCOL, before + _frame(tag, header, dice.randbytes(dice.randrange(64))))
    return 1


async def session_half_open(foe: Foe) -> int:
    """Part of a session, then silence."""
    said = _conversation(foe)
    await foe.talk(PROTOCOL, said[: foe.dice.randrange(len(said))], finish=False)
    return 1


async def session_slow_reader(foe: Foe) -> int:
    """Steps that ask for as much as they may, and nobody reads what comes back."""
    opened = _frame(1, _open(foe, tokens=512))
    rows = bytes(256 * foe.target.width * 4)
    step = _frame(3, {"at": 0, "sizes": [256], "rows": 256}, rows)
    stream = await foe.open(PROTOCOL)
    sent = 0
    with trio.move_on_after(2.0):
        try:
            await stream.send(opened)
            for _ in range(8):
                await stream.send(step)
                sent += 1
        except TransportError:
            foe.spent = True
    await stream.reset()
    foe.ended["left alone"] += 1
    return 1 + sent
