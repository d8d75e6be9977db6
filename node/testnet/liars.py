"""Nodes that lie, to test the others against: only in a testnet, and loudly (lies.py).

A liar is a node like any other but for what holds its blocks: a LyingHolder, which loads a stage
that cheats, hands sessions to a server that is heard through false frames, announces what is not
true, or does other mischief. An honest node never loads this file: the command that starts one asks
which holder to make (cli/run.py) where its environment speaks of a lie.

    testnet ── POTLUCK_LIE ──▶ holder_type ──▶ LyingHolder ── LyingModel.open ──▶ a false stage
                                                   ├───────── choose ───────────▶ false frames
                                                   └───────── keep_told ────────▶ false records,
                                                                                  and mischief.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any, cast

import trio

from ...crypto.keys import IdentityKey
from ...dht.message import PROTOCOL, Hello, Put, to_frame
from ...dht.record import Announcement, sign_fact
from ...errors import TransportError, UserError
from ...swarm.blocks import BlockRange
from ...swarm.frame import pack_frame
from ...swarm.wire import Message, Open, Output
from ..compute.cheats import (
    ColludingRows,
    FalseCheckpoint,
    FalseEngine,
    RandomRows,
    ReplayedRows,
    RowCheat,
    halved,
    skipped,
)
from ..compute.choice import Opened, open_stage
from ..config import NodeConfig
from ..frames import FrameStream
from ..holder import Holder
from ..log import get_logger
from ..member import Member
from ..server import Server
from ..serving import Model
from .launcher import MARK
from .lies import LIE, Lie, parse_lie
from .mischief import NAMES, accuse_falsely, come_as, flood_views, show_false_tallies

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

log = get_logger()

Payload = bytes | bytearray | memoryview

DRIP_BYTES = 64
DRIP_S = 0.05  # between two drips: 1,280 bytes a second, a row of the demo model in 0.6 s
BOAST = 100.0  # times its rate: the router believes no peer that much, nor forgets it
FREE_TOKENS = 1 << 40
IN_FRAMES = ("false_receipt", "false_load", "black_hole", "drip")
IN_RECORDS = ("forged_record", "rolled_back_record", "equivocate")
SPREAD_EVERY_S = 2.0
FLOOD_PORT = 9  # nobody's


def holder_type(environment: Mapping[str, str] = os.environ) -> type[Holder]:
    """What holds a node's blocks: honest, unless a testnet said otherwise. Raises UserError."""
    told = environment.get(LIE, "")
    if not told:
        return Holder
    if MARK not in environment:
        raise UserError(f"{LIE} is for the nodes of a testnet: potluck testnet up --liars {told}")
    log.warning("THIS NODE LIES, because its testnet told it to", lie=str(parse_lie(told)))
    return LyingHolder


