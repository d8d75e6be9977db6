"""An answer of the demo's own blocks, its servers in this process: what it can be proved by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio
from sim.memory_host import MemoryHost, MemoryNet

from potluck.cli.main import main
from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory, MemoryShelf
from potluck.node.compute.voice import Voice
from potluck.node.compute.worker import Worker, open_worker
from potluck.node.config import NodeConfig
from potluck.node.generation import Generation, Request, open_generation
from potluck.node.library import DEMO_FOLDER
from potluck.node.prompt import encode_request
from potluck.node.router import Router
from potluck.node.serving import Model, open_model, serve_blocks
from potluck.swarm.blocks import BlockRange
from potluck.swarm.proof import check_proof
from potluck.swarm.wire import PROTOCOL

PROMPT = "The function returns"
TOKENS = 40


@dataclass
class Swarm:
    net: MemoryNet
    shelf: MemoryShelf
    model: Model
    worker: Worker
    nursery: trio.Nursery

    async def serve(self, start: int, stop: int) -> MemoryHost:
        key = IdentityKey.generate()
        host = self.net.host(key.peer_id)
        serving = await self.nursery.start(serve_blocks, self.model, BlockRange(start, stop), key)
        host.handle(PROTOCOL, serving.server.serve)
        told = serving.announcement("online", host.addresses())
        await MemoryDirectory(key, self.shelf).announce(told)
        return host

    @asynccontextmanager
    async def answer(self, *, receipts: bool) -> AsyncIterator[Generation]:
        key = IdentityKey.generate()
        voice = Voice.load(DEMO_FOLDER)
        directory = MemoryDirectory(key, self.shelf)
        host = self.net.host(key.peer_id)
        router = Router(host, directory, Random(1))  # type: ignore[arg-type]
        request = Request(
            voice, encode_request(voice, PROMPT), max_new_tokens=TOKENS, ignore_eos=True,
            receipts=receipts,
        )  # fmt: skip
        async with open_generation(host, router, self.worker, request) as made:  # type: ignore[arg-type]
            yield made


@asynccontextmanager
async def swarm(home: Path) -> AsyncIterator[Swarm]:
    config = NodeConfig(home=home, model="demo", threads=1, offline=True)
    model = await trio.to_thread.run_sync(open_model, config)
    async with open_worker(threads=1) as worker, trio.open_nursery() as nursery:
        yield Swarm(MemoryNet(nursery), MemoryShelf(), model, worker, nursery)
        nursery.cancel_scope.cancel()


async def test_an_answer_is_proved_and_the_words_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = IdentityKey.generate()
    async with swarm(tmp_path) as made:
        hosts = [await made.serve(0, 3), await made.serve(3, 8)]
        async with made.answer(receipts=False) as answer:
            plain = [piece.token async for piece in answer]
        async with made.answer(receipts=True) as answer:
            tokens = [piece.token async for piece in answer]
            raw = await answer.proof(key)
    assert tokens == plain
    proof = check_proof(raw)
    assert proof.good and proof.bare == [] and proof.client == key.peer_id
    assert [one.peer for one in proof.signers] == [host.peer_id for host in hosts]
    assert [one.chunks for one in proof.signers] == [3, 3]  # the prompt, 32, and the 7 after that
    assert proof.linked == 3 and proof.answer is not None
    assert list(proof.answer.tokens[proof.answer.prompt :]) == tokens
    assert proof.answer.fed == len(proof.answer.tokens) - 1  # the last word was not asked about
    file = tmp_path / "answer.receipt"
    file.write_bytes(raw)
    code = await trio.to_thread.run_sync(
        main, ["verify", str(file), "--model", "demo", "--home", str(tmp_path)]
    )
    assert code == 0 and "good: every signature, 3 links" in capsys.readouterr().out


async def test_who_leaves_early_can_prove_what_came(tmp_path: Path) -> None:
    async with swarm(tmp_path) as made:
        await made.serve(0, 8)
        async with made.answer(receipts=True) as answer:
            tokens = [(await anext(answer)).token for _ in range(5)]
            proof = check_proof(await answer.proof(IdentityKey.generate()))
    assert proof.good and proof.bare == []
    assert proof.answer is not None and proof.answer.tokens[-5:] == tuple(tokens)
