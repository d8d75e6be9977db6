"""Records that nobody may believe, shown to every reader of a live swarm: how many are taken.

Two nodes serve a model. A hostile peer puts forged, replayed, rolled back and far-ahead records on
their shelves, and keeps records itself, handing out the same to whoever asks. The readers: the
nodes' shelves, the client's look-up, `potluck status`, and a node that starts. A record is taken
when a reader returns it, or anything about a peer that is older than what that peer said last.

    python -m integration.records
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from potluck.crypto.codec import decode, encode
from potluck.crypto.envelope import Envelope, open_, sign
from potluck.crypto.keys import IdentityKey
from potluck.dht import message as directory
from potluck.dht.kad import KadDirectory, open_directory
from potluck.dht.keyspace import spans_of
from potluck.dht.record import (
    DOMAIN,
    Announcement,
    ModelList,
    ModelName,
    check_record,
    sign_fact,
)
from potluck.errors import TransportError
from potluck.node.compute.shapes import write_random
from potluck.node.member import open_member
from potluck.node.net.host import HostConfig, open_host

from .forgery import MARK, altered, announcement, forged_records, stamped
from .ground import COMMAND_S, ENVIRONMENT, POTLUCK, Node, load, open_node
from .liar import Liar, open_liar, unix_s

NAME = "records"
Order = tuple[int, int]


@dataclass
class Book:
    """What is true, and how often a reader believed something else."""

    model: str
    nodes: tuple[Node, ...]
    newest: dict[str, Order] = field(default_factory=dict)  # of each honest peer, as last read
    hostile: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)  # on a shelf: no reader has to take it
    taken: list[str] = field(default_factory=list)
    robbed: list[str] = field(default_factory=list)  # honest records that a reader missed
    reads: int = 0

    @property
    def join(self) -> list[str]:
        return [address for node in self.nodes for address in node.addresses]

    def judge(self, kind: str, found: Sequence[Announcement], *, gone: Sequence[str] = ()) -> None:
        """Hold what a reader returned against the truth."""
        self.reads += 1
        for told in found:
            order = (told.boot, told.seq)
            if told.device == MARK or told.peer in gone:
                self.taken.append(f"{kind}: {told.peer} at {order}")
            elif order < self.newest.get(told.peer, (0, 0)):
                self.taken.append(f"{kind}: {told.peer} rolled back to {order}")
            else:
                self.newest[told.peer] = order
        heard = {told.peer for told in found}
        self.robbed += [f"{kind}: {one.peer}" for one in self.nodes if one.peer not in heard]


def measure(rounds: int = 20, seed: int = 1, processes: int = 3) -> dict[str, Any]:
    """Show each kind of record `rounds` times to each kind of reader.

    processes: how often a whole process reads, which takes seconds.
    """
    with tempfile.TemporaryDirectory(prefix="potluck-records-") as folder:
        home = Path(folder)
        write_random(home / "model", "tiny")
        half = ("--name", NAME, "--blocks")
        with open_node(home / "n1", home / "model", *half, "0:4") as first:
            join = ("--join", first.addresses[0])
            with open_node(home / "n2", home / "model", *half, "4:8", *join) as second:
                book = Book(str(first.facts["model"]), (first, second))
                trio.run(_measure, book, rounds, seed, processes, home)
                lives = first.lives and second.lives
    return {
        "holds": lives and not book.taken and not book.robbed,
        "hostile": book.hostile.total(),
        "taken": len(book.taken),
        "taken_which": book.taken[:10],
        "reads": book.reads,
        "robbed": len(book.robbed),
        "robbed_which": book.robbed[:10],
        "hostile_by_kind": dict(book.hostile),
        "kept_but_not_believed": dict(book.kept),
        "load": load(),
    }


async def _measure(book: Book, rounds: int, seed: int, processes: int, home: Path) -> None:
    dice = random.Random(seed)
    for _ in range(rounds):
        await _on_shelves(book, dice)
        await _rolled_back_on_shelves(book)
        await _contradicted_on_shelves(book)
        await _told_by_a_keeper(book, dice)
        await _replayed_by_a_keeper(book)
        await _rolled_back_for_one_reader(book)
    for number in range(processes):
        await _told_to_processes(book, dice, home, number)


async def _read(book: Book, join: Sequence[str]) -> tuple[Announcement, ...]:
    """A newcomer's look-up."""
    key = IdentityKey.generate()
    async with open_member(key, listen=(), join=join, boot=1, serve=False) as member:
        return await member.directory.find(book.model)


