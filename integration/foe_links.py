"""What a hostile peer sends below streams: yamux by hand, and where a handshake should be."""

from __future__ import annotations

import random
import socket
import struct

import trio

from potluck.dht import message as directory
from potluck.errors import PotluckError
from potluck.node.net import identify, mux_frame, negotiate, noise
from potluck.node.net.noise import Link
from potluck.swarm import wire

from .foe import ANSWER_S, HUGE, LEFT_ALONE_S, Foe, mutated

FRAMES_A_LINK = 64
PONG_S = 0.5
MARK = 0x70000000  # our pings' numbers begin here
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: x\r\n\r\n"
)


def _yamux_words(dice: random.Random) -> bytes:
    """A frame of yamux: an honest one, a mutated one, or one of a flood."""
    data = negotiate.proposal(dice.choice([wire.PROTOCOL, directory.PROTOCOL, identify.PING]))
    stream_id = dice.choice([0, 1, 2, 3, 5, 7, dice.randrange(1 << 32)])
    kind, flags = dice.randrange(5), dice.choice([0, 1, 2, 4, 8, 9, 5, 15, 0xFFFF])
    value = dice.choice([0, 1, 1 << 18, HUGE, 16 << 20, (16 << 20) + 1])
    match dice.randrange(6):
        case 0:
            return dice.randbytes(dice.randrange(1, 100))
        case 1:
            return mux_frame.header(kind, flags, stream_id, value)
        case 2:
            return mux_frame.header(mux_frame.DATA, 1, stream_id | 1, len(data)) + data
        case 3:
            return mutated(dice, mux_frame.header(0, 1, stream_id | 1, len(data)) + data)
        case 4:
            return mux_frame.header(mux_frame.WINDOW, flags, stream_id, value)
        case _:
            return mux_frame.header(mux_frame.PING, dice.choice([0, 1, 2]), 0, value)


async def yamux(foe: Foe) -> int:
    """Frames by hand, each followed by a ping, until the node has had enough."""
    link = await foe.link()
    try:
        reader = mux_frame.FrameReader()
        for number in range(FRAMES_A_LINK):
            with trio.move_on_after(PONG_S) as deadline:
                await _push(link, _yamux_words(foe.dice) + _ping(number))
                await _until_pong(link, reader, number)
            if deadline.cancelled_caught:  # it waits for the rest of a payload
                foe.ended["left alone"] += 1
                return number + 1
        foe.ended["still open"] += 1
        return FRAMES_A_LINK
    except PotluckError:
        foe.ended["connection closed"] += 1
        return number + 1
    finally:
        link.close()


async def rapid_resets(foe: Foe) -> int:
    """Streams opened and reset at once, as in HTTP/2's rapid reset."""
    link = await foe.link()
    try:
        for number in range(FRAMES_A_LINK):
            opened = mux_frame.header(mux_frame.WINDOW, mux_frame.SYN, 2 * number + 1, 0)
            reset = mux_frame.header(mux_frame.WINDOW, mux_frame.RST, 2 * number + 1, 0)
            await _push(link, opened + reset)
        await _push(link, _ping(0))
        await _until_pong(link, mux_frame.FrameReader(), 0)
        foe.ended["still open"] += 1
    finally:
        link.close()
    return 2 * FRAMES_A_LINK


def _ping(number: int) -> bytes:
    return mux_frame.header(mux_frame.PING, mux_frame.SYN, 0, MARK + number)


async def _push(link: Link, words: bytes) -> None:
    while link.blocked:
        await link.resume()
    link.push([words])


async def _until_pong(link: Link, reader: mux_frame.FrameReader, number: int) -> None:
    while True:
        for piece in await link.receive():
            for told in reader.feed(piece):
                if told.kind == mux_frame.PING and told.value == MARK + number:
                    return


async def noise_garbage(foe: Foe) -> int:
    """Bytes where a handshake should be, or a handshake that goes wrong, or stops."""
    dice = foe.dice
    sock = await foe.socket()
    try:
        good = negotiate.proposal(noise.PROTOCOL)
        said = dice.choice([
            dice.randbytes(dice.randrange(1, 400)),
            good + dice.randbytes(dice.randrange(1, 300)),
            good + HUGE.to_bytes(4),
            good + b"\x00\x20" + dice.randbytes(32),
            good + b"\x00\x20" + dice.randbytes(32) + b"\x00\x40" + dice.randbytes(64),
            mutated(dice, good),
            good + b"\x00\x20" + bytes(32),  # a key of low order
            b"GET / HTTP/1.1\r\n\r\n",
            UPGRADE,
            mutated(dice, UPGRADE),
            mutated(dice, UPGRADE) + b"\x82" + dice.randbytes(dice.randrange(100)),
            good[: dice.randrange(len(good))],
        ])  # fmt: skip
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        with trio.move_on_after(ANSWER_S):
            try:
                await stream.send_all(said)
                if dice.random() < 0.1:
                    await trio.sleep(LEFT_ALONE_S)
                    foe.ended["left alone"] += 1
                    return 1
                await stream.send_eof()
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass  # the node was faster
            foe.ended["connection closed"] += 1
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    return 1


async def sealed_garbage(foe: Foe) -> int:
    """Behind an honest handshake, ciphertext that was never sealed."""
    link = await foe.link()
    with trio.move_on_after(ANSWER_S):
        try:
            size = foe.dice.randrange(1, 2000)
            link.carrier.send(size.to_bytes(2) + foe.dice.randbytes(size))
            while True:
                await link.receive()
        except (PotluckError, OSError):
            foe.ended["connection closed"] += 1
    link.close()
    return 1
