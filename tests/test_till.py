"""What a node counts of what it gives, who has credit for it, and what strangers cannot do."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from homes import impatient as impatient
from homes import until, world

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError, UserError
from potluck.node.credit import till as till_module
from potluck.node.credit.tallies import Tallies
from potluck.node.letters import receive_letter, send_letter
from potluck.node.testnet.mischief import false_tallies
from potluck.swarm.credit import Book, Credit
from potluck.swarm.forks import Shown
from potluck.swarm.settlement import CLAIM_BYTES_MAX, PROTOCOL, Greeting, greet
from potluck.swarm.tally import accept, first_of, next_of, offer, read_tally
from potluck.swarm.testimony import check_contradiction


async def test_who_gave_is_funded_where_it_gave(tmp_path: Path) -> None:
    """Its client greets when it opens a session; from then on the lane knows what it may use."""
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        work = await client.take(giver, 1000)
        await client.purse.settle()
        await until(lambda: giver.sums(taker)[0] == pytest.approx(work))
        back = giver.client()
        await until(lambda: taker.credit(giver) > 0)
        back.purse.opens(taker.key.peer_id)
        mine = {back.host.peer_id: pytest.approx(work / taker.metered.unit, rel=0.01)}
        await until(lambda: (mine,) in taker.worker.asked)
        owner = taker.client()
        owner.purse.opens(taker.key.peer_id)
        await until(lambda: owner.host.peer_id in taker.metered.favour._left)
        left = taker.metered.favour._left
        assert left[owner.host.peer_id] > 1e6 * left[back.host.peer_id]  # its own device


async def test_what_helpers_owe_counts_where_it_is_shown(tmp_path: Path) -> None:
    """j gave k, k gave us: j's client shows k's tally, and has credit here."""
    async with world(tmp_path) as made:
        us, k, j = made.home("us"), made.home("k"), made.home("j")
        for giver, taker in ((j, k), (k, us)):
            client = taker.client()
            await client.take(giver, 500)
            await client.purse.settle()
        await until(lambda: us.credit(k) > 0)
        await until(lambda: j.sums(k)[0] > 0)
        client = j.client()
        client.purse.opens(us.key.peer_id)
        await until(lambda: us.credit(j) > 0)
        await until(lambda: client.host.peer_id in us.metered.favour._left)


async def test_a_taker_that_signs_nothing_is_served_and_has_no_credit(tmp_path: Path) -> None:
    """It gave much, and so has credit; but once it has had two intervals for nothing, and a minute
    has gone, its credit does not count, until it has signed."""
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = giver.client()
        await client.take(taker, 100_000)
        await client.purse.settle()
        await until(lambda: giver.credit(taker) > 0)
        cheat = taker.client()
        cheat.purse.opens(giver.key.peer_id)
        await until(lambda: cheat.host.peer_id in giver.metered.favour._left)
        await cheat.take(giver, 5000, told=0)
        giver.till._late_s[cheat.host.peer_id] -= 61
        cheat.purse._givers.clear()
        cheat.purse.opens(giver.key.peer_id)
        await until(lambda: cheat.host.peer_id not in giver.metered.favour._left)
        await cheat.take(giver, 6000)
        await cheat.purse.settle()
        await until(lambda: cheat.host.peer_id in giver.metered.favour._left)


async def test_what_no_honest_client_sends_ends_the_stream_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        await until(lambda: PROTOCOL in giver.host.handlers)
        ends = {"client": client.host.peer_id, "server": giver.key.peer_id}
        words = Greeting(**ends, boot=1, took=1.0, head=b"", shown=())
        eve = IdentityKey.generate()
        others = next_of(
            first_of(eve.peer_id, taker.key.peer_id), eve.peer_id,
            boot=1, gave=1.0, took=0.0, now=1.0, since=bytes(32),
        )  # fmt: skip
        foreign = accept(taker.key, offer(eve, others))
        half = offer(taker.key, others)
        for raw in (
            b"",
            b"\xc1",
            greet(taker.key, words)[:-1],
            greet(taker.key, Greeting(**(ends | {"client": "x"}), boot=1, took=1.0, head=b"",
                                      shown=())),
            greet(taker.key, Greeting(**ends, boot=1, took=1.0, head=foreign, shown=())),
            greet(taker.key, Greeting(**ends, boot=1, took=1.0, head=b"", shown=(half,))),
        ):  # fmt: skip
            before = len(made.net.faults)
            stream = await client.host.open_stream(giver.key.peer_id, PROTOCOL)
            await send_letter(stream, raw)
            await until(lambda before=before: len(made.net.faults) > before)  # type: ignore[misc]
            assert isinstance(made.net.faults[-1][1], RemoteError)
        stream = await client.host.open_stream(giver.key.peer_id, PROTOCOL)
        await stream.send(b"\xff\xff\xff\xff")
        await until(lambda: "above" in str(made.net.faults[-1][1]))
        assert not giver.till._settling
        work = await client.take(giver, 10)
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (pytest.approx(work), 0.0))


async def test_two_tallies_for_one_place_are_told_as_soon_as_both_were_shown(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as made:
        giver, liar, accomplice = made.home("giver"), made.home("liar"), IdentityKey.generate()
        client, found = liar.client(), []
        giver.till.on_fork = found.append
        await until(lambda: PROTOCOL in giver.host.handlers)
        for raw in false_tallies(liar.key, accomplice, 1.0):  # the second by another stream
            assert found == []
            stream = await client.host.open_stream(giver.key.peer_id, PROTOCOL)
            ends = client.host.peer_id, giver.key.peer_id
            words = Greeting(*ends, boot=1, took=0.0, head=b"", shown=(raw,))
            await send_letter(stream, greet(liar.key, words))
            await receive_letter(stream, CLAIM_BYTES_MAX)
        convicted = {check_contradiction(item) for item in found}
        assert convicted == {liar.key.peer_id, accomplice.peer_id} and len(found) == 2
        assert giver.credit(liar) == 0.0, "and nothing that they claim counts"


def test_of_the_pairs_that_are_shown_the_last_are_kept() -> None:
    shown, liar = Shown(), IdentityKey.generate()
    one, other = false_tallies(liar, IdentityKey.generate(), 1.0)
    assert shown.hear(one, read_tally(one)) == [] == shown.hear(one, read_tally(one))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("potluck.swarm.forks.PAIRS_MAX", 2)
        for _ in range(2):
            more = false_tallies(liar, IdentityKey.generate(), 1.0)[0]
            shown.hear(more, read_tally(more))
    assert shown.hear(other, read_tally(other)) == [], "forgotten"
    assert len(shown.hear(one, read_tally(one))) == 2


async def test_whoever_greets_without_end_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(till_module, "GREETINGS_SAVED", 3.0)
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        await until(lambda: PROTOCOL in giver.host.handlers)
        heard = []
        for _ in range(6):
            stream = await client.host.open_stream(giver.key.peer_id, PROTOCOL)
            words = Greeting(client.host.peer_id, giver.key.peer_id, 1, 0.0, b"", ())
            try:
                await send_letter(stream, greet(taker.key, words))
                heard.append(await stream.receive() != b"")
            except TransportError:
                heard.append(False)
        assert heard[:3] == [True] * 3 and not all(heard)


async def test_a_full_disk_ends_no_session_and_signs_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()

        def refuse(*args: object, **named: object) -> None:
            raise UserError("the disk is full")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Tallies, "next_boot", refuse)
            patched.setattr(Tallies, "sums", refuse)
            work = await client.take(giver, 10)
            await client.purse.settle()
        assert giver.sums(taker) == (0.0, 0.0)
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (pytest.approx(work), 0.0))
        assert made.net.faults == []


async def test_a_silent_client_does_not_hold_its_account(tmp_path: Path) -> None:
    """One that greets and never answers is given up on; another of the same home settles then."""
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        silent, client = taker.client(), taker.client()
        work = await silent.take(giver, 10) + await client.take(giver, 10)
        words = Greeting(silent.host.peer_id, giver.key.peer_id, 1, work, b"", ())
        await until(lambda: PROTOCOL in giver.host.handlers)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(till_module, "EXCHANGE_S", 0.05)
            stream = await silent.host.open_stream(giver.key.peer_id, PROTOCOL)
            await send_letter(stream, greet(taker.key, words))
            await until(lambda: "no word" in str(made.net.faults[-1:]))
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (pytest.approx(work / 2), 0.0))


async def test_a_place_is_as_wide_as_its_networks(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        giver = made.home("giver")

        @dataclass
        class Road:
            remote: tuple[str, int]

        giver.host.best_of = lambda peer: Road((peer, 4001))
        assert giver.till.place_of("8.8.8.8") == (
            "new", "8.8.0.0/16", "8.8.8.0/24",
        )  # fmt: skip
        assert giver.till.place_of("2001:4860:4860::8888") is not None
        home = giver.till.place_of("127.0.0.1")
        assert home == giver.till.place_of("10.0.0.1") == ("new", "none", "none")  # one for all


async def test_who_greets_in_two_names_answers_for_what_it_took_in_the_first(
    tmp_path: Path,
) -> None:
    """It uses one account's credit, and would leave what it owes to another."""
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        await until(lambda: PROTOCOL in giver.host.handlers)
        work = await client.take(giver, 100, told=0)
        for account in (taker.key, IdentityKey.generate(), IdentityKey.generate()):
            words = Greeting(client.host.peer_id, giver.key.peer_id, 1, 0.0, b"", ())
            stream = await client.host.open_stream(giver.key.peer_id, PROTOCOL)
            await send_letter(stream, greet(account, words))
            await until(lambda: client.host.peer_id in giver.till._account_of)
        await until(lambda: len(made.net.faults) == 2)
        assert all("two accounts" in str(error) for _, error in made.net.faults)
        del made.net.hosts[client.host.peer_id]
        await until(lambda: bool(giver.till._arrears))
        assert giver.till._arrears == {taker.key.peer_id: pytest.approx(work)}


async def test_a_book_is_written_as_it_was_at_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk's thread is given changes no more; and the last of it is written at the end."""
    loop, where = threading.get_ident(), []
    real = Credit.keep

    def watched(self: Credit, now: float) -> Book:
        where.append(threading.get_ident())
        return real(self, now)

    monkeypatch.setattr(Credit, "keep", watched)
    monkeypatch.setattr(till_module, "KEEP_EVERY_S", 0.0)
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        await client.take(giver, 100)
        await client.purse.settle()
        await until(lambda: taker.credit(giver) > 0)
        before = len(where)
        await until(lambda: len(where) > before)
    assert set(where) == {loop}
    book = taker.tallies.book()
    assert book is not None and [edge.giver for edge in book.edges] == [giver.key.peer_id]