async def _on_shelves(book: Book, dice: random.Random) -> None:
    """Put each forgery at each node; then a newcomer looks."""
    async with open_liar(book.model, [node.addresses for node in book.nodes]) as liar:
        for node in book.nodes:
            forged = forged_records(dice, liar.key, book.model, now=unix_s())
            peers = [one.peer for one in book.nodes]
            honest = [raw for raw in await _handed_out(book, liar, node) if _signer(raw) in peers]
            shown = [(one.kind, one.raw) for one in forged]
            shown += [("forged: a bit turned", altered(raw, dice)) for raw in honest]
            shown += [("replayed: put by another", raw) for raw in honest]
            for kind, raw in shown:
                book.hostile[kind] += 1
                book.kept[kind] += await liar.put(node.peer, raw)
    book.judge("on a shelf", await _read(book, book.join))


async def _rolled_back_on_shelves(book: Book) -> None:
    """A peer that takes back its own word: older ones."""
    async with open_liar(book.model, [node.addresses for node in book.nodes]) as liar:
        me = liar.key.peer_id
        now = unix_s()
        good, bad = announcement(book.model, me, device="cpu"), announcement(book.model, me)

        def raw(fact: Announcement, boot: int, seq: int) -> bytes:
            return sign(liar.key, DOMAIN, stamped(fact, now=now, boot=boot, seq=seq))

        gone = replace(good, state="gone")
        lies = {
            "rolled back: an older seq": raw(bad, 7, 8),
            "rolled back: an older boot": raw(bad, 6, 99),
        }
        for node in book.nodes:
            assert await liar.put(node.peer, raw(good, 7, 9))
            for kind, lie in lies.items():
                book.hostile[kind] += 1
                book.kept[kind] += await liar.put(node.peer, lie)
        book.judge("rolled back on a shelf", await _read(book, book.join))
        for node in book.nodes:
            assert await liar.put(node.peer, raw(gone, 7, 10))
            book.hostile["replayed: after it was withdrawn"] += 1
            await liar.put(node.peer, raw(good, 7, 9))
        book.judge("withdrawn on a shelf", await _read(book, book.join), gone=[me])


async def _contradicted_on_shelves(book: Book) -> None:
    """A peer that says two things at once: whoever sees both has nothing to do with it any more."""
    async with open_liar(book.model, [node.addresses for node in book.nodes]) as liar:
        me = liar.key.peer_id
        now = unix_s()
        facts = replace(announcement(book.model, me), state="gone"), announcement(book.model, me)
        words = [sign(liar.key, DOMAIN, stamped(fact, now=now, boot=7, seq=9)) for fact in facts]
        for node in book.nodes:
            book.hostile["rolled back: the same number"] += 1
            with suppress(TransportError):  # it has heard of the contradiction
                for word, told in zip(words, ("first", "second"), strict=True):
                    book.kept["rolled back: the same number"] += (
                        await liar.put(node.peer, word) and told == "second"
                    )
        book.judge("contradicted on a shelf", await _read(book, book.join))


async def _told_by_a_keeper(book: Book, dice: random.Random) -> None:
    """A keeper hands out each forgery, to a newcomer each: who lies once is not asked again."""
    some = forged_records(dice, IdentityKey.generate(), book.model, now=unix_s())
    for number, kind in enumerate(one.kind for one in some):
        if kind == "forged: put by another":
            continue  # its signer's own, rightly signed: only the putting is forbidden
        async with open_liar(book.model, [book.nodes[0].addresses]) as liar:

            def forge(number: int = number, key: IdentityKey = liar.key) -> tuple[bytes, ...]:
                return (forged_records(dice, key, book.model, now=unix_s())[number].raw,)

            liar.forge = forge
            found = await _read(book, [*book.join, *liar.addresses])
            book.hostile[kind] += liar.told
            book.judge(f"from a keeper, {kind}", found)


async def _replayed_by_a_keeper(book: Book) -> None:
    """A keeper hands out an old record of a peer that has said something newer, or has gone."""
    async with (
        open_liar(book.model, [book.nodes[0].addresses]) as liar,
        open_host(HostConfig(seed=(key := IdentityKey.generate()).seed())) as host,
        open_directory(host, key, boot=3, bootstrap=book.join) as victim,
    ):
        said = [await _said(book, victim, liar, key.peer_id) for _ in range(2)]
        liar.records = (said[0],)
        everybody = [*book.join, *liar.addresses]
        book.judge("replayed by a keeper", await _read(book, everybody))
        await victim.withdraw()
        liar.records = (said[1],)
        book.judge("replayed when gone", await _read(book, everybody), gone=[key.peer_id])
        book.hostile["replayed: by a keeper"] += liar.told


