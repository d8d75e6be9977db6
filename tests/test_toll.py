"""The price of an identity: when it is paid, how it is shown, and who is on probation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.identity.identify.pb.identify_pb2 import Identify
from net_hosts import seeded, until

from potluck.crypto.codec import decode, encode
from potluck.crypto.keys import IdentityKey
from potluck.crypto.work import EPOCH_S, Work, check_work, epoch_at, search
from potluck.node import toll
from potluck.node.net import identify, protobuf
from potluck.node.net.host import open_host
from potluck.node.net.identify import Claims
from potluck.node.toll import EARLY_S, WORK, keep_work, on_probation

BITS = 8  # some hundred hashes
KEY = IdentityKey.from_bytes(b"a" * 32)
OTHER = IdentityKey.from_bytes(b"b" * 32)
NOW = 700 * EPOCH_S


@pytest.fixture
def everybody_is_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toll, "is_public", lambda host: True)


class Host:
    def __init__(self, *remotes: str) -> None:
        self.work = b""
        self.peer_id = KEY.peer_id
        self.came: list[object] = []
        self._connections = [SimpleNamespace(remote=(one, 1), claims=None) for one in remotes]

    def connections(self) -> list[object]:
        return list(self._connections)

    def best(self, peer: str) -> object:
        return self._connections[0] if self._connections else None

    def claiming(self, work: bytes | None) -> Host:
        self._connections[0].claims = None if work is None else Claims("", (), (), None, work=work)
        return self


def worked(key: IdentityKey, epoch: int) -> Work:
    work, _ = search(key.public, epoch, first=0, tries=1 << 16, bits=BITS)
    assert work is not None
    return work


async def test_what_was_paid_is_shown_to_who_asked_before(
    tmp_path: Path, everybody_is_a_stranger: None
) -> None:
    async with open_host(seeded("a")) as one, open_host(seeded("b")) as other:
        await other.connect(one.addresses())
        await other.identified(one.peer_id)
        assert on_probation(other, one.peer_id, NOW, bits=BITS)
        async with trio.open_nursery() as nursery:

            async def keep() -> None:
                await keep_work(tmp_path, one, bits=BITS, wall=lambda: NOW)

            nursery.start_soon(keep)
            await until(lambda: not on_probation(other, one.peer_id, NOW, bits=BITS))
            nursery.cancel_scope.cancel()
        claims = other.claims(one.peer_id)
        assert claims is not None and claims.work == (tmp_path / WORK).read_bytes()
        check_work(decode(claims.work, Work), KEY.public, NOW, bits=BITS)
        assert on_probation(other, one.peer_id, NOW + 2 * EPOCH_S, bits=BITS)  # long ago


async def test_among_neighbours_nobody_pays(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    host = Host("127.0.0.1", "192.168.1.4", "10.0.0.1")
    with trio.move_on_after(1e7):
        await keep_work(tmp_path, host, bits=BITS, wall=lambda: NOW)  # type: ignore[arg-type]
    assert host.work == b"" and not (tmp_path / WORK).exists()
    assert not on_probation(host, OTHER.peer_id, NOW)  # type: ignore[arg-type]
    assert host.came == []


async def test_it_is_paid_once_a_month_a_little_early_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    searched: list[int] = []

    async def search_at_once(public: bytes, epoch: int, bits: int) -> Work:
        searched.append(epoch)
        return worked(KEY, epoch)

    async def here(function: Callable[..., Any], *given: object) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*given)

    async def run_for(seconds: float) -> Host:
        host = Host("8.8.8.8")
        with trio.move_on_after(seconds):
            await keep_work(
                tmp_path, host, bits=BITS,  # type: ignore[arg-type]
                wall=lambda: NOW + trio.current_time() - began_s,
            )  # fmt: skip
        return host

    monkeypatch.setattr(toll, "_search", search_at_once)
    monkeypatch.setattr(trio.to_thread, "run_sync", here)  # a clock that jumps waits for no thread
    began_s = trio.current_time()
    await run_for(EPOCH_S - EARLY_S - 10)
    assert searched == [epoch_at(NOW)]
    host = await run_for(EPOCH_S)
    assert searched == [epoch_at(NOW), epoch_at(NOW) + 1]  # what is on the disk was good
    work, now = decode(host.work, Work), NOW + trio.current_time() - began_s
    check_work(work, KEY.public, now, bits=BITS)
    assert work.epoch == epoch_at(NOW) + 1 and NOW + EPOCH_S < now < NOW + 2 * EPOCH_S - EARLY_S


@pytest.mark.parametrize("content", [b"", b"rubbish", encode(worked(OTHER, epoch_at(NOW)))])
async def test_a_broken_or_foreign_file_is_paid_for_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WORK).write_bytes(content)
    host = Host("8.8.8.8")
    async with trio.open_nursery() as nursery:

        async def keep() -> None:
            await keep_work(
                tmp_path, host, bits=BITS, wall=lambda: NOW,  # type: ignore[arg-type]
            )  # fmt: skip

        nursery.start_soon(keep)
        await until(lambda: host.work)
        nursery.cancel_scope.cancel()
    check_work(decode(host.work, Work), KEY.public, NOW, bits=BITS)


def test_who_shows_none_or_anothers_or_an_old_one_is_on_probation() -> None:
    good = worked(OTHER, epoch_at(NOW))
    for shown, pays in (
        (encode(good), True),
        (encode(worked(KEY, epoch_at(NOW))), False),
        (encode(replace(good, epoch=good.epoch - 1)), False),
        (b"", False),
        (b"\xff" * 30, False),
        (None, False),
    ):
        host = Host("8.8.8.8").claiming(shown)
        probation = on_probation(host, OTHER.peer_id, NOW, bits=BITS)  # type: ignore[arg-type]
        assert probation is not pays
    assert not on_probation(Host(), OTHER.peer_id, NOW)  # type: ignore[arg-type]  # not connected


def test_stock_libp2p_passes_over_what_was_paid() -> None:
    shown = encode(worked(KEY, epoch_at(NOW)))
    said = identify.describe(
        KEY.public, agent="potluck", protocols=["/a"], addresses=[], observed=None, work=shown
    )
    size, at = protobuf.read_varint(said, 0)
    assert size == len(said) - at
    stock = Identify.FromString(said[at:])
    assert stock.agent_version == "potluck" and list(stock.protocols) == ["/a"]
    assert identify.understand(said[at:]).work == shown
    too_long = protobuf.field(identify.WORK, bytes(identify.WORK_BYTES_MAX + 1))
    assert identify.understand(too_long).work == b""
    assert identify.understand(protobuf.field(identify.WORK, 7)).work == b""
