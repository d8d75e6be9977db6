"""Joining a run late, over memory roads: what most say, from all who say it, and no liar's word."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import trio
from sim.memory_host import MemoryNet, MemoryStream
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError
from potluck.node.chunks.fetch import Fetcher
from potluck.node.chunks.serve import ChunkServer
from potluck.node.compute.snapshot import Snapshot
from potluck.node.letters import receive_letter, send_letter
from potluck.node.runs.states import ASK_S, StateServer, ask_states, join
from potluck.node.runs.store import Checkpoints, Mark
from potluck.swarm.blocks import BlockRange
from potluck.swarm.chunk import PROTOCOL as CHUNKS
from potluck.swarm.run.claims import LETTER_BYTES_MAX, PROTOCOL, Claim, States, Which, sign_claim

RUN = bytes(range(32))


def state(epoch: int, seed: int = 0, own: int = 0) -> Snapshot:
    """Equal for all at an epoch, but for what is a peer's own."""
    dice = torch.Generator().manual_seed(1000 * seed + epoch)
    tensors = {f"weights/{n}.B": torch.randn(40, 9, generator=dice) for n in range(6)}
    tensors["outer/momentum"] = torch.randn(500, generator=dice)
    tensors["own/inner/step/x"] = torch.tensor(float(own))
    blocks = {f"weights/{n}.B": n for n in range(6)}
    return Snapshot(RUN, epoch, 0, tensors, {"tokens": 7 * epoch, "own/at": own}, blocks)


@dataclass
class Member:
    key: IdentityKey
    kept: Checkpoints
    chunks: ChunkServer

    @property
    def peer(self) -> str:
        return self.key.peer_id


@dataclass
class World:
    net: MemoryNet
    folder: Path
    members: list[Member] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)

    def member(self, *states: Snapshot) -> Member:
        number = len(self.members) + 1
        key = IdentityKey.from_bytes(bytes((number,)) * 32)
        kept = Checkpoints(self.folder / str(number), RUN)
        for one in states:
            kept.save(one)
        host, chunks = self.net.host(key.peer_id), ChunkServer(kept.chunks)
        server = StateServer(key, lambda run: kept if run == RUN else None)
        host.handle(PROTOCOL, server.serve)
        host.handle(CHUNKS, chunks.serve)
        self.members.append(Member(key, kept, chunks))
        return self.members[-1]

    def mine(self) -> Checkpoints:
        return Checkpoints(self.folder / "mine", RUN)

    async def join(
        self, peers: Iterable[str] | None = None, blocks: BlockRange | None = None
    ) -> tuple[Mark, Fetcher]:
        kept, host = self.mine(), self.net.host("newcomer")
        fetcher = Fetcher(host, kept.chunks, self.blame, salt=b"new")
        asked = [one.peer for one in self.members] if peers is None else peers
        wanted = state(0)
        shapes = {
            name: told
            for name, told in wanted.shapes.items()
            if blocks is None or blocks.start <= wanted.blocks.get(name, blocks.start) < blocks.stop
        }
        mark = await join(host, fetcher, kept, asked, shapes, self.blame, blocks=blocks)
        return mark, fetcher

    def blame(self, peer: str, error: RemoteError) -> None:
        self.blamed.append(peer)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(MemoryNet(nursery), folder)
        nursery.cancel_scope.cancel()


def shared(one: Snapshot | None) -> dict[str, list[float]]:
    assert one is not None
    return {n: t.flatten().tolist() for n, t in one.tensors.items() if not n.startswith("own/")}


