"""Members of a run that lie as the laboratory's attacks do: what they say is what is pulled."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trio
from sim.run_world import FLAT, START, RunWorld, run_world, terms_of
from trio.testing import MockClock

from potluck.cli.main import main
from potluck.crypto.keys import IdentityKey
from potluck.dht.memory import MemoryDirectory
from potluck.errors import UserError
from potluck.node.compute.average.attacks import ATTACKS, LABEL_FLIP
from potluck.node.compute.mixing import Vector
from potluck.node.runs.company import Company
from potluck.node.runs.gossip import Gossip
from potluck.node.runs.kinds import Setting
from potluck.node.testnet.launcher import MARK
from potluck.node.testnet.lies import LIARS, RUN_LIE
from potluck.node.testnet.run_liars import TO_EACH, LyingGossip, lying_kinds
from potluck.swarm.run.plan import Terms

PEERS = 4
SAID = terms_of(asked=PEERS, liars=1, aggregator="ours")


async def _yes() -> bool:
    await trio.lowlevel.checkpoint()
    return True


async def _flat(weights: Vector) -> float:
    await trio.lowlevel.checkpoint()
    return 1.0


async def liar(world: RunWorld, attack: str, terms: Terms = SAID) -> tuple[str, Any, Company, Any]:
    """Its peer id, its exchange, whom it knows, and its tuner."""
    key, dice = IdentityKey.generate(), random.Random(9)
    host: Any = world.net.host(key.peer_id)
    company = Company(host, MemoryDirectory(key, world.shelf), terms, dice)
    tuner: Any = SimpleNamespace(vocabulary=100, labels=None)
    rest: Any = None
    setting = Setting(
        host, company, key, 1, terms, FLAT, START, None, _yes, _flat, trio.to_thread.run_sync,
        lambda one, other: None, tuner, rest, rest, dice, True, rest,
    )  # fmt: skip
    environment = {RUN_LIE: attack, LIARS: "1", MARK: "here"}
    exchange: Any = lying_kinds(environment)["gossip"](setting)
    await world.nursery.start(exchange.run)
    await world.nursery.start(company.run)
    await company.until(len(world.peers))
    return key.peer_id, exchange, company, tuner


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_liar_tells_what_its_attack_makes_up(
    attack: str, autojump_clock: MockClock
) -> None:
    """Four honest peers, each of which asks all others, and one liar that they all meet."""
    pulled: dict[int, list[Vector]] = {at: [] for at in range(PEERS)}
    async with run_world(PEERS, SAID) as world:
        name, lies, *_ = await liar(world, attack)
        for at, peer in enumerate(world.peers):
            await peer.company.until(PEERS)
            peer.mixer.mixed = _noting(peer.mixer.mixed, pulled[at])  # type: ignore[method-assign]
        # a liar with two faces knows whom to tell what by the second, which is shown in the third
        for epoch in range(3):
            async with trio.open_nursery() as nursery:
                for at, peer in enumerate(world.peers):
                    nursery.start_soon(peer.exchange, epoch, 1.0 + 0.1 * at + epoch)
                nursery.start_soon(lies.exchange, epoch, torch.full((FLAT.count,), 1.0), 100)
        shunned = [peer.forks for peer in world.peers]
        ends = [peer.mixer.anchor for peer in world.peers]
    truths = {1.0, *(1.0 + 0.1 * at + epoch for at in range(PEERS) for epoch in range(3))}
    told = [one for some in pulled.values() for one in some]
    false = [one for one in told if all(abs(float(one[0]) - truth) > 1e-3 for truth in truths)]
    quiet = ("withheld", "mimicry", "copied work", "echo")  # others' own words, or none
    assert bool(false) or attack in quiet
    assert all(bool(torch.isfinite(end).all()) for end in ends)
    if attack not in TO_EACH:
        assert not any(shunned), "it says one thing to all"
    elif attack == "two faces":
        assert any(name in forks for forks in shunned), "whom it told two things have met"


def _noting(
    mixed: Callable[[Vector, Sequence[Vector]], Any], noted: list[Vector]
) -> Callable[[Vector, Sequence[Vector]], Any]:
    def mix(weights: Vector, pulled: Sequence[Vector]) -> Any:
        noted.extend(pulled)
        return mixed(weights, pulled)

    return mix


async def test_one_that_flips_labels_learns_lies_and_tells_them_truly(
    autojump_clock: MockClock,
) -> None:
    async with run_world(1, SAID) as world:
        _, exchange, _, tuner = await liar(world, LABEL_FLIP)
    assert type(exchange) is Gossip
    assert tuner.labels(torch.tensor([0, 99])).tolist() == [99, 0]


def test_nobody_lies_outside_a_testnet_and_no_lie_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[[], str]
) -> None:
    with pytest.raises(UserError, match="members of a testnet's runs"):
        lying_kinds({RUN_LIE: "noise"})
    with pytest.raises(UserError, match="no attack is called 'fib': there are sign flip"):
        lying_kinds({RUN_LIE: "fib", MARK: "here"})
    file = tmp_path / "tales.toml"
    file.write_text('name = "tales"\nmodel = "demo"\n[data]\nfiles = ["tales.txt"]\n')
    monkeypatch.setenv(RUN_LIE, "noise")
    monkeypatch.delenv(MARK, raising=False)
    assert main(["finetune", str(file), "--home", str(tmp_path / "home")]) == 2
    assert "members of a testnet's runs" in one_line()


def test_every_attack_of_the_laboratory_can_be_a_members() -> None:
    for attack in (*ATTACKS, LABEL_FLIP):
        assert set(lying_kinds({RUN_LIE: attack, MARK: "here"})) == {"gossip", "guarded"}
    assert issubclass(LyingGossip, Gossip)
