"""How a peer that took work, and the one that gave it, come to sign a tally.

The taker opens a stream, for it is the one who can: a giver cannot dial a client. It says whose
account it takes on, by the account's signature, and what it took since their last tally. The giver
offers a tally of that much, or of what it counted itself if that is less; the taker checks the
offer, keeps it, and only then hands it back with its signature.

    taker                                        giver
      Greeting(boot, took, head, shown) ────────▶  head: the last tally; shown: by others who owe it
      ◀──────────────────────── Claim(head, offer)
      Answer(tally) ────────────────────────────▶  kept by both

Neither loses anything by an answer that never comes: the taker has the tally, and shows it next
time. A restored disk is healed the same way, since each shows the other what both signed; and the
number under which one signs is taken from the clock anew each time.

A taker that signs less than it took has had the rest for nothing; once that is more than it took in
an interval its credit does not count here, until it has signed (algorithms.md 7). A giver that
claims too much gets no signature; nor does one that says we gave it more than we know of, beyond
what it gives us with it: what both signed bounds what either of us can ever be made to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from ..crypto.codec import Size, decode, encode
from ..crypto.envelope import OVERHEAD_BYTES, open_, sign
from ..crypto.keys import IdentityKey
from ..dht.record import SKEW_MAX_S
from ..errors import RemoteError
from .tally import (
    FIRST,
    OFFER_BYTES_MAX,
    TALLY_BYTES_MAX,
    Counter,
    Tally,
    Work,
    next_of,
    offer,
    read_offer,
    read_tally,
)

PROTOCOL: Final = "/potluck/credit/1"
SHOWN_MAX: Final = 16  # tallies of others; to check one costs the giver two signatures
GREETING_BYTES_MAX: Final = (SHOWN_MAX + 1) * TALLY_BYTES_MAX + 1024 + OVERHEAD_BYTES
CLAIM_BYTES_MAX: Final = TALLY_BYTES_MAX + OFFER_BYTES_MAX + 256
ANSWER_BYTES_MAX: Final = TALLY_BYTES_MAX + 256
SLACK: Final = 1e-9  # of a sum: floats are added in two orders
_GREETING: Final = "credit greeting"

RawTally = Annotated[bytes, Size(TALLY_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Greeting:
    """client and server: the ends of the stream, so that nobody else can use these words. boot:
    under which the account will sign. took: since the tally `head`; b"" when there is none."""

    client: Annotated[str, Size(64)]
    server: Annotated[str, Size(64)]
    boot: Counter
    took: Work
    head: RawTally
    shown: Annotated[tuple[RawTally, ...], Size(SHOWN_MAX)]


@dataclass(frozen=True, slots=True)
class Claim:
    """head: the giver's last tally, if the taker did not show it. offer: b"" for nothing."""

    head: RawTally
    offer: Annotated[bytes, Size(OFFER_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Answer:
    """tally: what both signed now; b"" when the taker does not agree."""

    tally: RawTally


def greet(account: IdentityKey, greeting: Greeting) -> bytes:
    return sign(account, _GREETING, encode(greeting))


def read_greeting(raw: bytes, *, client: str, server: str) -> tuple[str, Greeting]:
    """(whose account it is, what it says). Raises RemoteError."""
    account, body = open_(raw, _GREETING, max_bytes=GREETING_BYTES_MAX)
    greeting = decode(body, Greeting, max_bytes=GREETING_BYTES_MAX)
    if (greeting.client, greeting.server) != (client, server):
        raise RemoteError("a greeting for others")
    return account, greeting


def read_head(raw: bytes, one: str, other: str) -> Tally:
    """A tally of these two. Raises RemoteError."""
    tally = read_tally(raw)
    if set(tally.peers) != {one, other}:
        raise RemoteError("a tally of others for our own")
    return tally


def make_offer(
    key: IdentityKey, last: Tally, *, boot: int, their_boot: int, gave: float, now: float
) -> bytes:
    tally = next_of(
        last, key.peer_id, boot=boot, their_boot=their_boot,
        gave=gave, took=0.0, now=now, since=FIRST,
    )  # fmt: skip
    return offer(key, tally)


def check_offer(
    raw: bytes, last: Tally, giver: str, me: str, *, boot: int, took: float, now: float
) -> Tally:
    """What `giver` offers after `last` says no more than that we took so much, and may be signed
    under this boot. Raises RemoteError otherwise.

    What we gave may be more than `last` says, for of two tallies at once one may have been lost;
    by how much is bounded by what is taken now, so that it costs work to make it up.
    """
    by, tally = read_offer(raw)
    if by != giver or set(tally.peers) != {giver, me}:
        raise RemoteError("an offer of others")
    if tally.boot(me) != boot or tally.seq != last.seq + 1:
        raise RemoteError("an offer for another place")
    if tally.at_s > now + SKEW_MAX_S:
        raise RemoteError("an offer from the future")
    for who in (giver, me):
        more = tally.gave(who) - last.gave(who)
        if not 0 <= more <= took + (last.gave(who) + took) * SLACK:
            raise RemoteError(f"an offer of {more:.6g} more by {who}, when we took {took:.6g}")
    return tally
