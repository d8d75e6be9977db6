"""Pinned peers: how they are named, that no flood moves them, and that they are dialled first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from receipts import key
from sim.parted import Guide, TownNet
from trio.testing import MockClock

from potluck.dht.known import Known
from potluck.errors import TransportError, UserError
from potluck.node import member as joining
from potluck.node.config import find_pins
from potluck.node.gossip.sampling import Sampler
from potluck.node.pins import PINS, PINS_MAX, Pin, load_pins, parse_pin, save_pins, together
from potluck.swarm.machine import Fired
from potluck.swarm.sampling import PIN_EVERY, ROUND_S, Sampling
from potluck.swarm.sampling_events import Heard, Lost, Member, Pull, Received, Send, Shunned, View

FRIEND, OTHER = key("friend").peer_id, key("other").peer_id
AT = "/ip4/203.0.113.7/tcp/4001"


# ---- how they are named


@pytest.mark.parametrize(
    "text, pin",
    [
        (FRIEND, Pin(FRIEND)),
        (f"{FRIEND}@", Pin(FRIEND)),
        (f" {FRIEND}@{AT} ", Pin(FRIEND, AT)),
        (f"{FRIEND}@{AT}/p2p/{FRIEND}", Pin(FRIEND, AT)),
        (f"{AT}/p2p/{FRIEND}", Pin(FRIEND, AT)),
        (
            f"{FRIEND}@/dns4/example.org/tcp/443/wss",
            Pin(FRIEND, "/dns4/example.org/tcp/443/tls/ws"),
        ),
    ],
)
def test_a_pin_is_an_id_and_perhaps_where_it_listens(text: str, pin: Pin) -> None:
    assert parse_pin(text) == pin == parse_pin(str(pin))


@pytest.mark.parametrize(
    "text", ["", "friend", AT, "@", f"{FRIEND}@nowhere", f"{FRIEND}@{AT}/p2p/{OTHER}"]
)
def test_what_names_nobody_is_refused_with_what_to_give(text: str) -> None:
    with pytest.raises(UserError, match=r"no peer to pin: .* give PEER_ID"):
        parse_pin(text)


def test_the_list_the_config_and_the_command_line_are_one_and_an_address_is_kept(
    tmp_path: Path,
) -> None:
    assert load_pins(tmp_path) == find_pins(tmp_path) == ()
    save_pins(tmp_path, [Pin(FRIEND, AT)])
    (tmp_path / "config.toml").write_text(f'pin = ["{FRIEND}", "{OTHER}"]')
    assert find_pins(tmp_path) == (Pin(FRIEND, AT), Pin(OTHER))
    assert find_pins(tmp_path, [f"{OTHER}@{AT}"])[0] == Pin(OTHER, AT)
    (tmp_path / PINS).write_text(f"# friends\n\n{FRIEND}  # hers\nnobody\n")
    with pytest.raises(UserError, match=r"pins line 4: nobody"):
        load_pins(tmp_path)
    (tmp_path / "config.toml").write_text('pin = ["nobody"]')
    with pytest.raises(UserError, match=r"config\.toml: pin: nobody"):
        find_pins(tmp_path)
    (tmp_path / "config.toml").write_text("pin = 3")
    with pytest.raises(UserError, match="pin must be a list"):
        find_pins(tmp_path)
    with pytest.raises(UserError, match=f"{PINS_MAX} at most"):
        together([Pin(key(f"p {n}").peer_id) for n in range(PINS_MAX + 1)])


# ---- no flood moves them


def liar(number: int) -> Member:
    return Member(
        key(f"liar {number}").peer_id, f"/ip4/{11 + number % 90}.1.{number % 200}.1/tcp/1"
    )


def eclipsed(*pinned: Member) -> Sampling:
    """A view in which every slot is a liar's."""
    dice = Random(1)
    one = Sampling(OTHER, lambda: dice.getrandbits(64), slots=16, pinned=pinned)
    one.handle(Heard(tuple(liar(n) for n in range(200))), 0.0)
    return one


def asked_in(one: Sampling, rounds: int, first: int = 0) -> list[Member]:
    """Who is asked for its view, of those who are not just lost."""
    found = []
    for number in range(first, first + rounds):
        effects = one.handle(Fired("round"), number * ROUND_S)
        sends = [effect for effect in effects if isinstance(effect, Send)]
        found += [send.member for send in sends if send.message == Pull()][:1]
    return found


def test_a_view_that_liars_hold_has_it_first_and_asks_it_again_and_again() -> None:
    friend, second = Member(FRIEND, AT), Member(key("second").peer_id, "/ip4/198.51.100.1/tcp/1")
    one = eclipsed(friend, second)
    assert list(one.members())[:2] == [friend, second] and len(one.members()) > 10
    assert list(one.members(1)) == [friend]
    asked = asked_in(one, 4 * PIN_EVERY)
    assert [asked.index(friend), asked.index(second)] == [0, PIN_EVERY]
    assert asked.count(friend) == asked.count(second) == 2
    one.handle(Received(friend, View(())), 16 * ROUND_S)
    assert one.met(FRIEND)


