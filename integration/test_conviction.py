"""A node that computes wrongly is convicted in mid-answer, and the words are those of honest nodes:
real processes, real files, one client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import potluck
from potluck.cli.main import main
from potluck.crypto.codec import encode
from potluck.crypto.keys import IdentityKey
from potluck.node import client
from potluck.node.generation import Generation
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LOG, LocalSwarm, Plan, open_testnet
from potluck.node.testnet.lies import Lie
from potluck.node.trust.book import TRUST, Trust
from potluck.swarm.proof import check_proof
from potluck.swarm.reputation import Book, Score

PROMPT = "The function returns"
TOKENS = 40
HONEST = 5  # four that are trusted fully convict; and one may be busy


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """Six replicas of the whole model, of which the last leaves a block out."""
    home = tmp_path_factory.mktemp("home")
    plan = Plan(
        home=home, source=str(DEMO_FOLDER), name="demo", blocks=8, nodes=HONEST + 1,
        replicas=HONEST + 1, liars=(Lie("skip"),),
    )  # fmt: skip
    with open_testnet(plan) as made:
        yield made


def prepare(home: Path, net: LocalSwarm) -> tuple[str, list[str]]:
    """A home whose book knows the honest for long: the liar, and they."""
    *honest, liar = (seat.peer for seat in net.seats)
    scores = [Score(peer, good=200.0, valid=100, at_s=time.time()) for peer in honest]
    home.mkdir(exist_ok=True)
    (home / TRUST).write_bytes(encode(Book(tuple(scores))))
    return liar, honest


async def ask(swarm: potluck.Swarm, audit: str) -> tuple[str, Generation]:
    pieces: list[potluck.Piece] = []
    async with swarm.generation(
        "demo", PROMPT, max_new_tokens=TOKENS, ignore_eos=True, audit=audit
    ) as answer:
        async for piece in answer:
            potluck.hear(pieces, piece)
        if audit == "on":
            proof = check_proof(await answer.proof(IdentityKey.generate()))
            assert proof.good, proof.faults
    assert [piece.position for piece in pieces] == list(
        range(pieces[0].position, pieces[0].position + TOKENS)
    )
    return "".join(piece.text for piece in pieces), answer


def lead_to(swarm: potluck.Swarm, honest: list[str]) -> None:
    """As if the honest were slow: the next route leads to the one that is left."""
    for peer in honest:
        for _ in range(5):
            swarm.router.answered(peer, 60.0, 1, 8, queue_s=0.0)


def test_a_liar_is_convicted_in_mid_answer_and_banned_from_then_on(
    net: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "client"
    liar, honest = prepare(home, net)
    monkeypatch.setattr(client, "on_probation", lambda host, peer, now: peer == honest[1])

    async def talk() -> tuple[str, str]:
        async with potluck.open_swarm(join=net.join, home=home) as swarm:
            assert swarm.trust.rate(honest[0]) < 1 == swarm.trust.rate(honest[1])
            lead_to(swarm, honest)
            text, answer = await ask(swarm, "on")
            assert liar in [one.peer for one in answer.recoveries]
            told = answer.audits
            assert told is not None and told.convicted == [liar] and told.wrong >= 1
            assert liar not in [hop.peer for hop in answer.route]
            plain, answer = await ask(swarm, "off")
            assert liar not in [hop.peer for hop in answer.route]
            return text, plain

    text, plain = trio.run(talk)
    assert text == plain
    logs = [net.roster.folder / seat.name / LOG for seat in net.seats[:-1]]
    told = f"banned={liar} grounds=recomputed"
    assert any(told in log.read_text() for log in logs), "nobody was told, or nobody looked"
    kept = Trust(home)
    assert kept.banned(liar) and not any(kept.banned(peer) for peer in honest)


def test_the_command_line_audits_among_strangers_and_its_words_are_right(
    net: LocalSwarm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One who knows nobody asks with audits; one who was told whom to ban asks without."""

    def generate(home: Path, *more: str) -> dict[str, Any]:
        asked = ["generate", PROMPT, "-m", "demo", "-n", str(TOKENS), "--json", "--home", str(home)]
        assert main([*asked, "--join", net.join[0], *more]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    knows = tmp_path / "knows"
    knows.mkdir()
    (knows / "config.toml").write_text(f'ban = ["{net.seats[-1].peer}"]\n')
    plain = generate(knows)
    assert plain["audits"] is None
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml").write_text('audit = "on"\n')
    told = generate(tmp_path / "new")
    assert told["text"] == plain["text"]
    # the prompt's chunk, and of the answer one or two, by where its guesses fell
    assert told["audits"]["signed"] >= 2 and told["audits"]["drawn"] > 0
    assert generate(tmp_path / "new", "--no-audit")["audits"] is None
