"""Audits over pretended peers: who is asked, what comes of it, and that nobody suffers for another.

A peer's answer is a table: `honest` gives what the blocks give, `liars` what they agree on.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import pytest
import trio
from receipts import MODEL, ROW_BYTES, key, opening
from trio.testing import MockClock

from potluck.dht.record import Announcement
from potluck.errors import Refused, RemoteError, TransportError
from potluck.node.trust.again import Again, is_whole, parts_of, took_last
from potluck.node.trust.auditor import (
    COMPUTE_S,
    REST_S,
    TOKEN_S,
    WAITING_MAX,
    Auditor,
)
from potluck.node.trust.book import Trust
from potluck.node.trust.docket import Docket, Finding
from potluck.node.trust.limits import Limit, Limits
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


async def test_right_work_is_found_right_and_both_gain(autojump_clock: MockClock) -> None:
    world = World(others={"honest0": "honest"})
    docket = await world.audit()
    assert [one.verdict for one in world.findings] == ["right"]
    assert (docket.tally.signed, docket.tally.drawn, docket.tally.right) == (1, 1, 1)
    assert world.findings[0].again[0].account.chunks[-1].gave == world.account.chunks[-1].gave
    assert world.trust.mean(world.peer("accused")) == pytest.approx(2 / 3)
    assert world.trust.mean(world.peer("honest0")) == pytest.approx(2 / 3)


async def test_a_liar_is_convicted_by_peers_that_are_known(autojump_clock: MockClock) -> None:
    world = World(lies=True, others=HONEST)
    world.know(*HONEST)
    docket = await world.audit()
    [found] = world.findings
    assert found.verdict == "wrong" and found.wrong == (world.peer("accused"),)
    assert docket.tally.convicted == [world.peer("accused")]
    assert world.trust.banned(world.peer("accused"))
    assert not any(world.trust.banned(world.peer(name)) for name in HONEST)
    assert found.judged.median > 0.1 and len(found.again) == 4
    assert found.convicting == (world.work,)


async def test_strangers_convict_nobody_and_leave_a_doubt(autojump_clock: MockClock) -> None:
    """However many agree: who is not known moves nothing."""
    world = World(lies=True, others={f"p{number}": "honest" for number in range(9)})
    docket = await world.audit()
    assert [one.verdict for one in world.findings] == ["open"]
    assert world.findings[0].doubted == (world.peer("accused"),)
    assert docket.tally.convicted == [] and not world.trust.banned(world.peer("accused"))
    assert world.trust.mean(world.peer("accused")) < 0.5
    assert len(world.asked) == 7, "the accused and seven: then it is left open"


async def test_an_auditor_that_lies_about_honest_work_is_convicted_itself(
    autojump_clock: MockClock,
) -> None:
    for roll in range(12):
        world = World(others={**HONEST, "liar": "lies"}, roll=roll)
        world.know(*HONEST, "accused")
        world.trust = replace_rate(world.trust)
        await world.audit()
        assert world.findings[0].verdict == "right"
        assert not world.trust.banned(world.peer("accused"))
        if world.asked[0] == "liar":
            assert world.findings[0].wrong == (world.peer("liar"),)
            assert world.findings[0].again[0].peer != world.peer("liar")
            assert world.findings[0].judged.worst == 0
            [shown] = world.findings[0].convicting
            assert shown.peer == shown.account.peer == world.peer("liar")
            assert shown.account.chunks[shown.place].took == world.account.chunks[-1].took
            assert bytes(shown.gave) == world.false[-1] and is_whole(shown)
            assert world.trust.banned(world.peer("liar"))
            return
    pytest.fail("no lot fell on the liar")


def replace_rate(trust: Trust) -> Trust:
    """Audit everything: a lot that spares a known peer would end the test."""
    trust.rate = lambda peer: 1.0  # type: ignore[method-assign]
    return trust


@pytest.mark.parametrize("fault", ["dead", "busy", "rubbish", "silent"])
async def test_an_auditor_that_fails_is_nobodys_fault_and_another_is_asked(
    autojump_clock: MockClock, fault: str
) -> None:
    for roll in range(20):
        world = World(others={"faulty": fault, "honest0": "honest"}, roll=roll)
        await world.audit()
        assert world.findings[0].verdict == "right"
        assert world.trust.mean(world.peer("faulty")) == 0.5
        assert not world.trust.banned(world.peer("faulty"))
        if world.asked == ["faulty", "honest0"]:
            return
    pytest.fail("no lot fell on the faulty one")


async def test_what_nobody_can_compute_again_stays_unaudited(autojump_clock: MockClock) -> None:
    world = World(others={f"dead{number}": "dead" for number in range(9)})
    began = trio.current_time()
    docket = await world.audit()
    assert world.findings == [] and docket.tally.unaudited == 1 and docket.tally.audited == 0
    assert len(world.asked) == 4 and trio.current_time() - began < 10
    alone = World()
    assert (await alone.audit()).tally.unaudited == 1


async def test_a_silent_auditor_is_left_at_its_deadline(autojump_clock: MockClock) -> None:
    world = World(others={"silent": "silent"})
    began = trio.current_time()
    assert (await world.audit()).tally.unaudited == 1
    assert trio.current_time() - began == pytest.approx(COMPUTE_S + 72 * TOKEN_S)


async def test_who_gave_nothing_is_left_in_peace_for_a_while(autojump_clock: MockClock) -> None:
    world = World(others={"dead": "dead"})
    async with world.docket() as docket:
        for rest_s in (0.0, REST_S / 2, REST_S):
            await trio.sleep(rest_s)
            docket.signed(world.work)
            await docket.idle()
    assert world.asked == ["dead", "dead"] and docket.tally.unaudited == 3


async def test_no_hop_of_the_session_nor_a_barred_peer_is_asked(autojump_clock: MockClock) -> None:
    world = World(others={"hop": "honest", "barred": "honest", "other": "honest"})
    world.unusable = {"barred"}
    async with world.docket() as docket:
        docket.peers.add(world.peer("hop"))
        docket.signed(world.work)
        await docket.idle()
    assert world.asked == ["other"]


async def test_the_same_class_comes_first_and_then_other_networks(
    autojump_clock: MockClock,
) -> None:
    limits = Limits([Limit(MODEL.hex(), "none c1", "none torch fp32", 0.01, 9, 0.001)])
    near, far = "/ip4/11.1.0.1/tcp/1", "/ip4/12.1.0.1/tcp/1"
    places = {"accused": near, "near": near, "far": far, "torch": far}
    made = [
        World(others=others, addresses=places, classes={"torch": TORCH}, limits=limits)
        for others in (
            {"torch": "near", "near": "honest", "far": "honest"},
            {"torch": "near", "near": "honest"},
            {"torch": "near"},
        )
    ]
    for world in made:
        await world.audit()
    assert [world.asked for world in made] == [["far"], ["near"], ["torch"]]
    assert made[2].findings[0].verdict == "right" and made[2].findings[0].limit == 0.01


async def test_a_class_that_nobody_measured_is_not_asked(autojump_clock: MockClock) -> None:
    world = World(others={"torch": "honest"}, classes={"torch": TORCH})
    assert (await world.audit()).tally.unaudited == 1
    assert world.asked == []


async def test_too_few_tokens_of_another_class_leave_it_open(autojump_clock: MockClock) -> None:
    limits = Limits([Limit(MODEL.hex(), "none c1", "none torch fp32", 0.01, 9, 0.001)])
    world = World(
        others={"torch": "honest"}, classes={"torch": TORCH}, limits=limits, chunks=(40, 4),
        lies=True,
    )  # fmt: skip
    await world.audit()
    assert [one.verdict for one in world.findings] == ["open"]
    for name in ("accused", "torch"):
        assert world.trust.mean(world.peer(name)) == 0.5


async def test_what_gave_nothing_out_is_not_drawn(autojump_clock: MockClock) -> None:
    world = World(others=HONEST)
    world.work = replace(world.work, rows=0, gave=b"")
    docket = await world.audit()
    assert (docket.tally.signed, docket.tally.drawn) == (1, 0)


async def test_a_full_queue_never_makes_a_session_wait(autojump_clock: MockClock) -> None:
    world = World(others={"silent": "silent"})
    auditor = world.auditor()
    docket = auditor.docket(world.findings.append)
    for _ in range(WAITING_MAX + 5):
        docket.signed(world.work)
    assert docket.tally.drawn == WAITING_MAX + 5 and docket.tally.unaudited == 5


def works(world: World, gave: list[bytes]) -> list[Work]:
    """All chunks that the accused signed for, if it gave this."""
    world.account = signed("accused", world.took, gave, world.numerics)
    return [
        replace(
            world.work, account=world.account, place=place, sizes=world.chunks[: place + 1],
            took=tuple(world.took[: place + 1]), rows=world.chunks[place], gave=gave[place],
        )
        for place in range(len(world.chunks))
    ]  # fmt: skip


def looking_at(world: World, rate: float, chunk_lots: list[float], whole: float) -> Auditor:
    """An auditor whose lots fall like this: of the chunks in order, and of the session."""
    world.trust.rate = lambda peer: rate  # type: ignore[method-assign]
    auditor, left = world.auditor(), list(chunk_lots)

    class Rigged(Lots):
        def draw(self, what: str, *names: bytes) -> float:
            if what == "chunk":
                return left.pop(0)
            return {"session": whole, "way": 0.99}.get(what, 0.5)

    auditor._lots = Rigged(bytes(32))
    return auditor


async def findings_of(world: World, auditor: Auditor, work: list[Work]) -> Docket:
    docket = auditor.docket(world.findings.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(auditor.run)
        for one in work:
            docket.signed(one)
        docket.ended()
        with trio.fail_after(3600):
            await docket.idle()
        nursery.cancel_scope.cancel()
    return docket


async def test_a_look_compares_all_chunks_before_it_in_one_pass(autojump_clock: MockClock) -> None:
    world = World(chunks=(40, 32, 32, 32), others={"honest0": "honest"})
    auditor = looking_at(world, 0.2, [0.9, 0.9, 0.0, 0.9], whole=0.9)
    docket = await findings_of(world, auditor, works(world, world.right))
    assert [one.work.place for one in world.findings] == [0, 1, 2] and world.asked == ["honest0"]
    assert [one.verdict for one in world.findings] == ["right"] * 3
    assert (docket.tally.signed, docket.tally.drawn, docket.tally.right) == (4, 3, 3)
    for one in world.findings:  # a proof shows the chunk of who computed it again beside it
        [again] = one.again
        assert again.account.chunks[again.number].gave == world.account.chunks[one.work.place].gave
        assert bytes(again.gave) == bytes(one.work.gave)
    assert world.trust._book.valid(world.peer("accused")) == 3


async def test_a_lie_before_the_chunk_that_was_drawn_convicts_and_ends_the_look(
    autojump_clock: MockClock,
) -> None:
    world = World(chunks=(40, 32, 32, 32), others=HONEST)
    world.know(*HONEST)
    gave = [world.right[0], world.false[1], *world.right[2:]]
    auditor = looking_at(world, 0.2, [0.9, 0.9, 0.9, 0.0], whole=0.9)
    docket = await findings_of(world, auditor, works(world, gave))
    assert [one.verdict for one in world.findings] == ["right", "wrong"]
    wrong = world.findings[1]
    assert wrong.work.place == 1 and wrong.wrong == (world.peer("accused"),)
    assert wrong.again[0].number == 1 and is_whole(wrong.convicting[0])
    assert (docket.tally.drawn, docket.tally.unaudited) == (4, 2)


async def test_an_auditor_that_lies_of_an_earlier_chunk_has_signed_for_that(
    autojump_clock: MockClock,
) -> None:
    world = World(chunks=(40, 32), others={"liar": "lies", **HONEST})
    world.know(*HONEST, "accused")
    auditor = looking_at(world, 0.2, [0.9, 0.0], whole=0.9)
    world.unusable_now = lambda: set(HONEST) if not world.asked else {"liar"}
    await findings_of(world, auditor, works(world, world.right))
    [found] = world.findings[:1]
    assert found.verdict == "right" and found.wrong == (world.peer("liar"),)
    [shown] = found.convicting
    assert shown.place == 0 and shown.peer == world.peer("liar") and is_whole(shown)
    assert bytes(shown.gave) == world.false[0]


async def test_a_whole_session_is_looked_at_when_it_has_ended_but_for_what_was_before(
    autojump_clock: MockClock,
) -> None:
    world = World(chunks=(40, 32, 32, 32), others={"honest0": "honest"})
    auditor = looking_at(world, 0.2, [0.9, 0.0, 0.9, 0.9], whole=0.05)
    docket = await findings_of(world, auditor, works(world, world.right))
    assert sorted(one.work.place for one in world.findings) == [0, 1, 2, 3]
    assert world.asked == ["honest0"] * 2 and docket.tally.drawn == 4
    spared = World(chunks=(40, 32), others={"honest0": "honest"})
    auditor = looking_at(spared, 0.2, [0.9, 0.9], whole=0.11)
    assert (await findings_of(spared, auditor, works(spared, spared.right))).tally.drawn == 0


async def test_what_was_taken_back_is_compared_no_more(autojump_clock: MockClock) -> None:
    world = World(chunks=(40, 32, 32), others={"honest0": "honest"})
    old = works(world, world.right)
    auditor = looking_at(world, 0.2, [0.9, 0.9, 0.0], whole=0.9)
    took = (old[2].took[0], floats(Random(9), 32), old[2].took[2])  # other words in its place
    await findings_of(world, auditor, [*old[:2], replace(old[2], took=took)])
    assert [one.work.place for one in world.findings] == [0, 2]


def test_what_a_session_keeps_to_be_compared_grows_with_its_chunks_not_their_square() -> None:
    """A thousand chunks; each has all steps before it, which are not kept a thousand times."""
    chunks = 1000
    world = World(chunks=(1,) * chunks)
    docket = looking_at(world, 0.2, [0.9] * chunks, whole=0.9).docket(world.findings.append)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for place in range(chunks):
            docket.signed(
                replace(
                    world.work, place=place, sizes=world.chunks[: place + 1],
                    took=tuple(world.took[: place + 1]), gave=world.right[place],
                )
            )  # fmt: skip
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert docket.tally.signed == chunks and after - before < 1000 * chunks


def test_the_frames_are_cut_where_the_account_is_and_give_the_rows_it_gave() -> None:
    world = World(chunks=(40, 32))
    assert [(one.at, one.rows, one.signed) for one in parts_of(world.work)] == [
        (0, 0, True),
        (40, 32, True),
    ]
    assert took_last(world.work) == world.took[-1]
    before = replace(world.work, place=0, sizes=(40,), took=world.work.took[:1], rows=5)
    assert [one.rows for one in parts_of(world.work, [before])] == [5, 32]
    last = replace(world.work, rows=1, gave=world.work.gave[-ROW_BYTES:])
    assert [one.rows for one in parts_of(last)] == [0, 1]
    assert took_last(last) == world.took[-1][-ROW_BYTES:]


def test_work_whose_chunk_begins_inside_a_step_cannot_be_computed_again() -> None:
    world = World(chunks=(40, 32))
    assert is_whole(world.work)
    joined = replace(world.work, sizes=(72,), took=(b"".join(world.took),))
    assert not is_whole(joined)
    assert not is_whole(replace(world.work, sizes=(40,), took=world.work.took[:1]))
