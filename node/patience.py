"""How long a session waits for a hop, and when it asks another beside it.

What is known of a peer says it (swarm/history.py); opening takes a dial, a reservation of cache
and, where one is worn, the time to bring an adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..swarm.adapter import Bundle
from ..swarm.routing import Hop
from .net.host import Host
from .pieces import seconds_for
from .router import Router

OPEN_S = 5.0  # guess: a dial over a bad road; a server that answers slowly opens slowly too
OPEN_HEDGE_S = 0.5  # guess: a round trip, and a pass of the device before ours
DIAL_HEDGE_S = 1.5  # guess: a dial over a bad road; punching takes longer, but not often


@dataclass(frozen=True, slots=True)
class Patience:
    """Of one session. adapter: that it wears."""

    host: Host
    router: Router
    adapter: Bundle | None

    def answer_s(self, hop: Hop, tokens: int) -> float:
        return self.router.history(hop.peer).patience_s(tokens, len(hop.blocks))

    def hedge_s(self, hop: Hop, tokens: int) -> float:
        router = self.router
        return router.history(hop.peer).hedge_s(tokens, len(hop.blocks), router.usual)

    def open_s(self, hop: Hop) -> float:
        return max(OPEN_S, 2 * self.answer_s(hop, 1)) + self._bring_s(hop)

    def open_hedge_s(self, hop: Hop) -> float:
        rtt_s = self.host.rtt_s(hop.peer)
        dial_s = DIAL_HEDGE_S if rtt_s is None else max(OPEN_HEDGE_S, 4 * rtt_s)
        return dial_s + self._bring_s(hop)

    def _bring_s(self, hop: Hop) -> float:
        """What it may take beside to bring the adapter."""
        worn = self.adapter
        return 0.0 if worn is None else seconds_for(worn.manifest.size(hop.blocks))
