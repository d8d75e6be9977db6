"""Nodes of a testnet that are far from each other: what they push on comes later.

Only for measuring, as node/bench/far.py is, which makes the client's roads long; this makes those
from hop to hop. A node is told by POTLUCK_PEER_ROADS in its environment, which a testnet's launcher
alone sets: milliseconds there and back, and where it is bounded how many bytes a second go each
way, as in 60:12500000.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, cast

from ...errors import UserError
from ..bench.far import FarHost
from ..holder import Holder
from ..log import get_logger
from ..member import Member
from ..net.host import Host
from .launcher import MARK
from .lies import PEER_ROADS

log = get_logger()


def far_holder(environment: Mapping[str, str] = os.environ) -> type[Holder]:
    """What holds a node's blocks, where its environment says how far others are. Raises
    UserError."""
    told = environment.get(PEER_ROADS, "")
    if MARK not in environment:
        raise UserError(f"{PEER_ROADS} is for the nodes of a testnet: potluck bench chain")
    rtt_s, bytes_s = read_roads(told)

    class FarHolder(Holder):
        def __init__(self, config: Any, member: Member, *rest: Any, **named: Any) -> None:
            assert member.chains is not None, "a node without chains"
            log.warning("this node seems far from its peers", roads=told)
            far = FarHost(member.host, rtt_s / 2, member.host.nursery, bytes_s)
            member.chains.host = cast(Host, far)
            super().__init__(config, member, *rest, **named)

    return FarHolder


def read_roads(told: str) -> tuple[float, float]:
    """Seconds there and back, and bytes a second. Raises UserError."""
    rtt_ms, bounded, bytes_s = told.partition(":")
    try:
        found = float(rtt_ms) / 1e3, float(bytes_s) if bounded else math.inf
    except ValueError:
        found = -1.0, 0.0
    if not (0 <= found[0] <= 60 and found[1] > 0):
        raise UserError(f"{PEER_ROADS}: {told!r} is no number of milliseconds, nor MS:BYTES_S")
    return found
