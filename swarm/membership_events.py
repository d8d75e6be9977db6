"""What membership takes in and gives out: events and effects as nouns (swarm/membership.py)."""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Fired, SetTimer, StopTimer
from .rumour import Message, State


@dataclass(frozen=True, slots=True)
class Received:
    """An event: a message of a peer that the road vouches for."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Known:
    """An event: the peers of the segment, and the boot of each, as their signed records tell."""

    peers: tuple[str, ...]
    boots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreached:
    """An event: the road says that this peer is not there: a dial refused, a connection over."""

    peer: str


@dataclass(frozen=True, slots=True)
class Send:
    """An effect: to this peer, without waiting; it may be lost."""

    peer: str
    message: Message


@dataclass(frozen=True, slots=True)
class Tell:
    """An effect: what we take this peer for has changed."""

    peer: str
    state: State


Event = Received | Known | Unreached | Fired
Effect = Send | Tell | SetTimer | StopTimer
