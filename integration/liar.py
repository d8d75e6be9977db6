"""A peer that keeps records for others, and hands out what it pleases."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from potluck.crypto.keys import IdentityKey
from potluck.dht import message as directory
from potluck.dht.keyspace import MODELS, spans_of
from potluck.errors import RemoteError, TransportError
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.stream import Stream

ANSWER_S = 5.0


class Liar:
    """Answers every question with `records` (at a model's place) or `lists` (at MODELS).

    forge: makes the records of each answer, of that moment, for those that time would make true.
    """

    def __init__(self, host: Host, key: IdentityKey, model: str) -> None:
        self.host = host
        self.key = key
        self.records: tuple[bytes, ...] = ()
        self.lists: tuple[bytes, ...] = ()
        self.forge: Callable[[], tuple[bytes, ...]] = lambda: self.records
        self.told = 0  # how many records it handed out
        self._place = spans_of(model)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.host.addresses()

    async def serve(self, stream: Stream) -> None:
        frames = directory.FrameReader(directory.REQUEST_BYTES_MAX)
        await stream.send(directory.to_frame(self._hello()))
        while piece := await stream.receive():
            frames.feed(piece)
            while (raw := frames.next()) is not None:
                await self._answer(stream, directory.read_request(raw))

    async def _answer(self, stream: Stream, asked: directory.Request) -> None:
        match asked:
            case directory.Find(number, place, want):
                at = {self._place: self.forge(), MODELS: self.lists}
                records = at.get(place, ()) if want else ()
                self.told += len(records)
                await stream.send(directory.to_frame(directory.Found(number, (), records)))
            case directory.Put(number, records):
                await stream.send(
                    directory.to_frame(directory.Kept(number, (True,) * len(records)))
                )
            case _:
                pass  # a greeting

    async def be_met(self, peer: str) -> None:
        """Tell a peer that we keep records, so that it tells others."""
        await self.ask(peer, directory.Find(1, bytes(32), False, b""))

    async def put(self, peer: str, raw: bytes) -> bool:
        """Put a record at a peer; whether it says that it keeps it."""
        answer = await self.ask(peer, directory.Put(1, (raw,)))
        return isinstance(answer, directory.Kept) and answer.kept == (True,)

    async def ask(
        self, peer: str, question: directory.Find | directory.Put
    ) -> directory.Answer | None:
        """The answer; None when the peer ends the stream instead."""
        stream = await self.host.open_stream(peer, directory.PROTOCOL)
        frames = directory.FrameReader(directory.ANSWER_BYTES_MAX)
        try:
            await stream.send(directory.to_frame(self._hello()), directory.to_frame(question))
            with trio.move_on_after(ANSWER_S):
                while piece := await stream.receive():
                    frames.feed(piece)
                    while (raw := frames.next()) is not None:
                        reply = directory.read_reply(raw)
                        if not isinstance(reply, directory.Hello):
                            return reply
        except (TransportError, RemoteError):
            return None
        finally:
            await stream.reset()
        return None

    def _hello(self) -> directory.Hello:
        return directory.Hello(self.addresses[:8], True)


@asynccontextmanager
async def open_liar(model: str, join: Sequence[Sequence[str]]) -> AsyncIterator[Liar]:
    """A liar under a new identity, met by the peers at these addresses."""
    key = IdentityKey.generate()
    async with open_host(HostConfig(seed=key.seed())) as host:
        liar = Liar(host, key, model)
        host.handle(directory.PROTOCOL, liar.serve)
        for addresses in join:
            await liar.be_met(await host.connect(addresses))
        yield liar


def unix_s() -> float:
    """The wall clock, which records are stamped by."""
    return time.time()
