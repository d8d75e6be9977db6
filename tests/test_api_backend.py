"""Which files the API answers by: those that bear the name, and the digest that is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api_fakes import demo

from potluck.node.api.backend import SwarmBackend
from potluck.node.api.problem import Problem
from potluck.node.client import VOICES_MAX

PINNED = "org/name@abc"  # a node may be called so; its files are those of org/name


class Loads:
    """A swarm that offers PINNED, and a thread that loads the demo's language."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.loaded = 0

    async def models(self) -> tuple[Any, ...]:
        return (SimpleNamespace(name=PINNED, model=self.digest, blocks=8, peers=()),)

    async def voice(self, ref: str) -> Any:
        return replace(demo().voice, name="org/name")

    async def run(self, load: Any) -> Any:
        self.loaded += 1
        return demo()


def backend_of(swarm: Any) -> SwarmBackend:
    return SwarmBackend(swarm, worker=swarm, loader=swarm, home=Path("/nowhere"), offline=True)


async def test_a_model_is_loaded_once_under_the_name_by_which_it_is_asked_for() -> None:
    swarm = Loads(demo().voice.digest)
    backend = backend_of(swarm)
    assert await backend.language(PINNED) is await backend.language(PINNED)
    assert swarm.loaded == 1
    assert [one.name for one in await backend.offers()] == [PINNED]


class Many(Loads):
    """A swarm that offers any number of models, each from the demo's files."""

    def __init__(self, count: int) -> None:
        super().__init__(demo().voice.digest)
        self.names = [f"org/name{number}" for number in range(count)]

    async def models(self) -> tuple[Any, ...]:
        told = {"model": self.digest, "blocks": 8, "peers": ()}
        return tuple(SimpleNamespace(name=name, **told) for name in self.names)


async def test_clients_that_ask_for_many_models_do_not_fill_the_memory() -> None:
    """The last ones asked for stay, and what the owner named always does."""
    swarm = Many(1 + VOICES_MAX)
    backend = backend_of(swarm)
    mine = await backend.preload("demo")
    first, *others = swarm.names
    for name in others:
        await backend.language(first)
        await backend.language(name)
    loaded = swarm.loaded
    assert loaded == 1 + len(swarm.names)
    await backend.language(first)
    assert swarm.loaded == loaded  # it was never the one asked for longest ago
    await backend.language(others[0])
    assert swarm.loaded == loaded + 1
    assert await backend.language("demo") is mine


async def test_what_is_served_from_other_files_is_no_model_here() -> None:
    backend = backend_of(Loads("0" * 64))
    for _ in range(2):
        with pytest.raises(Problem, match="other files") as raised:
            await backend.language(PINNED)
        assert raised.value.status == 404
