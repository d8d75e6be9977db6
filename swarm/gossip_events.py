"""What the machine of gossip (gossip.py) takes in and gives out."""

from __future__ import annotations

from dataclasses import dataclass

from ..dht.network import Prefixes
from .machine import Fired, SetTimer
from .topics import Message, Rpc


@dataclass(frozen=True, slots=True)
class Joined:
    """An event: a neighbour can be spoken to. dialed: by us."""

    peer: str
    where: Prefixes
    dialed: bool


@dataclass(frozen=True, slots=True)
class Left:
    """An event."""

    peer: str


@dataclass(frozen=True, slots=True)
class Heard:
    """An event: what a neighbour said; None for what cannot be read."""

    peer: str
    rpc: Rpc | None


@dataclass(frozen=True, slots=True)
class Publish:
    """An event: a message of our own, or one that we judged good otherwise."""

    message: Message


@dataclass(frozen=True, slots=True)
class Subscribe:
    """An event: all topics that we want from now on."""

    topics: frozenset[str]


@dataclass(frozen=True, slots=True)
class Say:
    """An effect."""

    peer: str
    rpc: Rpc


@dataclass(frozen=True, slots=True)
class Shun:
    """An effect: have no more to do with this neighbour while `shunned`."""

    peer: str


Event = Joined | Left | Heard | Publish | Subscribe | Fired
Effect = Say | Shun | SetTimer
