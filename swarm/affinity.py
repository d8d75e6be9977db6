"""Which of several equal peers a prompt goes to: where its beginning is, or will be for others too.

What a client shares with nobody is where it brought it, and it knows where that is. For what is
shared on purpose two independent hashes of the beginning name two candidates among the peers of a
span group, which serve the same blocks (DualMap, ICLR 2026). So clients that know nothing of each
other meet, while a beginning that many have finds two peers, and not one. Who holds most of the
prompt is taken as long as the predicted time to the first token is soon enough, and where nobody's
is, load alone decides, as for any other session.

    beginning ─ hash 1 ─▶ A: waits 0.1 s, is taken to hold it ─▶ 0.3 s   ◀── soon enough
              ├ hash 2 ─▶ B: waits 0.0 s, holds nothing       ─▶ 3.2 s       1.5 times C's, or 2 s
              └ known ──▶ D: waits 9.0 s, holds all           ─▶ 9.1 s
    the least loaded of all:  C                               ─▶ 3.1 s

The first candidate is taken to hold what is shared: whoever said it before went there. Candidates
are those of highest random weight (Thaler and Ravishankar, 1998): who joins takes over two n-ths of
the beginnings, and no other changes. No peer hears the hash.

What DualMap has in absolute seconds is relative here too: of a slow swarm no peer is soon enough,
and it is there that a prompt computed already is worth most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ..crypto.digest import digest
from .blocks import BlockRange
from .prefix import GRAIN
from .view import Span

SOON_S: Final = 2.0  # algorithms.md 9: DualMap's bound on the time to the first token
# So many times as long as load alone would wait is soon enough for whom has all of a prompt, and
# for whom has nothing not a moment longer. Sim (`prefix`, load 1.5): at 1.5 .53 hit, at 3 .85.
SLACK: Final = 3.0
HASHED_TOKENS: Final = 256  # algorithms.md 9: of a prompt, which name the candidates
ANSWER_TOKENS: Final = 128  # guess: of the answer, over whose steps a prompt's cost is spread
KNOWN_MAX: Final = 2  # of a span group, who are asked because they are known to hold the prompt
_RINGS: Final = (b"1", b"2")


@dataclass(frozen=True, slots=True)
class Bid:
    """One peer's prospects. ttft_s: until the first token, predicted. held: tokens of the prompt
    that it need not compute."""

    peer: str
    ttft_s: float
    held: int


def key_of(names: Sequence[bytes]) -> bytes | None:
    """By which a prompt of these names is placed; None: it is too short."""
    place = HASHED_TOKENS // GRAIN
    return None if len(names) < place else names[place - 1]


def candidates(key: bytes, peers: Sequence[str]) -> tuple[str, ...]:
    """The two of these peers that a key names, the first one first; fewer of fewer."""
    found: list[str] = []
    for ring in _RINGS:
        others = [peer for peer in peers if peer not in found]
        if others:
            found.append(max(others, key=lambda peer: digest("affinity", ring, key, peer.encode())))
    return tuple(found)


def step_tokens(tokens: int) -> float:
    """How many tokens a step of a session with a prompt of so many has, that spread over its steps:
    for a route that is to be good for the prompt and for the answer."""
    return 1 + tokens / ANSWER_TOKENS


def bid_of(span: Span, tokens: int, held: int) -> Bid:
    """What a peer is thought to take for a prompt of so many tokens through all of its span."""
    left = max(1, tokens - held)
    work_s = left * span.block_s * len(span.blocks)
    return Bid(span.peer, span.weight * (span.rtt_s + span.queue_s + work_s), held)


def choose(bids: Sequence[Bid], tokens: int, least_s: float, share: float = 1.0) -> Bid | None:
    """Who holds most of the prompt, of equals the first. tokens: of the prompt. least_s: of the
    best by load alone. share: of the model that these serve. None: nobody is soon enough."""

    def limit_s(bid: Bid) -> float:
        slack = 1 + (SLACK - 1) * min(1.0, bid.held / tokens)
        return max(share * SOON_S, slack * least_s)

    soon = [bid for bid in bids if bid.ttft_s <= limit_s(bid)]
    return max(soon, key=lambda bid: bid.held, default=None)


def groups_of(spans: Sequence[Span]) -> Mapping[BlockRange, list[Span]]:
    """The spans by the blocks that they are of."""
    found: dict[BlockRange, list[Span]] = {}
    for span in spans:
        found.setdefault(span.blocks, []).append(span)
    return found


class Placing:
    """Of one prompt. key: of what is shared; None: it is not, or too short. held: how many of its
    tokens a peer is known to hold."""

    def __init__(self, tokens: int, key: bytes | None, held: Callable[[str], int]) -> None:
        self.tokens, self._key, self._held = tokens, key, held

    def bidders(self, group: Sequence[Span]) -> dict[str, int]:
        """Who of a span group is thought of, and how much of the prompt each is taken to hold."""
        peers = [span.peer for span in group]
        found: dict[str, int] = {}
        if self._key is not None:
            first, *others = candidates(self._key, peers)
            found[first] = self.tokens
            found |= {peer: self._held(peer) for peer in others}
        known = sorted((peer for peer in peers if self._held(peer)), key=self._held, reverse=True)
        for peer in known[:KNOWN_MAX]:
            found.setdefault(peer, self._held(peer))
        return found

    def asked(self, spans: Sequence[Span]) -> list[str]:
        """Whose queues are to be read first."""
        return [peer for group in groups_of(spans).values() for peer in self.bidders(group)]

    def prefer(self, spans: Sequence[Span], blocks: int) -> list[Span] | None:
        """Of each span group the one that the prompt goes to, or all of a group where load decides;
        with what they hold of it, spread as by `step_tokens`. None: load decides everywhere.
        blocks: of the model."""
        found: list[Span] = []
        narrowed = False
        for group in groups_of(spans).values():
            bidders = self.bidders(group)
            by_load = [bid_of(span, self.tokens, self._held(span.peer)).ttft_s for span in group]
            named = {span.peer: span for span in group if span.peer in bidders}
            bids = [bid_of(named[peer], self.tokens, held) for peer, held in bidders.items()]
            best = choose(bids, self.tokens, min(by_load), len(group[0].blocks) / blocks)
            narrowed = narrowed or best is not None
            found += [
                replace(span, cached_tokens=bidders.get(span.peer, 0) // ANSWER_TOKENS)
                for span in group
                if best is None or span.peer == best.peer
            ]
        return found if narrowed else None
