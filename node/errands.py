"""What every node keeps up beside its work, a light one too: files of its home, and the lists.

home/work           the price of its identity (toll.py)
home/peers          whom it knows, for its next start (peerstore.py)
home/network.json   how the network reaches it, for its owner's commands (report.py)
the owner's lists   read again when they have changed (lists.py)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import trio

from ..dht.known import Known
from .lists import keep_access
from .member import Member
from .peerstore import keep_known
from .report import keep_report
from .toll import keep_work


def start_errands(
    services: trio.Nursery,
    home: Path,
    member: Member,
    *,
    ban: Sequence[str],
    allow_only: Sequence[str],
    sampled: Callable[[float], Iterable[Known]] = lambda now: (),
) -> None:
    """sampled: whom to join by first, the next time (peerstore.py)."""
    services.start_soon(keep_work, home, member.host)
    services.start_soon(keep_known, home, member.directory, sampled)
    services.start_soon(keep_report, home, member)
    services.start_soon(
        partial(keep_access, ban=ban, allow_only=allow_only), home, member.host.admit
    )
