"""Ban list and allow-list: who is refused, in which direction, and what is said of a wrong list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from net_hosts import ECHO
from net_pairs import echo

from potluck.crypto.keys import IdentityKey
from potluck.errors import TransportError, UserError
from potluck.node.config import find_access
from potluck.node.lists import LOOK_S, keep_access
from potluck.node.net.access import Access, Listed, parse_entry, parse_listed, subnet
from potluck.node.net.host import Host, HostConfig, open_host
from potluck.node.net.relay import Relay
from potluck.node.net.reservations import Reservations

ALICE, BOB, CAROL = (IdentityKey.from_bytes(letter * 32).peer_id for letter in (b"a", b"b", b"c"))


def listed(*entries: str) -> Listed:
    return parse_listed(entries)


# ---- the rule


def test_entries_are_peers_addresses_and_networks() -> None:
    found = listed(ALICE, f"/ip4/192.0.2.7/tcp/4001/p2p/{BOB}", "192.0.2.7", "2001:db8::/32")
    assert found.peers == {ALICE, BOB}
    assert [str(one) for one in found.networks] == ["192.0.2.7/32", "2001:db8::/32"]


@pytest.mark.parametrize("entry", ["", "12D3KooWnobody", "192.0.2.300", "/ip4/1.2.3.4/tcp/1", "*"])
def test_what_is_no_entry_is_refused(entry: str) -> None:
    with pytest.raises(UserError, match="neither a peer id"):
        parse_entry(entry)


def test_a_network_with_a_stray_end_is_corrected() -> None:
    with pytest.raises(UserError, match=r"192\.0\.2\.0/24"):
        parse_entry("192.0.2.7/24")


def test_without_lists_everybody_is_welcome() -> None:
    everybody = Access()
    assert not everybody.refuses_host("192.0.2.7") and not everybody.refuses_peer(ALICE, None)
    assert everybody.may_be(ALICE)


def test_banned_by_address_before_the_handshake_by_id_after_it() -> None:
    access = Access(listed(ALICE, "192.0.2.0/24"))
    assert access.refuses_host("192.0.2.7") and access.refuses_host("::ffff:192.0.2.7")
    assert not access.refuses_host("192.0.3.7") and not access.refuses_host("fe80::1%eth0")
    assert access.refuses_peer(ALICE, "192.0.3.7") and not access.refuses_peer(BOB, "192.0.3.7")
    assert not access.may_be(ALICE) and access.may_be(BOB)


def test_an_allow_list_refuses_all_others() -> None:
    access = Access(allowed=listed(ALICE, "192.0.2.0/24"))
    assert not access.refuses_host("203.0.113.1")  # it may be Alice: nobody knows yet
    assert not access.refuses_peer(ALICE, "203.0.113.1") and not access.refuses_peer(ALICE, None)
    assert access.refuses_peer(BOB, "203.0.113.1") and access.refuses_peer(BOB, None)
    assert not access.refuses_peer(BOB, "192.0.2.7")


def test_an_allow_list_of_networks_alone_knows_before_the_handshake() -> None:
    access = Access(allowed=listed("192.0.2.0/24"))
    assert access.refuses_host("203.0.113.1") and not access.refuses_host("192.0.2.7")


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_a_ban_outweighs_whatever_allows(
    by_id: bool, by_address: bool, allowed_id: bool, allowed_address: bool
) -> None:
    banned = [ALICE] * by_id + ["192.0.2.0/24"] * by_address
    allowed = [ALICE] * allowed_id + ["192.0.2.0/25"] * allowed_address
    access = Access(listed(*banned), listed(*allowed))
    welcome = not access.refuses_peer(ALICE, "192.0.2.7")
    assert welcome == (not (by_id or by_address) and (allowed_id or allowed_address))


# ---- real hosts


@asynccontextmanager
async def host_of(letter: str, access: Access | None = None) -> AsyncIterator[Host]:
    config = HostConfig(seed=letter.encode() * 32, access=access or Access())
    async with open_host(config) as host:
        host.handle(ECHO, echo)
        yield host


async def gets_in(guest: Host, place: Host) -> bool:
    """Whether a guest gets an answer there; if not, soon and without a word."""
    with trio.fail_after(5):
        try:
            peer = await guest.connect(place.addresses())
            stream = await guest.open_stream(peer, ECHO)
            await stream.send(b"hello")
            return bytes(await stream.receive()) == b"hello"
        except TransportError:
            return False


async def test_a_banned_peer_is_refused_in_both_directions() -> None:
    async with (
        host_of("v", Access(listed(ALICE))) as victim,
        host_of("a") as alice,
        host_of("b") as bob,
    ):
        assert not await gets_in(alice, victim)
        assert victim.connected() == () and await gets_in(bob, victim)
        with pytest.raises(TransportError, match="on the ban list"):
            await victim.connect(alice.addresses())
        assert not victim.welcomes(alice.peer_id)


async def test_a_banned_address_is_refused_before_it_can_say_anything() -> None:
    async with host_of("v", Access(listed("127.0.0.0/8"))) as victim, host_of("a") as alice:
        assert not await gets_in(alice, victim)
        assert victim._gate._shaking.total() == 0 == len(victim._door.shaking)
        with pytest.raises(TransportError, match="on the ban list"):
            await victim.connect(alice.addresses())
        port = alice.listeners[0].getsockname()[1]
        with pytest.raises(TransportError, match="on the ban list"):  # a name leads there too
            await victim.connect([f"/dns4/localhost/tcp/{port}/p2p/{alice.peer_id}"])


async def test_an_allow_list_admits_its_own_and_nobody_else() -> None:
    async with (
        host_of("v", Access(allowed=listed(ALICE))) as victim,
        host_of("a") as alice,
        host_of("b") as bob,
    ):
        assert await gets_in(alice, victim) and not await gets_in(bob, victim)
        assert await gets_in(victim, alice)
        with pytest.raises(TransportError, match="not on the allow-list"):
            await victim.connect(bob.addresses())
        assert victim.connected() == (ALICE,)


async def test_a_name_is_dialed_and_counts_by_its_address() -> None:
    """A name in an address, which anybody may have written, ended a host once."""
    async with host_of("a") as alice, host_of("b") as bob:
        port = alice.listeners[0].getsockname()[1]
        await bob.connect([f"/dns4/localhost/tcp/{port}/p2p/{alice.peer_id}"])
        (connection,) = bob.connections()
        assert connection.remote == ("127.0.0.1", port)


async def test_no_relay_brings_in_whom_a_list_refuses() -> None:
    """The relay is allowed by its address, whoever comes through it only by an id."""
    access = Access(allowed=listed("127.0.0.0/8", ALICE))
    async with (
        host_of("r") as middle,
        host_of("v", access) as victim,
        host_of("a") as alice,
        host_of("b") as bob,
    ):
        relay = Relay(middle, IdentityKey.from_bytes(b"r" * 32))
        relay.open()
        held = Reservations(victim, wanted=1, source=lambda _: None, usable=lambda _: True)
        await victim.connect(middle.addresses())
        await victim.identified(middle.peer_id)
        assert await held.tend()
        way = f"{held.addresses()[0]}/p2p/{victim.peer_id}"
        assert await alice.connect([way]) == victim.peer_id
        stream = await alice.open_stream(victim.peer_id, ECHO)
        await stream.send(b"hello")
        assert bytes(await stream.receive()) == b"hello"
        with pytest.raises(TransportError):
            await bob.connect([way])
            stream = await bob.open_stream(victim.peer_id, ECHO)
            await stream.send(b"hello")
            if not await stream.receive():
                raise TransportError("ended")
        assert BOB not in victim.connected()


# ---- where the lists are read from


def test_the_command_line_comes_on_top_of_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'ban = ["{ALICE}", "more.txt"]\n')
    (tmp_path / "more.txt").write_text(f"# whom we know\n\n{CAROL}  # again\n")
    access = find_access(tmp_path, ban=["192.0.2.7"])
    assert access.banned == listed(ALICE, CAROL, "192.0.2.7") and access.allowed is None


def test_an_allow_list_holds_whoever_runs_under_this_home(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(f'{{"peer": "{BOB}"}}')
    assert find_access(tmp_path).allowed is None
    access = find_access(tmp_path, allow_only=[ALICE])
    assert access.allowed == listed(ALICE, BOB)


@pytest.mark.parametrize(
    "config, told",
    [
        ('ban = "12D3"', "must be a list"),
        ("ban = [1]", "must be a list"),
        ('ban = ["nobody"]', "ban: nobody: neither"),
        ("allow_only = []", "names nobody"),
        ('bann = ["192.0.2.7"]', "no setting 'bann'"),
        ("ban = [", "cannot be read"),
        ('ban = ["list.txt"]', "line 2: 192.0.2.300"),
    ],
)
def test_a_wrong_list_is_named(config: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config)
    (tmp_path / "list.txt").write_text("192.0.2.7\n192.0.2.300\n")
    with pytest.raises(UserError, match=told):
        find_access(tmp_path)


# ---- and read again


async def test_whoever_is_not_welcome_any_more_is_sent_away() -> None:
    async with (
        host_of("v") as victim,
        host_of("a") as alice,
        host_of("b") as bob,
    ):
        assert await gets_in(alice, victim) and await gets_in(bob, victim)
        (sent,) = victim.admit(Access(listed(ALICE)))
        assert sent.mux.peer == ALICE
        with trio.fail_after(5):
            while victim.connected() != (BOB,):
                await trio.lowlevel.checkpoint()
        assert not await gets_in(alice, victim) and await gets_in(bob, victim)
        victim.admit(Access())
        assert await gets_in(alice, victim)


class Door:
    """What a host is to its lists."""

    def __init__(self) -> None:
        self.admitted: list[Access] = []

    def admit(self, access: Access) -> list[str]:
        self.admitted.append(access)
        return []


async def test_lists_are_read_again_when_they_have_changed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """What the command line said stays; a mistake changes nothing until it is mended."""
    config, more, door = tmp_path / "config.toml", tmp_path / "more.txt", Door()
    config.write_text(f'ban = ["{ALICE}", "more.txt"]')
    more.write_text("# nobody yet")

    async def after(said: object) -> list[Access]:
        await trio.sleep(2 * LOOK_S)
        told, door.admitted = door.admitted, []
        return told

    async with trio.open_nursery() as nursery:
        service = partial(keep_access, ban=["192.0.2.7"])
        nursery.start_soon(service, tmp_path, door.admit)
        await trio.sleep(10 * LOOK_S)
        assert door.admitted == []
        (told,) = await after(more.write_text(CAROL))
        assert told.banned == listed(ALICE, CAROL, "192.0.2.7")
        assert await after(config.write_text(f'ban = ["{ALICE}", "no such file"]')) == []
        assert await after(config.write_text(f'ban = ["{ALICE}')) == []
        (told,) = await after(config.write_text(f'allow_only = ["{BOB}", "more.txt"]'))
        assert told == Access(listed("192.0.2.7"), listed(BOB, CAROL))
        (told,) = await after(more.write_text(f"{CAROL}\n{ALICE}"))
        assert told.allowed == listed(ALICE, BOB, CAROL)
        assert await after(config.unlink()) == [Access(listed("192.0.2.7"))]
        nursery.cancel_scope.cancel()


def test_a_subnet_is_the_same_however_the_address_came() -> None:
    assert subnet("198.51.100.7") == subnet("::ffff:198.51.100.9") == "198.51.100.0/24"
    assert subnet("2001:db8:0:12::1%eth0") == subnet("2001:db8:0:34::2") == "2001:db8::/56"
    assert subnet("2001:db8:0:100::1") != subnet("2001:db8::1")
