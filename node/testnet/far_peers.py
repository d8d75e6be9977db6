"""Nodes of a testnet that are far from each other: what they push on comes later.

Only for measuring, as node/bench/far.py is, which makes the client's roads long; this makes those
from hop to hop. A node is told by POTLUCK_PEER_RTT_MS in its environment, which a testnet's
launcher alone sets.
"""

from __future__ import annotations

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
from .lies import PEER_RTT_MS

log = get_logger()


def far_holder(environment: Mapping[str, str] = os.environ) -> type[Holder]:
    """What holds a node's blocks, where its environment says how far others are. Raises
    UserError."""
    told = environment.get(PEER_RTT_MS, "")
    if MARK not in environment:
        raise UserError(f"{PEER_RTT_MS} is for the nodes of a testnet: potluck bench chain")
    try:
        rtt_s = float(told) / 1e3
    except ValueError:
        rtt_s = -1.0
    if not 0 <= rtt_s <= 60:
        raise UserError(f"{PEER_RTT_MS}: {told!r} is no number of milliseconds")

    class FarHolder(Holder):
        def __init__(self, config: Any, member: Member, *rest: Any, **named: Any) -> None:
            assert member.chains is not None, "a node without chains"
            log.warning("this node seems far from its peers", rtt_ms=told)
            far = FarHost(member.host, rtt_s / 2, member.host.nursery)
            member.chains.host = cast(Host, far)
            super().__init__(config, member, *rest, **named)

    return FarHolder
