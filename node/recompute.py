"""Accused work is computed once more, by this node, if it serves those blocks.

    accuser ── exhibit ──▶ does it fit what the accused signed? ── no ──▶ "right": refuted
                             └─ yes ─▶ our own server, as a client's prompt ─▶ judge ─▶ verdict

It is served as any prompt is, by peer in turn and behind steps that somebody waits to read, and
given up when there is no room: others serve the same blocks. Where no limit between the accused's
class of numbers and ours was measured, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, cast

import trio

from ..errors import Refused, RemoteError, TransportError
from ..swarm.audit import judge
from ..swarm.blocks import BlockRange
from ..swarm.ledger import Work
from ..swarm.testimony import Case, Verdict
from .again import Again, compute_again, is_whole, took_last
from .compute.compare import errors_of
from .exhibit import Unfounded, fetch, work_of
from .limits import Limits
from .log import get_logger
from .loopback import Loopback, Serve
from .net.host import Host

COMPUTE_S: Final = 120.0  # guess: a long prompt, while others are served

log = get_logger()


class Recomputer:
    """serving: which blocks of which models, now; serve: the handler of session streams."""

    def __init__(
        self,
        host: Host,
        serving: Callable[[], Iterable[tuple[str, BlockRange]]],
        serve: Serve,
        limits: Limits,
    ) -> None:
        self._host = host
        self._serving = serving
        self._serve = serve
        self._limits = limits

    async def compute(self, case: Case) -> Verdict | None:
        """None when nothing sure came of it."""
        if not self._holds(case):
            return None
        try:
            raw = await fetch(self._host, case.accuser, case.told.inputs)
            work = await trio.to_thread.run_sync(work_of, raw, case)
        except Unfounded as error:
            log.info("unfounded", accuser=case.accuser, reason=str(error))
            return "right"
        except (TransportError, RemoteError) as error:
            log.debug("no exhibit", accuser=case.accuser, reason=str(error))
            return None
        if work is None or not is_whole(work):
            return None
        return await self._judge(work)

    def _holds(self, case: Case) -> bool:
        model = case.opening.model.hex()
        return any(
            digest == model and blocks.covers(case.opening.blocks)
            for digest, blocks in self._serving()
        )

    async def _judge(self, work: Work) -> Verdict | None:
        again = await self._again(work)
        if again is None:
            return None
        compare = partial(
            errors_of, rows=work.rows, width=work.account.opening.width, dtype=work.dtype
        )
        try:
            errors = await trio.to_thread.run_sync(compare, took_last(work), work.gave, again.gave)
        except RemoteError:
            return "wrong"  # ours was read when it came: what the accused gave are no numbers
        model = work.account.opening.model.hex()
        found = judge(errors, self._limits.of(model, work.numerics, again.numerics))
        return found.verdict if found.verdict != "open" else None

    async def _again(self, work: Work) -> Again | None:
        """By our own server; None when that has no room, or no time."""
        me = self._host.peer_id
        async with trio.open_nursery() as nursery:
            ourselves = cast("Host", Loopback(me, self._serve, nursery))
            try:
                with trio.fail_after(COMPUTE_S):
                    return await compute_again(ourselves, me, work)
            except (TransportError, RemoteError, Refused, trio.TooSlowError) as error:
                log.debug("not computed again", reason=str(error))
            finally:
                nursery.cancel_scope.cancel()
        return None
