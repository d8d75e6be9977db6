"""What is wrong, and what to do about it: verdicts on what was found out. Nothing here waits.

facts (doctor.py) ──▶ findings, in the order in which one thing rests on another:
program, memory, driver, device ▶ home, disk, identity, settings ▶ model, hub     (footing.py)
▶ node ▶ ports ▶ NAT ▶ relays ▶ peers ▶ clock
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..dht.record import SKEW_MAX_S
from .footing import Finding, Hub, Machine, Place, Wanted, on_hub, on_machine, on_model, on_place

Source = Literal["join", "last run", "this node"]

SKEW_WORTH_A_WORD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Knock:
    """A try to reach a peer by the addresses that we have. source: who named it."""

    peer: str
    source: Source
    took_s: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """network: as node/report.py has it, by the node itself or by a probe; None: not looked at.

    pid: of the running node; 0 when none runs. hanging_s: for how long it has said nothing.
    other_version: of the program that it runs, if not ours. hosts: addresses of our interfaces.
    model, hub: None: not looked at. port_fault: why the port cannot be had. rest: why the running
    node does not serve.
    """

    machine: Machine
    place: Place
    pid: int = 0
    hanging_s: float = 0.0
    other_version: str = ""
    network: Mapping[str, Any] | None = None
    hosts: Sequence[str] = ()
    knocks: Sequence[Knock] = ()
    model: Wanted | None = None
    hub: Hub | None = None
    port_fault: str = ""
    rest: str = ""


def diagnose(facts: Facts) -> list[Finding]:
    """Every finding, the ground first."""
    found = [*on_machine(facts.machine), *on_place(facts.place)]
    found += [on_model(facts.model)] if facts.model is not None else []
    found += [on_hub(facts.hub, facts.model)] if facts.hub is not None else []
    found += _node(facts)
    if facts.port_fault:
        found.append(
            Finding(
                "ports", "bad", facts.port_fault, "end what listens there, or give another --port"
            )
        )
    if facts.network is not None:
        found += _network(facts.network, facts.hosts)
    found += _knocks(facts.knocks, looked=facts.network is not None)
    if facts.network is not None:
        found.append(_clock(facts.network.get("clock")))
    return found


def _node(facts: Facts) -> Iterator[Finding]:
    if facts.hanging_s:
        yield Finding(
            "node", "bad",
            f"process {facts.pid} has said nothing for {facts.hanging_s:.0f} s",
            "it hangs: end it (kill -9 if it must be), look at its log, start it anew",
        )  # fmt: skip
    elif facts.other_version:
        yield Finding(
            "node", "warning",
            f"process {facts.pid} runs version {facts.other_version}, and is not understood",
            "start it anew with this version",
        )  # fmt: skip
    elif facts.pid:
        yield Finding("node", "good", f"runs, process {facts.pid}; what follows is its own word")
        if facts.rest:
            yield Finding("serving", "note", facts.rest)
    elif facts.network is not None:
        yield Finding("node", "note", "none runs here; what follows was tried out just now")
    else:
        yield Finding("node", "note", "none runs here")


def _network(told: Mapping[str, Any], hosts: Sequence[str]) -> Iterator[Finding]:
    nat = told["nat"]
    elsewhere = yield from _ports(told["listens"])
    yield _ipv6(hosts)
    if elsewhere:
        yield _nat(nat)
        yield _reachability(nat)
        yield _portmap(nat, hosts)
        yield _relays(nat)
    serving = told["relaying"]
    if serving["reservations"] or serving["served"]:
        yield Finding(
            "relaying", "good",
            f"for {serving['reservations']} peers, {serving['circuits']} circuits now, "
            f"{serving['served']} so far",
        )  # fmt: skip
    near = told["neighbours"]
    names = ", ".join(peer[-8:] for peer in near)
    yield Finding("neighbours", "note", f"{len(near)} on this network: {names}" if near else "none")
    yield Finding(
        "connections", "good" if told["direct"] or told["relayed"] else "note",
        f"{told['direct']} peers directly, {told['relayed']} over relays, "
        f"{told['directory']} in the directory",
    )  # fmt: skip


def _ports(listens: Sequence[str]) -> Generator[Finding, None, bool]:
    """Whether anybody but this machine can come, as the value; and a finding on it."""
    if not listens:
        yield Finding("ports", "note", "listens nowhere: a client needs no port")
        return False
    here = all(ipaddress.ip_address(one.split("/")[2]).is_loopback for one in listens)
    if here:
        yield Finding(
            "ports", "warning", f"{', '.join(listens)}: for this machine alone",
            "start with --listen 0.0.0.0 to be of use to others",
        )  # fmt: skip
    else:
        yield Finding("ports", "good", ", ".join(listens))
    return not here


def _ipv6(hosts: Sequence[str]) -> Finding:
    public = [one for one in hosts if ":" in one and ipaddress.ip_address(one).is_global]
    if public:
        return Finding("IPv6", "good", ", ".join(public[:4]))
    return Finding("IPv6", "note", "no address of the internet's; IPv4 alone will do")


def _nat(nat: Mapping[str, Any]) -> Finding:
    kept = {None: "", True: ", port kept", False: ", another port outside"}[nat["port_kept"]]
    lets_in = {
        "open": ", lets in whoever dials",
        "closed": ", lets in whom we have dialed alone",
        "unknown": "",
    }[nat["filtering"]]
    match nat["kind"]:
        case "none":
            return Finding("NAT", "good", f"none{lets_in}")
        case "endpoint-independent":
            told = f"one mapping for all (endpoint-independent){kept}{lets_in}: punches open it"
            return Finding("NAT", "good", told)
        case "per-destination":
            return Finding(
                "NAT", "warning",
                f"a mapping for each peer (symmetric){kept}{lets_in}: punches seldom open it",
                "forward a port on the router, or switch on UPnP there; else a relay carries you",
            )  # fmt: skip
    return Finding(
        "NAT", "note", f"kind not known{kept}{lets_in}: peers on two other networks tell it"
    )


def _reachability(nat: Mapping[str, Any]) -> Finding:
    tries = f"{nat['reached']} of {nat['asked']} strangers that tried came through"
    match nat["reachability"]:
        case "public":
            return Finding("reachable", "good", f"by anybody: {tries}, at {_list(nat['places'])}")
        case "private" if "ip6" in nat["open"]:
            return Finding(
                "reachable", "good" if nat["relays"] else "note",
                f"by anybody who has IPv6, at {_list(nat['places'])}; by IPv4 "
                f"{'through a relay alone' if nat['relays'] else 'by nobody'}: {tries}",
                "" if nat["relays"] else "join by peers that relay, for those who have IPv4 alone",
            )  # fmt: skip
        case "private" if nat["relays"]:
            return Finding(
                "reachable", "note", f"through a relay alone: {tries}",
                "forward a port on the router to be faster; peers punch through as it is",
            )  # fmt: skip
        case "private":
            return Finding(
                "reachable", "bad", f"by nobody: {tries}, and no relay has a place",
                "forward the port on the router and let it through the firewall, or join a swarm "
                "with relays",
            )  # fmt: skip
    if nat["places"]:
        return Finding(
            "reachable", "note", f"perhaps: at {_list(nat['places'])}, where nobody has tried yet"
        )
    return Finding("reachable", "note", "not known: no peer on another network has tried yet")


def _portmap(nat: Mapping[str, Any], hosts: Sequence[str]) -> Finding:
    match nat["portmap"]:
        case "nat-pmp" | "upnp" as protocol:
            name = "NAT-PMP" if protocol == "nat-pmp" else "UPnP"
            if not nat["mapped"]:
                return Finding(
                    "port mapping", "note",
                    f"the router forwards our port, by {name}, but is itself behind another NAT",
                    "have the router before it forward the port too, or set one of them to bridge",
                )  # fmt: skip
            return Finding("port mapping", "good", f"the router forwards our port, by {name}")
        case "asking":
            return Finding("port mapping", "note", "the router is being asked")
        case "refused":
            return Finding(
                "port mapping", "note", "tried: no router answers by NAT-PMP or UPnP",
                "" if nat["reachability"] == "public" else "switch UPnP on in the router, or "
                "forward the port there by hand",
            )  # fmt: skip
    why = "no private address" if hosts else "no network"
    return Finding("port mapping", "note", f"not tried: {why} to forward to")


def _relays(nat: Mapping[str, Any]) -> Finding:
    if nat["relays"]:
        return Finding("relays", "good", f"reached through {_list(nat['relays'])}")
    if nat["reachability"] == "private":
        return Finding("relays", "warning", "none has a place for us", "join by peers that relay")
    return Finding("relays", "note", "none in use")


def _knocks(knocks: Sequence[Knock], *, looked: bool) -> Iterator[Finding]:
    for knock in knocks:
        about = {"join": "join", "last run": "peer of the last run", "this node": "own door"}
        if knock.took_s is not None:
            told = f"{knock.peer} answers in {1e3 * knock.took_s:.0f} ms"
            yield Finding(about[knock.source], "good", told)
        else:
            yield Finding(
                about[knock.source], "note" if knock.source == "last run" else "bad",
                f"{knock.peer} does not answer: {knock.reason}",
                {
                    "join": "check the address and that a node runs there; or join by another",
                    "last run": "",
                    "this node": "it hangs, or a firewall of this machine is in between",
                }[knock.source],
            )  # fmt: skip
    joined = [one for one in knocks if one.source != "this node"]
    if looked and not joined:
        yield Finding(
            "join", "note", "nobody to join by",
            "give --join, POTLUCK_JOIN or join in config.toml, unless you start a swarm",
        )  # fmt: skip
    elif joined and all(one.took_s is None for one in joined):
        yield Finding(
            "swarm", "bad", "nobody answers",
            "is this machine online? else ask whoever runs the swarm for addresses of today",
        )  # fmt: skip


def _clock(skew: Mapping[str, Any] | None) -> Finding:
    if skew is None:
        return Finding("clock", "note", "not compared: no peer tells the time")
    off_s, peers = float(skew["theirs_ahead_s"]), skew["peers"]
    way = "behind" if off_s > 0 else "ahead of"
    told = f"{abs(off_s):.1f} s {way} that of {peers} peer{'' if peers == 1 else 's'}"
    remedy = "set the clock by the network: timedatectl set-ntp true, or the system's settings"
    if abs(off_s) > SKEW_MAX_S:
        return Finding("clock", "bad", f"{told}: no peer keeps this node's records", remedy)
    if abs(off_s) > SKEW_WORTH_A_WORD_S:
        return Finding("clock", "warning", told, remedy)
    return Finding("clock", "good", told)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no address"
