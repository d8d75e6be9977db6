"""The Python client's own part: the thread behind the blocking one, and what is loaded once."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from api_fakes import Inline, demo

from potluck.dht.directory import ModelOffer
from potluck.errors import LocalError, MissingBlocks, PotluckError, UserError
from potluck.node import blocking, client
from potluck.node.blocking import connect
from potluck.node.client import Swarm
from potluck.node.generation import Piece
from potluck.node.trust.book import Trust


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "potluck"]


class Endless:
    """A swarm whose answers have no end."""

    def __init__(self) -> None:
        self.open = 0

    @asynccontextmanager
    async def generation(self, model: str, prompt: str) -> AsyncIterator[AsyncIterator[Piece]]:
        self.open += 1
        try:
            yield self._pieces()
        finally:
            self.open -= 1

    async def _pieces(self) -> AsyncIterator[Piece]:
        for token in range(1 << 30):
            await trio.sleep(0.001)
            yield Piece(token, token, "", 0.0, ())


def joined(monkeypatch: pytest.MonkeyPatch, swarm: object) -> None:
    @asynccontextmanager
    async def open_swarm(*args: object, **options: object) -> AsyncIterator[object]:
        yield swarm

    monkeypatch.setattr(blocking, "open_swarm", open_swarm)


def test_ctrl_c_while_joining_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    @asynccontextmanager
    async def never_joined(*args: object, **options: object) -> AsyncIterator[None]:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            await trio.sleep_forever()
        finally:
            left.append(True)
        yield

    monkeypatch.setattr(blocking, "open_swarm", never_joined)
    with pytest.raises(KeyboardInterrupt), connect():
        pass
    assert left == [True] and threads() == []


def test_what_hinders_joining_comes_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def nobody(*args: object, **options: object) -> AsyncIterator[None]:
        raise UserError("nobody answers")
        yield

    monkeypatch.setattr(blocking, "open_swarm", nobody)
    with pytest.raises(UserError, match="nobody answers"), connect():
        pass
    assert threads() == []


def test_an_event_loop_that_ends_by_itself_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def falling(*args: object, **options: object) -> AsyncIterator[object]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fall)
            yield Endless()

    async def fall() -> None:
        await trio.sleep(0.01)
        raise LocalError("a fault of ours")

    monkeypatch.setattr(blocking, "open_swarm", falling)
    with pytest.raises(ExceptionGroup) as caught, connect() as swarm:
        list(swarm.generate("demo", "Hello"))
    assert caught.group_contains(LocalError, match="a fault of ours")
    assert threads() == []


def test_an_answer_that_was_cut_off_does_not_look_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread leaves the client while another one iterates."""
    swarm = Endless()
    joined(monkeypatch, swarm)
    first = threading.Event()

    def read(blocking: Any) -> None:
        for _ in blocking.generate("demo", "Hello"):
            first.set()

    with ThreadPoolExecutor(1) as pool:
        with connect() as blocking:
            reading = pool.submit(read, blocking)
            assert first.wait(30)
        with pytest.raises(PotluckError, match="before its answer had ended"):
            reading.result(30)
    assert swarm.open == 0


def test_leaving_the_loop_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = Endless()
    joined(monkeypatch, swarm)
    with connect() as blocking:
        pieces = blocking.generate("demo", "Hello")
        assert next(pieces).token == 0 and swarm.open == 1
        pieces.close()  # type: ignore[attr-defined]
        assert swarm.open == 0


@pytest.mark.parametrize("served, told", [(("ef" * 32,), UserError), ((), MissingBlocks)])
async def test_other_files_under_the_same_name_are_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: tuple[str, ...], told: type[Exception]
) -> None:
    """Or somebody sees the model on the swarm's list, and reads that nobody serves it."""

    async def models() -> tuple[ModelOffer, ...]:
        return tuple(ModelOffer(digest, "demo", 8, ("a",)) for digest in served)

    @asynccontextmanager
    async def uncovered(*args: object) -> AsyncIterator[object]:
        yield None
        raise MissingBlocks("demo", ((0, 8),))

    demo()  # loaded before
    monkeypatch.setattr(client, "open_generation", uncovered)
    member: Any = SimpleNamespace(host=None, directory=SimpleNamespace(models=models))
    swarm = Swarm(member, Inline(), tmp_path, True, Trust(), None)  # type: ignore[arg-type]
    with pytest.raises(told) as caught:
        async with swarm.generation("demo", "Hello"):
            pass
    if told is UserError:
        assert "another model as demo (digest efefefefefef, yours is" in str(caught.value)


async def test_a_model_asked_for_by_two_at_once_is_loaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded, voice = [], demo().voice

    def load(source: str, **options: object) -> object:
        loaded.append(source)
        return voice

    monkeypatch.setattr(client.Voice, "load", load)
    member: Any = SimpleNamespace(host=None, directory=None)
    swarm = Swarm(member, Inline(), tmp_path, True, Trust(), None)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(swarm.voice, "demo")
        nursery.start_soon(swarm.voice, "demo")
    assert len(loaded) == 1 and (await swarm.voice("demo")).name == "demo"
