"""A testnet's liars really lie in the way they are told to, and nobody else lies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
import trio
from sim.memory_host import MemoryHost, MemoryNet
from torch import Tensor

from potluck.crypto.keys import IdentityKey
from potluck.dht.keyspace import spans_of
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.dht.record import Announcement, Registry, Stale, check_record, read, sign_fact
from potluck.errors import RemoteError, UserError
from potluck.node.compute.cheats import ReplayedRows, to_four_bits
from potluck.node.compute.engine import Engine
from potluck.node.compute.native.library import why_not
from potluck.node.compute.tensor import pack, unpack
from potluck.node.config import NodeConfig
from potluck.node.frames import FrameStream
from potluck.node.holder import Holder
from potluck.node.member import Member
from potluck.node.serving import Model, open_model
from potluck.node.testnet.launcher import MARK
from potluck.node.testnet.liars import (
    DRIP_BYTES,
    DRIP_S,
    FREE_TOKENS,
    FalseFrames,
    LyingHolder,
    false_records,
    holder_type,
    open_lying_stage,
)
from potluck.node.testnet.lies import KINDS, LIE, Lie, parse_lie, parse_lies
from potluck.swarm.blocks import BlockRange
from potluck.swarm.receipt import CHUNK_TOKENS
from potluck.swarm.testimony import check_contradiction, contradiction_of
from potluck.swarm.wire import Message, Open, Opened, Output, Step

SPAN = BlockRange(2, 6)
WIDTH = 192
PROMPT = 48
DECODED = 5 * CHUNK_TOKENS
needs_kernels = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    home = tmp_path_factory.mktemp("home")
    return open_model(NodeConfig(home=home, model="demo", threads=1, cache_mib=16, offline=True))


@pytest.fixture(scope="module")
def took() -> Tensor:
    return torch.randn(PROMPT + DECODED, WIDTH, generator=torch.Generator().manual_seed(1))


def answers(engine: Engine, took: Tensor, blocks: BlockRange, sizes: Sequence[int]) -> Tensor:
    """What an engine gives for these rows, in steps of these sizes."""
    cache = engine.open_cache(blocks, len(took))
    given, at = [], 0
    for size in sizes:
        step = Step(at, (size,), size)
        work = engine.begin(cache, pack(took[at : at + size], "f32"), step, "f32")
        engine.run([(work, size)])
        given.append(unpack(work.answer(), size, WIDTH, "f32"))
        at += size
    engine.close_cache(cache)
    return torch.cat(given)


def errors(gave: Tensor, again: Tensor, took: Tensor) -> Tensor:
    return (gave - again).norm(dim=1) / (again - took).norm(dim=1)


# ---- who lies


def test_a_lie_is_read_or_refused() -> None:
    assert parse_lies("four_bit, skip,random:0.25,random") == (
        Lie("four_bit"),
        Lie("skip"),
        Lie("random", 0.25),
        Lie("random", 0.1),
    )
    assert parse_lies("") == parse_lies(" ") == ()
    assert [str(parse_lie(str(parse_lie(kind)))) for kind in KINDS if kind != "random"] == [
        kind for kind in KINDS if kind != "random"
    ]
    assert parse_lie(str(Lie("random", 0.3))) == Lie("random", 0.3)
    for text in (
        "tall",
        "skip:0.5",
        "random:2",
        "random:0",
        "random:x",
        "random:nan",
        ",",
        "skip,",
    ):
        with pytest.raises(UserError):
            parse_lies(text)


def test_only_a_testnets_node_that_was_told_to_lies() -> None:
    assert holder_type({}) is Holder
    assert holder_type({MARK: "/somewhere", LIE: ""}) is Holder
    assert holder_type({MARK: "/somewhere", LIE: "skip"}) is LyingHolder
    with pytest.raises(UserError, match="testnet up --liars skip"):
        holder_type({LIE: "skip"})
    with pytest.raises(UserError, match="no lie 'tall'"):
        holder_type({MARK: "/somewhere", LIE: "tall"})


# ---- what it computes


@needs_kernels
@pytest.mark.parametrize("kind", ["four_bit", "skip", "smaller"])
def test_false_weights_are_announced_as_the_true_ones_are(
    model: Model, took: Tensor, kind: str
) -> None:
    """Its class, format and blocks are an honest peer's; its numbers are not."""
    honest, false = model.open(SPAN), open_lying_stage(model, SPAN, parse_lie(kind))
    assert (false.engine.numerics, false.quantization, false.engine.blocks) == (
        honest.engine.numerics,
        honest.quantization,
        honest.engine.blocks,
    )
    rows = took[:PROMPT]
    right = answers(honest.engine, rows, SPAN, [PROMPT])
    wrong = answers(false.engine, rows, SPAN, [PROMPT])
    assert float(errors(wrong, right, rows).median()) > 0.02


