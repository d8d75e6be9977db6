"""Giver and taker over memory roads: what was taken is signed for, once, by both, whatever fails.

In real time, since the disk is another thread's; nothing here waits for a clock.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from sim.memory_host import MemoryHost, MemoryNet, MemoryStream

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, TransportError, UserError
from potluck.node import purse as purse_module
from potluck.node import till as till_module
from potluck.node.letters import send_letter
from potluck.node.purse import Purse
from potluck.node.tallies import FILE, Tallies, open_tallies
from potluck.node.till import Metered, Till
from potluck.swarm.blocks import BlockRange
from potluck.swarm.settlement import PROTOCOL, Greeting, greet
from potluck.swarm.tally import Tally, accept, contradiction, first_of, next_of, offer, work_of
from potluck.swarm.wire import Step

WIDTH, BLOCKS = 1000, 4


class Host(MemoryHost):
    """As a client and a node see it."""

    def __init__(self, net: MemoryNet, peer_id: str) -> None:
        super().__init__(net, peer_id)
        self.nursery = net.nursery
        self.best_of: Callable[[str], object] = lambda peer: None

    def connected(self) -> tuple[str, ...]:
        return tuple(self._net.hosts)

    def claims(self, peer: str) -> None:
        return None

    def best(self, peer: str) -> object:
        return self.best_of(peer)

    def unhandle(self, protocol: str) -> None:
        self.handlers.pop(protocol, None)


class Worker:
    """A device that takes no time. `asked`: what was posted."""

    waiting = 0

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def run(self, function, *args):  # type: ignore[no-untyped-def]
        await trio.lowlevel.checkpoint()
        return function(*args)

    def post(self, function, *args):  # type: ignore[no-untyped-def]
        self.asked.append(args)
        function(*args)

    async def step(self, cache, peer, payload, step, dtype, *, within_s):  # type: ignore[no-untyped-def]
        await trio.lowlevel.checkpoint()
        return memoryview(b""), 0.0


@dataclass
class Home:
    """A home with its node's till; `purse` opens one of its clients."""

    folder: Path
    net: MemoryNet
    key: IdentityKey
    worker: Worker = field(default_factory=Worker)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.host = Host(self.net, self.key.peer_id)
        self.net.hosts[self.key.peer_id] = self.host
        self.tallies = open_tallies(self.folder, self.key.peer_id)
        self.till = Till(self.host, self.key, self.tallies)  # type: ignore[arg-type]
        self.metered = Metered(self.till, self.worker, BlockRange(0, BLOCKS), WIDTH)  # type: ignore[arg-type]

    def start(self) -> None:
        self.net.nursery.start_soon(self.till.run)
        self.net.nursery.start_soon(self.till.attend, self.metered)

    def client(self) -> Client:
        key = IdentityKey.generate()
        host = Host(self.net, key.peer_id)
        self.net.hosts[key.peer_id] = host
        tallies = open_tallies(self.folder, self.key.peer_id)
        return Client(host, Purse(host, self.key, tallies, self.net.nursery), tallies)  # type: ignore[arg-type]

    def credit(self, other: Home) -> float:
        """What another may use here."""
        return self.till._credit.credit(other.key.peer_id, time.time())

    def sums(self, other: Home) -> tuple[float, float]:
        """(gave, took), as it has it on disk."""
        tally = self.tallies.pair(other.key.peer_id).tally
        return tally.gave(self.key.peer_id), tally.gave(other.key.peer_id)


@dataclass
class Client:
    host: Host
    purse: Purse
    tallies: Tallies

    async def take(self, giver: Home, tokens: int, *, told: int | None = None) -> float:
        """A step at a giver; told: of how many tokens the client knows."""
        cache = BlockRange(0, BLOCKS)
        me = self.host.peer_id
        step = Step(0, (tokens,), 1)
        await giver.metered.step(cache, me, memoryview(b""), step, "f32", within_s=1)
        told = tokens if told is None else told
        if told:
            self.purse.took(giver.key.peer_id, told, work_of(told, BLOCKS, WIDTH))
        return work_of(tokens, BLOCKS, WIDTH)