def test_one_that_cannot_be_reached_stays_and_is_asked_where_the_owner_said() -> None:
    friend = Member(FRIEND, AT)
    one = eclipsed(friend)
    for number in range(40):
        one.handle(Lost(friend), number * ROUND_S)
        one.handle(Fired("round"), number * ROUND_S)
    assert one.members()[0] == friend
    moved = Member(FRIEND, "/ip4/198.51.100.9/tcp/1")
    one.handle(Received(moved, Pull()), 300.0)
    assert one.members()[0] == moved
    one.handle(Lost(moved), 301.0)
    assert one.members()[0] == friend


def test_one_whose_address_nobody_gave_is_found_by_who_names_it_and_again_after_a_lie() -> None:
    one = eclipsed(Member(FRIEND, ""))
    assert one.pinned() == []
    lie, truth = Member(FRIEND, "/ip4/99.9.9.9/tcp/1"), Member(FRIEND, AT)
    one.handle(Heard((lie, truth)), 0.0)
    assert one.pinned() == [lie]
    one.handle(Lost(lie), 1.0)
    one.handle(Heard((lie, truth)), 2.0)
    assert one.pinned() == [truth]


def test_evidence_takes_out_a_pinned_peer_too() -> None:
    one = eclipsed(Member(FRIEND, AT))
    one.handle(Shunned(FRIEND), 0.0)
    assert one.pinned() == [] and FRIEND not in {each.peer for each in one.members()}
    banned = Sampling(OTHER, lambda: 1, shunned=FRIEND.__eq__, pinned=(Member(FRIEND, AT),))
    assert list(banned.members()) == [] and asked_in(banned, PIN_EVERY) == []


async def test_who_needs_random_peers_gets_a_pinned_one_now_and_then_and_never_it_alone(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        host = TownNet(nursery).settle(OTHER, "/ip4/11.0.0.1/tcp/1")
        sampler = Sampler(host, Guide(), Random(1), pinned=[Member(FRIEND, AT)])  # type: ignore[arg-type]
        sampler._machine.handle(Heard(tuple(liar(n) for n in range(200))), 0.0)
        drawn = [sampler.contacts(1) for _ in range(400)]
        assert 60 < drawn.count((FRIEND,)) < 150  # 1 in PIN_EVERY, by lot, and as any other
        assert host.known[FRIEND] == {AT}
        assert all(len(set(some)) == 8 for some in (sampler.contacts(8) for _ in range(50)))


# ---- they are dialled first


class Directory:
    """There are those who answer, and some who take their time."""

    def __init__(self, there: set[str], slow: set[str]) -> None:
        self.there, self.slow = there, slow
        self.dialled: list[tuple[str, ...]] = []
        self.known: list[str] = []

    def peers(self) -> tuple[str, ...]:
        return tuple(self.known)

    async def bootstrap(self, addresses: Sequence[str]) -> int:
        self.dialled.append(tuple(addresses))
        if self.slow & set(addresses):
            await trio.sleep_forever()
        found = self.there & set(addresses)
        if not found:
            raise TransportError("nobody")
        self.known += sorted(found)
        return len(self.known)


PIN, ENTRY, OLD = f"{AT}/p2p/{FRIEND}", f"/ip4/192.0.2.1/tcp/1/p2p/{OTHER}", "/ip4/192.0.2.9/tcp/1"
LAST = (Known(key("old").peer_id, (f"{OLD}/p2p/{key('old').peer_id}",), 1.0),)


async def join(
    directory: Directory, pins: Sequence[Pin], named: Sequence[str], *, first: bool = False
) -> None:
    unpinned = await joining._join_pinned(directory, pins, LAST)  # type: ignore[arg-type]
    host: Any = SimpleNamespace(best=lambda peer: None)
    await joining._join(host, directory, named, LAST, unpinned, may_be_first=first)  # type: ignore[arg-type]


async def test_pinned_peers_are_dialled_before_those_named_and_stand_in_for_them() -> None:
    directory = Directory({PIN, ENTRY}, set())
    await join(directory, [Pin(FRIEND, AT)], [ENTRY])
    assert directory.dialled == [(PIN,), (ENTRY,)]
    alone = Directory({PIN}, set())
    await join(alone, [Pin(FRIEND, AT)], [])
    assert alone.dialled == [(PIN,)]  # those of the last run need not be asked
    await join(alone, [Pin(FRIEND, AT)], [ENTRY])  # who was named does not answer: that will do


async def test_who_is_pinned_by_its_id_is_dialled_where_it_was_in_the_last_run() -> None:
    directory = Directory({LAST[0].addresses[0]}, set())
    await join(directory, [Pin(LAST[0].peer), Pin(FRIEND)], [])
    assert directory.dialled == [LAST[0].addresses]


async def test_a_pinned_peer_that_is_away_or_slow_keeps_nobody_out_for_long(
    autojump_clock: MockClock,
) -> None:
    for slow in (set[str](), {PIN}):
        directory = Directory({ENTRY}, slow)
        began_s = trio.current_time()
        await join(directory, [Pin(FRIEND, AT)], [ENTRY])
        assert directory.dialled == [(PIN,), (ENTRY,)]
        assert trio.current_time() - began_s <= joining.PINNED_S
    with pytest.raises(UserError, match="nobody answers"):
        await join(Directory(set(), set()), [Pin(FRIEND, AT)], [])
    alone = Directory(set(), set())
    await join(alone, [Pin(FRIEND, AT)], [], first=True)  # a node is its swarm's first then
    assert len(alone.dialled) == 2
