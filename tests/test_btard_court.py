"""Convictions of guarded groups among nodes: what contradicts itself all shun, the rest is kept."""

from __future__ import annotations

from pathlib import Path

import trio
from courts import town
from guards import RUN
from receipts import key
from trio.testing import MockClock, wait_all_tasks_blocked

from potluck.node.runs.btard_court import CASES, KEPT_MAX, Verdicts
from potluck.node.runs.btard_place import Conviction
from potluck.swarm.run.btard_wire import DOMAIN, Complaint, say
from potluck.swarm.testimony import Contradiction, contradiction_of

LIAR = key("liar")


def two_claims() -> Contradiction:
    one, other = (say(LIAR, RUN, 3, Complaint(0, about, False)).claim for about in (1, 2))
    return contradiction_of(DOMAIN, one, other)


async def test_who_contradicts_itself_in_a_group_is_shunned_by_all(
    autojump_clock: MockClock,
) -> None:
    async with town() as place:
        for number in range(5):
            await place.add(key(f"node {number}"))
        place.link(2)
        await trio.sleep(5)
        first = place.nodes[0]
        verdicts = Verdicts(first.court, first.trust.convict, None)
        verdicts.tell(Conviction(LIAR.peer_id, two_claims(), b""))
        await place.until(lambda: place.all_ban(LIAR.peer_id), 30)


async def test_a_case_is_kept_and_bans_here_and_what_nobody_can_check_does_not(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    banned: list[str] = []
    async with town() as place, trio.open_nursery() as nursery:
        await place.add(key("node"))
        verdicts = Verdicts(place.nodes[0].court, banned.append, tmp_path)
        nursery.start_soon(verdicts.run)
        verdicts.tell(Conviction("unseen", None, b""))
        for number in range(KEPT_MAX + 2):
            verdicts.tell(Conviction(f"peer {number:02}", None, b"case %d" % number))
            await wait_all_tasks_blocked()
            while verdicts._waiting.statistics().current_buffer_used:
                await wait_all_tasks_blocked()
        await _until_written(tmp_path, f"peer {KEPT_MAX + 1:02}")
        nursery.cancel_scope.cancel()
    assert banned == [f"peer {number:02}" for number in range(KEPT_MAX + 2)]
    kept = sorted(path.name for path in (tmp_path / CASES).iterdir())
    assert len(kept) == KEPT_MAX and "unseen" not in kept


async def _until_written(home: Path, name: str) -> None:
    with trio.fail_after(60):
        while not (home / CASES / name).exists():  # noqa: ASYNC110  # virtual time
            await trio.sleep(0.05)
