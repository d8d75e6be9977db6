"""Which router a name stands for."""

from __future__ import annotations

from .affine import Affine
from .baselines import Drawn, Greedy, Petals, Swarm
from .dice import Dice
from .ours import Ours
from .request import Router
from .world import World


def router_of(name: str, world: World, dice: Dice) -> Router:
    match name:
        case "ours":
            return Ours(world, dice)
        case "affine":
            return Affine(world, dice)
        case "petals":
            return Petals(world, dice)
        case "swarm":
            return Swarm(world, dice)
        case "random":
            return Drawn(world, dice, 1)
        case "po3":
            return Drawn(world, dice, 3)
        case _:
            return Greedy(world, dice)
