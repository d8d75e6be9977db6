"""Peers know who we are by now, not who we were when they met us."""

from __future__ import annotations

from contextlib import suppress

from libp2p.peer.id import ID
from net_hosts import seeded, until
from stock import at, stock_host

from potluck.errors import TransportError
from potluck.node.net import identify
from potluck.node.net.address import parse
from potluck.node.net.host import Host, open_host
from potluck.node.net.stream import Stream

NEW = "/test/new/1"


async def deaf(stream: Stream) -> None:
    await stream.close()


async def acquainted(alice: Host, bob: Host) -> None:
    """Connected, and each has asked the other."""
    await alice.connect(bob.addresses())
    for here, there in ((alice, bob), (bob, alice)):
        await until(lambda here=here, there=there: there.peer_id in here.connected())  # type: ignore[misc]
        await here.identified(there.peer_id)


async def test_a_protocol_and_an_address_more_are_told_to_whom_we_know() -> None:
    async with (
        open_host(seeded("a")) as alice,
        open_host(seeded("b")) as bob,
    ):
        await acquainted(alice, bob)
        before = alice.claims(bob.peer_id)
        assert before is not None and NEW not in before.protocols
        bob.handle(NEW, deaf)
        bob.publish([parse("/ip4/192.0.2.7/tcp/4001")])

        def knows() -> bool:
            claims = alice.claims(bob.peer_id)
            return claims is not None and NEW in claims.protocols

        await until(knows)
        after = alice.claims(bob.peer_id)
        assert after is not None
        assert "192.0.2.7" in [address.host for address in after.addresses]
        assert after.agent == before.agent and after.observed is not None


async def test_what_a_push_leaves_out_is_as_it_was() -> None:
    async with (
        open_host(seeded("a")) as alice,
        open_host(seeded("b")) as bob,
    ):
        await acquainted(alice, bob)
        before = alice.claims(bob.peer_id)
        assert before is not None and before.addresses
        message = identify.describe(
            b"\x00" * 32, agent="", protocols=[NEW], addresses=[], observed=None
        )
        stream = await bob.open_stream(alice.peer_id, identify.PUSH)
        await stream.send(message)
        assert await stream.receive() == b""  # heard
        after = alice.claims(bob.peer_id)
        assert after is not None and after.protocols == (NEW,)
        assert after.addresses == before.addresses and after.agent == before.agent


async def test_a_push_of_nonsense_changes_nothing_and_ends_its_stream() -> None:
    async with (
        open_host(seeded("a")) as alice,
        open_host(seeded("b")) as bob,
    ):
        await acquainted(alice, bob)
        before = alice.claims(bob.peer_id)
        for words in (b"\x05\xff\xff\xff\xff\xff", b"\xff\xff\xff\xff\x7f", b"\x05\x0a"):
            stream = await bob.open_stream(alice.peer_id, identify.PUSH)
            await stream.send(words)
            await stream.finish()  # type: ignore[attr-defined]  # MuxStream has it
            with suppress(TransportError):  # reset
                assert await stream.receive() == b""
        assert alice.claims(bob.peer_id) == before
        assert alice.connected() == (bob.peer_id,)


async def test_a_stock_peer_hears_of_a_new_protocol() -> None:
    async with open_host(seeded("a")) as alice, stock_host("b") as bob:
        await bob.connect(at(alice.addresses()[0]))
        me = at(alice.addresses()[0]).peer_id
        store = bob.get_peerstore()
        await until(lambda: me in store.peer_ids() and identify.PING in store.get_protocols(me))
        alice.handle(NEW, deaf)
        await until(lambda: NEW in store.get_protocols(me))


async def test_of_a_peer_that_says_too_much_the_last_few_addresses_are_kept() -> None:
    """A thousand of them held up a host for 0.3 s, and libp2p's store kept them all."""
    async with (
        open_host(seeded("a")) as alice,
        open_host(seeded("m")) as mallory,
    ):
        await acquainted(alice, mallory)
        for port in range(1, 1201, 600):
            stream = await mallory.open_stream(alice.peer_id, identify.PUSH)
            places = [parse(f"/ip4/192.0.2.7/tcp/{port + more}") for more in range(600)]
            await stream.send(
                identify.describe(
                    bytes(32), agent="m", protocols=["/x"] * 300, addresses=places, observed=None
                )
            )
            await stream.close()

            def heard(first: int = port) -> bool:
                claims = alice.claims(mallory.peer_id)
                return claims is not None and first in [one.port for one in claims.addresses]

            await until(heard)
        claims = alice.claims(mallory.peer_id)
        assert claims is not None and len(claims.addresses) == identify.ADDRESSES_MAX
        store = alice.libp2p.host.get_peerstore()
        assert len(store.addrs(ID.from_string(mallory.peer_id))) == identify.ADDRESSES_MAX
