"""By which way a peer can be reached, as far as its record tells. Nothing here waits.

A record carries addresses alone, and they are enough: whoever can be dialed says where, and whoever
cannot says through which relays.

    /ip4/198.51.100.7/tcp/4001/p2p/PEER                          direct
    /ip4/203.0.113.9/tcp/4001/p2p/RELAY/p2p-circuit/p2p/PEER     relayed, by RELAY
    /ip4/192.168.1.5/tcp/4001/p2p/PEER                           for its neighbours: tells nothing
"""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import RemoteError
from .address import Address, parse
from .observed import is_public


def relays_told(addresses: Iterable[str]) -> tuple[str, ...]:
    """The relays through which alone strangers reach a peer; () when it can be dialed itself."""
    found = [one for one in map(_parsed, addresses) if one is not None]
    if any(one.relay is None and (not one.is_ip or is_public(one.host)) for one in found):
        return ()
    return tuple(dict.fromkeys(one.relay for one in found if one.relay is not None))


def _parsed(text: str) -> Address | None:
    try:
        return parse(text)
    except RemoteError:
        return None  # another transport, or a newer kind
