"""Addresses: what can be dialed is understood, nothing else is, and none is 0.0.0.0."""

from __future__ import annotations

import socket
from contextlib import suppress

import multiaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError, UserError
from potluck.node.net.address import Address, listening, parse, parse_known, reachable
from potluck.node.net.identify import from_binary, to_binary

PEER = IdentityKey.from_bytes(b"p" * 32).peer_id
OTHER = IdentityKey.from_bytes(b"o" * 32).peer_id


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.7/tcp/4001",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}",
        "/ip6/2001:db8::7/tcp/1",
        f"/dns4/peer.example.org/tcp/443/p2p/{PEER}",
        "/dns/peer.example.org/tcp/443",
        f"/ip4/192.0.2.7/tcp/80/ws/p2p/{PEER}",
        f"/dns4/peer.example.org/tcp/443/tls/ws/p2p/{PEER}",
    ],
)
def test_an_address_that_can_be_dialed_is_the_same_again(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(text).peer == (PEER if PEER in text else None)
    plain = text.removesuffix(f"/p2p/{PEER}")
    assert to_binary(parse(text)) == multiaddr.Multiaddr(plain).to_bytes()
    assert from_binary(to_binary(parse(text))) == parse(plain)


def test_wss_is_said_in_two_ways_and_means_one() -> None:
    assert parse("/ip4/192.0.2.7/tcp/443/wss") == parse("/ip4/192.0.2.7/tcp/443/tls/ws")
    binary = multiaddr.Multiaddr("/ip4/192.0.2.7/tcp/443/wss").to_bytes()
    assert from_binary(binary) == parse("/ip4/192.0.2.7/tcp/443/tls/ws")


def test_a_relay_may_listen_for_websockets() -> None:
    text = f"/ip4/192.0.2.7/tcp/80/ws/p2p/{OTHER}/p2p-circuit/p2p/{PEER}"
    found = parse(text)
    assert str(found) == text
    assert (found.relay, found.peer, found.over) == (OTHER, PEER, "ws")
    assert str(found.end_point) == "/ip4/192.0.2.7/tcp/80/ws"


def test_a_websocket_is_announced_where_it_was_asked_for_and_wss_cannot_be() -> None:
    (sock,) = listening(["/ip4/127.0.0.1/tcp/0/ws"])
    with sock:
        assert [str(one).rsplit("/", 1)[1] for one in reachable([sock])] == ["ws"]
    with pytest.raises(UserError, match="web server with TLS"):
        listening(["/ip4/127.0.0.1/tcp/0/wss"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/4001/quic-v1",
        "/ip4/127.0.0.1/tcp/4001/tls",
        "/ip4/127.0.0.1/tcp/4001/ws/wss",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/-1",
        "/ip4/127.0.0.1/tcp/٣",
        "/ip4/1.2.3/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip6/127.0.0.1/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip4/127.0.0.1/tcp/1/p2p/nobody",
        "/dns//tcp/1",
        "/dns/./tcp/1",
        "/dns/a..b/tcp/1",
        "/dns/a b/tcp/1",
        "/dns/a_b/tcp/1",
        "/dns/-a.org/tcp/1",
        "/dns/[::1]/tcp/1",
        f"/dns/{'a' * 64}.org/tcp/1",
        f"/dns/{'a.' * 127}org/tcp/1",
        "/ip4/127.0.0.1/tcp/1/" + "x" * 1000,
    ],
)
def test_what_cannot_be_dialed_is_refused(text: str) -> None:
    with pytest.raises(RemoteError):
        parse(text)


@given(st.text(max_size=60) | st.lists(st.sampled_from(["ip4", "tcp", "1", "::1", "p2p", ""])).map(
    "/".join
))  # fmt: skip
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    with suppress(RemoteError):
        assert parse(str(parse(text))) == parse(text)


def test_of_told_addresses_the_useful_ones_are_kept() -> None:
    told = [
        "/ip4/1.2.3.4/tcp/5",
        "nonsense",
        f"/ip4/1.2.3.4/tcp/6/p2p/{OTHER}",
        "/ip4/1.2.3.4/tcp/0",
    ]
    assert parse_known(told, PEER) == [Address("ip4", "1.2.3.4", 5)]


def test_a_wildcard_stands_for_every_interface_and_loopback_comes_last() -> None:
    (sock,) = listening(["/ip4/0.0.0.0/tcp/0"])
    with sock:
        found = reachable([sock])
    assert found and found[-1].host == "127.0.0.1"
    assert all(address.host != "0.0.0.0" and address.port for address in found)


def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use") as caught:
            listening(["/ip4/127.0.0.1/tcp/0", f"/ip4/127.0.0.1/tcp/{port}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["/ip4/192.0.2.77/tcp/0", "/dns/localhost/tcp/0", "/ip4/127.0.0.1/udp/1/quic-v1"]
)
def test_an_address_that_is_not_ours_to_listen_on_is_the_users_mistake(text: str) -> None:
    with pytest.raises(UserError, match="cannot listen on"):
        listening([text])
