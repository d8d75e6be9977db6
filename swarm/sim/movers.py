"""Who moves, and when: our election, and the baselines.

    ours     elect_moves each epoch; the old blocks are served until the new ones are loaded
    swarm    each T = 300 s a peer of the least loaded block moves to the most loaded one (1.2)
    petals   every peer looks each U(0, 120) s whether re-placing everybody would lift the slowest
             block by a third (block_selection.py, should_choose_other_blocks); then it restarts
    none     nobody

Petals' and SWARM's movers serve nothing while they load: a Petals server restarts its container,
and SWARM's peer takes the parameters of its new stage first.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from ..blocks import BlockRange
from ..placement import elect_moves
from .dice import Dice
from .world import World

PETALS_EPSILON = 1e-3  # block_selection.py
PETALS_PERIOD_S = 120.0  # run_server.py: a check each 60 s on average
SWEEPS_MAX = 20  # Petals loops to a fixpoint; with ties that float apart it need not come


class Mover(Protocol):
    serves_while_loading: bool

    def first_s(self) -> float:
        """When to look first."""
        ...

    def look(
        self, now: float, moving: frozenset[int]
    ) -> tuple[list[tuple[int, BlockRange]], float]:
        """Who moves where, and when to look again."""
        ...


class Nobody:
    serves_while_loading = True

    def first_s(self) -> float:
        return math.inf

    def look(
        self, now: float, moving: frozenset[int]
    ) -> tuple[list[tuple[int, BlockRange]], float]:
        return [], math.inf


class Elected:
    serves_while_loading = True

    def __init__(self, world: World) -> None:
        self._world = world
        self._epoch_s = world.scenario.placing.epoch_s
        self._number = {world.name(i): i for i in range(world.size)}

    def first_s(self) -> float:
        return self._epoch_s

    def look(
        self, now: float, moving: frozenset[int]
    ) -> tuple[list[tuple[int, BlockRange]], float]:
        world = self._world
        moves = elect_moves(
            world.holdings(now, moving), world.total, round(now / self._epoch_s),
            move_s=world.scenario.placing.move_s,
        )  # fmt: skip
        return [(self._number[move.peer], move.blocks) for move in moves], now + self._epoch_s


class SwarmMover:
    serves_while_loading = False

    def __init__(self, world: World) -> None:
        self._world = world

    def first_s(self) -> float:
        return self._world.scenario.placing.period_s

    def look(
        self, now: float, moving: frozenset[int]
    ) -> tuple[list[tuple[int, BlockRange]], float]:
        """The load of a block is the queues of its peers; where nothing queues, its scarcity."""
        world = self._world
        again = now + world.scenario.placing.period_s
        living = [i for i in world.living() if i not in moving]
        load = 1.0 / np.maximum(world.load, 1e-9)
        queues = np.zeros(world.total)
        for i in living:
            queues[world.start[i] : world.stop[i]] += world.queue_s(i, now)
        if queues.sum() > 0:
            load = queues
        most, least = int(load.argmax()), int(load.argmin())
        able = [i for i in living if world.start[i] <= least < world.stop[i]]
        able = [i for i in able if not world.start[i] <= most < world.stop[i]]
        if len(able) < 2:
            return [], again
        mover = min(able, key=lambda i: (world.queue_s(i, now), i))
        length = world.length[mover]
        start = min(max(0, most - length // 2), world.total - length)
        return [(mover, BlockRange(start, start + length))], again


class PetalsMover:
    serves_while_loading = False

    def __init__(self, world: World, dice: Dice) -> None:
        self._world, self._dice = world, dice
        self._due: dict[int, float] = {}

    def first_s(self) -> float:
        return 1.0

    def look(
        self, now: float, moving: frozenset[int]
    ) -> tuple[list[tuple[int, BlockRange]], float]:
        world, moves = self._world, []
        for i in world.living():
            due = self._due.setdefault(i, now + self._dice.uniform(0, PETALS_PERIOD_S))
            if due <= now and i not in moving:
                self._due[i] = now + self._dice.uniform(0, PETALS_PERIOD_S)
                if self._should_move(i):
                    old = world.told[i]
                    world.announce(i, None)
                    moves.append((i, _best(world.load, len(old))))
                    world.announce(i, moves[-1][1])
        return moves, now + 1.0

    def _should_move(self, me: int) -> bool:
        world = self._world
        spans = dict(world.told)
        rates = world.load.copy()
        initial = float(rates.min())
        share = {i: world.claim(i) / len(blocks) for i, blocks in spans.items()}

        def lift(i: int, times: float) -> None:
            rates[spans[i].start : spans[i].stop] += times * share[i]

        lift(me, -1 - PETALS_EPSILON)
        if initial > PETALS_EPSILON and rates.min() <= 0:
            return False  # the swarm would come apart
        there = _best(rates, len(spans[me]))
        if there.start == spans[me].start:
            return False
        lift(me, PETALS_EPSILON)
        spans[me] = there
        lift(me, 1)
        order = list(spans)
        for _ in range(SWEEPS_MAX):
            moved = False
            self._dice.shuffle(order)
            for i in order:
                lift(i, -1 - PETALS_EPSILON)
                there = _best(rates, len(spans[i]))
                lift(i, PETALS_EPSILON)
                if there.start != spans[i].start:
                    spans[i], moved = there, True
                lift(i, 1)
            if not moved:
                break
        new = float(rates.min())
        if new < initial or new < PETALS_EPSILON:
            return False
        return initial / new < world.scenario.placing.balance - PETALS_EPSILON


def _best(rates: np.ndarray[tuple[int], np.dtype[np.float64]], length: int) -> BlockRange:
    """Petals' _choose_best_start: the first of the windows whose sorted rates come first."""
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(rates, length), axis=1)
    start = int(np.lexsort(windows.T[::-1])[0])
    return BlockRange(start, start + length)


def mover_of(name: str, world: World, dice: Dice) -> Mover:
    match name:
        case "ours":
            return Elected(world)
        case "swarm":
            return SwarmMover(world)
        case "petals":
            return PetalsMover(world, dice)
        case _:
            return Nobody()
