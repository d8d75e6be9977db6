"""An answer's receipt, from real servers: it verifies, whoever is killed on the way."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import potluck
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet
from potluck.swarm.proof import check_proof

from .ground import POTLUCK

PROMPT = "The function returns"
TOKENS = 80  # two cuts of 32 and some, behind the prompt's


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Two stages of two replicas each."""
    home = tmp_path_factory.mktemp("home")
    plan = Plan(home=home, source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=4, replicas=2)
    with open_testnet(plan) as made:
        yield made


def potluck_says(*args: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [*POTLUCK, *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_writes_a_receipt_and_verifies_it(net: LocalSwarm, tmp_path: Path) -> None:
    """With a receipt the words are the same; any flipped bit is found, and its line named."""
    file = tmp_path / "answer.receipt"
    ask = ["generate", PROMPT, "-m", "demo", "-n", "40", "--home", tmp_path, "--quiet"]
    ask += [part for address in net.join for part in ("--join", address)]
    code, plain, _ = potluck_says(*ask)
    assert code == 0
    code, text, _ = potluck_says(*ask, "--receipt", file)
    assert (code, text) == (0, plain)
    code, said, _ = potluck_says("verify", file, "--model", "demo", "--home", tmp_path)
    assert code == 0, said
    assert "40 tokens of demo" in said and "good: every signature" in said
    raw = bytearray(file.read_bytes())
    at = raw.rindex(b"chunk ") + 60
    raw[at] ^= 1
    faults = check_proof(bytes(raw)).faults
    assert faults and faults[0].line == raw.count(b"\n", 0, at) + 1


def test_a_receipt_verifies_though_a_server_was_killed_on_the_way(
    net: LocalSwarm, tmp_path: Path
) -> None:
    """The second stage's server is killed at token 50: it has signed for the first 32 and for the
    prompt, and its successor for all from the beginning."""

    async def ask(kill_at: int) -> tuple[list[int], bytes, str, int]:
        tokens: list[int] = []
        killed = ""
        async with (
            potluck.open_swarm(join=net.join, home=tmp_path) as swarm,
            swarm.generation(
                "demo",
                PROMPT,
                max_new_tokens=TOKENS,
                ignore_eos=True,
                receipts=True,
                draft="off",  # guesses may reach over a chunk's end, and are cut behind them
            ) as answer,
        ):
            async for piece in answer:
                tokens.append(piece.token)
                if len(tokens) == kill_at:
                    killed = piece.route[-1].peer
                    name = next(seat.name for seat in net.seats if seat.peer == killed)
                    net.send(name, signal.SIGKILL)
            raw = await answer.proof(swarm.member.key)
            return tokens, raw, killed, len(answer.recoveries)

    plain, raw, _, lost = trio.run(ask, 0)
    proof = check_proof(raw)
    assert proof.good
    if not lost:  # a machine that is busy otherwise may have had a hop replaced
        assert proof.bare == [] and proof.linked == 4  # the prompt, 32, 32 and the rest
    tokens, raw, killed, _ = trio.run(ask, 50)
    assert tokens == plain
    proof = check_proof(raw)
    assert proof.faults == []
    assert proof.answer is not None
    assert list(proof.answer.tokens[proof.answer.prompt :]) == tokens
    (dead,) = [one for one in proof.signers if one.peer == killed]
    after = [one for one in proof.signers if one.blocks == dead.blocks and one.peer != killed]
    assert dead.chunks == 2 and sum(one.chunks for one in after) >= 3
    bad = bytearray(raw)
    bad[len(bad) // 2] ^= 4
    faults = check_proof(bytes(bad)).faults
    assert faults and faults[0].line == raw.count(b"\n", 0, len(bad) // 2) + 1