@needs_kernels
@pytest.mark.parametrize("kind, kept", [("skip", (2, 3, 5)), ("smaller", (3, 5))])
def test_a_block_that_is_left_out_changes_nothing_else(
    model: Model, took: Tensor, kind: str, kept: tuple[int, ...]
) -> None:
    rows = took[:PROMPT]
    wrong = answers(open_lying_stage(model, SPAN, parse_lie(kind)).engine, rows, SPAN, [PROMPT])
    honest = model.open(SPAN).engine
    for block in kept:
        rows = answers(honest, rows, BlockRange(block, block + 1), [PROMPT])
    assert torch.equal(wrong, rows)


@needs_kernels
@pytest.mark.parametrize("kind", ["skip", "four_bit"])
def test_what_an_honest_start_kept_on_disk_is_not_taken_for_false_weights(
    tmp_path: Path, took: Tensor, kind: str
) -> None:
    config = NodeConfig(
        home=tmp_path, model="demo", threads=1, cache_mib=16, offline=True, quantization="int8"
    )
    kept = open_model(config)
    right = answers(kept.open(SPAN).engine, took[:PROMPT], SPAN, [PROMPT])
    false = open_lying_stage(kept, SPAN, parse_lie(kind)).engine
    assert not torch.equal(answers(false, took[:PROMPT], SPAN, [PROMPT]), right)
    assert torch.equal(answers(kept.open(SPAN).engine, took[:PROMPT], SPAN, [PROMPT]), right)


def test_four_bits_have_fifteen_levels_in_each_group() -> None:
    matrix = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    rounded = to_four_bits(matrix)
    for row in rounded.reshape(6, 64):
        assert len(row.unique()) <= 15
    assert float((rounded - matrix).norm() / matrix.norm()) < 0.2
    assert to_four_bits(torch.zeros(2, 100)).eq(0).all()


@needs_kernels
def test_random_rows_come_by_the_chunk_in_the_share_that_was_asked_for(
    model: Model, took: Tensor
) -> None:
    """Chunks are cut as receipts are: a step of a prompt, then 32 tokens each. Of 120, each false
    with probability a half, under 40 or over 80 are less likely than one in a thousand."""
    sizes = [PROMPT] + [1] * DECODED
    one = BlockRange(2, 3)
    right = answers(model.open(one).engine, took, one, sizes)
    false = open_lying_stage(model, one, Lie("random", 0.5), Random(3)).engine
    cuts = [0, *range(PROMPT, PROMPT + DECODED + 1, CHUNK_TOKENS)]
    wrong = 0
    for _ in range(20):
        rows = answers(false, took, one, sizes).ne(right).any(dim=1)
        for start, stop in pairwise(cuts):
            assert rows[start:stop].all() or not rows[start:stop].any()
            wrong += bool(rows[start])
    assert 40 <= wrong <= 80


