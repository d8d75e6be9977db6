"""What a testnet's liars do to others beside serving them, and that it costs the honest nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import trio
from sim.adding_engine import WIDTH
from sim.memory_host import MemoryStream
from sim.memory_swarm import announcement
from test_recompute import ACCUSER, EXACT, scene
from trio.testing import MockClock

from potluck.crypto.codec import decode_any, encode
from potluck.node.compute.cheats import SWOLLEN, ColludingRows
from potluck.node.compute.compare import apart
from potluck.node.testnet.mischief import ROUND_S, false_accusation, flood_views, nobody, right_work
from potluck.swarm.audit import Dispute, judge
from potluck.swarm.sampling_events import LETTER_BYTES_MAX, PROTOCOL, VIEW_MAX, View
from potluck.swarm.testimony import ITEM_BYTES_MAX, ITEMS, SignedAccusation, check_accusation
from potluck.swarm.tolerance import EXACT as EQUAL
from potluck.swarm.topics import fits


async def test_a_false_accusation_is_of_right_work_and_is_refuted_by_whoever_computes_it(
    autojump_clock: MockClock,
) -> None:
    async with scene() as stage:
        victim = replace(
            announcement(0, 6, stage.accused.host, EXACT), peer=stage.accused.host.peer_id
        )
        host: Any = stage.accuser
        cases = []
        for _ in range(2):
            work = await right_work(host, ACCUSER, victim, WIDTH)
            message = false_accusation(ACCUSER, work, stage.exhibits, 1.8e9)
            item = decode_any(message.data, ITEMS, max_bytes=ITEM_BYTES_MAX)
            assert isinstance(item, SignedAccusation) and fits(item, message.topic)
            cases.append(case := check_accusation(item))
            assert (case.accuser, case.told.accused) == (ACCUSER.peer_id, victim.peer)
            assert await stage.of(case) == "right"
        assert cases[0].id != cases[1].id, "each is another case, and another strike"


def test_colluders_agree_in_every_session_and_differ_from_the_honest() -> None:
    """Whoever audits a colluder and is one itself finds it right; a third that is honest does not,
    and of one against two that nobody knows nobody is convicted."""
    dice = torch.Generator().manual_seed(1)
    took, added = torch.randn(2, 40, 32, generator=dice)
    honest = took + added
    one, other = ColludingRows(), ColludingRows()
    whole = one.change(honest)
    parts = torch.cat([other.change(honest[:7]), other.change(honest[7:])])
    assert torch.equal(whole, parts) and SWOLLEN > 1
    assert judge(apart(took, whole, parts).tolist(), EQUAL).verdict == "right"
    assert judge(apart(took, whole, honest).tolist(), EQUAL).verdict == "wrong"
    dispute = Dispute("target", "auditor")
    dispute.agree("target", "auditor")
    dispute.add("honest")
    found = dispute.outcome(lambda peer: 0.5)
    assert found.wrong == () and found.ask


async def test_the_view_of_a_victim_is_flooded_with_peers_that_there_are_not(
    autojump_clock: MockClock,
) -> None:
    async with scene() as stage, trio.open_nursery() as nursery:
        got: list[bytes] = []

        async def hear(stream: MemoryStream) -> None:
            while len(piece := await stream.receive()):
                got.append(bytes(piece))

        stage.judge.host.handle(PROTOCOL, hear)  # type: ignore[arg-type]

        async def nothing(peer: str) -> None:
            await trio.lowlevel.checkpoint()

        host: Any = stage.accuser
        host.connected = lambda: ("zz, who is spared", stage.judge.host.peer_id)
        host.dial_known = host.identified = nothing
        host.claims = lambda peer: SimpleNamespace(protocols=(PROTOCOL,))
        nursery.start_soon(flood_views, host, 9, 1)
        await trio.sleep(3.5 * ROUND_S)
        nursery.cancel_scope.cancel()
        letters = b"".join(got).count(b"view")
        assert letters >= 3
    view = View(nobody(VIEW_MAX, 9))
    assert len({one.peer for one in view.members}) == VIEW_MAX
    assert len(encode(view)) <= LETTER_BYTES_MAX
