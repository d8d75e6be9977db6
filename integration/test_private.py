"""Bar 7 of issue H: with a private swarm's key missing or wrong, nothing can be listed, read,
joined or used. A node of such a swarm as a process; homes with its key, another, or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import potluck
from potluck.cli.main import main
from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError, UserError
from potluck.node.config import find_access
from potluck.node.invite import Private, save_private
from potluck.node.net.host import HostConfig, open_host

from .ground import Node, open_node

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
PROMPT = "The function returns"
LEAST = (  # of what a node answers: the directory, sessions, weights, records, its own tables
    "/ipfs/id/1.0.0", "/potluck/kad/2", "/potluck/session/2", "/potluck/weights/1",
    "/potluck/chunks/1", "/potluck/registry/1",
)  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    home = tmp_path_factory.mktemp("member")
    save_private(home, Private(KEY))
    with open_node(home, "demo") as made:
        yield made


def home_with(folder: Path, key: bytes | None) -> Path:
    if key is not None:
        save_private(folder, Private(key))
    return folder


async def spoken(node: Node, home: Path, protocols: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Those of these protocols on which the node gave this home a word; of none given: all that
    it says it speaks, which it says to members."""
    config = HostConfig(seed=IdentityKey.generate().seed(), listen=(), access=find_access(home))
    found = []
    async with open_host(config) as host:
        for protocol in protocols:
            host.learn(node.peer, node.addresses)
            host.forgive()  # each is a dial of its own, whatever came of the one before
            try:
                with trio.fail_after(20):
                    stream = await host.open_stream(node.peer, protocol)
                    await stream.send(b"hello")
                    if await stream.receive():
                        found.append(protocol)
            except TransportError:
                continue
        if not protocols:
            with trio.fail_after(20):
                await host.connect(node.addresses)
                await host.identified(node.peer)
            claims = host.claims(node.peer)
            return () if claims is None else claims.protocols
    return tuple(found)


def test_a_member_lists_reads_joins_and_uses(node: Node, tmp_path: Path) -> None:
    with potluck.connect(join=node.addresses, home=home_with(tmp_path, KEY)) as swarm:
        pieces = list(swarm.generate("demo", PROMPT, max_new_tokens=4))
        assert len(pieces) == 4 and {hop.peer for hop in pieces[-1].route} == {node.peer}
    told = trio.run(spoken, node, tmp_path)
    assert set(LEAST) <= set(told)
    assert trio.run(spoken, node, tmp_path, ("/ipfs/id/1.0.0",)) != ()


@pytest.mark.parametrize("key", [None, OTHER_KEY])
def test_without_the_key_nothing_is_listed_read_joined_or_used(
    node: Node, tmp_path: Path, key: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    member = home_with(tmp_path / "member", KEY)
    home = home_with(tmp_path / "stranger", key)
    protocols = trio.run(spoken, node, member)
    assert len(protocols) >= len(LEAST)

    # read: no stream of any kind that it answers to members
    assert trio.run(spoken, node, home, protocols) == ()

    # join, list, use: in Python
    async def look() -> None:
        async with potluck.open_swarm(join=node.addresses, home=home) as swarm:
            raise AssertionError(await swarm.models())

    with pytest.raises(UserError, match="nobody answers"):
        trio.run(look)

    # and by every command that asks a swarm
    join = ("--join", node.addresses[0], "--home", str(home))
    for words in (
        ("models",), ("status",), ("peers",), ("top", "--count", "1"),
        ("models", "pull", "org/name", "--offline"),
        ("generate", PROMPT, "-m", "demo"),
        ("api", "-m", "demo", "--port", "0"),
        ("node", "-m", "demo", "--no-guest"),
        ("bootstrap",),
    ):  # fmt: skip
        assert main([*words, *join]) == 2, words
        said = capfd.readouterr()
        assert said.out == "" and "nobody answers" in said.err, (words, said)
    assert node.lives
