"""Peers of two versions: what is said, and to whom it says what to do."""

from __future__ import annotations

import pytest
import trio
from net_hosts import HERE
from net_pairs import echo

from potluck.crypto.keys import IdentityKey
from potluck.dht.message import PROTOCOL
from potluck.errors import Unspoken, UserError
from potluck.node.member import open_member
from potluck.node.net.host import HostConfig, open_host
from potluck.node.net.versions import behind

OLD, NEW = "/potluck/kad/1", "/potluck/kad/12"


@pytest.mark.parametrize(
    ("spoken", "words"),
    [
        ((OLD, "/ipfs/id/1.0.0"), "it is an older potluck, which speaks /potluck/kad/1:"),
        ((OLD, NEW), "this potluck is the older one, there /potluck/kad/12 is spoken:"),
        ((PROTOCOL, NEW), ""),
        (("/ipfs/kad/1.0.0", "/potluck/session/1", "/kad/1"), ""),
        (("/potluck/kad/x", "/potluck/kad/1234567", "/potluck/kad/", "", "/potluck/kad/²"), ""),
        ((), ""),
    ],
)
def test_the_older_of_two_is_told_by_what_they_speak(spoken: tuple[str, ...], words: str) -> None:
    told = behind(PROTOCOL, spoken)
    assert words in told and bool(words) is bool(told)
    assert behind("/noise", spoken) == behind("/potluck/kad", spoken) == ""


@pytest.mark.parametrize(("theirs", "words"), [(OLD, "update it"), (NEW, "pip install -U potluck")])
async def test_whoever_joins_by_a_peer_of_another_version_is_told_what_to_do(
    theirs: str, words: str
) -> None:
    async with open_host(HostConfig(seed=b"a" * 32, listen=(HERE,))) as other:
        other.handle(theirs, echo)
        with pytest.raises(UserError, match="nobody answers") as caught:
            async with open_member(
                IdentityKey.from_bytes(b"b" * 32), listen=(), join=other.addresses(), boot=1,
                serve=False,
            ):  # fmt: skip
                raise AssertionError("joined")
        assert str(caught.value).count(words) == 1, caught.value


async def test_a_stream_that_is_refused_says_whose_potluck_is_older() -> None:
    async with (
        open_host(HostConfig(seed=b"a" * 32, listen=(HERE,))) as old,
        open_host(HostConfig(seed=b"b" * 32)) as new,
    ):
        old.handle("/potluck/session/1", echo)
        await new.connect(old.addresses())
        await new.identified(old.peer_id)
        stream = await new.open_stream(old.peer_id, "/potluck/session/2")
        await stream.send(b"x")
        with trio.fail_after(10), pytest.raises(Unspoken, match="speaks /potluck/session/1"):
            await stream.receive()
