"""What keeps peers from harming us: bounds on what they may hold, and on what they may break.

A peer can hold connections, streams and memory; and its bytes can make a parser raise. Stock
py-libp2p 0.8.1 bounds little of it (S1, H1 to H3, C1 of the audit in DECISIONS.md).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import PotluckError, RemoteError
from .access import Access, plain, subnet

if TYPE_CHECKING:
    from .mux import Mux

if sys.platform != "win32":
    import resource


REMEMBERED_MAX = 4096  # peers whose faults or bans are kept


@dataclass(frozen=True, slots=True)
class Limits:
    """What one host lets its peers take."""

    connections_max: int = 512  # go-libp2p's high watermark is 192; relays and bootstraps see more
    connections_per_subnet_max: int = 64  # a /24 or /56: a university behind few addresses
    handshakes_max: int = 64  # unfinished ones, in all; one more ends the oldest
    handshakes_per_subnet_max: int = 16
    handshake_s: float = 10.0  # three round trips of a satellite, and a busy machine
    negotiation_s: float = 10.0  # for the first words of a stream
    inbound_streams_max: int = 8192  # in all; a task of 10 KiB each
    unread_bytes_per_connection_max: int = 64 * 1024 * 1024  # guess: eight streams of 8 MiB
    unread_bytes_max: int = 256 * 1024 * 1024  # guess: a quarter of a small machine
    faults_max: int = 64  # guess: an honest peer makes none, a broken one many at once
    fault_forgiven_s: float = 5.0  # one every so often
    ban_s: float = 60.0


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turn whatever py-libp2p raises over a peer's bytes into RemoteError.

    Its parsers raise UnicodeDecodeError, AssertionError, protobuf's DecodeError and more, each of
    which ends a whole host of its own.
    """
    try:
        yield
    except PotluckError:
        raise
    except Exception as error:
        raise RemoteError(f"{what}: {type(error).__name__}: {error}") from error


class Unread:
    """Bytes that have arrived and that nobody has read: bounded per connection, and in all.

    Windows alone do not bound them: a thousand streams of 256 KiB are 256 MiB. When there are too
    many, the stream that holds most loses them; its reader was the slowest. A stream that is over
    counts as well, for what has come on it can still be read.
    """

    def __init__(self, *, connection_bytes_max: int, total_bytes_max: int) -> None:
        self._connection_bytes_max = connection_bytes_max
        self._total_bytes_max = total_bytes_max
        self.total_bytes = 0
        self._holders: set[Mux] = set()

    def add(self, mux: Mux, size: int) -> None:
        """Count bytes that came (or, below zero, went); reset the fullest stream if too many."""
        if mux.failure is not None:
            return  # forgotten already
        mux.unread_bytes += size
        self.total_bytes += size
        if mux.unread_bytes > self._connection_bytes_max:
            self._shed(mux)
        elif self.total_bytes > self._total_bytes_max:
            self._shed(max(self._holders, key=lambda holder: holder.unread_bytes))

    def watch(self, mux: Mux) -> None:
        self._holders.add(mux)

    def forget(self, mux: Mux) -> None:
        """The connection is over: what it held is gone, or goes with its readers."""
        self.total_bytes -= mux.unread_bytes
        mux.unread_bytes = 0
        self._holders.discard(mux)

    def _shed(self, mux: Mux) -> None:
        fullest = max((*mux.streams.values(), *mux.left_unread), key=lambda one: one.unread)
        fullest.reset_now(f"{fullest.unread} bytes came that nobody read, too many for this node")


class Gate:
    """Who may connect: the owner's lists, counts by subnet, unfinished handshakes, misbehaviour.

    Loopback has no subnet limit: a whole swarm may run on one machine.
    """

    def __init__(self, limits: Limits, access: Access | None = None) -> None:
        self._limits = limits
        self.access = access or Access()
        self.convicted: Callable[[str], bool] = lambda peer: False  # on evidence
        self._connections_max = min(limits.connections_max, _descriptors() // 2)
        self._connected: Counter[str] = Counter()
        self._shaking: Counter[str] = Counter()
        self._faults: dict[str, tuple[float, float]] = {}  # how many, as of when
        self._banned: dict[str, float] = {}  # until when

    def admits(self, host: str) -> bool:
        """Whether a connection from there may start its handshake."""
        if self.access.refuses_host(host):
            return False
        near = _subnet(host)
        if near is None:
            return True
        return (
            self._shaking[near] < self._limits.handshakes_per_subnet_max
            and self._connected[near] < self._limits.connections_per_subnet_max
        )

    @property
    def left(self) -> int:
        """Places that are free; below zero when newcomers wait for somebody to leave."""
        return self._connections_max - self._connected.total()

    def handshake_began(self, host: str) -> None:
        self._shaking[_subnet(host) or ""] += 1

    def handshake_over(self, host: str) -> None:
        _release(self._shaking, _subnet(host) or "")

    def connection_began(self, host: str) -> None:
        self._connected[_subnet(host) or ""] += 1

    def connection_over(self, host: str) -> None:
        """Its place is free again (C1: stock keeps it until the host ends)."""
        _release(self._connected, _subnet(host) or "")

    def fault(self, peer: str, now: float) -> bool:
        """Note a fault of a peer; True when that was one too many and it is banned."""
        count, since = self._faults.get(peer, (0.0, now))
        count = max(0.0, count - (now - since) / self._limits.fault_forgiven_s) + 1
        self._faults[peer] = (count, now)
        if len(self._faults) > REMEMBERED_MAX:
            del self._faults[next(iter(self._faults))]
        if count <= self._limits.faults_max:
            return False
        del self._faults[peer]
        self._banned[peer] = now + self._limits.ban_s
        if len(self._banned) > REMEMBERED_MAX:
            del self._banned[next(iter(self._banned))]
        return True

    def refuses(self, peer: str, host: str | None, now: float) -> str:
        """Why a peer that has proved who it is may not stay, or need not be dialed; "" if it may.

        host: its IP address; None over a relay, or while none is chosen.
        """
        if self.convicted(peer):
            return "it is banned, on evidence"
        if self.is_banned(peer, now):
            return "it is banned for its faults"
        return self.access.refuses_peer(peer, host)

    def welcomes(self, peer: str, now: float) -> bool:
        """Whether this peer may stay, from some address."""
        return (
            not self.convicted(peer) and not self.is_banned(peer, now) and self.access.may_be(peer)
        )

    def is_banned(self, peer: str, now: float) -> bool:
        until = self._banned.get(peer)
        if until is not None and until <= now:
            del self._banned[peer]
            return False
        return until is not None


def _release(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _subnet(host: str) -> str | None:
    """None for this machine."""
    return None if plain(host).is_loopback else subnet(host)


def _descriptors() -> int:
    """How many files and sockets this process may have open."""
    if sys.platform == "win32":
        return 8192  # sockets are no file descriptors there; the C runtime's limit for files
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft > 0 else 1 << 20
