"""Which sessions a server takes: a cache budget, a lease for each, a share for each peer.

The unit is one position in one block, counted in whole pages where the cache has pages, so that
what is promised is there to the last one. A session reserves what it may grow to when it opens, so
that no step is ever refused for room; whoever does not fit is told when to come back instead of
waiting in a line without bound (Petals lets a client hold a server's whole cache for half an hour).

When to come back follows from how long sessions were held lately: of holdings d, whoever looks at a
random moment finds one with E[d^2] / 2 E[d] left on the mean (renewal theory's residual life; those
that are opened and closed at once do not count in it), and what is taken is given back at about
taken / residual. Before any has ended, a lease is thought to last as long as it has (Lindy).

A span that lies on several devices has a budget for each, and whoever is admitted has room on all
of those that its blocks lie on. What is free is then the least of them: a session of any of the
blocks that asks for no more has it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

from ..errors import Refused
from .blocks import BlockRange

RETRY_SOONEST_S = 0.5
RETRY_LATEST_S = 30.0
EVERY = BlockRange(0, 1 << 62)  # of a model, whatever its size
SMOOTHING = 0.125  # guess: as of round trips; a dozen sessions to believe a change


@dataclass(frozen=True, slots=True)
class Part:
    """What one device of several remembers: of these blocks, positions times blocks, and of those
    so many in one session; None: all of them."""

    blocks: BlockRange
    cache_tokens: int
    session_tokens_max: int | None = None


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """cache_tokens: positions times blocks that fit in the device's memory. page_tokens: positions
    that a page of one block holds. session_tokens_max: positions times blocks of one session; None:
    all of them. parts: where there are several devices, in place of what one of them has."""

    cache_tokens: int
    page_tokens: int = 1
    session_tokens_max: int | None = None
    parts: tuple[Part, ...] = ()
    sessions_max: int = 4096  # a session at rest costs a stream and a task, about 60 KiB
    peer_share: float = 0.75  # guess: one peer may fill three quarters, never all
    credit_share: float = 0.25  # guess: kept for peers with credit, while one of them is there
    lease_s: float = 120.0  # guess: longer than any pause of a live client, which renews


@dataclass(slots=True)
class _Lease:
    peer: str
    tokens: tuple[int, ...]  # of each part
    since_s: float
    expires_s: float


class Admission:
    """The book of leases. Times are seconds on the caller's clock."""

    def __init__(
        self, config: AdmissionConfig, credited: Callable[[], Collection[str]] = tuple
    ) -> None:
        """credited: who is there and has credit (credit.py)."""
        self._config = config
        self._credited = credited
        self._leases: dict[Hashable, _Lease] = {}
        self._parts = config.parts or (Part(EVERY, config.cache_tokens, config.session_tokens_max),)
        self._taken = [0] * len(self._parts)
        self._taken_by: dict[str, list[int]] = {}
        self._leaving = False
        self._ended = 0
        self._held_s = 0.0  # moving averages over holdings that have ended: of d,
        self._held_s2 = 0.0  # and of d * d

    @property
    def free_tokens(self) -> int:
        return min(
            part.cache_tokens - taken for part, taken in zip(self._parts, self._taken, strict=True)
        )

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
        each = -(-tokens // page) * page
        wanted = tuple(each * part.blocks.common(blocks) for part in self._parts)
        if self._leaving:
            raise Refused("the server is leaving", retry_after_s=RETRY_LATEST_S)
        for part, size in zip(self._parts, wanted, strict=True):
            most = part.session_tokens_max or part.cache_tokens
            if size > most:
                raise Refused(
                    f"{size} cache positions asked for, the server has {most} for a session",
                    retry_after_s=RETRY_LATEST_S,
                )
        if len(self._leases) >= self._config.sessions_max:
            raise Refused("too many sessions", retry_after_s=self._retry_after_s(0.0, now))
        theirs = self._taken_by.get(peer) or [0] * len(self._parts)
        self._require_room(peer, wanted, now)
        self._require_share(theirs, wanted, now)
        self._leases[session] = _Lease(peer, wanted, now, now + self._config.lease_s)
        self._taken = _sums(self._taken, wanted)
        self._taken_by[peer] = _sums(theirs, wanted)

    def _require_room(self, peer: str, wanted: tuple[int, ...], now: float) -> None:
        kept = self._is_kept_from(peer)
        for part, taken, size in zip(self._parts, self._taken, wanted, strict=True):
            free = part.cache_tokens - taken
            if kept and taken and size:
                free -= int(self._config.credit_share * part.cache_tokens)
            if size > free:
                share = min(1.0, (size - free) / taken)
                raise Refused("the cache is full", retry_after_s=self._retry_after_s(share, now))

    def _require_share(self, theirs: list[int], wanted: tuple[int, ...], now: float) -> None:
        """One who has something already gets no more than a peer's share of each part."""
        for part, has, size in zip(self._parts, theirs, wanted, strict=True):
            beyond = has + size - self._config.peer_share * part.cache_tokens
            if has and size and beyond > 0:
                raise Refused(
                    "your share of the cache is full",
                    retry_after_s=self._retry_after_s(min(beyond / has, 1.0), now),
                )

    def _is_kept_from(self, peer: str) -> bool:
        """Whether some of the room is not for this one."""
        credited = self._credited()
        return bool(credited) and peer not in credited

    def renew(self, session: Hashable, now: float) -> None:
        self._leases[session].expires_s = now + self._config.lease_s

    def expires_s(self, session: Hashable) -> float:
        return self._leases[session].expires_s

    def release(self, session: Hashable, now: float) -> None:
        lease = self._leases.pop(session)
        self._observe(now - lease.since_s)
        back = tuple(-size for size in lease.tokens)
        self._taken = _sums(self._taken, back)
        left = _sums(self._taken_by[lease.peer], back)
        if any(left):
            self._taken_by[lease.peer] = left
        else:
            del self._taken_by[lease.peer]

    def _observe(self, held_s: float) -> None:
        self._ended += 1
        weight = max(SMOOTHING, 1 / self._ended)
        self._held_s += weight * (held_s - self._held_s)
        self._held_s2 += weight * (held_s * held_s - self._held_s2)

    def _residual_s(self, now: float) -> float:
        """How much longer a lease of now is likely to be held."""
        if self._held_s > 0:
            return self._held_s2 / (2 * self._held_s)
        return sum(now - lease.since_s for lease in self._leases.values()) / len(self._leases)

    def _retry_after_s(self, share: float, now: float) -> float:
        """When about this share of what is taken will have been given back; one lease at least."""
        wait_s = self._residual_s(now) * max(share, 1 / len(self._leases))
        return min(max(wait_s, RETRY_SOONEST_S), RETRY_LATEST_S)


def _sums(some: Sequence[int], others: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(some, others, strict=True)]