@needs_kernels
def test_random_rows_are_as_large_as_true_ones(model: Model, took: Tensor) -> None:
    always = open_lying_stage(model, SPAN, Lie("random", 1.0), Random(4)).engine
    right = answers(model.open(SPAN).engine, took[:PROMPT], SPAN, [PROMPT])
    wrong = answers(always, took[:PROMPT], SPAN, [PROMPT])
    assert 0.5 < float(wrong.norm() / right.norm()) < 2
    assert float(errors(wrong, right, took[:PROMPT]).median()) > 0.5


@needs_kernels
def test_a_replayed_answer_is_the_one_before(model: Model, took: Tensor) -> None:
    sizes = [PROMPT, 1, 1, 1]
    rows = took[: sum(sizes)]
    right = answers(model.open(SPAN).engine, rows, SPAN, sizes)
    wrong = answers(open_lying_stage(model, SPAN, Lie("replay")).engine, rows, SPAN, sizes)
    assert torch.equal(wrong[: PROMPT + 1], torch.cat([right[:PROMPT], right[PROMPT - 1 : PROMPT]]))
    assert torch.equal(wrong[PROMPT + 1 :], right[PROMPT:-1])


def test_more_rows_than_there_were_before_end_in_true_ones() -> None:
    cheat = ReplayedRows()
    one, two = torch.arange(4.0).reshape(2, 2), torch.arange(6.0).reshape(3, 2) + 10
    assert torch.equal(cheat.change(one), one)
    assert torch.equal(cheat.change(two), torch.cat([one, two[2:]]))


# ---- what it answers


class Heard(FrameStream):
    """What is sent, instead of a stream's other end."""

    def __init__(self) -> None:
        self.peer = "somebody"
        self.frames: list[tuple[Message, bytes]] = []
        self.pieces: list[tuple[float, bytes]] = []
        self._stream = self  # type: ignore[assignment]

    async def send(
        self, message: Message | bytes, *payload: bytes | bytearray | memoryview
    ) -> None:
        if isinstance(message, bytes):
            self.pieces.append((trio.current_time(), message))
        else:
            self.frames.append((message, b"".join(payload)))


OPENED = Opened(30.0, WIDTH, "none c1")
OUTPUT = Output(0, 1, 1, 0.001, 0.0, 0)


async def test_a_black_hole_opens_and_never_answers() -> None:
    heard = Heard()
    frames = FalseFrames(heard, Lie("black_hole"))
    await frames.send(OPENED)
    await frames.send(OUTPUT, b"row")
    assert heard.frames == [(OPENED, b"")]


async def test_a_false_receipts_rows_differ_by_one_bit_from_those_signed_for() -> None:
    heard = Heard()
    frames = FalseFrames(heard, Lie("false_receipt"))
    row = pack(torch.linspace(-1, 1, 8).reshape(1, 8), "f32")
    await frames.send(OUTPUT, row)
    await frames.send(Output(1, 1, 0, 0.0, 0.0, 0))
    (_, gave), (_, nothing) = heard.frames
    assert nothing == b""
    assert sum((one ^ other).bit_count() for one, other in zip(gave, row, strict=True)) == 1


async def test_a_false_load_is_told_with_the_true_rows() -> None:
    heard = Heard()
    frames = FalseFrames(heard, Lie("false_load"))
    await frames.send(Output(0, 1, 1, 0.001, 2.0, 7), b"row")
    assert heard.frames == [(Output(0, 1, 1, 0.001, 0.0, 0), b"row")]


