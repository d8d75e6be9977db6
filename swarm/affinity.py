"""Which of several equal peers a prompt goes to: one of two that its beginning names.

DualMap (ICLR 2026): two independent hashes of a prompt's beginning name two candidates among the
peers of a span group, which serve the same blocks. So prompts that begin alike meet what was
computed for the others, while a beginning that many have finds two peers, and not one. Between the
two decides the predicted time to the first token; the one with more of the prompt is taken as long
as that is soon enough, and where neither is, load alone decides, as for any other session.

    beginning ─ hash 1 ─▶ A: wait 0.1 s, holds 1,500 of 1,600 ─▶ 0.3 s   ◀── taken
              └ hash 2 ─▶ B: wait 0.0 s, holds nothing        ─▶ 3.2 s
    the least loaded of all: C, 3.1 s                     soon enough: 2 s, or 1.5 times C's

The candidates are those of highest random weight (Thaler and Ravishankar, 1998): who joins takes
over two n-ths of the beginnings, and nobody else's change. No peer hears the hash. Whoever shares
with nobody hashes with a secret, so that the many who begin in the same words are spread.

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
SLACK: Final = 1.5  # guess: so many times as long as load alone would wait is soon enough
HASHED_TOKENS: Final = 256  # algorithms.md 9: of a prompt, which name the candidates
ANSWER_TOKENS: Final = 128  # guess: of the answer, over whose steps a prompt's cost is spread
_RINGS: Final = (b"1", b"2")


@dataclass(frozen=True, slots=True)
class Bid:
    """One peer's prospects. ttft_s: until the first token, predicted. held: tokens of the prompt
    that it need not compute."""

    peer: str
    ttft_s: float
    held: int


def key_of(names: Sequence[bytes], secret: bytes = b"") -> bytes | None:
    """By which a prompt of these names is placed; None: it is too short. secret: of whoever shares
    it with nobody."""
    place = HASHED_TOKENS // GRAIN
    return None if len(names) < place else digest("affinity", secret, names[place - 1])


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


def choose(bids: Sequence[Bid], least_s: float) -> Bid | None:
    """Of the candidates' bids, first the first one's. least_s: of the best by load alone. None:
    neither is soon enough."""
    soon = [bid for bid in bids if bid.ttft_s <= max(SOON_S, SLACK * least_s)]
    if not soon:
        return None
    most = max(bid.held for bid in soon)
    return min((bid for bid in soon if bid.held == most), key=lambda bid: bid.ttft_s)


def groups_of(spans: Sequence[Span]) -> Mapping[BlockRange, list[Span]]:
    """The spans by the blocks that they are of."""
    found: dict[BlockRange, list[Span]] = {}
    for span in spans:
        found.setdefault(span.blocks, []).append(span)
    return found


def named(spans: Sequence[Span], key: bytes) -> list[str]:
    """The candidates of all span groups: whom to ask for their queues."""
    return [
        peer
        for group in groups_of(spans).values()
        for peer in candidates(key, [span.peer for span in group])
    ]


def prefer(
    spans: Sequence[Span], key: bytes, tokens: int, held: Callable[[str], int]
) -> list[Span] | None:
    """Of each span group the one that the prompt goes to, or all of a group where load decides;
    with what they hold of it. None: load decides everywhere. held: tokens, by peer."""
    found: list[Span] = []
    narrowed = False
    for group in groups_of(spans).values():
        bids = {span.peer: bid_of(span, tokens, held(span.peer)) for span in group}
        least_s = min(bid.ttft_s for bid in bids.values())
        best = choose([bids[peer] for peer in candidates(key, list(bids))], least_s)
        narrowed = narrowed or best is not None
        found += [
            replace(span, cached_tokens=bids[span.peer].held // ANSWER_TOKENS)
            for span in group
            if best is None or span.peer == best.peer
        ]
    return found if narrowed else None
