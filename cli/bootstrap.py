"""Run an entry point for others."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from .options import (
    AllowOnly,
    Ban,
    Home,
    Join,
    Json,
    Listen,
    LogJson,
    LogLevel,
    Pinned,
    Port,
    Relay,
)
from .serve import LOOPBACK, listen_addresses, place_of, serve_until_stopped

if TYPE_CHECKING:
    from ..node.bootstrap import Ready


def bootstrap(
    listen: Listen = None,
    port: Port = 0,
    join: Join = None,
    home: Home = None,
    relay: Relay = "yes",
    ban: Ban = None,
    allow_only: AllowOnly = None,
    pin: Pinned = None,
    log_level: LogLevel = "info",
    log_json: LogJson = False,
    json: Json = False,
) -> None:
    """Be an address to join by, and keep records for others; serves no model, and loads no torch.

    \b
    Examples:
      potluck bootstrap --listen all --port 4001
      potluck bootstrap --home /srv/potluck --join /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...
    """
    place = place_of(home, log_level, log_json=log_json)
    from ..node.bootstrap import BootstrapConfig, run_bootstrap
    from ..node.config import find_access, find_join, find_pins

    gc.freeze()  # not as in loading.py: here the memory that importing leaves behind counts
    config = BootstrapConfig(
        home=place,
        listen=listen_addresses(listen or LOOPBACK, port),
        join=find_join(join or (), place),
        relay=relay,
        access=find_access(place, ban=ban or (), allow_only=allow_only or ()),
        pins=find_pins(place, pin or ()),
    )
    serve_until_stopped(run_bootstrap, config, facts=facts, words=announcement, json=json)


def facts(ready: Ready) -> dict[str, object]:
    return {"known": ready.known}


def announcement(ready: Ready) -> str:
    """What a light node says when it answers: the line to copy."""
    known = f"knows {ready.known} peers" if ready.known else "knows nobody yet"
    lines = [f"An entry point, as {ready.peer}; {known} ({ready.seconds:.1f} s)"]
    for address in ready.addresses:
        lines.append(f"  join by it:  potluck node -m demo --join {address}")
    return "\n".join(lines)