async def test_a_newcomer_gets_what_the_others_have_from_several_of_them(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        for number in range(4):
            made.member(state(4, own=number), state(5, own=number))
        mark, fetcher = await made.join()
        assert (mark.epoch, mark.step) == (5, 0)
        found = made.mine().latest()
        assert shared(found) == shared(state(5))
        assert found is not None and found.counters == {"tokens": 35}, "nobody's own is taken over"
        sent = [one.chunks.sent_bytes for one in made.members]
        assert sum(size > 0 for size in sent) >= 3 and sum(sent) == fetcher.received_bytes
        assert made.blamed == []


async def test_who_has_gone_on_meanwhile_still_has_what_the_others_have(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        made.member(state(4), state(5), state(6))
        made.member(state(4), state(5))
        made.member(state(3), state(4), state(5))
        mark, _ = await made.join()
        assert mark.epoch == 5


async def test_liars_in_the_minority_are_not_believed_and_not_asked_for_anything(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        for _ in range(3):
            made.member(state(5))
        for _ in range(2):
            made.member(state(5, seed=9), state(99, seed=9))
        mark, _ = await made.join()
        assert mark.epoch == 5 and shared(made.mine().latest()) == shared(state(5))
        assert [one.chunks.sent_bytes > 0 for one in made.members[3:]] == [False, False]


async def test_too_few_answers_or_none_in_the_majority_is_said(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        for seed in range(2):
            made.member(state(5, seed=seed))
        with pytest.raises(TransportError, match="2 peers of the run answered, where 3 are needed"):
            await made.join([*(one.peer for one in made.members), "gone", "gone too"])
        made.member(state(5, seed=2))
        with pytest.raises(TransportError, match="of 3 peers no majority"):
            await made.join()


async def test_one_who_serves_other_bytes_than_it_claimed_is_blamed_and_the_rest_bring_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        for _ in range(3):
            made.member(state(5))
        liar = made.members[1]
        get = liar.kept.chunks.get
        liar.kept.chunks.get = lambda name: (get(name) or b"") + b"!"  # type: ignore[method-assign]
        await made.join()
        assert shared(made.mine().latest()) == shared(state(5))
        assert made.blamed == [liar.peer]


async def test_a_stage_fetches_only_its_own_blocks(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        for _ in range(3):
            made.member(state(5))
        _, fetcher = await made.join(blocks=BlockRange(2, 4))
        found = made.mine().latest(BlockRange(2, 4))
        assert found is not None
        assert set(found.tensors) == {"weights/2.B", "weights/3.B", "outer/momentum"}
        assert fetcher.received_bytes < 2 * 40 * 9 * 4 + 500 * 4 + 2000
        assert made.mine().latest() is None, "the whole is not here"


async def test_a_majority_that_shares_something_else_than_the_run_does_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    other = Snapshot(RUN, 5, 0, {"weights/0.B": torch.ones(1 << 16)})
    async with world(tmp_path) as made:
        for _ in range(3):
            made.member(other)
        with pytest.raises(RemoteError, match="other tensors than the run's"):
            await made.join()
        assert made.mine().chunks.used_bytes() < 1 << 16, "nothing was fetched but its manifest"


async def test_a_newcomer_that_was_killed_fetches_only_the_rest(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        for _ in range(3):
            made.member(state(5))
        kept, host = made.mine(), made.net.host("newcomer")
        fetcher = Fetcher(host, kept.chunks, made.blame, salt=b"new")
        put, count = kept.chunks.put, iter(range(4))
        with trio.CancelScope() as life:

            def die(chunk: object, raw: object) -> None:
                put(chunk, raw)  # type: ignore[arg-type]
                if next(count, None) is None:
                    trio.from_thread.run_sync(life.cancel)

            kept.chunks.put = die  # type: ignore[method-assign]
            peers = [one.peer for one in made.members]
            await join(host, fetcher, kept, peers, state(0).shapes, made.blame)
        before = made.mine().chunks.used_bytes()
        assert before > 0 and made.mine().latest() is None
        _, again = await made.join()
        assert shared(made.mine().latest()) == shared(state(5))
        assert again.received_bytes == made.mine().chunks.used_bytes() - before


async def say_junk(stream: MemoryStream) -> None:
    await send_letter(stream, b"junk")


async def say_nothing(stream: MemoryStream) -> None:
    await trio.sleep_forever()


async def say_much(stream: MemoryStream) -> None:
    await stream.send((1 << 31).to_bytes(4))


async def speak_for_another(stream: MemoryStream) -> None:
    key = IdentityKey.from_bytes(b"x" * 32)
    told = sign_claim(key, Claim(RUN, 5, 0, bytes(32), 100))
    await send_letter(stream, encode(States((told,))))


@pytest.mark.parametrize(
    ("answer", "blamed"),
    [(say_junk, True), (say_nothing, False), (say_much, True), (speak_for_another, True)],
)
async def test_who_answers_no_honest_answer_has_no_voice(
    autojump_clock: MockClock, tmp_path: Path, answer: object, blamed: bool
) -> None:
    async with world(tmp_path) as made:
        for _ in range(3):
            made.member(state(5))
        bad = made.members[0].peer
        made.net.host(bad).handle(PROTOCOL, answer)  # type: ignore[arg-type]
        began_s = trio.current_time()
        peers = [one.peer for one in made.members]
        found = await ask_states(made.net.host("newcomer"), peers, RUN, made.blame)
        assert bad not in found and len(found) == 2
        assert made.blamed == ([bad] if blamed else [])
        assert trio.current_time() - began_s <= ASK_S


async def test_who_asks_nonsense_is_a_fault_and_of_an_unknown_run_nothing_is_told(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path) as made:
        one = made.member(state(5))
        host = made.net.host("newcomer")
        assert await ask_states(host, [one.peer], bytes(32), made.blame) == {one.peer: ()}
        for bad in (b"x", bytes(LETTER_BYTES_MAX + 1), encode(Which(RUN)) + b"x"):
            stream = await host.open_stream(one.peer, PROTOCOL)
            await send_letter(stream, bad)
            with pytest.raises(TransportError):
                await receive_letter(stream, 100)
        assert [type(fault) for _, fault in made.net.faults] == [RemoteError] * 3
