"""This machine's own node, in a line or two: how the network reaches it, and whom it carries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..node.report import STALE_S, load_report
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
    well = told and told["age_s"] <= STALE_S and told["version"] == __version__
    return told if well else None


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
