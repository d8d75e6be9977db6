"""What a session's machine (session.py) takes in and gives out, and what it is told at birth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .blocks import BlockRange
from .machine import Fired, SetTimer, StopTimer
from .routing import Hop

Payload = bytes | bytearray | memoryview
Why = Literal["late", "leaving", "long"]  # the link, its server, or the session


@dataclass(frozen=True, slots=True)
class Feed:
    """An event: the next step, `tokens` rows of input at position `at`.

    An `at` below the session's length takes everything from there on back. rows: how many of the
    step's last rows of output are wanted. splits: each of its rows has the bits of a step of its
    own, so that what is taken back of it leaves a shorter step.
    """

    at: int
    tokens: int
    rows: int
    payload: Payload
    splits: bool = False


@dataclass(frozen=True, slots=True)
class TakeBack:
    """An event: positions from `at` on are not wanted, and nothing is fed in their place now."""

    at: int


@dataclass(frozen=True, slots=True)
class Routed:
    """An event: these hops shall cover the gap."""

    gap: int
    hops: tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """An event: the server at the other end of the link holds its cache."""

    link: int


@dataclass(frozen=True, slots=True)
class Answered:
    """An event: the next answer on this link."""

    link: int
    at: int
    rows: int
    payload: Payload


@dataclass(frozen=True, slots=True)
class Signed:
    """An event: the receipts came that this link was asked for, and they are right."""

    link: int


@dataclass(frozen=True, slots=True)
class Settle:
    """An event: nothing more is fed; have everything signed for."""


@dataclass(frozen=True, slots=True)
class Lost:
    """An event: the link is of no more use."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """An event: the server of this link will go; until then it serves on."""

    link: int


@dataclass(frozen=True, slots=True)
class StandbyFound:
    """An event: this peer can stand by for the link; None: nobody can now."""

    link: int
    peer: str | None


@dataclass(frozen=True, slots=True)
class FindRoute:
    """An effect: find hops for these blocks; `avoid` failed this session, the latest last."""

    gap: int
    blocks: BlockRange
    avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FindStandby:
    """An effect: find one peer for all of these blocks, none of `avoid`."""

    link: int
    blocks: BlockRange
    avoid: tuple[str, ...]
    why: Why


@dataclass(frozen=True, slots=True)
class OpenLink:
    """An effect: open a stream to this hop and have it reserve its cache."""

    link: int
    hop: Hop


@dataclass(frozen=True, slots=True)
class SendStep:
    """An effect: send these inputs, one payload a size, the first at position `at`.

    torn: the step before it reaches beyond `at`, in the journal too: its first rows have the bits
    of a step of all its rows.
    """

    link: int
    at: int
    sizes: tuple[int, ...]
    rows: int
    payloads: tuple[Payload, ...]
    torn: bool = False


@dataclass(frozen=True, slots=True)
class AskSign:
    """An effect: have this link's server sign for all that it was sent before. back: first it
    forgets positions from there on, which were taken back; None: there are none."""

    link: int
    back: int | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """An effect: what this link answered for positions `first` to `until` is what goes on."""

    link: int
    first: int
    until: int


@dataclass(frozen=True, slots=True)
class Uncounted:
    """An effect: what was answered up to this block for positions from `at` on went no further, and
    is computed anew."""

    block: int
    at: int


@dataclass(frozen=True, slots=True)
class CloseLink:
    """An effect: close the link's stream. `reason` is empty when the peer is not at fault."""

    link: int
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """An effect: the output of step `index`, its last `rows` rows. Each index comes once."""

    index: int
    payload: Payload


Event = (
    Feed | TakeBack | Routed | StandbyFound | Opened | Answered | Signed | Settle | Leaving | Lost
    | Fired
)  # fmt: skip
Effect = (
    FindRoute | FindStandby | OpenLink | SendStep | AskSign | Counted | Uncounted | CloseLink
    | Deliver | SetTimer | StopTimer
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """row_bytes: bytes of one token's hidden state. group_tokens: rows in one replay frame.

    patience_s: (hop, tokens) -> seconds that an answer may take. open_patience_s: hop -> seconds
    that a dial and the reservation of cache may take. hedge_s: (hop, tokens) -> seconds after
    which a standby is asked too, open_hedge_s: the same of an opening; None: never. standby_from:
    the length at which a session begins to keep standbys; None: never. cut_tokens: after how many
    tokens of small steps receipts are asked for; 0: never. alone: steps travel one by one, so that
    they may be pushed from hop to hop (chain.py), but for those of a replay.
    """

    blocks: BlockRange
    row_bytes: int
    group_tokens: int
    patience_s: Callable[[Hop, int], float]
    open_patience_s: Callable[[Hop], float]
    hedge_s: Callable[[Hop, int], float] | None = None
    standby_from: int | None = None
    open_hedge_s: Callable[[Hop], float] | None = None
    standby_chunk: int = 128  # algorithms.md 6.3
    cut_tokens: int = 0
    alone: bool = False
