"""Adapters in the API: each is a model of its own, BASE:NAME, or BASE:DIGEST of one kept here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api_fakes import Inline, demo

from potluck.errors import UserError
from potluck.node.adapters import Shelf, find_adapter
from potluck.node.api.answering import plan_completion
from potluck.node.api.asked import read_completion
from potluck.node.api.backend import SwarmBackend
from potluck.node.api.metrics import Metrics
from potluck.node.api.problem import Problem
from potluck.node.compute.voice import Voice
from potluck.swarm.adapter import Bundle, make_bundle

from .adapters import save_adapter


def backend_of(home: Path) -> SwarmBackend:
    """Over a swarm that serves the demo model alone."""

    async def voice(ref: str) -> Voice:
        if ref != "demo":
            raise UserError(f"{ref}: no such model")
        return demo().voice

    async def adapter(voice: Voice, ref: str) -> Bundle:
        return find_adapter(ref, voice, home)

    async def models() -> tuple[Any, ...]:
        served = SimpleNamespace(name="demo", model=demo().voice.digest, blocks=8, peers=("a", "b"))
        return (served,)

    swarm: Any = SimpleNamespace(voice=voice, adapter=adapter, models=models)
    worker: Any = Inline()
    return SwarmBackend(swarm, worker=worker, loader=worker, home=home, offline=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "poet", demo().voice.ends.spec, modules=("q_proj",), rank=2)
    return tmp_path / "poet"


async def test_an_adapter_is_asked_for_as_a_model_of_its_own(tmp_path: Path, folder: Path) -> None:
    backend = backend_of(tmp_path)
    worn = await backend.dress(f"demo:poet={folder}")
    assert worn.adapter is not None and worn.voice.name == "demo:poet"
    assert await backend.language("demo:poet") is worn
    assert (await backend.language("demo")).adapter is None
    told = {one.name: one.peers for one in await backend.offers()}
    assert told == {"demo": 2, "demo:poet": 2}
    for name, adapter in (("demo:poet", worn.adapter), ("demo", None)):
        body = read_completion(
            json.dumps({"model": name, "prompt": "The", "max_tokens": 2}).encode()
        )
        language = await backend.language(name)
        answering = await plan_completion(body, language, backend, Metrics(), 0.0)
        assert [job.request.adapter for job in answering.jobs] == [adapter]
        assert answering.model == name


async def test_one_that_is_kept_here_is_asked_for_by_its_digest(
    tmp_path: Path, folder: Path
) -> None:
    backend = backend_of(tmp_path)
    kept = find_adapter(folder, demo().voice, tmp_path)
    assert (await backend.language(f"demo:{kept.hex}")).adapter == kept
    with pytest.raises(Problem, match="no adapter"):
        await backend.language(f"demo:{'cd' * 32}")
    other = make_bundle(bytes(32), 1, ["q_proj"], kept.parts)
    assert Shelf(tmp_path).save(other)
    with pytest.raises(Problem, match="is for the model 000000"):
        await backend.language(f"demo:{other.hex}")


@pytest.mark.parametrize("told", ["poet=x", "demo:poet", "demo:=x", ":poet=x", "demo:poet="])
async def test_what_names_no_adapter_is_told_in_one_line(tmp_path: Path, told: str) -> None:
    with pytest.raises(UserError, match=r"is not MODEL:NAME=PATH"):
        await backend_of(tmp_path).dress(told)


async def test_a_folder_that_holds_none_is_told(tmp_path: Path, folder: Path) -> None:
    backend = backend_of(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        await backend.dress(f"demo:poet={tmp_path / 'nowhere'}")
    (folder / "adapter_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a safetensors file"):
        await backend.dress(f"demo:poet={folder}")
