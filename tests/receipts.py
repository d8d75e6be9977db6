"""Sessions through honest and lying servers, each with its notary: rows of random bytes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from potluck.crypto.keys import IdentityKey
from potluck.swarm.receipt import Account, Notary, Opening, WearingOpening

ROW_BYTES = 8
MODEL = bytes(range(32))
SESSION = b"session of tests"


def key(name: str) -> IdentityKey:
    return IdentityKey.from_bytes(name.encode().ljust(32, b"."))


def opening(
    start: int, stop: int, *, nonce: int = 0, numerics: str = "none c1", adapter: bytes = b""
) -> Opening:
    said = SESSION, nonce.to_bytes(16), 1.8e9, MODEL, numerics, start, stop, ROW_BYTES // 4, "f32"
    return WearingOpening(*said, adapter) if adapter else Opening(*said)


def rows(dice: Random, tokens: int) -> bytes:
    return dice.randbytes(tokens * ROW_BYTES)


class Stage:
    """A server of a session in a test."""

    def __init__(
        self, name: str, start: int, stop: int, *, nonce: int = 0, adapter: bytes = b""
    ) -> None:
        self.key = key(name)
        said = opening(start, stop, nonce=nonce, adapter=adapter)
        self.notary = Notary(self.key, said, ROW_BYTES)
        self.account = Account(self.notary.opening)

    def step(self, at: int, took: bytes, gave: bytes) -> None:
        self.notary.took(at, took)
        self.notary.gave(gave)

    def cut(self) -> None:
        for raw in self.notary.sign():
            self.account.add(raw)


def session(
    names: Sequence[str],
    chunks: Sequence[int],
    *,
    seed: int = 0,
    last_rows: bool = True,
    adapter: bytes = b"",
) -> list[Stage]:
    """Servers of two blocks each, one after another, and so many tokens in each chunk."""
    dice = Random(seed)
    stages = [Stage(name, 2 * i, 2 * i + 2, adapter=adapter) for i, name in enumerate(names)]
    at = 0
    for tokens in chunks:
        hidden = rows(dice, tokens)
        for stage in stages:
            out = rows(dice, tokens)
            sent = out if last_rows or stage is not stages[-1] else out[-ROW_BYTES:]
            stage.step(at, hidden, sent)
            hidden = out
        for stage in stages:
            stage.cut()
        at += tokens
    return stages
