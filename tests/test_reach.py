"""Whether strangers can dial us: who is asked, who is believed, and whose door is knocked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from net_hosts import seeded

from potluck.errors import RemoteError, TransportError
from potluck.node.net.address import Address
from potluck.node.net.host import Host, open_host
from potluck.node.net.observed import Observations
from potluck.node.net.ports import Ports
from potluck.node.net.reach import (
    Answer,
    Ask,
    DialBack,
    _receive,
    _send,
    ask_around,
    closed_families,
    decisive,
    judge,
    open_families,
)

ME = "11.0.9.2"


def answer(*reached: int, host: str = ME) -> Answer:
    return Answer(host, 4001, reached, tried=True)


# ---- the verdict


def test_two_who_came_through_make_us_public_and_one_does_not() -> None:
    assert judge([answer(4001)]).reachability == "unknown"
    found = judge([answer(4001), answer(4001)])
    assert found.reachability == "public"
    assert found.places == (Address("ip4", ME, 4001),)


def test_one_is_enough_where_the_router_says_the_same() -> None:
    place = Address("ip4", ME, 4001)
    assert judge([answer(4001)], [place]).reachability == "public"


def test_liars_who_agree_on_no_place_make_nobody_public() -> None:
    found = judge([answer(4001, host="11.0.1.1"), answer(4001, host="11.0.2.2")])
    assert found.reachability == "unknown"


def test_when_most_failed_we_are_private() -> None:
    assert judge([answer(), answer(), answer(4001)]).reachability == "private"
    assert judge([]).reachability == "unknown"


@given(st.lists(st.booleans(), max_size=8))
def test_the_verdict_goes_with_the_greater_number(reached: list[bool]) -> None:
    found = judge([answer(4001) if one else answer() for one in reached])
    if found.reachability == "public":
        assert 2 * sum(reached) > len(reached)
    if found.reachability == "private":
        assert 2 * sum(reached) < len(reached)


# ---- what others see


def seen(*mappings: tuple[str, str, int]) -> Observations:
    found = Observations()
    for observer, host, port in mappings:
        found.add(observer, Address("ip4", host, port))
    return found


SIX = "2a11:0:1:1::2"


def test_a_family_is_closed_when_nobody_came_through_in_it() -> None:
    lost4, lost6, came6 = answer(), answer(host=SIX), answer(4001, host=SIX)
    assert closed_families([]) == frozenset()
    assert closed_families([lost4, lost6]) == {"ip4", "ip6"}
    assert closed_families([lost4, lost6, came6, lost6]) == {"ip4"}


def test_a_family_is_open_by_its_own_answers() -> None:
    """One who came through is enough at an address that is our own: no NAT is in between."""
    lost4, came6 = answer(), answer(4001, host=SIX)
    assert open_families([lost4, lost4, came6]) == ()
    assert open_families([lost4, lost4, came6], [Address("ip6", SIX, 4001)]) == ("ip6",)
    assert open_families([lost4, came6, came6]) == ("ip6",)
    assert open_families([answer(4001), answer(4001), came6, came6]) == ("ip4", "ip6")


def test_ipv4_decides_while_anybody_has_tried_it() -> None:
    """For many who would dial us have nothing else."""
    lost4, came6 = answer(), answer(4001, host=SIX)
    assert judge(decisive([came6, lost4, came6])).reachability == "private"
    assert judge(decisive([came6, came6])).reachability == "public"


def test_one_observer_is_not_believed() -> None:
    found = seen(("11.0.1.2", ME, 4001))
    assert found.kind() == "unknown" and found.agreed is None and found.latest is not None


def test_observers_of_one_network_count_once() -> None:
    assert seen(("11.0.1.2", ME, 4001), ("11.0.1.3", ME, 4001)).agreed is None


def test_one_mapping_for_all_is_endpoint_independent() -> None:
    found = seen(("11.0.1.2", ME, 4001), ("11.0.2.2", ME, 4001))
    assert found.kind() == "endpoint-independent"
    assert found.agreed == Address("ip4", ME, 4001)


def test_a_mapping_for_each_is_per_destination() -> None:
    found = seen(("11.0.1.2", ME, 50_001), ("11.0.2.2", ME, 61_313))
    assert found.kind() == "per-destination" and found.agreed is None


def test_a_liar_is_outvoted() -> None:
    found = seen(("11.0.1.2", ME, 4001), ("11.0.2.2", ME, 4001), ("11.0.3.2", "11.0.8.8", 9))
    assert found.agreed == Address("ip4", ME, 4001)


def test_seen_at_our_own_address_there_is_no_nat() -> None:
    assert seen(("11.0.1.2", ME, 4001)).kind(frozenset((ME,))) == "none"


async def test_whether_our_port_keeps_its_number_is_told_by_others() -> None:
    async with open_host(seeded("a")) as me:
        ports = Ports(me, may_open=False, local=True)
        assert ports.kept() is None
        ports.seen["ip4"].add("11.0.1.2", Address("ip4", ME, port_of(me)))
        assert ports.kept() is True
        ports.seen["ip4"].add("11.0.2.2", Address("ip4", ME, 7))
        assert ports.kept() is False and len(ports.seen["ip4"]) == 2


# ---- the dial-back


@asynccontextmanager
async def asked_by(count: int) -> AsyncIterator[tuple[Host, list[Host]]]:
    """A host, and others that it is connected to and that dial back."""
    async with AsyncExitStack() as stack:
        me = await stack.enter_async_context(open_host(seeded("a")))
        others = []
        for at in range(count):
            other = await stack.enter_async_context(open_host(seeded("bcd"[at])))
            DialBack(other)
            await me.connect(other.addresses())
            await me.identified(other.peer_id)
            others.append(other)
        yield me, others


def port_of(host: Host) -> int:
    found: int = host.listeners[0].getsockname()[1]
    return found


async def test_whoever_listens_is_reached_and_a_closed_port_is_not() -> None:
    async with asked_by(3) as (me, _):
        port = port_of(me)
        answers = await ask_around(me, (port, 1), touched=frozenset(), local=True)
        assert [one.reached for one in answers.values()] == [(port,)] * 3
        assert judge(list(answers.values())).reachability == "public"


async def test_somebody_else_at_our_port_is_not_us() -> None:
    """Behind one NAT with a stranger: the handshake tells us apart."""
    async with asked_by(1) as (me, _), open_host(seeded("z")) as stranger:
        answers = await ask_around(me, (port_of(stranger),), touched=frozenset(), local=True)
        assert [one.reached for one in answers.values()] == [()]


async def test_those_our_nat_lets_in_are_not_asked() -> None:
    async with asked_by(2) as (me, _):
        assert await ask_around(me, (1,), touched=frozenset(("127.0.0.1",)), local=True) == {}


async def test_only_one_question_of_a_network_is_answered_at_a_time() -> None:
    async with asked_by(1) as (me, _):
        port = (port_of(me),)
        assert len(await ask_around(me, port, touched=frozenset(), local=True)) == 1
        assert await ask_around(me, port, touched=frozenset(), local=True) == {}


async def test_an_answer_about_a_port_that_nobody_asked_for_is_a_lie() -> None:
    async with open_host(seeded("a")) as me, open_host(seeded("b")) as liar:

        async def lie(stream) -> None:  # type: ignore[no-untyped-def]
            await _receive(stream, Ask)
            await _send(stream, Answer("127.0.0.1", 1, (22,), tried=True))

        liar.handle("/potluck/reach/1", lie)
        await me.connect(liar.addresses())
        await me.identified(liar.peer_id)
        assert await ask_around(me, (4001,), touched=frozenset(), local=True) == {}


async def test_a_question_with_too_many_ports_is_refused() -> None:
    async with asked_by(1) as (me, others):
        stream = await me.open_stream(others[0].peer_id, "/potluck/reach/1")
        raw = b"\x81\xa5ports" + b"\x95" + bytes((1, 2, 3, 4, 5))
        await stream.send(len(raw).to_bytes(2), raw)
        with pytest.raises((TransportError, RemoteError)), trio.fail_after(5):
            while await stream.receive():
                pass
            raise TransportError("ended without an answer")
