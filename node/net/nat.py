"""How others reach us when a NAT is in the way: everything that crosses one, in one service.

    a peer is met ─▶ ask around (reach.py) ─▶ public:  publish where; relay for others (relay.py)
                                           └▶ not:     reserve at relays (reservations.py), publish
    a relayed connection ─▶ punch (punch.py) ─▶ direct
    all the while: the router forwards a port (portmap.py); an address that changes starts it anew

What is found stands in `host.nat`, and in `host.addresses()` as soon as it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import trio

from ...crypto.keys import IdentityKey
from ..log import get_logger
from .address import Address, reachable
from .host import Host
from .observed import Filtering, Kind, Mapped, NatReport, is_public
from .peers import Connection
from .portmap import Mapping, keep_mapped
from .ports import Ports
from .punch import Puncher
from .reach import (
    Answer,
    DialBack,
    Verdict,
    ask_around,
    closed_families,
    decisive,
    judge,
    meet_stranger,
    open_families,
)
from .relay import Relay, RelayLimits
from .reservations import Reservations
from .watch import own_hosts, watch

log = get_logger()

TEND_S: Final = 1.0
ASK_AGAIN_S: Final = 300.0  # guess: mappings and firewalls change by the hour
ENOUGH: Final = 3  # networks that have answered
ASK_SOON_S: Final = 10.0  # while nothing certain is known
SETTLED_S: Final = 6.0  # how long a node's first announcement waits for an address to tell


@dataclass(frozen=True, slots=True)
class NatConfig:
    """What a node does about NATs.

    relay: pass on for others: when proven public ("auto"), from the start, or never. local: take
    loopback and private addresses for the internet's: a test on one machine.
    """

    portmap: bool = True  # ask the router to forward our port
    lan: bool = True  # tell the neighbours on the same network, and listen to them
    relays: int = 2  # reservations to hold: one may leave at any time
    relay: Literal["auto", "yes", "no"] = "auto"
    limits: RelayLimits = field(default_factory=RelayLimits)
    local: bool = False


class Nat:
    """The service; made by `start_nat`."""

    def __init__(self, host: Host, key: IdentityKey, config: NatConfig) -> None:
        self._host = host
        self._config = config
        self._own = frozenset(place.host for place in reachable(host.listeners))
        self.ports = Ports(host, may_open=not host.listeners, local=config.local)
        self.relay = Relay(host, key, config.limits)
        self.puncher = Puncher(host, self.ports, local=config.local)
        self.reservations = Reservations(
            host, wanted=config.relays, source=self.ports.source, usable=self._usable
        )
        DialBack(host)
        self.changed: list[Callable[[], None]] = []  # told when `host.addresses()` has changed
        self._verdict = Verdict()
        self._closed: frozenset[str] = frozenset()  # families in which strangers do not get in
        self._open: tuple[str, ...] = ()  # those in which they do
        self._answers: dict[str, tuple[float, Answer]] = {}  # by network, and when
        self._mapped: tuple[Address, ...] = ()
        self._portmap: Mapped = "not tried"
        self._mapping: trio.CancelScope | None = None  # while a router is asked
        self._ask_at = 0.0
        self._relaying = False
        self._wake = trio.Event()
        self._settled = trio.Event()
        self._router_answered = trio.Event()
        host.came.append(self._on_connection)
        if config.relay == "yes":
            self._offer(True)

    async def settled(self) -> None:
        """Wait until there is an address to tell others, or SETTLED_S have shown that there is not.

        Who listens only on this machine, or knows no stranger, has nothing to wait for.
        """
        if self.ports.listens and self._strangers() and not self._has_public_interface():
            with trio.move_on_after(SETTLED_S):
                await self._settled.wait()

    async def asked_router(self) -> None:
        """Wait until the router has forwarded a port, or has not, if it is asked at all."""
        if self._portmap == "asking":
            await self._router_answered.wait()

    async def run(self) -> None:
        """Find out, and keep it so, for ever."""
        while True:
            with trio.move_on_after(TEND_S):
                await self._wake.wait()
            self._wake = trio.Event()
            if not self.ports.listens or not self._strangers():
                continue
            if trio.current_time() >= self._ask_at:
                await self._ask()
            await self._tend()

    def start_over(self) -> None:
        """The interfaces have changed: what was found out is of the past."""
        self._own = frozenset(place.host for place in reachable(self._host.listeners))
        self.ports.forget()
        self._answers.clear()
        self._verdict = Verdict()
        self._closed, self._open = frozenset(), ()
        self._ask_at = 0.0
        self._wake.set()
        if self._mapping is not None:
            self._forget_router()
            self._mapping.cancel()

    def start_mapping(self) -> None:
        """Ask the router to forward our port, and keep it so; on another network, the one there."""
        self._forget_router()
        self._host.nursery.start_soon(self._keep_mapped)

    def _forget_router(self) -> None:
        self._mapped = ()
        self._portmap = "asking" if self.port_behind_router() else "not tried"
        self.publish()

    async def _keep_mapped(self) -> None:
        while True:
            with trio.CancelScope() as self._mapping:
                if port := self.port_behind_router():
                    await keep_mapped(port, self.forwards)
                await trio.sleep_forever()

    def forwards(self, mapping: Mapping | None) -> None:
        """What the router forwards to us now."""
        self._portmap = mapping.by if mapping else "refused"
        self._router_answered.set()
        # one that stands behind another NAT forwards from where nobody comes
        places = (mapping.place,) if mapping and self._usable(mapping.place.host) else ()
        if places != self._mapped:
            self._mapped = places
            self._answers.clear()
            self._ask_at = 0.0
            self._wake.set()
        self.publish()

    async def _ask(self) -> None:
        """Have strangers try, and draw the consequences."""
        ports = [place.port for place in self._mapped] + list(self.ports.numbers())
        now = trio.current_time()
        self._answers = {k: v for k, v in self._answers.items() if now - v[0] < ASK_AGAIN_S}
        if not self._config.local and any(":" in one and is_public(one) for one in self._own):
            await meet_stranger(
                self._host, "ip6", touched=self.ports.touched(), spared=self.reservations.relays
            )
        found = await ask_around(
            self._host,
            tuple(dict.fromkeys(ports)),
            touched=self.ports.touched(),
            asked=self._answers,
            local=self._config.local,
        )
        now = trio.current_time()
        self._answers.update({network: (now, answer) for network, answer in found.items()})
        if not self._answers and self._verdict.asked:
            self._ask_at = now + ASK_AGAIN_S  # all are known to our NAT: the old verdict stands
            return
        answers = [answer for _, answer in self._answers.values()]
        self._closed = closed_families(answers)
        # at an address of ours nobody else can answer: one stranger who came through is enough
        self._open = open_families(answers, [*self._mapped, *reachable(self._host.listeners)])
        verdict = judge(decisive(answers), self._mapped)
        if verdict.reachability != self._verdict.reachability:
            log.info(
                "reachability",
                verdict=verdict.reachability,
                asked=verdict.asked,
                reached=verdict.reached,
            )
        self._verdict = verdict
        certain = verdict.reachability != "unknown" and verdict.asked >= ENOUGH
        self._ask_at = now + (ASK_AGAIN_S if certain else ASK_SOON_S)

    async def _tend(self) -> None:
        public = self._verdict.reachability == "public"
        if self._config.relay == "auto":
            self._offer(public)
        if public or self._has_public_interface():
            self.reservations.release()
        else:
            held = len(self.reservations.relays)
            await self.reservations.tend()
            if len(self.reservations.relays) > held:
                self._ask_at = min(self._ask_at, trio.current_time() + ASK_SOON_S)
        self.publish()

    def near_addresses(self) -> list[str]:
        """Where neighbours on the same network can dial us."""
        own = [place for place in reachable(self._host.listeners) if place.host in own_hosts()]
        return [f"{place}/p2p/{self._host.peer_id}" for place in own]

    def port_behind_router(self) -> int:
        """The IPv4 port that a router at home could forward; 0 when none could."""
        source = self.ports.source(Address("ip4", "", 0))
        private = [host for host in self._own if ":" not in host and not is_public(host)]
        return source[1] if source is not None and private else 0

    def publish(self) -> None:
        """Say to the host what is known by now."""
        before = self._host.addresses()
        places = [*self._verdict.places, *self._mapped, *self.reservations.addresses()]
        self._host.publish(places, closed=self._closed)
        self._host.nat = self._report()
        if self._verdict.reachability == "public" or self.reservations.relays:
            self._settled.set()
        if self._host.addresses() != before:
            for tell in self.changed:
                tell()

    def _report(self) -> NatReport:
        verdict = self._verdict
        closed: Filtering = "closed" if verdict.reachability == "private" else "unknown"
        return NatReport(
            reachability=verdict.reachability,
            kind=self._kind(),
            relays=self.reservations.relays,
            places=tuple(str(place) for place in self._host.places() if is_public(place.host)),
            mapped=bool(self._mapped),
            port_kept=self.ports.kept(),
            filtering="open" if verdict.reachability == "public" else closed,
            asked=verdict.asked,
            reached=verdict.reached,
            portmap=self._portmap,
            open=self._open,
        )

    def _kind(self) -> Kind:
        kinds = [seen.kind(self._own) for seen in self.ports.seen.values()]
        return next((kind for kind in kinds if kind != "unknown"), "unknown")

    def _offer(self, wanted: bool) -> None:
        if wanted and not self._relaying:
            self.relay.open()
        elif self._relaying and not wanted:
            self.relay.close()
        self._relaying = wanted

    def _has_public_interface(self) -> bool:
        """Nobody has said that we cannot be dialed, and we have an address of the internet's.

        One of IPv6 is no sign: every device of a home has that, behind a firewall.
        """
        private = self._verdict.reachability == "private"
        return not private and any(is_public(host) and ":" not in host for host in self._own)

    def _strangers(self) -> bool:
        return any(self._usable(one.remote[0]) for one in self._host.connections())

    def _usable(self, host: str) -> bool:
        return self._config.local or is_public(host)

    def _on_connection(self, connection: Connection) -> None:
        if connection.relay is None and self._usable(connection.remote[0]):
            self._host.nursery.start_soon(self._meet, connection)

    async def _meet(self, connection: Connection) -> None:
        """A stranger came: once it has said what it speaks, it may be of use."""
        await connection.asked.wait()
        if self._verdict.asked < ENOUGH:
            self._ask_at = 0.0
        self._wake.set()


def start_nat(host: Host, key: IdentityKey, config: NatConfig | None = None) -> Nat:
    """Cross NATs for this host, for as long as it lives."""
    config = config or NatConfig()
    nat = Nat(host, key, config)
    host.nursery.start_soon(nat.run)
    if not config.local:
        host.nursery.start_soon(watch, host, nat.start_over)
    if nat.ports.listens and not config.local and config.portmap:
        nat.start_mapping()
    return nat
