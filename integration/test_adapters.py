"""An adapter over real servers: worn by every hop, brought along when one is killed, proved."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
import trio
from adapters import merge, save_adapter

import potluck
from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet
from potluck.swarm.proof import check_proof

from .ground import POTLUCK

PROMPT = "The function returns"
TOKENS = 40


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Two stages of two replicas each."""
    home = tmp_path_factory.mktemp("home")
    plan = Plan(home=home, source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=4, replicas=2)
    with open_testnet(plan) as made:
        yield made


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "poet"
    save_adapter(folder, open_checkpoint(DEMO_FOLDER).spec, alpha=1)
    return folder


def merged_says(adapter: Path, into: Path, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens by transformers, of the model into which the adapter was merged."""
    merge(DEMO_FOLDER, adapter, into)
    model = transformers.AutoModelForCausalLM.from_pretrained(into, dtype=torch.float32)
    found = list(ids)
    with torch.no_grad():
        for _ in range(count):
            found.append(int(model(torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(ids) :]


def test_a_killed_server_changes_no_word_and_the_audits_wear_it_too(
    net: LocalSwarm, adapter: Path, tmp_path: Path
) -> None:
    """The words are those of the merged model; a replica that was never asked before is brought
    the adapter in mid-answer; everything that is audited is found right. Then the command line
    wears it by the digest under which this home keeps it."""

    async def ask(kill_at: int, **options: object) -> tuple[list[int], bytes, int]:
        async with (
            potluck.open_swarm(join=net.join, home=tmp_path) as swarm,
            swarm.generation(
                "demo", PROMPT, max_new_tokens=TOKENS, ignore_eos=True, receipts=True,
                adapter=adapter, **options,  # type: ignore[arg-type]
            ) as answer,
        ):  # fmt: skip
            pieces: list[potluck.Piece] = []
            async for piece in answer:
                potluck.hear(pieces, piece)
                if len(pieces) == kill_at:
                    killed = piece.route[-1].peer
                    name = next(seat.name for seat in net.seats if seat.peer == killed)
                    net.send(name, signal.SIGKILL)
            raw = await answer.proof(swarm.member.key)
            return [piece.token for piece in pieces], raw, len(answer.recoveries)

    audited, raw, _ = trio.run(lambda: ask(0, audit="on"))
    proof = check_proof(raw)
    (name,) = proof.adapters
    assert proof.good and proof.answer is not None
    assert proof.audited and {one.verdict for one in proof.audited} == {"right"}
    assert all(one.shown for one in proof.audited)
    disturbed, raw, lost = trio.run(lambda: ask(15))
    assert lost >= 1 and check_proof(raw).adapters == (name,)
    ids = list(proof.answer.tokens[: proof.answer.prompt])
    assert disturbed == audited == merged_says(adapter, tmp_path / "merged", ids, TOKENS)

    told = potluck_says(net, tmp_path, "--adapter", name)
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert (facts["tokens"], facts["adapter"]) == (audited[:12], name)


def test_what_is_no_adapter_is_one_line_and_2(net: LocalSwarm, tmp_path: Path) -> None:
    told = potluck_says(net, tmp_path, "--adapter", tmp_path / "nowhere")
    assert told.returncode == 2
    why = "no such folder; give one that holds adapter_config.json"
    assert told.stderr == f"potluck: {tmp_path / 'nowhere'}: {why}\n"


def potluck_says(
    net: LocalSwarm, home: Path, *args: str | Path
) -> subprocess.CompletedProcess[str]:
    line = ["generate", PROMPT, "-m", "demo", "-n", "12", "--home", home, "--json", *args]
    line += [part for address in net.join for part in ("--join", address)]
    return subprocess.run(
        [*POTLUCK, *map(str, line)], capture_output=True, text=True, timeout=120, check=False
    )
