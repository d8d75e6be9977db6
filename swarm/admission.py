"""Which sessions a server takes: a cache budget, a lease for each, a share for each peer.

The unit is one position in one block, counted in whole pages where the cache has pages, so that
what is promised is there to the last one. A session reserves what it may grow to when it opens, so
that no step is ever refused for room; whoever does not fit is told when to come back instead of
waiting in a line without bound (Petals lets a client hold a server's whole cache for half an hour).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ..errors import Refused
from .blocks import BlockRange

RETRY_SOONEST_S = 0.5
RETRY_LATEST_S = 30.0


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """cache_tokens: positions times blocks that fit in the device's memory. page_tokens: positions
    that a page of one block holds."""

    cache_tokens: int
    page_tokens: int = 1
    sessions_max: int = 4096  # a session at rest costs a stream and a task, about 60 KiB
    peer_share: float = 0.75  # guess: one peer may fill three quarters, never all
    lease_s: float = 120.0  # guess: longer than any pause of a live client, which renews


@dataclass(slots=True)
class _Lease:
    peer: str
    tokens: int
    expires_s: float


class Admission:
    """The book of leases. Times are seconds on the caller's clock."""

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        self._leases: dict[Hashable, _Lease] = {}
        self._taken = 0
        self._taken_by: dict[str, int] = {}
        self._leaving = False

    @property
    def free_tokens(self) -> int:
        return self._config.cache_tokens - self._taken

    @property
    def sessions(self) -> int:
        return len(self._leases)

    @property
    def lease_s(self) -> float:
        return self._config.lease_s

    def leave(self) -> None:
        """From now on nobody is admitted."""
        self._leaving = True

    def admit(
        self, session: Hashable, peer: str, blocks: BlockRange, tokens: int, now: float
    ) -> None:
        """Reserve `tokens` positions in each block, in whole pages.

        Raises Refused when there is no room.
        """
        assert session not in self._leases
        page = self._config.page_tokens
        wanted = -(-tokens // page) * page * len(blocks)
        if self._leaving:
            raise Refused("the server is leaving", retry_after_s=RETRY_LATEST_S)
        if wanted > self._config.cache_tokens:
            raise Refused(
                f"{wanted} cache positions asked for, the server has {self._config.cache_tokens}",
                retry_after_s=RETRY_LATEST_S,
            )
        if len(self._leases) >= self._config.sessions_max:
            raise Refused("too many sessions", retry_after_s=self._retry_after_s(now))
        if wanted > self.free_tokens:
            raise Refused("the cache is full", retry_after_s=self._retry_after_s(now))
        theirs = self._taken_by.get(peer, 0)
        if theirs and theirs + wanted > self._config.peer_share * self._config.cache_tokens:
            raise Refused("your share of the cache is full", retry_after_s=self._retry_after_s(now))
        self._leases[session] = _Lease(peer, wanted, now + self._config.lease_s)
        self._taken += wanted
        self._taken_by[peer] = theirs + wanted

    def renew(self, session: Hashable, now: float) -> None:
        self._leases[session].expires_s = now + self._config.lease_s

    def expires_s(self, session: Hashable) -> float:
        return self._leases[session].expires_s

    def release(self, session: Hashable) -> None:
        lease = self._leases.pop(session)
        self._taken -= lease.tokens
        left = self._taken_by[lease.peer] - lease.tokens
        if left:
            self._taken_by[lease.peer] = left
        else:
            del self._taken_by[lease.peer]

    def _retry_after_s(self, now: float) -> float:
        """Until the soonest lease runs out, within bounds: most sessions end long before."""
        soonest_s = min((lease.expires_s for lease in self._leases.values()), default=now) - now
        return min(max(soonest_s / 10, RETRY_SOONEST_S), RETRY_LATEST_S)
