"""What the peer sampling (swarm/sampling.py) hears and does, and what it says on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ..crypto.codec import Size as Length
from ..crypto.keys import PEER_ID_CHARS
from .machine import Fired, SetTimer

PROTOCOL: Final = "/potluck/sample/1"
VIEW_MAX: Final = 256  # peers in a message
ADDRESS_CHARS_MAX: Final = 256
LETTER_BYTES_MAX: Final = VIEW_MAX * (PEER_ID_CHARS + ADDRESS_CHARS_MAX + 32)


@dataclass(frozen=True, slots=True)
class Member:
    """A peer, and the one address that it is ranked by and dialled at; hearsay until it answers.

    address: "" for one that speaks, but not from where it can be dialled.
    """

    peer: Annotated[str, Length(PEER_ID_CHARS, least=PEER_ID_CHARS)]
    address: Annotated[str, Length(ADDRESS_CHARS_MAX)]


@dataclass(frozen=True, slots=True)
class Pull:
    """Tell me your view."""

    TAG: ClassVar[str] = "pull"


@dataclass(frozen=True, slots=True)
class View:
    """Whom the sender's slots keep."""

    TAG: ClassVar[str] = "view"

    members: Annotated[tuple[Member, ...], Length(VIEW_MAX)]


Message = Pull | View


@dataclass(frozen=True, slots=True)
class Received:
    """An event: a message of a member that the road vouches for."""

    member: Member
    message: Message


@dataclass(frozen=True, slots=True)
class Heard:
    """An event: peers that somebody else names, such as the directory or the bootstrap list."""

    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """An event: this member could not be reached where it was said to be."""

    member: Member


@dataclass(frozen=True, slots=True)
class Shunned:
    """An event: this peer is not to be known any more, under whatever address."""

    peer: str


@dataclass(frozen=True, slots=True)
class Size:
    """An event: the swarm has about so many peers."""

    peers: int


@dataclass(frozen=True, slots=True)
class Send:
    """An effect: to this member, without waiting; `Lost` if it cannot be reached."""

    member: Member
    message: Message


@dataclass(frozen=True, slots=True)
class Walk:
    """An effect: look up a random place in the directory, and hand in all whom you met: `Heard`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An effect: a peer drawn at random from the swarm, that has answered since it was met."""

    member: Member


@dataclass(frozen=True, slots=True)
class Back:
    """An effect: this member was there once, then not, and is again: join the directory by it."""

    member: Member


Event = Received | Heard | Lost | Shunned | Size | Fired
Effect = Send | Sample | Walk | Back | SetTimer