class LyingHolder(Holder):
    """A holder that tells the lie of its process."""

    def __init__(self, config: NodeConfig, member: Member, model: Model, *rest: Any, **named: Any):
        self.lie = parse_lie(os.environ[LIE])
        super().__init__(config, member, lying_model(model, self.lie), *rest, **named)
        self._key = member.key

    def choose(self, asked: Open) -> Server | None:
        server = super().choose(asked)
        if server is None or self.lie.kind not in IN_FRAMES:
            return server
        return cast(Server, _HeardFalsely(server, self.lie))

    def _announcement(self) -> Announcement:
        honest = super()._announcement()
        match self.lie.kind:
            case "false_rate":
                return replace(
                    honest,
                    decode_tokens_s=BOAST * honest.decode_tokens_s,
                    prefill_tokens_s=BOAST * honest.prefill_tokens_s,
                )
            case "false_load":
                return replace(honest, cache_tokens_free=FREE_TOKENS)
            case _:
                return honest

    async def keep_told(self, *, task_status: TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            member, wall = self._member, self._wall
            match self.lie.kind:
                case kind if kind in IN_RECORDS:
                    nursery.start_soon(self._spread)
                case "false_accusation":
                    width = self.model.checkpoint.spec.hidden
                    nursery.start_soon(accuse_falsely, member, self.model.digest, width, wall)
                case "false_tally":
                    nursery.start_soon(show_false_tallies, member.host, self._key, wall)
                case "flood_views":
                    nursery.start_soon(flood_views, member.host, FLOOD_PORT)
                case "eclipse":
                    nursery.start_soon(flood_views, member.host, FLOOD_PORT, 1)
                case "many_names":
                    for _ in range(NAMES):
                        nursery.start_soon(come_as, member, self._announcement, self.serve, wall)
            await super().keep_told(task_status=task_status)

    async def _spread(self) -> None:
        """Put false records at whoever keeps records, again and again."""
        member = self._member
        while True:
            await trio.sleep(SPREAD_EVERY_S)
            with suppress(TransportError):
                found = await member.directory.find(self.model.digest)
                raw = false_records(self.lie, found, self._key, self._wall())
                for peer in member.directory.peers() if raw else ():
                    await self._put(peer, raw)

    async def _put(self, peer: str, records: tuple[bytes, ...]) -> None:
        """One stream for each record: a keeper ends the stream on which it saw a lie."""
        for number, record in enumerate(records):
            with suppress(TransportError), trio.move_on_after(SPREAD_EVERY_S):
                stream = await self._member.host.open_stream(peer, PROTOCOL)
                try:
                    hello = Hello(self._member.host.addresses()[:8], True)
                    await stream.send(to_frame(hello), to_frame(Put(number, (record,))))
                    await stream.receive()
                finally:
                    await stream.reset()


def false_records(
    lie: Lie, found: tuple[Announcement, ...], key: IdentityKey, now: float
) -> tuple[bytes, ...]:
    """What a liar puts, of the announcements that there are; () until it has its own.

    equivocate: another record of the same number as its newest. rolled_back_record: one of the run
    before. forged_record: its own with a bit changed, and another peer's signed by itself.
    """
    own = next((told for told in found if told.peer == key.peer_id), None)
    if own is None:
        return ()
    other = replace(own, cache_tokens_free=own.cache_tokens_free ^ 1)
    match lie.kind:
        case "equivocate":
            return (sign_fact(key, other, boot=own.boot, seq=own.seq, now=own.issued_s).raw,)
        case "rolled_back_record":
            return (sign_fact(key, other, boot=own.boot - 1, seq=own.seq, now=now).raw,)
        case _:
            raw = bytearray(sign_fact(key, own, boot=own.boot, seq=own.seq + 1, now=now).raw)
            raw[len(raw) // 2] ^= 1
            victims = [told for told in found if told.peer != key.peer_id]
            stolen = [
                sign_fact(key, replace(one, state="gone"), boot=one.boot, seq=one.seq + 1, now=now)
                for one in victims[:1]
            ]
            return (bytes(raw), *(record.raw for record in stolen))


# ---- what it computes


@dataclass(frozen=True, slots=True)
class LyingModel(Model):
    """A model whose stages cheat."""

    lie: Lie

    def open(self, blocks: BlockRange) -> Opened:
        return open_lying_stage(self, blocks, self.lie)


def lying_model(model: Model, lie: Lie) -> LyingModel:
    honest = {one.name: getattr(model, one.name) for one in fields(model)}
    return LyingModel(**honest, lie=lie)


def open_lying_stage(
    model: Model, blocks: BlockRange, lie: Lie, dice: Random | None = None
) -> Opened:
    """A stage that cheats as `lie` says; an honest one for lies of other kinds. Raises UserError.

    dice: which chunks are false; by default nobody's to guess.
    """
    wish = model.wish
    match lie.kind:
        case "four_bit":
            false = FalseCheckpoint(model.checkpoint, four_bit=True)
        case "skip":
            false = FalseCheckpoint(model.checkpoint, left_out=skipped(blocks))
        case "smaller":
            false = FalseCheckpoint(model.checkpoint, left_out=halved(blocks))
        case _:
            opened = open_stage(model.checkpoint, blocks, wish)
            cheat = _row_cheat(lie, dice or SystemRandom())
            return (
                opened
                if cheat is None
                else replace(opened, engine=FalseEngine(opened.engine, cheat))
            )
    # what an honest node kept of these blocks on its disk is not what is to be computed with
    return open_stage(false, blocks, replace(wish, cache_dir=None))


def _row_cheat(lie: Lie, dice: Random) -> Callable[[], RowCheat] | None:
    match lie.kind:
        case "random":
            return lambda: RandomRows(lie.share, dice)
        case "collude":
            return ColludingRows
        case "replay":
            return ReplayedRows
        case _:
            return None


# ---- what it answers


class _HeardFalsely:
    """A server, through frames that change what it says: all of it that a stream asks for."""

    def __init__(self, server: Server, lie: Lie) -> None:
        self._server = server
        self._lie = lie

    async def converse(self, frames: FrameStream, asked: Open) -> None:
        await self._server.converse(FalseFrames(frames, self._lie), asked)


class FalseFrames(FrameStream):
    """Frames in which answers to steps are changed, swallowed or dripped on their way out."""

    def __init__(self, honest: FrameStream, lie: Lie) -> None:
        self.peer = honest.peer
        self._honest = honest
        self._lie = lie

    async def send(self, message: Message, *payload: Payload) -> None:
        match self._lie.kind:
            case "black_hole" if isinstance(message, Output):
                await trio.lowlevel.checkpoint()
            case "false_receipt" if isinstance(message, Output) and message.rows:
                false = bytearray(b"".join(payload))
                false[-4] ^= 1  # a low bit of one number, of whichever dtype
                await self._honest.send(message, false)
            case "false_load" if isinstance(message, Output):
                idle = replace(message, queue_s=0.0, waiting=0)
                await self._honest.send(idle, *payload)
            case "drip" if isinstance(message, Output):
                size = sum(len(part) for part in payload)
                await self._drip(pack_frame(message, size) + b"".join(payload))
            case _:
                await self._honest.send(message, *payload)

    async def _drip(self, frame: bytes) -> None:
        for at in range(0, len(frame), DRIP_BYTES):
            await trio.sleep(DRIP_S)
            await self._honest._stream.send(frame[at : at + DRIP_BYTES])

    def allow(self, payload_bytes_max: int) -> None:
        self._honest.allow(payload_bytes_max)

    async def receive(self) -> tuple[Message, memoryview] | None:
        return await self._honest.receive()

    async def broken(self) -> None:
        await self._honest.broken()

    async def close(self) -> None:
        await self._honest.close()

    async def reset(self) -> None:
        await self._honest.reset()