async def test_a_dripped_answer_is_whole_and_late(autojump_clock: trio.testing.MockClock) -> None:
    heard = Heard()
    frames = FalseFrames(heard, Lie("drip"))
    began_s = trio.current_time()
    await frames.send(OUTPUT, bytes(range(256)), b"end")
    assert max(len(piece) for _, piece in heard.pieces) <= DRIP_BYTES
    whole = b"".join(piece for _, piece in heard.pieces)
    assert whole.endswith(bytes(range(256)) + b"end")
    assert trio.current_time() - began_s >= DRIP_S * (len(whole) // DRIP_BYTES)


# ---- what it announces


@asynccontextmanager
async def lying_holder(
    home: Path, shelf: MemoryShelf, lie: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LyingHolder]:
    monkeypatch.setenv(LIE, lie)
    key = IdentityKey.generate()
    config = NodeConfig(home=home, model="demo", blocks="0:2", threads=1, offline=True)
    async with trio.open_nursery() as nursery:
        host: MemoryHost = MemoryNet(nursery).host(key.peer_id)
        member = Member(host, MemoryDirectory(key, shelf), None, key)  # type: ignore[arg-type]
        model = await trio.to_thread.run_sync(open_model, config)
        holder = LyingHolder(config, member, model, nursery, Random(1))
        await holder.take()
        await nursery.start(holder.keep_told)
        yield holder
        await holder.leave(0.0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lie", ["false_rate", "false_load", "false_receipt"])
async def test_a_liars_record_says_what_is_not_so(
    tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = MemoryShelf()
    async with lying_holder(tmp_path, shelf, lie, monkeypatch) as holder:
        (told,) = await MemoryDirectory(IdentityKey.generate(), shelf).find(holder.model.digest)
        assert holder.current is not None
        honest = holder.current.announcement("online", ())
        fast = told.decode_tokens_s / honest.decode_tokens_s
        assert (fast > 20) == (lie == "false_rate")
        assert (told.cache_tokens_free == FREE_TOKENS) == (lie == "false_load")
        asked = Open(bytes(16), holder.model.digest, 0, 2, 8, "f32")
        server = holder.choose(asked)
        assert (server is holder.current.server) == (lie == "false_rate")


def announced(key: IdentityKey, now: float) -> tuple[Announcement, bytes]:
    told = Announcement(
        "ab" * 32, "m", 0, 2, 8, "online", "cpu", "fp32", "none", 9.0, 9.0, (), 100, 64, "none c1",
        "1",
    )  # fmt: skip
    record = sign_fact(key, told, boot=5, seq=7, now=now)
    return read(record, Announcement), record.raw


def test_an_equivocators_records_contradict_each_other() -> None:
    key, now = IdentityKey.generate(), 1e6
    own, raw = announced(key, now)
    (false,) = false_records(Lie("equivocate"), (own,), key, now + 2)
    registry = Registry()
    registry.admit(check_record(raw, own.place(), now))
    with pytest.raises(RemoteError, match="contradiction"):
        registry.admit(check_record(false, own.place(), now))
    assert check_contradiction(contradiction_of("record", raw, false)) == key.peer_id


def test_a_rolled_back_record_is_older_than_what_was_seen() -> None:
    key, now = IdentityKey.generate(), 1e6
    own, raw = announced(key, now)
    (false,) = false_records(Lie("rolled_back_record"), (own,), key, now + 2)
    registry = Registry()
    registry.admit(check_record(raw, own.place(), now))
    with pytest.raises(Stale, match="rolled back"):
        registry.admit(check_record(false, own.place(), now + 2))


def test_forged_records_are_nobodys() -> None:
    """One that was changed after it was signed, and one that takes another's peer away."""
    key, victim, now = IdentityKey.generate(), IdentityKey.generate(), 1e6
    own, other = announced(key, now)[0], announced(victim, now)[0]
    changed, stolen = false_records(Lie("forged_record"), (other, own), key, now + 2)
    with pytest.raises(RemoteError):
        check_record(changed, own.place(), now + 2)
    with pytest.raises(RemoteError, match="signed by"):
        check_record(stolen, spans_of(own.model), now + 2, peer=victim.peer_id)


def test_a_liar_without_a_record_of_its_own_says_nothing() -> None:
    key = IdentityKey.generate()
    other = announced(IdentityKey.generate(), 1e6)[0]
    for kind in ("equivocate", "rolled_back_record", "forged_record"):
        assert false_records(parse_lie(kind), (other,), key, 1e6) == ()
