"""Accused work is computed once more, by this node, if it serves those blocks.

    accuser ── exhibit ──▶ does it fit what the accused signed? ── no ──▶ "right": refuted
                             └─ yes ─▶ our own server, as a client's prompt ─▶ judge ─▶ verdict

It is served as any prompt is, by peer in turn and behind steps that somebody waits to read, and
given up when there is no room: others serve the same blocks. Accusers are cheap: after each case
the device rests from them nine times as long as it took.

The accuser chose the rows. In one class of equal bits an honest peer gives ours, whatever they are:
only there is work found wrong. Between two others whoever searches long enough finds rows in which
a rounding grows until an honest peer's answer is far from ours, and no limit that was measured on
natural rows says anything of those; a liar in such a class is banned by each client's own audits.
Nothing is said either where no limit was measured, and where ours is too coarse to tell: who is off
by less than two honest peers may be is not right beyond doubt, and its accuser is not refuted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, cast

import trio

from ...crypto.codec import decode
from ...crypto.merkle import leaves_of, root_of
from ...errors import Refused, RemoteError, TransportError
from ...swarm.audit import judge
from ...swarm.blocks import BlockRange
from ...swarm.ledger import Work
from ...swarm.receipt import Account
from ...swarm.rows import row_bytes
from ...swarm.testimony import Case, Verdict
from ...swarm.tolerance import EXACT
from ..compute.compare import errors_of
from ..log import get_logger
from ..loopback import Loopback, Serve
from ..net.host import Host
from .again import Again, compute_again, is_whole, took_last
from .exhibit import BYTES_MAX, Exhibit, fetch
from .limits import Limits

COMPUTE_S: Final = 120.0  # guess: a long prompt, while others are served
REST: Final = 9.0  # for each second of it: accusers are cheap, and get a tenth of the time
REST_MOST_S: Final = 300.0

log = get_logger()


class Unfounded(RemoteError):
    """An exhibit that does not show what its accuser signed that it would."""


def work_of(raw: bytes, case: Case) -> Work | None:
    """The work that the accused signed for; None when that cannot be told, because some of its
    rows were taken back later. Blocks: it hashes every row. Raises Unfounded."""
    try:
        told = decode(raw, Exhibit, max_bytes=BYTES_MAX)
        account = Account(told.account[0])
        for signed in told.account[1:]:
            account.add(signed)
    except RemoteError as error:
        raise Unfounded(str(error)) from error
    if (told.account[0], told.account[-1]) != (case.told.opening, case.told.chunk):
        raise Unfounded("the account of other work")
    opening, last = account.opening, account.chunks[-1]
    try:
        size = row_bytes(opening.width, opening.dtype)
    except RemoteError as error:
        raise Unfounded(str(error)) from error
    if (sum(told.sizes), len(told.took)) != (last.stop, last.stop * size):
        raise Unfounded(f"rows of {len(told.took)} bytes for {last.stop} positions")
    if len(told.gave) != last.rows * size:
        raise Unfounded(f"{len(told.gave)} bytes given for {last.rows} rows")
    if root_of(leaves_of(told.gave, size)) != last.gave:
        raise Unfounded("rows that were not given")
    standing = [chunk for _, chunk in account.standing()]
    if [chunk.at for chunk in standing] != [0, *(chunk.stop for chunk in standing[:-1])]:
        return None
    for chunk in standing:
        rows = told.took[chunk.at * size : chunk.stop * size]
        if root_of(leaves_of(rows, size)) != chunk.took:
            raise Unfounded(f"rows of {chunk.at}..{chunk.stop} that were not taken")
    took = tuple(_cut(told.took, told.sizes, size))
    return Work(
        account.peer, account, len(account.chunks) - 1, opening.blocks, opening.numerics,
        opening.dtype, told.sizes, took, last.rows, told.gave,
    )  # fmt: skip


def _cut(took: bytes, sizes: tuple[int, ...], row_size: int) -> Iterator[memoryview]:
    rows, at = memoryview(took), 0
    for size in sizes:
        yield rows[at : at + size * row_size]
        at += size * row_size


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
        self._rests_until_s = 0.0

    async def compute(self, case: Case) -> Verdict | None:
        """None when nothing sure came of it. One case at a time."""
        if not self._holds(case):
            return None
        await trio.sleep_until(self._rests_until_s)
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
        began_s = trio.current_time()
        try:
            return await self._judge(work, case.told.error)
        finally:
            now = trio.current_time()
            self._rests_until_s = now + min(REST_MOST_S, REST * (now - began_s))

    def _holds(self, case: Case) -> bool:
        model = case.opening.model.hex()
        return any(
            digest == model and blocks.covers(case.opening.blocks)
            for digest, blocks in self._serving()
        )

    async def _judge(self, work: Work, off: float) -> Verdict | None:
        """off: by how much, as its accuser says."""
        again = await self._again(work)
        if again is None:
            return None
        model = work.account.opening.model.hex()
        tolerance = self._limits.of(
            model, work.numerics, again.numerics, work.dtype, len(work.blocks)
        )
        if tolerance is None:
            return None
        compare = partial(
            errors_of, rows=work.rows, width=work.account.opening.width, dtype=work.dtype
        )
        try:
            errors = await trio.to_thread.run_sync(compare, took_last(work), work.gave, again.gave)
        except RemoteError:  # ours was read when it came: what the accused gave are no numbers
            return "wrong" if tolerance == EXACT else None
        verdict = judge(errors, tolerance).verdict
        if tolerance == EXACT:
            return None if verdict == "open" else verdict
        return "right" if verdict == "right" and off > 2 * tolerance.limit else None

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
