"""Weights from neighbours, over memory roads: little from the root, and no lie stays."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from sim.memory_host import MemoryHost, MemoryNet, MemoryStream
from trio.testing import MockClock

from potluck.crypto.codec import decode, encode
from potluck.crypto.envelope import sign
from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.errors import TransportError, UserError
from potluck.node.chunks.serve import ChunkServer
from potluck.node.letters import receive_letter, send_letter
from potluck.node.weights.ask import TableServer
from potluck.node.weights.library import Library
from potluck.node.weights.parts import About, PieceFile
from potluck.node.weights.poison import POISON, Poisoners
from potluck.node.weights.pull import Puller, Ways
from potluck.swarm.chunk import CHUNK_BYTES, LETTER_BYTES_MAX, Have, Want, digest_of
from potluck.swarm.chunk import PROTOCOL as CHUNKS
from potluck.swarm.weights import DOMAIN, PROTOCOL, TABLE_BYTES_MAX, read_table, table_of

COUNT = 24
SIZE = COUNT * CHUNK_BYTES - 500
RAW = random.Random(9).randbytes(SIZE)
SHA256 = hashlib.sha256(RAW).digest()
ABOUT = About(SHA256.hex(), SIZE, "org/model", "model.safetensors")
ALL = range(COUNT)


def piece(index: int) -> bytes:
    return RAW[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


@dataclass
class Root:
    """down: so many more questions are not answered."""

    raw: bytes = RAW
    down: int = 0
    read_bytes: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)

    def read(self, start: int, stop: int) -> bytes:
        if self.down:
            self.down -= 1
            raise TransportError("the root is away")
        self.read_bytes += stop - start
        self.spans.append((start, stop))
        return self.raw[start:stop]


@dataclass
class Node:
    key: IdentityKey
    host: MemoryHost
    library: Library
    poisoners: Poisoners
    puller: Puller
    directory: MemoryDirectory
    gave: set[int] = field(default_factory=set)

    def get(self, name: bytes) -> bytes | None:
        raw = self.library.get(name)
        self.gave |= {index for index, one in self.file.had().items() if one == name}
        return raw

    @property
    def file(self) -> PieceFile:
        return self.library.have(ABOUT)

    async def has(self, indices: Sequence[int], *, vouched: bool = True) -> None:
        for index in indices:
            self.file.put(index, piece(index), vouched=vouched)
        await self.directory.provide([SHA256])

    def is_right(self, indices: Sequence[int] = ALL) -> bool:
        return all(self.file.piece(index) == piece(index) for index in indices)


@dataclass
class World:
    folder: Path
    net: MemoryNet
    shelf: MemoryShelf = field(default_factory=MemoryShelf)
    near: set[str] = field(default_factory=set)
    networks: dict[str, str] = field(default_factory=dict)

    def node(self, name: str, seed: int = 1) -> Node:
        key = IdentityKey.generate()
        home = self.folder / name
        host = self.net.host(key.peer_id)
        library, poisoners = Library(home), Poisoners(home, wall=lambda: 0.0)
        directory = MemoryDirectory(key, self.shelf)
        ways = Ways(
            key.peer_id, lambda one: one in self.near, lambda one: self.networks.get(one, "")
        )
        puller = Puller(host, directory, library, poisoners, ways, random.Random(seed))
        made = Node(key, host, library, poisoners, puller, directory)
        host.handle(CHUNKS, ChunkServer(made).serve)
        host.handle(PROTOCOL, TableServer(key, library.table).serve)
        return made


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(folder, MemoryNet(nursery))
        nursery.cancel_scope.cancel()


def lies_of(node: Node) -> list[dict[str, object]]:
    folder = node.library.root.parent / POISON
    return [json.loads(one.read_text()) for one in folder.glob("*") if not one.suffix]


async def test_the_second_has_everything_from_the_first_and_nothing_from_the_root(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        first, second, root = made.node("first"), made.node("second"), Root()
        await first.puller.ensure(first.file, ALL, root)
        assert first.is_right() and root.read_bytes == SIZE and first.file.about.whole
        await first.directory.provide([SHA256])
        await second.puller.ensure(second.file, ALL, root)
        assert second.is_right() and second.file.about.whole and root.read_bytes == SIZE
        assert second.puller.counts.peers == SIZE and second.puller.counts.root == 0
        assert not made.net.faults


async def test_a_part_costs_a_few_samples_and_the_rest_comes_from_peers(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        first, second, root = made.node("first"), made.node("second"), Root()
        await first.has(ALL)
        wanted = list(range(4, 20))
        await second.puller.ensure(second.file, wanted, root)
        assert second.is_right(wanted) and second.file.lacks(ALL) == [*range(4), *range(20, 24)]
        assert root.read_bytes == 2 * CHUNK_BYTES, "samples"
        assert not set(second.file.vouched()) - set(second.file.had()) and (
            len(second.file.vouched()) == 2
        )


async def test_hearsay_alone_brings_no_part_without_the_root(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        nodes = [made.node(f"n{number}") for number in range(3)]
        new = made.node("new")
        for node in nodes:
            await node.has(ALL)
        with pytest.raises(UserError, match="cannot be had"):
            await new.puller.ensure(new.file, [3, 4], None)
        for number, node in enumerate(nodes):
            made.networks[node.key.peer_id] = f"198.51.{number}.0/24"
        other = made.node("other")
        await other.puller.ensure(other.file, [3, 4], None)
        assert other.is_right([3, 4])


async def test_what_nobody_has_comes_from_the_root_and_who_begins_beside_us_gives_the_rest(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        one, new, root = made.node("one"), made.node("new"), Root()
        await one.has([0, 1, 2, 3], vouched=True)
        await new.puller.ensure(new.file, ALL, root)
        assert new.is_right() and root.read_bytes == SIZE - 4 * CHUNK_BYTES


async def test_whoever_sends_other_bytes_is_banned_with_what_shows_it_after_a_restart_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def poison(stream: MemoryStream) -> None:
        raw = await receive_letter(stream, LETTER_BYTES_MAX)
        assert raw is not None
        for name in decode(raw, Want).chunks:
            size = len(next(piece(one) for one in ALL if digest_of(piece(one)) == name))
            await send_letter(stream, encode(Have(size)))
            await stream.send(bytes(size))
        await stream.close()

    async with world(tmp_path) as made:
        good, liar, new, root = made.node("good"), made.node("liar"), made.node("new"), Root()
        for node in (good, liar):
            await node.has(ALL)
        liar.host.handle(CHUNKS, poison)
        told: list[str] = []
        new.poisoners.caught.append(told.append)
        await new.puller.ensure(new.file, ALL, root)
        assert new.is_right() and root.read_bytes == 0
        assert told == [liar.key.peer_id] and new.poisoners.banned(liar.key.peer_id)
        ((proof),) = lies_of(new)
        assert proof["peer"] == liar.key.peer_id and proof["grounds"] == "bytes"
        assert proof["came"] in {digest_of(bytes(CHUNK_BYTES)).hex(), digest_of(
            bytes(SIZE % CHUNK_BYTES)).hex()}  # fmt: skip
        again = Poisoners(tmp_path / "new", wall=lambda: 1.0)
        assert again.banned(liar.key.peer_id) and not again.banned(good.key.peer_id)
        assert not Poisoners(tmp_path / "new", wall=lambda: 1e9).banned(liar.key.peer_id)


def lying(node: Node, index: int, raw: bytes) -> None:
    """Its table, and its bytes, are false in one piece, and fit each other."""
    node.file.forget([index])
    node.file.put(index, raw, vouched=True)


async def test_a_false_table_is_found_by_the_sha256_mended_and_its_signer_convicted(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        liar, new, root = made.node("liar"), made.node("new"), Root()
        await liar.has(ALL)
        lying(liar, 7, bytes(CHUNK_BYTES))
        await new.puller.ensure(new.file, ALL, root)
        assert new.is_right() and new.file.about.whole
        (proof,) = lies_of(new)
        assert proof["grounds"] == "table" and proof["piece"] == 7
        signed = (tmp_path / "new" / POISON / f"{liar.key.peer_id}.table").read_bytes()
        table = read_table(signed, liar.key.peer_id, SHA256, SIZE)
        assert table.piece(7) != digest_of(piece(7)), "anybody with the file can see it"


async def test_of_two_that_say_different_things_the_root_tells_who_lies(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        good, liar, new, root = made.node("good"), made.node("liar"), made.node("new"), Root()
        for node in (good, liar):
            await node.has(ALL)
        lying(liar, 7, bytes(CHUNK_BYTES))
        await new.puller.ensure(new.file, ALL, root)
        assert new.is_right() and root.read_bytes == CHUNK_BYTES, "the one piece in dispute"
        assert new.poisoners.banned(liar.key.peer_id) and len(new.poisoners) == 1


async def test_who_was_deceived_and_vouches_for_nothing_is_not_punished(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        deceived, new, root = made.node("deceived"), made.node("new"), Root()
        await deceived.has(ALL, vouched=False)
        deceived.file.forget([7])
        deceived.file.put(7, bytes(CHUNK_BYTES), vouched=False)
        await new.puller.ensure(new.file, ALL, root)
        assert new.is_right() and len(new.poisoners) == 0


async def test_who_is_cancelled_in_the_middle_fetches_only_the_rest(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        first, root = made.node("first"), Root()
        enough = trio.Event()
        token = trio.lowlevel.current_trio_token()
        came = first.file.came

        def count(file: PieceFile, index: int, name: bytes) -> None:
            came(file, index, name)
            if len(file.had()) >= COUNT // 2:
                token.run_sync_soon(enough.set)

        first.file.came = count
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.puller.ensure, first.file, ALL, root)
            await enough.wait()
            nursery.cancel_scope.cancel()
        had = set(PieceFile(first.file.folder, first.file.about).had())
        assert COUNT // 2 <= len(had) < COUNT
        again, rest = made.node("first"), Root()
        await again.puller.ensure(again.file, ALL, rest)
        read = {at // CHUNK_BYTES for start, stop in rest.spans
                for at in range(start, stop, CHUNK_BYTES)}  # fmt: skip
        assert again.is_right() and read == set(ALL) - had


async def test_near_peers_are_asked_before_others(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        near, far, new = made.node("near"), made.node("far"), made.node("new")
        await near.has(range(16))
        await far.has(ALL)
        made.near.add(near.key.peer_id)
        await new.puller.ensure(new.file, ALL, Root(b""))
        assert new.is_right() and near.gave == set(range(16)) and far.gave == set(range(16, 24))


async def test_a_root_that_is_away_for_a_while_is_tried_again_and_one_that_stays_away_is_said(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        new, root = made.node("new"), Root(down=2)
        await new.puller.ensure(new.file, ALL, root)
        assert new.is_right()
        other = made.node("other")
        with pytest.raises(UserError, match=r"the root is away.*what came is kept"):
            await other.puller.ensure(other.file, ALL, Root(down=10**6))


async def test_a_root_that_gives_what_its_sha256_denies_is_not_believed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        new = made.node("new")
        with pytest.raises(UserError, match="other bytes than its sha256"):
            await new.puller.ensure(new.file, ALL, Root(bytes(SIZE)))
        assert not new.file.about.whole


async def test_tables_of_rubbish_and_silence_are_their_senders_faults_alone(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def rubbish(stream: MemoryStream) -> None:
        await send_letter(stream, b"rubbish")
        await stream.close()

    async def huge(stream: MemoryStream) -> None:
        await stream.send((TABLE_BYTES_MAX + 1).to_bytes(4))
        await trio.sleep_forever()

    async def silent(stream: MemoryStream) -> None:
        await trio.sleep_forever()

    async def foreign(stream: MemoryStream) -> None:
        table = table_of(SHA256, SIZE, {0: (bytes(range(32)), True)})
        await send_letter(stream, sign(IdentityKey.generate(), DOMAIN, encode(table)))

    async with world(tmp_path) as made:
        good, new, root = made.node("good"), made.node("new"), Root()
        await good.has(ALL)
        bad = []
        for number, serve in enumerate((rubbish, huge, silent, foreign)):
            node = made.node(f"bad{number}")
            await node.has([0])
            node.host.handle(PROTOCOL, serve)
            bad.append(node.key.peer_id)
        await new.puller.ensure(new.file, ALL, root)
        assert new.is_right() and root.read_bytes == 0
        blamed = {peer for peer, _ in new.host.blamed}
        assert blamed == {bad[0], bad[1], bad[3]} and len(new.poisoners) == 0