@dataclass
class World:
    folder: Path
    net: MemoryNet

    def home(self, name: str) -> Home:
        made = Home(self.folder / name, self.net, IdentityKey.generate())
        made.start()
        return made


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        net = MemoryNet(nursery)
        with trio.fail_after(60):
            yield World(folder, net)
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greet as often as one likes; see at once what another process signed; and wait long for what
    comes in the end, on however slow a machine."""
    monkeypatch.setattr(purse_module, "SETTLE_S", 30.0)
    monkeypatch.setattr(purse_module, "EXCHANGE_S", 30.0)
    monkeypatch.setattr(till_module, "EXCHANGE_S", 30.0)
    monkeypatch.setattr(till_module, "GREETINGS_SAVED", 1e9)
    monkeypatch.setattr(till_module, "TICK_S", 0.05)
    monkeypatch.setattr(till_module, "HURRY_S", 0.0)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  # the disk tells nobody
        await trio.sleep(0.01)


async def test_what_was_taken_is_signed_by_both_and_survives_both(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        work = await client.take(giver, 100) + await client.take(giver, 1)
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (work, 0.0))
        assert taker.sums(giver) == (0.0, work)
        work += await client.take(giver, 7)
        await client.purse.settle()
        await until(lambda: giver.sums(taker) == (pytest.approx(work), 0.0))
        assert taker.tallies.pair(giver.key.peer_id).tally.seq == 2
        # the giver has credit at the taker's node, though it was a client that signed
        await until(lambda: taker.credit(giver) > 0)
        assert made.net.faults == []
    again = Home(tmp_path / "giver", MemoryNet(None), giver.key)  # type: ignore[arg-type]
    assert again.sums(taker) == (pytest.approx(work), 0.0)


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


async def test_a_giver_that_claims_too_much_is_not_signed(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()

        async def claims_double(stream: MemoryStream) -> None:
            await Till._greet(giver.till, stream)

        real = till_module.make_offer

        def boast(*args, gave, **rest):  # type: ignore[no-untyped-def]
            return real(*args, gave=2 * gave, **rest)

        giver.host.handlers[PROTOCOL] = claims_double
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(till_module, "make_offer", boast)
            await client.take(giver, 100)
            await client.purse.settle()
        assert taker.sums(giver) == giver.sums(taker) == (0.0, 0.0)
        assert made.net.faults == []  # it is told so, in order


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


async def test_an_answer_that_never_came_is_shown_next_time(tmp_path: Path) -> None:
    """The taker is killed when it has kept the tally, before it can tell."""
    async with world(tmp_path) as made:
        giver, taker = made.home("giver"), made.home("taker")
        client = taker.client()
        with pytest.MonkeyPatch.context() as patched:
            client.purse.opens(giver.key.peer_id)
            await until(lambda: client.host.peer_id in giver.till._account_of)
            patched.setattr("potluck.node.purse.encode", lambda answer: b"\xc1")
            work = await client.take(giver, 100)
            await client.purse.settle()
        assert taker.sums(giver) == (0.0, pytest.approx(work))
        assert giver.sums(taker) == (0.0, 0.0)
        client = taker.client()
        client.purse.opens(giver.key.peer_id)
        await until(lambda: giver.sums(taker) == (pytest.approx(work), 0.0))


@pytest.mark.parametrize("whose", ["giver", "taker"])
async def test_a_restored_disk_is_healed_and_contradicts_nobody(whose: str, tmp_path: Path) -> None:
    """Every tally that was ever signed is remembered here; no two convict either."""
    seen: set[Tally] = set()
    real = Tallies.keep

    def watched(self: Tallies, raw: bytes, tally: Tally) -> bool:
        seen.add(tally)
        return real(self, raw, tally)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tallies, "keep", watched)
        async with world(tmp_path) as made:
            giver, taker = made.home("giver"), made.home("taker")
            restored = giver if whose == "giver" else taker
            work = 0.0
            for round_ in range(4):
                client = taker.client()
                work += await client.take(giver, 10 + round_)
                await client.purse.settle()
                both = pytest.approx(work)
                await until(lambda both=both: giver.sums(taker)[0] == both)  # type: ignore[misc]
                if round_ == 0:
                    shutil.copy(restored.folder / FILE, tmp_path / "snapshot")
                if round_ == 2:
                    for suffix in ("-wal", "-shm"):
                        (restored.folder / (FILE + suffix)).unlink(missing_ok=True)
                    shutil.copy(tmp_path / "snapshot", restored.folder / FILE)
            assert taker.sums(giver) == (0.0, pytest.approx(work))
    for one, other in itertools.combinations(seen, 2):
        assert contradiction(one, other) == ()
    assert len(seen) == 4


async def test_two_clients_of_a_home_and_two_homes_at_once(tmp_path: Path) -> None:
    """All of it is signed in the end, in both directions."""
    async with world(tmp_path) as made:
        one, other = made.home("one"), made.home("other")
        gave: dict[str, float] = {"one": 0.0, "other": 0.0}
        clients = [(one.client(), other, "other") for _ in range(2)]
        clients += [(other.client(), one, "one") for _ in range(2)]
        for client, giver, name in clients:
            gave[name] += await client.take(giver, 50)
        mine = pytest.approx(gave["one"]), pytest.approx(gave["other"])

        def settled() -> bool:
            return one.sums(other) == mine and other.sums(one) == mine[::-1]

        while not settled():  # of two clients at once one is told to come back
            async with trio.open_nursery() as nursery:
                for client, _, _ in clients:
                    nursery.start_soon(client.purse.settle)


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
        assert giver.till.place_of("127.0.0.1") is None and giver.till.place_of("10.0.0.1") is None
