"""Questions whose answer is known: put to servers as any prompt, and no proof by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from audit_world import World, signed
from receipts import ROW_BYTES, key, opening
from trio.testing import MockClock

from potluck.node.trust.again import Again
from potluck.node.trust.auditor import CANARY_BYTES_MAX, Auditor
from potluck.node.trust.book import Trust
from potluck.node.trust.docket import Docket
from potluck.swarm.audit import AuditConfig, Lots
from potluck.swarm.ledger import Work
from potluck.swarm.receipt import Account, Notary

ALWAYS = AuditConfig(floor=0.9999, canary_share=1.0)  # of those who are known


class Falling(Lots):
    """Each chunk is drawn."""

    def draw(self, what: str, *names: bytes) -> float:
        return 0.0 if what == "chunk" else super().draw(what, *names)


HONEST = {f"honest{number}": "honest" for number in range(5)}


class Scene(World):
    """One answer of `accused` that is audited; then one of `second`, who is known for long."""

    questions: list[tuple[str, str]]  # who was asked, whose work

    async def compute(self, peer: str, work: Work, earlier: Sequence[Work]) -> Again:
        self.questions.append((self.names[peer], self.names[work.peer]))
        return await super().compute(peer, work, earlier)

    @asynccontextmanager
    async def dockets(self) -> AsyncIterator[tuple[Docket, Docket]]:
        self.questions = []
        lots = Falling(bytes([self.roll]) * 32)
        auditor = Auditor(self, self.compute, self, self.trust, self.limits, lots, ALWAYS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(auditor.run)
            yield auditor.docket(self.findings.append), auditor.docket(self.findings.append)
            nursery.cancel_scope.cancel()

    async def two_answers(self, second: str = "second") -> Docket:
        async with self.dockets() as (one, two):
            one.signed(self.work)
            await one.idle()
            two.signed(self.work_of(second))
            with trio.fail_after(3600):
                await two.idle()
        return two

    def work_of(self, name: str) -> Work:
        """What it signed for in an answer was right."""
        account = signed(name, self.took, self.right, self.numerics)
        return replace(self.work, peer=self.peer(name), account=account)


def scene(second: str) -> Scene:
    trust = Trust(config=ALWAYS)
    made = Scene(others={"second": second, **HONEST}, trust=trust)
    made.know("second", *HONEST)
    return made


async def test_a_known_answer_is_asked_of_another_server_and_only_that_one_gains(
    autojump_clock: MockClock,
) -> None:
    world = scene("honest")
    docket = await world.two_answers()
    assert world.questions[-1] == ("second", "accused") and len(world.questions) == 2
    first, found = world.findings
    assert found.verdict == "right" and found.work.peer == world.peer("second")
    assert {one.peer for one in found.again} == {world.peer("accused"), first.again[0].peer}
    assert (docket.tally.drawn, docket.tally.right) == (1, 1)
    assert world.trust._book.valid(world.peer("second")) == 101
    assert world.trust._book.valid(world.peer("accused")) == 1


async def test_who_gives_another_answer_is_convicted_by_more_than_the_two(
    autojump_clock: MockClock,
) -> None:
    world = scene("lies")
    docket = await world.two_answers()
    found = world.findings[-1]
    assert found.verdict == "wrong" and docket.tally.convicted == [world.peer("second")]
    assert world.trust.banned(world.peer("second"))
    assert not any(world.trust.banned(world.peer(name)) for name in ("accused", *HONEST))
    assert len(found.right) >= 4, "a stranger and one that is known would not do"
    [shown] = found.convicting
    assert shown.peer == shown.account.peer == world.peer("second")


async def test_who_gives_none_has_its_own_work_computed_again(autojump_clock: MockClock) -> None:
    for fault in ("dead", "busy", "rubbish", "silent"):
        world = scene(fault)
        await world.two_answers()
        assert ("second", "accused") in world.questions
        assert world.questions[-1][1] == "second" and world.questions[-1][0] in HONEST
        assert world.findings[-1].verdict == "right"
        assert world.findings[-1].work.account.peer == world.peer("second")


async def test_a_stranger_and_who_knows_the_answer_are_asked_no_canary(
    autojump_clock: MockClock,
) -> None:
    world = scene("honest")
    world.trust._book._scores.pop(world.peer("second"))
    await world.two_answers()
    assert world.questions[-1][1] == "second"
    world = scene("honest")
    world.know("accused")
    async with world.dockets() as (one, two):
        for docket in (one, two):
            docket.signed(world.work)
            await docket.idle()
    assert [asked for asked, _ in world.questions if asked == "accused"] == []


async def test_an_answer_of_who_was_banned_since_is_no_known_one(
    autojump_clock: MockClock,
) -> None:
    world = scene("honest")
    async with world.dockets() as (one, two):
        one.signed(world.work)
        await one.idle()
        world.trust.convict(world.peer("accused"))
        two.signed(world.work_of("second"))
        await two.idle()
    assert ("second", "accused") not in world.questions


async def test_what_is_kept_of_answers_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = scene("honest")
    lots = Lots(bytes(32))
    auditor = Auditor(world, world.compute, world, world.trust, world.limits, lots)
    for number in range(40):
        name = f"server {number}"
        gave = [world.right[0], number.to_bytes(4, "little") + world.right[1][4:]]
        account = signed(name, world.took, gave, world.numerics)
        work = replace(world.work, peer=key(name).peer_id, account=account)
        auditor._learn(work, (Again(key("a").peer_id, account, memoryview(world.right[-1])),))
    assert len(auditor._answers) == 4
    monkeypatch.setattr("potluck.node.trust.auditor.CANARY_BYTES_MAX", 10)
    auditor._answers.clear()
    auditor._learn(world.work, ())
    assert auditor._answers == {} and CANARY_BYTES_MAX > 10


async def test_of_the_audits_of_whom_we_know_a_fifth_are_canaries_as_the_settings_are(
    autojump_clock: MockClock,
) -> None:
    """With a client's own settings, but that each chunk is drawn: 360 answers of six peers."""
    trust = Trust()
    world = Scene(others={"second": "honest", **HONEST}, trust=trust)
    world.others["accused"] = "honest"
    world.know("accused", "second", *HONEST, audits=1000)
    auditor = Auditor(world, world.compute, world, trust, world.limits, Falling(bytes(32)))
    world.questions = []
    names = ["second", *HONEST]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(auditor.run)
        for number in range(360):
            docket = auditor.docket(world.findings.append)
            name = names[number % len(names)]
            docket.signed(fresh(world, name, number))
            await docket.idle()
        nursery.cancel_scope.cancel()
    assert len(world.findings) == 360
    assert all(found.verdict == "right" for found in world.findings)
    asked_itself = sum(
        world.names[found.work.peer] == question[0]
        for found, question in zip(world.findings, world.questions, strict=True)
    )
    assert all(asked != whose for asked, whose in world.questions), "nobody is asked its own"
    assert 0.1 * 360 < asked_itself < 0.3 * 360, "a fifth is put to the server itself"


def fresh(world: Scene, name: str, number: int) -> Work:
    """Right work of this peer, in a session of its own: each receipt has its own lot."""
    notary = Notary(key(name), opening(0, 2, nonce=number, numerics=world.numerics), ROW_BYTES)
    account, at = Account(notary.opening), 0
    for took, gave in zip(world.took, world.right, strict=True):
        notary.took(at, took)
        notary.gave(gave)
        at += len(took) // ROW_BYTES
        for raw in notary.sign():
            account.add(raw)
    return replace(world.work, peer=world.peer(name), account=account)
