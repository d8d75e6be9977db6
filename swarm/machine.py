"""What every machine takes in and gives out: events and effects as nouns.

A machine is plain state with `handle(event, now) -> list[Effect]`. It has no clock, socket, dice
or tensor of its own: the daemon's driver and the simulator run the same objects. After every call
the caller performs the effects in the order given; a timer is known by its key, and setting a
timer that is set moves it. (The shape follows etcd's raft and h11.)
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fired:
    """An event: the timer `key` has reached its time."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class SetTimer:
    """An effect: hand in `Fired(key)` once `at_s`, on the caller's clock, has come."""

    key: Hashable
    at_s: float


@dataclass(frozen=True, slots=True)
class StopTimer:
    """An effect: forget the timer `key`, if it is set."""

    key: Hashable
