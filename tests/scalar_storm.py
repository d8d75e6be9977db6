"""Runs by one byte a step in bad weather: seeded delays, lost talks, slow peers, kills, returns.

Everything is drawn from one seed: the roads' delays and losses, how long peers measure, who is
killed and when it is back. Threads' work is done in place, and trio draws its order from the seed
too, so a seed is one schedule, on any machine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
import trio
from scalar_world import Member, World, world
from sim.memory_host import MemoryStream
from torch import Tensor

from potluck.errors import TransportError

T = TypeVar("T")


@dataclass(frozen=True)
class Weather:
    """lost: of talks. delay_s, measure_s: at most; slow: the peers that take ten times as long.
    kills: of members, in the course of the run, each back after so long at most. cut: who is parted
    from the others, from when to when."""

    lost: float = 0.0
    delay_s: float = 0.5
    measure_s: float = 1.0
    slow: tuple[int, ...] = ()
    kills: int = 0
    back_s: float = 30.0
    cut: tuple[int, ...] = ()
    cut_s: tuple[float, float] = (0.0, 0.0)
    rounds: int = 26


@contextmanager
def one_schedule(monkeypatch: pytest.MonkeyPatch, seed: int) -> Iterator[Random]:
    """What a seed draws is all that differs between two runs of a test."""

    async def in_place(work: Callable[..., T], *args: Any, **how: Any) -> T:
        found = work(*args)
        await trio.lowlevel.checkpoint()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", in_place)
        patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        trio._core._run._r.seed(seed)
        yield Random(seed)


@dataclass
class Storm:
    made: World
    dice: Random
    weather: Weather
    gone: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    at_end: dict[int, Tensor] = field(default_factory=dict)

    def expose(self, number: int) -> Member:
        """To roads that delay and lose, and to a machine that is slow now and then."""
        member, weather, dice = self.made.members[number], self.weather, self.dice
        run: Any = member.run
        open_stream, slope = member.host.open_stream, run._slope

        async def badly(peer: str, protocol: str) -> MemoryStream:
            await trio.sleep(dice.uniform(0, weather.delay_s))
            if dice.random() < weather.lost or self._parted(number, peer):
                raise TransportError("lost")
            return await open_stream(peer, protocol)

        async def slowly(round_: int) -> int:
            found = await slope(round_)
            times = 10 if number in weather.slow else 1
            await trio.sleep(dice.uniform(0, weather.measure_s) * times)
            return int(found)

        host: Any = member.host
        host.open_stream, run._slope = badly, slowly
        return member

    def _parted(self, number: int, peer: str) -> bool:
        began_s, ended_s = self.weather.cut_s
        away = {self.made.members[one].key.peer_id for one in self.weather.cut}
        parted = (peer in away) != (number in self.weather.cut)
        return parted and began_s <= trio.current_time() < ended_s

    async def all_go(self, rounds: int, numbers: tuple[int, ...]) -> None:
        """To the end of the run, all at once, those who are killed included."""
        async with trio.open_nursery() as nursery:
            for number in numbers:
                self.expose(number)
                falls = self.dice.uniform(1, rounds) if len(self.gone) < self.weather.kills else 0
                if falls:
                    self.gone.add(number)
                nursery.start_soon(self._live, number, rounds, falls)

    async def _live(self, number: int, rounds: int, falls_s: float) -> None:
        if falls_s:
            with trio.move_on_after(falls_s):
                await self.made.members[number].run.run(rounds)
            await self.made.members[number].host.die()
            await trio.sleep(self.dice.uniform(0, self.weather.back_s))
            await self._begin_again(number)
        await self.made.members[number].run.run(rounds)
        await self.made.members[number].run.finish(rounds)
        self.over.add(number)
        self.at_end[number] = self.made.members[number].weights.weights()

    async def _begin_again(self, number: int) -> None:
        """As often as it is told to."""
        while True:
            self.made.add(number)
            try:
                return await self.expose(number).run.begin()
            except TransportError:
                await trio.sleep(5.0)


@asynccontextmanager
async def storm(folder: Path, peers: int, dice: Random, weather: Weather) -> AsyncIterator[Storm]:
    async with world(folder, peers) as made:
        yield Storm(made, dice, weather)
