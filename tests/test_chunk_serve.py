"""Who gives chunks: what is asked of it, by whom, how much at a time, and in what bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from chunk_world import NAMES, RAWS, World, world
from sim.memory_host import MemoryHost, MemoryStream
from trio.testing import MockClock

from potluck.crypto.codec import decode_any, encode
from potluck.errors import RemoteError, TransportError
from potluck.node.chunks.serve import PEER_REQUESTS_MAX, REQUESTS_MAX, WAIT_S
from potluck.node.chunks.uplink import Uplink
from potluck.node.letters import receive_letter, send_letter
from potluck.node.pieces import BYTES_S
from potluck.swarm.chunk import (
    ANSWERS,
    LETTER_BYTES_MAX,
    PROTOCOL,
    WANT_MAX,
    Have,
    Lack,
    Later,
    Want,
    digest_of,
)


async def opened(made: World, peer: str, *wanted: bytes, by: str = "me") -> MemoryStream:
    host: MemoryHost = made.net.host(by)
    stream = await host.open_stream(peer, PROTOCOL)
    await send_letter(stream, encode(Want(wanted)))
    return stream


async def heard(stream: MemoryStream) -> Any:
    raw = await receive_letter(stream, LETTER_BYTES_MAX)
    assert raw is not None
    return decode_any(raw, ANSWERS)


async def test_a_chunk_that_is_not_there_is_said(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.serve("a", has=NAMES[:1])
        stream = await opened(made, "a", NAMES[1], NAMES[0])
        assert await heard(stream) == Lack()
        assert await heard(stream) == Have(len(RAWS[0]))


async def never(peer: str, size: int) -> None:
    await trio.sleep_forever()


async def test_a_peer_has_few_requests_at_a_time_and_all_together_have_a_bound(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        server = made.serve("a")
        server._uplink.turn = never  # type: ignore[method-assign]
        streams = [await opened(made, "a", NAMES[0]) for _ in range(PEER_REQUESTS_MAX + 1)]
        assert [type(await heard(one)) for one in streams] == [Have, Have, Later]
        for number in range(REQUESTS_MAX):
            stream = await opened(made, "a", NAMES[0], by=f"other{number}")
            await heard(stream)
        assert server._open.total() == REQUESTS_MAX
        await made.net.host("a").die()


@pytest.mark.parametrize(
    ("bytes_s", "at_once"), [(1.0, 1), (3.5 * BYTES_S, 3), (1e12, REQUESTS_MAX)]
)
async def test_no_more_are_served_at_a_time_than_get_the_least_rate_each(
    autojump_clock: MockClock, tmp_path: Path, bytes_s: float, at_once: int
) -> None:
    async with world(tmp_path) as made:
        server = made.serve("a", uplink=Uplink(bytes_s))
        server._uplink.turn = never  # type: ignore[method-assign]
        answers = []
        for number in range(REQUESTS_MAX + 1):
            stream = await opened(made, "a", NAMES[0], by=f"other{number}")
            answers.append(type(await heard(stream)))
        assert answers == [Have] * at_once + [Later] * (REQUESTS_MAX + 1 - at_once)


async def test_who_asks_nonsense_or_nothing_is_left(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        server = made.serve("a")
        for bad in (b"x", bytes(LETTER_BYTES_MAX), encode(Want((NAMES[0], NAMES[0])))):
            stream = await made.net.host("me").open_stream("a", PROTOCOL)
            await send_letter(stream, bad)
            with pytest.raises(TransportError):
                await stream.receive()
        assert [type(fault) for _, fault in made.net.faults] == [RemoteError] * 3
        await made.net.host("me").open_stream("a", PROTOCOL)
        await trio.sleep(WAIT_S + 1)
        assert isinstance(made.net.faults[-1][1], TransportError)
        assert server._open.total() == 0


async def test_peers_share_a_bounded_uplink_however_often_they_ask(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """One with two requests of many chunks, one with a single chunk at a time: what they are given
    in the same time differs by a piece or two, and the bound holds."""
    async with world(tmp_path) as made:
        bytes_s, given = 2000.0, {"greedy": 0, "modest": 0}
        uplink = Uplink(bytes_s)

        async def take(peer: str) -> None:
            while True:
                await uplink.turn(peer, 1000)
                given[peer] += 1000

        for peer, tasks in (("greedy", 7), ("modest", 1)):
            for _ in range(tasks):
                made.nursery.start_soon(take, peer)
        await trio.sleep(100.0)
        assert abs(given["greedy"] - given["modest"]) <= 2000
        assert 0.95 * 100 * bytes_s <= sum(given.values()) <= 1.05 * 100 * bytes_s


async def test_who_leaves_the_line_holds_up_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        uplink, done = Uplink(1000.0), []

        async def take(peer: str, patience_s: float) -> None:
            with trio.move_on_after(patience_s):
                await uplink.turn(peer, 1000)
                done.append(peer)

        for number in range(30):
            made.nursery.start_soon(take, f"p{number % 7}", 1e9 if number % 3 else number / 4)
        await trio.sleep(100.0)
        assert len(done) >= 20 and not uplink._turns.cost and not uplink._waiting


# ---- the wire


def test_the_bytes_of_every_message_are_those_on_file() -> None:
    lines = [
        f"{type(one).__name__} {encode(one).hex()}"
        for one in (Want((bytes(32), b"\1" * 32)), Have(1 << 20), Lack(), Later(2.5))
    ]
    lines.append(f"digest {digest_of(b'potluck').hex()}")
    golden = Path(__file__).parent / "golden" / "chunks.hex"
    assert lines == golden.read_text(encoding="utf-8").splitlines()


def test_the_longest_request_fits_its_letter() -> None:
    names = tuple(bytes((number,)) * 32 for number in range(WANT_MAX))
    assert len(encode(Want(names))) <= LETTER_BYTES_MAX
