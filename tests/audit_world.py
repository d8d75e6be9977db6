"""One chunk of work, and pretended peers that could compute it again: what audits are tried on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import numpy as np
import trio
from receipts import MODEL, ROW_BYTES, key, opening

from potluck.dht.network import NOWHERE, Prefixes, place_of
from potluck.dht.record import Announcement
from potluck.errors import Refused, RemoteError, TransportError
from potluck.node.trust.again import Again
from potluck.node.trust.auditor import (
    Auditor,
)
from potluck.node.trust.book import Trust
from potluck.node.trust.docket import Docket, Finding
from potluck.node.trust.limits import Limits
from potluck.swarm.audit import Lots
from potluck.swarm.blocks import BlockRange
from potluck.swarm.ledger import Work
from potluck.swarm.receipt import Account, Notary

TORCH = "fp32 torch 2.13.0 processor threads 1"


def floats(dice: Random, tokens: int) -> bytes:
    return np.array(
        [dice.gauss(0, 1) for _ in range(tokens * ROW_BYTES // 4)], dtype="<f4"
    ).tobytes()


def signed(name: str, took: list[bytes], gave: list[bytes], numerics: str) -> Account:
    """An account of one chunk for each pair."""
    notary = Notary(key(name), opening(0, 2, numerics=numerics), ROW_BYTES)
    account, at = Account(notary.opening), 0
    for inward, outward in zip(took, gave, strict=True):
        notary.took(at, inward)
        notary.gave(outward)
        at += len(inward) // ROW_BYTES
        for raw in notary.sign():
            account.add(raw)
    return account


@dataclass
class World:
    """One chunk of work by `accused`, and who could compute it again."""

    accused: str = "accused"
    numerics: str = "none c1"
    chunks: tuple[int, ...] = (40, 32)
    lies: bool = False
    others: dict[str, str] = field(default_factory=dict)  # peer: what it does
    classes: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Prefixes] = field(default_factory=dict)  # where the road shows them
    unusable: set[str] = field(default_factory=set)
    unusable_now: Callable[[], set[str]] = set
    asked: list[str] = field(default_factory=list)
    trust: Trust = field(default_factory=Trust)
    limits: Limits = field(default_factory=Limits)
    findings: list[Finding] = field(default_factory=list)
    roll: int = 1

    def __post_init__(self) -> None:
        dice = Random(7)
        self.took = [floats(dice, tokens) for tokens in self.chunks]
        self.right = [floats(dice, tokens) for tokens in self.chunks]
        self.false = [floats(dice, tokens) for tokens in self.chunks]
        gave = self.false if self.lies else self.right
        self.account = signed(self.accused, self.took, gave, self.numerics)
        self.work = Work(
            key(self.accused).peer_id, self.account, len(self.chunks) - 1, BlockRange(0, 2),
            self.numerics, "f32", self.chunks, tuple(self.took), self.chunks[-1], gave[-1],
        )  # fmt: skip
        self.names = {key(name).peer_id: name for name in (self.accused, *self.others)}

    def peer(self, name: str) -> str:
        return key(name).peer_id

    async def announcements(self, model: str) -> tuple[Announcement, ...]:
        assert model == MODEL.hex()
        await trio.lowlevel.checkpoint()
        return tuple(
            Announcement(
                model=model, name="m", start=0, stop=4, blocks=4, state="online", device="cpu",
                dtype="float32", quantization="none", decode_tokens_s=1.0, prefill_tokens_s=1.0,
                addresses=(self.addresses.get(name, "/ip4/127.0.0.1/tcp/1"),),
                cache_tokens_free=1, context_tokens_max=64, version="0",
                numerics=self.classes.get(name, self.numerics), peer=self.peer(name),
            )
            for name in (self.accused, *self.others)
        )  # fmt: skip

    def place(self, told: Announcement) -> Prefixes:
        return place_of(told.addresses, self.seen.get(self.names[told.peer], NOWHERE))

    def may_serve(self, peer: str) -> bool:
        barred = self.unusable | self.unusable_now()
        return self.names[peer] not in barred and self.trust.usable(peer)

    async def compute(self, peer: str, work: Work, earlier: Sequence[Work]) -> Again:
        name = self.names[peer]
        self.asked.append(name)
        await trio.sleep(1)
        match self.others[name]:
            case "dead":
                raise TransportError("gone")
            case "busy":
                raise Refused("full", retry_after_s=1)
            case "rubbish":
                raise RemoteError("no such thing")
            case "silent":
                await trio.sleep_forever()
            case "lies":
                gave = self.false
            case "near":
                wrong = np.frombuffer(self.right[-1], "<f4") * np.float32(1.0001)
                gave = [*self.right[:-1], wrong.astype("<f4").tobytes()]
            case _:
                gave = self.right
        numerics = self.classes.get(name, self.numerics)
        stop = work.place + 1
        account = signed(name, self.took[:stop], gave[:stop], numerics)
        shown = tuple(memoryview(gave[one.place]) for one in earlier)
        return Again(peer, account, memoryview(gave[work.place]), earlier=shown)

    async def run(self, fn: Callable[..., list[float]], *args: object) -> list[float]:
        await trio.lowlevel.checkpoint()
        return fn(*args)

    def know(self, *names: str, audits: int = 100) -> None:
        for name in names:
            for _ in range(audits):
                self.trust.audited(self.peer(name), right=True, tokens=32)

    def auditor(self) -> Auditor:
        lots = Lots(bytes([self.roll]) * 32)
        return Auditor(self, self.compute, self, self.trust, self.limits, lots)

    @asynccontextmanager
    async def docket(self) -> AsyncIterator[Docket]:
        auditor = self.auditor()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auditor.run)
            yield auditor.docket(self.findings.append)
            nursery.cancel_scope.cancel()

    async def audit(self) -> Docket:
        """To the end of what was drawn."""
        async with self.docket() as docket:
            docket.signed(self.work)
            with trio.fail_after(3600):
                await docket.idle()
        return docket


HONEST = {f"honest{number}": "honest" for number in range(5)}
