"""This machine's own node, in a line or two: how the network reaches it, and whom it carries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from ..node.report import STALE_S, load_report
from ..node.rest import running
from .answer import short

REACHED = {
    "public": "anybody can dial it",
    "private": "nobody can dial it",
    "unknown": "who can dial it is not known yet",
}
NATS = {
    "none": "no NAT",
    "endpoint-independent": "NAT endpoint-independent",
    "per-destination": "NAT per destination",
    "unknown": "NAT of unknown kind",
}


def own_node(home: Path) -> dict[str, Any] | None:
    """What the node under this home says of itself; None when none of this version is well."""
    told = load_report(home, time.time())
    if not told or told["age_s"] > STALE_S or told["version"] != __version__:
        return None
    try:
        serves = running(home)
    except UserError:  # an entry point, which serves nothing
        serves = {}
    return {**told, **{key: serves.get(key) for key in ("state", "trouble", "rest")}}


def resting(told: Mapping[str, Any], now_s: float) -> str:
    """What it does not do now, and why; "" when it serves. now_s: unix seconds."""
    rest, state = told.get("rest") or {}, told.get("state")
    why = told.get("trouble") or rest.get("why")
    if not why or (state == "serving" and not rest):
        return ""
    said = f"{'rests' if state == 'resting' else state}: {why}"
    until_s = rest.get("until_s")
    return f"{said}; until {_clock(until_s, now_s)}" if until_s and until_s > now_s else said


def _clock(at_s: float, now_s: float) -> str:
    """By the local clock, with the day when that is another."""
    at, now = time.localtime(at_s), time.localtime(now_s)
    return time.strftime("%H:%M" if at[:3] == now[:3] else "%a %d %b %H:%M", at)


def in_words(told: Mapping[str, Any]) -> str:
    """How the network reaches this node."""
    nat = told["nat"]
    if all("/127." in one or "/::1/" in one for one in told["listens"]):
        reached = "listens for this machine alone"
    elif nat["reachability"] == "private" and nat["relays"]:
        reached = f"reached through {', '.join(map(short, nat['relays']))}, {NATS[nat['kind']]}"
    else:
        reached = f"{REACHED[nat['reachability']]}, {NATS[nat['kind']]}"
    if nat["reachability"] == "private" and "ip6" in nat["open"]:
        reached = f"anybody can dial it by IPv6; by IPv4 {reached}"
    if nat["mapped"]:
        reached += f", port forwarded by {nat['portmap']}"
    carried = told["relaying"]["reservations"]
    relays = f"; relays for {carried}" if carried else ""
    direct = f"{told['direct']} peer{'' if told['direct'] == 1 else 's'} directly"
    return f"{reached}; {direct}, {told['relayed']} over relays{relays}"
