"""Private swarms: tokens, what a home keeps of them, and that nobody gets in without the key."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from net_hosts import ECHO, HERE
from net_pairs import echo
from noise.connection import Keypair, NoiseConnection

from potluck.cli.main import main
from potluck.crypto.keys import IdentityKey
from potluck.dht.kad import open_directory
from potluck.errors import TransportError, UserError
from potluck.node.config import RUNNING, find_access, find_join
from potluck.node.invite import (
    TOKEN,
    Private,
    found,
    load_private,
    read_token,
    save_private,
    swarm_file,
    token_of,
)
from potluck.node.net import noise
from potluck.node.net.access import Access
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.negotiate import proposal

ALICE, BOB = (IdentityKey.from_bytes(letter * 32).peer_id for letter in (b"a", b"b"))
AT = f"/ip4/192.0.2.7/tcp/4001/p2p/{ALICE}"
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
SWARM = Private(KEY, (AT,), (BOB, "192.168.0.0/16"))


# ---- tokens and files


def test_a_token_says_what_it_was_made_of_and_shows_no_key_to_a_log() -> None:
    assert read_token(token_of(SWARM)) == SWARM
    folded = "\n ".join(token_of(SWARM)[n : n + 40] for n in range(0, 999, 40))
    assert read_token(folded) == SWARM
    assert "kkk" not in repr(SWARM) and found().key != found().key


@settings(deadline=None)
@given(st.integers(0), st.sampled_from("AZaz09-_"))
def test_a_token_with_another_letter_anywhere_is_none(at: int, letter: str) -> None:
    token = token_of(SWARM)
    at %= len(token)
    if token[at] != letter and at < len(token) - 1:  # the last letter has bits to spare
        with pytest.raises(UserError):
            read_token(token[:at] + letter + token[at + 1 :])


@pytest.mark.parametrize("text", ["", "hello", TOKEN, TOKEN + "ä", token_of(SWARM)[:-9]])
def test_what_is_no_token_is_refused_with_words(text: str) -> None:
    with pytest.raises(UserError, match="token"):
        read_token(text)


def test_a_home_keeps_its_swarm_for_its_owner_alone(tmp_path: Path) -> None:
    assert load_private(tmp_path) is None
    save_private(tmp_path, SWARM)
    assert load_private(tmp_path) == SWARM
    assert load_private(tmp_path / "testnet" / "n1") == SWARM
    file = swarm_file(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        load_private(tmp_path)
    file.chmod(0o600)
    file.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="corrupt"):
        load_private(tmp_path)


def test_who_runs_under_a_private_home_joins_by_the_token_and_admits_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POTLUCK_JOIN", raising=False)
    assert find_access(tmp_path).swarm_key == b"" and find_join((), tmp_path) == ()
    save_private(tmp_path, replace(SWARM, allow=()))
    assert find_access(tmp_path) == Access(swarm_key=KEY)
    assert find_join((), tmp_path) == (AT,)
    assert find_join(("/other",), tmp_path) == ("/other",)
    save_private(tmp_path, SWARM)
    access = find_access(tmp_path)
    assert access.may_be(BOB) and access.refuses_peer(ALICE, "192.168.3.4") == ""
    assert access.refuses_peer(ALICE, "192.0.2.7") != "" and "kkk" not in repr(access)


# ---- the road


@asynccontextmanager
async def host_of(letter: str, key: bytes = b"") -> AsyncIterator[Host]:
    config = HostConfig(seed=letter.encode() * 32, listen=(HERE,), access=Access(swarm_key=key))
    async with open_host(config) as host:
        host.handle(ECHO, echo)
        yield host


async def says_hello(one: Host, other: Host) -> bool:
    try:
        with trio.fail_after(10):
            await one.connect(other.addresses())
            stream = await one.open_stream(other.peer_id, ECHO)
            await stream.send(b"hello")
            await stream.close()
    except TransportError:
        return False
    return True


async def test_members_meet_and_nobody_else_gets_a_word() -> None:
    async with (
        host_of("a", KEY) as alice,
        host_of("b", KEY) as bob,
        host_of("c", OTHER_KEY) as carol,
        host_of("d") as dave,
    ):
        for stranger in (carol, dave):
            assert not await says_hello(stranger, alice)
            assert not await says_hello(alice, stranger)
        assert not await says_hello(carol, dave)
        assert alice.connected() == carol.connected() == dave.connected() == ()
        assert await says_hello(alice, bob)
        assert bob.connected() == (alice.peer_id,)


async def test_a_directory_of_a_private_swarm_cannot_be_joined_without_the_key() -> None:
    key = IdentityKey.from_bytes(b"a" * 32)
    async with host_of("a", KEY) as alice, open_directory(alice, key, boot=1):
        for number, (swarm_key, gets_in) in enumerate([(KEY, True), (b"", False)]):
            mine = IdentityKey.from_bytes(bytes([number]) * 32)
            config = HostConfig(seed=mine.seed(), listen=(), access=Access(swarm_key=swarm_key))
            async with open_host(config) as host, open_directory(host, mine, boot=1) as directory:
                try:
                    known = await directory.bootstrap(alice.addresses())
                except TransportError:
                    known = 0
                assert (known == 1) is gets_in


async def test_whoever_lacks_the_key_is_not_even_told_who_is_there() -> None:
    """Plain Noise inside the private protocol: the answer to its first word is the end."""
    async with host_of("a", KEY) as alice:
        host, port = alice.listeners[0].getsockname()
        stranger = NoiseConnection.from_name(noise.PATTERN)
        stranger.set_keypair_from_private_bytes(Keypair.STATIC, bytes(range(32)))
        stranger.set_as_initiator()
        stranger.start_handshake()
        first = stranger.write_message(b"")
        padded = first + bytes(16)  # as long as one with the key's tag
        for word in (first, padded):
            sock = await trio.open_tcp_stream(host, port)
            async with sock:
                await sock.send_all(proposal(noise.PRIVATE_PROTOCOL))
                await sock.send_all(len(word).to_bytes(2) + word)
                heard = b""
                with trio.fail_after(10):
                    try:
                        while data := await sock.receive_some():
                            heard += data
                    except trio.BrokenResourceError:
                        pass  # it was reset, which is an end too
                assert heard in (b"", proposal(noise.PRIVATE_PROTOCOL))


# ---- the terminal


def run(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    assert main([*args, "--json"]) == 0
    told: dict[str, object] = json.loads(capsys.readouterr().out)
    return told


def test_a_friend_comes_in_by_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, friends = tmp_path / "mine", tmp_path / "friends"
    told = run(capsys, "invite", "--home", str(mine))
    assert told["founded"] and told["join"] == []
    (mine / RUNNING).write_text(json.dumps({"addresses": ["/ip4/127.0.0.1/tcp/1", AT]}))
    told = run(capsys, "invite", "--home", str(mine))
    assert not told["founded"] and told["join"] == [AT]
    me = run(capsys, "join", str(told["token"]), "--home", str(friends))["peer"]
    assert find_access(friends).swarm_key == find_access(mine).swarm_key != b""
    told = run(capsys, "invite", "--allow", str(me), "--home", str(mine))
    assert run(capsys, "join", str(told["token"]), "--home", str(friends))["allow"] == told["allow"]
    access = find_access(friends)
    assert access.may_be(str(me)) and not access.may_be(BOB)
    assert len(told["allow"]) == 2  # type: ignore[arg-type]  # and the inviter itself


def test_a_home_in_another_swarm_is_not_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_private(tmp_path, replace(SWARM, key=OTHER_KEY))
    assert main(["join", token_of(SWARM), "--home", str(tmp_path)]) == 2
    assert "another swarm" in capsys.readouterr().err
    assert load_private(tmp_path) == replace(SWARM, key=OTHER_KEY)
    assert main(["invite", "--allow", "nonsense", "--home", str(tmp_path)]) == 2
    assert main(["join", "potluck1-short", "--home", str(tmp_path)]) == 2
