"""The Python client, blocking and trio, against real daemons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import potluck
from potluck.errors import UserError
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

PROMPT = "The function returns"


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    home = tmp_path_factory.mktemp("home")
    plan = Plan(home=home, source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=2)
    with open_testnet(plan) as made:
        yield made


def test_blocking_and_trio_give_the_same_seeded_pieces(net: LocalSwarm, tmp_path: Path) -> None:
    asked = {"max_new_tokens": 24, "temperature": 0.8, "seed": 1}
    with potluck.connect(join=net.join, home=tmp_path) as swarm:
        blocking = list(swarm.generate("demo", PROMPT, **asked))  # type: ignore[arg-type]
        again = list(swarm.generate("demo", PROMPT, **asked))  # type: ignore[arg-type]

    async def ask() -> list[potluck.Piece]:
        async with (
            potluck.open_swarm(join=net.join, home=tmp_path) as swarm,
            swarm.generation("demo", PROMPT, **asked) as answer,  # type: ignore[arg-type]
        ):
            return [piece async for piece in answer]

    waiting = trio.run(ask)
    texts = ["".join(piece.text for piece in pieces) for pieces in (blocking, again, waiting)]
    assert texts[0] == texts[1] == texts[2] != ""
    assert [p.token for p in blocking] == [p.token for p in waiting]
    assert {hop.peer for hop in blocking[-1].route} == {seat.peer for seat in net.seats}
    assert all(piece.seconds > 0 for piece in blocking)


def test_leaving_early_frees_every_server_at_once(net: LocalSwarm, tmp_path: Path) -> None:
    """Asked 20 times for half of the context, and left after two tokens each time: were a cache
    kept until its lease ran out, announcements of free cache would shrink; they return to full."""

    async def free_tokens(swarm: potluck.Swarm, digest: str) -> list[int]:
        return sorted(told.cache_tokens_free for told in await swarm.spans(digest))

    async def ask() -> None:
        async with potluck.open_swarm(join=net.join, home=tmp_path) as swarm:
            digest = (await swarm.voice("demo")).digest
            before = await free_tokens(swarm, digest)
            for _ in range(20):
                async with swarm.generation("demo", PROMPT, max_new_tokens=500) as answer:
                    async for piece in answer:
                        if piece.position > 5:
                            break
                # leaving is no fault of theirs: whoever is blamed is avoided by the next answer
                assert [one for one in answer.recoveries if "closed" in one.reason] == []
            assert await free_tokens(swarm, digest) == before

    trio.run(ask)
    with potluck.connect(join=net.join, home=tmp_path) as swarm:
        pieces = swarm.generate("demo", PROMPT, max_new_tokens=500)
        assert next(pieces).token >= 0
        pieces.close()  # type: ignore[attr-defined]
        assert len(list(swarm.generate("demo", PROMPT, max_new_tokens=3))) == 3


def test_two_threads_share_one_blocking_client(net: LocalSwarm, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with potluck.connect(join=net.join, home=tmp_path) as swarm, ThreadPoolExecutor(4) as pool:

        def ask(seed: int) -> str:
            pieces = swarm.generate("demo", PROMPT, max_new_tokens=12, temperature=1.0, seed=seed)
            return "".join(piece.text for piece in pieces)

        apart = [ask(seed) for seed in range(4)]
        together = list(pool.map(ask, range(4)))
    assert together == apart
    assert len(set(apart)) > 1


def test_errors_come_to_the_caller_plain(net: LocalSwarm, tmp_path: Path) -> None:
    with potluck.connect(join=net.join, home=tmp_path) as swarm:
        with pytest.raises(UserError, match="empty"):
            list(swarm.generate("demo", ""))
        with pytest.raises(UserError, match="context"):
            list(swarm.generate("demo", "word " * 3000))
        with pytest.raises(UserError, match="no option max_tokens: there are max_new_tokens"):
            list(swarm.generate("demo", "x", max_tokens=3))  # type: ignore[call-arg]
        with pytest.raises(UserError, match="no such directory"):
            list(swarm.generate("nonesuch", "x"))
        assert list(swarm.generate("demo", PROMPT, max_new_tokens=1))
    nobody = "/ip4/127.0.0.1/tcp/1/p2p/" + net.seats[0].peer
    with pytest.raises(UserError, match="nobody answers"), potluck.connect([nobody], home=tmp_path):
        pass


async def test_what_was_said_before_is_found_again_at_the_servers(
    net: LocalSwarm, tmp_path: Path
) -> None:
    """A prompt of some hundred tokens, thrice by one client, and with a system prompt that it
    shares: each time the same words, and from the second time on the rows need not come again."""
    prompt = "def total(rows):\n    return sum(row.size for row in rows)\n" * 12
    async with potluck.open_swarm(join=net.join, home=tmp_path) as swarm:
        known = swarm.router.homing.known
        for prefix in ("own", "shared"):
            said = []
            for _ in range(3):
                async with swarm.generation(
                    "demo", prompt, max_new_tokens=12, ignore_eos=True, prefix=prefix
                ) as answer:
                    said.append([piece.token async for piece in answer])
                assert not answer.recoveries
            assert said[0] == said[1] == said[2]
        assert known.rows.bytes > 0
        with pytest.raises(UserError, match="prefix 'all' is not known"):
            async with swarm.generation("demo", prompt, prefix="all"):
                pass
