"""IPv6: listened on, dialed, told and raced like IPv4."""

from __future__ import annotations

import socket

import pytest
from net_hosts import crossing, echoing, talk, until

from potluck.errors import UserError
from potluck.node.net import host as host_module
from potluck.node.net.address import listening, parse
from potluck.node.net.host import Host

HERE4, HERE6 = "/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"


def _why_not() -> str | None:
    """Why nothing can listen on ::1 here."""
    try:
        (sock,) = listening([HERE6])
    except (UserError, OSError) as error:
        return str(error)
    sock.close()
    return None


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=f"no IPv6 here: {_why_not()}")


def family(dialer: Host, peer: str) -> str:
    (connection,) = dialer.connections(peer)
    return "ip6" if ":" in connection.remote[0] else "ip4"


async def test_hosts_meet_over_ipv6_and_see_each_other_there() -> None:
    async with echoing("a", HERE6) as alice, echoing("b", HERE6) as bob:
        (address,) = alice.addresses()
        assert address.startswith("/ip6/::1/tcp/")
        await bob.connect([address])
        await talk(bob, alice.peer_id)
        await bob.identified(alice.peer_id)
        claims = bob.claims(alice.peer_id)
        assert claims is not None and claims.observed is not None
        assert (claims.observed.kind, claims.observed.host) == ("ip6", "::1")
        assert [str(one.kind) for one in claims.addresses] == ["ip6"]
        alice.learn(bob.peer_id, bob.addresses())
        bob.disconnect(alice.peer_id)
        await until(lambda: not alice.connected())
        await talk(alice, bob.peer_id)


async def test_a_wildcard_of_each_family_can_share_a_port_number() -> None:
    async with echoing("a", "/ip4/0.0.0.0/tcp/0") as first:
        port = first.listeners[0].getsockname()[1]
        async with echoing("b", f"/ip6/::/tcp/{port}") as second, echoing("c") as carol:
            found = [parse(one) for one in second.addresses()]
            assert found and all(one.kind == "ip6" and one.host != "::" for one in found)
            assert await carol.connect([f"/ip6/::1/tcp/{port}/p2p/{second.peer_id}"])
            assert await carol.connect([f"/ip4/127.0.0.1/tcp/{port}/p2p/{first.peer_id}"])


@pytest.mark.parametrize(("dead", "alive"), [(HERE4, HERE6), (HERE6, HERE4)])
async def test_a_family_that_leads_nowhere_keeps_nobody_from_the_other(
    dead: str, alive: str
) -> None:
    (gone,) = listening([dead])
    place = gone.getsockname()[1]
    gone.close()
    async with echoing("a", alive) as alice, echoing("b") as bob:
        stale = f"{dead.removesuffix('/0')}/{place}/p2p/{alice.peer_id}"
        await bob.connect([stale, *alice.addresses()])
        await talk(bob, alice.peer_id)
        assert family(bob, alice.peer_id) == alive[1:4]


async def test_families_race_and_both_ends_keep_one_connection() -> None:
    async with echoing("a", HERE4, HERE6) as alice, echoing("b") as bob:
        assert len(alice.addresses()) == 2
        await bob.connect(alice.addresses())
        await talk(bob, alice.peer_id)
        assert len(bob.connections()) == len(alice.connections()) == 1


async def test_what_no_stranger_can_dial_is_told_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home's IPv6 behind its firewall; at home it is dialed all the same."""
    own = [parse(f"/ip6/{place}/tcp/4001") for place in ("2a11:0:1:1::2", "fd00::2")]
    monkeypatch.setattr(host_module, "reachable", lambda _: own)
    async with echoing("a", HERE6) as alice:
        assert alice.places() == own
        through = parse(f"/ip4/11.0.1.2/tcp/4001/p2p/{alice.peer_id}/p2p-circuit")
        alice.publish([through], closed={"ip6"})
        assert alice.places() == [through, own[1]]
        alice.publish([through], closed={"ip4"})
        assert alice.places() == [through, *own]


async def test_a_name_with_an_ipv6_address_is_dialed_there() -> None:
    try:
        known = socket.getaddrinfo("localhost", None, socket.AF_INET6)
    except OSError:
        known = []
    if not known:
        pytest.skip("localhost has no IPv6 address here")
    async with echoing("a", HERE6) as alice, echoing("b") as bob:
        port = alice.listeners[0].getsockname()[1]
        await bob.connect([f"/dns6/localhost/tcp/{port}/p2p/{alice.peer_id}"])
        assert family(bob, alice.peer_id) == "ip6"


async def test_a_websocket_over_ipv6() -> None:
    async with echoing("a", f"{HERE6}/ws") as alice, echoing("b") as bob:
        await bob.connect(alice.addresses())
        await talk(bob, alice.peer_id)


async def test_who_listens_on_ipv6_alone_is_seen_reserved_for_and_punched_there() -> None:
    """Dialed from its port it learns how that is seen; a relay passes a caller on; both dial."""

    async with (
        crossing("r", HERE6, relay="yes") as (middle, _),
        crossing("b", HERE6) as (bob, nat),
        crossing("a") as (alice, _),
    ):
        await bob.connect(middle.addresses())
        await until(lambda: any("p2p-circuit" in one for one in bob.addresses()))
        await until(lambda: nat.ports.seen["ip6"])  # what it is told of itself may come after
        seen = nat.ports.seen["ip6"].latest
        assert seen is not None and seen.port == bob.listeners[0].getsockname()[1]
        way = next(one for one in bob.addresses() if "p2p-circuit" in one)
        await alice.connect([way])
        assert alice.relay_of(bob.peer_id) == middle.peer_id
        await until(lambda: alice.relay_of(bob.peer_id) is None)
        await talk(alice, bob.peer_id)
