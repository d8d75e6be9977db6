"""py-libp2p's gossipsub and Kademlia on our host, with the options that make them usable.

Its defaults are a trap: a heartbeat of two minutes, ten messages a second and no word about those
dropped, any namespace taken (the audit in DECISIONS.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.records.ipns import IPNSValidator
from libp2p.records.pubkey import PublicKeyValidator
from libp2p.records.utils import InvalidRecordType
from libp2p.records.validator import NamespacedValidator, Validator

from potluck.node.net.host import Host


@dataclass(frozen=True, slots=True)
class Services:
    """What runs above our connections; py-libp2p's own classes."""

    pubsub: Any
    dht: Any


def digest_of(value: bytes) -> str:
    """Half of its SHA-256: js-libp2p looks for peers near a record by its whole key (FIND_NODE),
    and py-libp2p takes no key of more than 50 bytes there."""
    return hashlib.sha256(value).hexdigest()[:32]


class DigestValidator(Validator):  # type: ignore[misc]  # libp2p's types are not read strictly
    """Of the namespace "interop": a record is /interop/<digest of its value>."""

    def validate(self, key: str, value: bytes) -> None:
        if key.split("/")[2:] != [digest_of(value)]:
            raise InvalidRecordType("not the digest of the value")

    def select(self, key: str, values: list[bytes]) -> int:
        return 0  # they are equal


async def open_services(host: Host) -> Services:
    """Both, running, on a host that has no connection yet; they end with it."""
    above = host.libp2p.host
    router = GossipSub(
        [PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        spam_protection_enabled=False,
    )
    pubsub = Pubsub(above, router)
    spaces = {"interop": DigestValidator(), "pk": PublicKeyValidator(), "ipns": IPNSValidator()}
    dht = KadDHT(
        above,
        DHTMode.SERVER,
        validator=NamespacedValidator(spaces, strict_validation=True),
        strict_validation=True,
    )
    for service in (pubsub, router, dht):
        await host.libp2p.start(service)
    await pubsub.wait_until_ready()
    return Services(pubsub, dht)
