"""Where each peer may be dialed, and which of its addresses failed lately. Nothing here waits.

Bounded: the peers heard of longest ago are forgotten first, and of one peer's addresses those that
it named longest ago. An address that failed is left alone for half a second, then twice as long
each time: a peer that restarts is soon found again, one that is gone costs little.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from .address import Address

PEERS_MAX = 4096  # a routing table holds some hundreds, a swarm's view some thousands
ADDRESSES_MAX = 16  # of one peer; go-libp2p dials at most 25
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0


@dataclass(slots=True)
class _Known:
    failures: int = 0
    not_before: float = 0.0
    worked_at: float = field(default=-1.0)


class AddressBook:
    """All addresses that we were told, by peer."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, OrderedDict[Address, _Known]] = OrderedDict()

    def learn(self, peer: str, addresses: Iterable[Address]) -> None:
        known = self._peers.setdefault(peer, OrderedDict())
        self._peers.move_to_end(peer)
        for address in addresses:
            key = address.bare
            known.setdefault(key, _Known())
            known.move_to_end(key)
        while len(known) > ADDRESSES_MAX:
            known.popitem(last=False)
        while len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)

    def known(self, peer: str) -> list[Address]:
        """All its addresses, the one that worked last first."""
        found = self._of(peer)
        return sorted(found, key=lambda address: -found[address].worked_at)

    def due(self, peer: str, now: float) -> list[Address]:
        """Those that may be tried now."""
        found = self._of(peer)
        return [address for address in self.known(peer) if found[address].not_before <= now]

    def worked(self, peer: str, address: Address, now: float) -> None:
        """Remember that this one led to the peer."""
        self.learn(peer, [address])
        key = address.bare
        self._peers[peer][key] = _Known(worked_at=now)

    def failed(self, peer: str, address: Address, now: float) -> None:
        key = address.bare
        known = self._of(peer).get(key)
        if known is not None:
            wait_s = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**known.failures)
            known.failures = min(known.failures + 1, 16)
            known.not_before = now + wait_s

    def forgive(self, peer: str | None = None) -> None:
        """Every address may be tried at once, of this peer or of all: it was not their fault."""
        for known in self._peers.values() if peer is None else [self._of(peer)]:
            for address in known.values():
                address.failures, address.not_before = 0, 0.0

    def _of(self, peer: str) -> OrderedDict[Address, _Known]:
        return self._peers.get(peer) or OrderedDict()