async def _rolled_back_for_one_reader(book: Book) -> None:
    """Nobody but the liar is asked: what a reader has once seen, it remembers."""
    victim = IdentityKey.generate()
    mine = announcement(book.model, victim.peer_id, device="cpu")
    now = unix_s()
    newer = sign_fact(victim, mine, boot=5, seq=5, now=now).raw
    older = [
        sign_fact(victim, replace(mine, device=MARK), boot=boot, seq=seq, now=now).raw
        for boot, seq in ((5, 4), (4, 99), (5, 5))
    ]
    async with open_liar(book.model, []) as liar:
        join = liar.addresses
        me = IdentityKey.generate()
        async with open_member(me, listen=(), join=join, boot=1, serve=False) as member:
            liar.records = (newer,)
            found = await member.directory.find(book.model)
            assert [told.peer for told in found] == [victim.peer_id]
            for raw in older:
                liar.records = (raw,)
                before = liar.told
                found = await member.directory.find(book.model)
                book.hostile["rolled back: for one reader"] += liar.told - before
                book.reads += 1
                book.taken += [f"rolled back for one reader: {told}" for told in found]


async def _told_to_processes(book: Book, dice: random.Random, home: Path, number: int) -> None:
    """`potluck status`, and a node that starts, beside a keeper that lies."""
    async with open_liar(book.model, [book.nodes[0].addresses]) as liar:
        forged = forged_records(dice, liar.key, book.model, now=unix_s())
        liar.records = (forged[number].raw,)
        liar.lists = (_forged_list(liar),)
        join = [*book.join, *liar.addresses]
        found = await trio.to_thread.run_sync(_status, home, join)
        book.reads += 1
        heard = {span["peer"] for one in found["models"] for span in one["spans"]}
        honest = {node.peer for node in book.nodes}
        book.taken += [f"by potluck status: {peer}" for peer in heard - honest]
        book.robbed += [f"by potluck status: {peer}" for peer in honest - heard]
        await trio.to_thread.run_sync(_start_beside, home, number, join)
        book.hostile["shown to potluck status and potluck node"] += liar.told


def _forged_list(liar: Liar) -> bytes:
    """Another's list, by the liar: another model under the name of the honest one."""
    victim = IdentityKey.generate()
    lists = ModelList((ModelName("ab" * 32, NAME, 8),))
    record = sign_fact(victim, lists, boot=1, seq=1, now=unix_s())
    envelope = decode(record.raw, Envelope)
    return encode(replace(envelope, signature=liar.key.sign(envelope.body)))


def _status(home: Path, join: Sequence[str]) -> dict[str, Any]:
    command = [*POTLUCK, "status", "--home", str(home / "reader"), "--json"]
    command += [part for address in join for part in ("--join", address)]
    done = subprocess.run(
        command, capture_output=True, timeout=COMMAND_S, env={**os.environ, **ENVIRONMENT}
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _start_beside(home: Path, number: int, join: Sequence[str]) -> None:
    """Raises when the lie keeps an honest node from starting."""
    name = home / f"late{number}"
    with open_node(name, home / "model", "--name", NAME, "--blocks", "0:4", join=join) as node:
        assert node.lives


async def _handed_out(book: Book, liar: Liar, node: Node) -> tuple[bytes, ...]:
    """The records of the model that a node gives to whoever asks."""
    found = await liar.ask(node.peer, directory.Find(1, spans_of(book.model), True, b""))
    assert isinstance(found, directory.Found)
    return found.records


async def _said(book: Book, victim: KadDirectory, liar: Liar, peer: str) -> bytes:
    """What an honest peer announces now, as a node hands it out to a stranger."""
    assert await victim.announce(announcement(book.model, peer, device="cpu"))
    [raw] = [one for one in await _handed_out(book, liar, book.nodes[0]) if _signer(one) == peer]
    record = check_record(raw, spans_of(book.model), unix_s())
    book.newest[peer] = record.order
    return raw


def _signer(raw: bytes) -> str:
    return open_(raw, DOMAIN)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    began_s = time.monotonic()
    found = measure(asked.rounds)
    print(json.dumps(found | {"seconds": round(time.monotonic() - began_s, 1)}, indent=2))


if __name__ == "__main__":
    main()
