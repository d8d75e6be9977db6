"""Services of py-libp2p, run so that no peer's bytes can end them.

A service (Pubsub, GossipSub, KadDHT) has a manager, which runs a task for each message or peer. In
py-libp2p whatever one of these tasks raises ends the service, and with it the host: a gossip
message with a key that is none is enough (H3 of the audit in DECISIONS.md). Here it ends the task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import structlog
import trio
from libp2p.tools.anyio_service.trio_manager import TrioManager

from ...errors import Refused, RemoteError, TransportError
from .guard import foreign

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs of trio that libp2p brings shadow trio's own

Work = Callable[..., Awaitable[None]]

AGAIN_S = 1.0  # until a loop that has fallen starts anew: gossipsub's own heartbeat

log = structlog.get_logger()


class GuardedManager(TrioManager):  # type: ignore[misc]  # libp2p's types are not read strictly
    """Runs a service; what one of its tasks raises ends that task alone.

    Nobody is blamed: it may be what a third peer signed, or a stream that broke while we sent.
    A daemon task (a heartbeat, say) is a loop over what peers have said: it starts anew.
    """

    def run_task(
        self,
        async_fn: Work,
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        if not _internal:  # the service's own `run`: its end is the service's
            async_fn = self._guarded(async_fn, again=daemon)
        super().run_task(async_fn, *args, daemon=daemon, name=name, _internal=_internal)

    def _guarded(self, async_fn: Work, *, again: bool) -> Work:
        @wraps(async_fn)
        async def guarded(*args: Any) -> None:
            while True:
                try:
                    with foreign(async_fn.__qualname__):
                        await async_fn(*args)
                    return
                except (RemoteError, TransportError, Refused) as error:
                    log.debug("a task of a service failed", reason=f"{error!s:.200}", again=again)
                if not again:
                    return
                await trio.sleep(AGAIN_S)

        return guarded


async def run_service(
    service: Any, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """A service: runs one of py-libp2p's until it is cancelled; ready when its manager is."""
    manager = GuardedManager(service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.run)
        await manager.wait_started()
        task_status.started()
