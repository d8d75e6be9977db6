"""Talks of two logs, and the journal: whoever talks nonsense costs a talk, and no weight a bit."""

from __future__ import annotations

import errno
from io import FileIO
from pathlib import Path

import pytest
import torch
import trio
from scalar_world import BASE, RULES, SCALE, world
from sim.memory_host import MemoryStream
from trio.testing import MockClock

from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError, UserError
from potluck.node.compute.scalar import ScalarWeights
from potluck.node.letters import receive_letter, send_letter
from potluck.node.runs.hearing import TALK_S, TALKS_MAX
from potluck.node.runs.journal import SAID, Journal
from potluck.swarm.run.scalars import (
    FIRST,
    FORKS_MAX,
    LETTER_BYTES_MAX,
    PAGE_BYTES_MAX,
    PAGES_BYTES_MAX,
    PAGES_MAX,
    PEERS_MAX,
    PROTOCOL,
    Fork,
    Head,
    Page,
    Pages,
    Sync,
    sign_page,
)

NAME = IdentityKey.from_bytes(bytes(32)).peer_id


def test_a_torn_page_was_never_said(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.read() == []
    for page in (b"one", b"two", b"three"):
        journal.append(page)
    raw = (tmp_path / SAID).read_bytes()
    for size in range(len(raw)):
        (tmp_path / SAID).write_bytes(raw[:size])
        assert journal.read() == [b"one", b"two", b"three"][: (size >= 7) + (size >= 14)]
    (tmp_path / SAID).write_bytes(raw)
    journal.rewrite([b"three"])
    assert Journal(tmp_path).read() == [b"three"]


def test_what_is_said_behind_a_torn_page_is_known_after_the_next_start(tmp_path: Path) -> None:
    """Else a peer that was killed twice would say another thing of a round, which convicts it."""
    Journal(tmp_path).append(b"one")
    whole = (tmp_path / SAID).read_bytes()
    Journal(tmp_path).append(b"a second page")
    raw = (tmp_path / SAID).read_bytes()
    torn = [raw[:size] for size in range(len(whole), len(raw))]
    for content in (*torn, whole + bytes(64)):
        (tmp_path / SAID).write_bytes(content)
        Journal(tmp_path).append(b"another")
        Journal(tmp_path).append(b"and one more")
        assert Journal(tmp_path).read() == [b"one", b"another", b"and one more"]


def test_what_a_full_disk_took_half_of_was_not_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append(b"one")
    limit = (tmp_path / SAID).stat().st_size + 9

    class Full(FileIO):
        def write(self, raw: bytes) -> int:  # type: ignore[override]
            room = limit - self.tell()
            if not room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(raw[:room])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode, buffering=0: Full(self, mode))
        with pytest.raises(UserError, match="free the disk"):
            journal.append(b"a page that is too long")
    assert journal.read() == [b"one"]
    journal.append(b"two")
    assert Journal(tmp_path).read() == [b"one", b"two"]


def test_the_longest_question_and_answer_fit_their_letters() -> None:
    names = [f"{number:04}" + NAME[4:] for number in range(PEERS_MAX)]
    heads = tuple(Head(name, (1 << 40) - 1, FIRST) for name in names)
    assert len(encode(Sync(RULES.run, 1 << 40, heads, tuple(names)))) <= LETTER_BYTES_MAX
    fork = Fork(bytes(PAGE_BYTES_MAX), bytes(PAGE_BYTES_MAX))
    pages = (bytes(PAGES_BYTES_MAX // PAGES_MAX),) * PAGES_MAX
    assert len(encode(Pages(1 << 40, pages, (fork,) * FORKS_MAX))) <= LETTER_BYTES_MAX


async def say_junk(stream: MemoryStream) -> None:
    await receive_letter(stream, 1 << 20)
    await send_letter(stream, b"junk")


async def say_nothing(stream: MemoryStream) -> None:
    await trio.sleep_forever()


async def say_much(stream: MemoryStream) -> None:
    await stream.send((1 << 31).to_bytes(4))


async def give_foreign_pages(stream: MemoryStream) -> None:
    key = IdentityKey.generate()
    raw = sign_page(key, Page(bytes(32), 0, FIRST, b"\1"))
    await send_letter(stream, encode(Pages(0, (raw,), ())), encode(Sync(RULES.run, 0, (), ())))


@pytest.mark.parametrize(
    ("answer", "blamed"),
    [(say_junk, True), (say_nothing, False), (say_much, True), (give_foreign_pages, True)],
)
async def test_who_talks_nonsense_is_blamed_and_costs_a_talk(
    autojump_clock: MockClock, tmp_path: Path, answer: object, blamed: bool
) -> None:
    async with world(tmp_path, 2) as made:
        one, other = made.members.values()
        other.host.handle(PROTOCOL, answer)  # type: ignore[arg-type]
        began_s = trio.current_time()
        await one.run._talk(other.key.peer_id)
        assert made.blamed == ([other.key.peer_id] if blamed else [])
        assert trio.current_time() - began_s <= TALK_S


async def test_one_who_holds_talks_open_takes_nobody_elses_place(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(tmp_path, 3) as made:
        one, greedy, honest = made.members.values()
        for _ in range(2 * TALKS_MAX):
            await greedy.host.open_stream(one.key.peer_id, PROTOCOL)
        await trio.testing.wait_all_tasks_blocked()
        assert await honest.run._talk(one.key.peer_id) is not None
        await trio.sleep(2 * TALK_S)
        assert not one.run.hearing._talks


async def test_what_came_before_a_fault_counts_as_it_does_for_all(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    raws = [
        sign_page(IdentityKey.from_bytes(letter * 32), Page(RULES.run, 0, FIRST, b"\x70"))
        for letter in (b"x", b"y")
    ]

    async def give_good_and_bad(stream: MemoryStream) -> None:
        told = Pages(0, (*raws, b"junk"), ())
        await send_letter(stream, encode(told), encode(Sync(RULES.run, 0, (), ())))

    async with world(tmp_path, 2) as made:
        one, other = made.members.values()
        other.host.handle(PROTOCOL, give_good_and_bad)
        await one.run._talk(other.key.peer_id)
        await one.run.settle()
        wanted = ScalarWeights(BASE, RULES, SCALE)
        wanted.apply(one.run.hearing.log.steps(0))
        assert made.blamed and torch.equal(one.weights.weights(), wanted.weights())
        assert not torch.equal(one.weights.weights(), BASE)


async def test_who_begins_many_talks_is_refused(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with world(tmp_path, 2) as made:
        one, other = made.members.values()
        for _ in range(TALKS_MAX):
            await other.host.open_stream(one.key.peer_id, PROTOCOL)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TransportError):
            await other.run.hearing.talk(other.host, one.key.peer_id)
        await trio.sleep(TALK_S + 1)
        await other.run.hearing.talk(other.host, one.key.peer_id)
