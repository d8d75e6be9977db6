"""What each peer of a segment can do: told by gossip when it has changed, to who serves beside it.

    the directory signs a record of ours ─▶ another run, state, span or load than was told last?
        ─▶ /potluck/cap/1/<model>/<segment>, for each of its segments
    heard ─▶ rightly signed, of now, of this segment? ─▶ the registry ─▶ the newest it holds?
        ─▶ passed on; what was rolled back long ago is a nuisance, what nobody signed a lie

A record is refreshed each 30 s in the directory, and registries compare what they hold
(registry.py). To gossip each refresh as well would cost whoever serves a whole model more than its
neighbours may say; what cannot wait is who came, drains or left, and a load that is another.

A message names its topic besides the record, so that the mesh of each segment passes it on, though
a neighbour in two of them has it already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import trio

from ...crypto.codec import Size, decode, encode
from ...dht.allowance import Allowances
from ...dht.record import RECORD_BYTES_MAX, REFRESH_S, Announcement, Record, Stale, read
from ...errors import RemoteError
from ...swarm.blocks import BlockRange
from ...swarm.recent import Verdict
from ...swarm.topics import CAPABILITY, MESSAGE_BYTES_MAX, TOPIC_CHARS_MAX, Message, topics_of
from ..net.gossip import Gossiper
from .registry import Registrar

CHANGES_S: Final = 1 / REFRESH_S  # of one peer in one topic; an honest one changes less often,
CHANGES_SAVED: Final = 4.0  # but when it comes or moves
LOAD_STEP: Final = 4.0  # guess: times as much, or as little, is another load


@dataclass(frozen=True, slots=True)
class Told:
    """A message. record: as it is kept in the directory."""

    topic: Annotated[str, Size(TOPIC_CHARS_MAX)]
    record: Annotated[bytes, Size(RECORD_BYTES_MAX)]


class Capabilities:
    """One for a node. shunned: whose word is not passed on."""

    def __init__(
        self,
        gossip: Gossiper,
        registrar: Registrar,
        *,
        shunned: Callable[[str], bool] = lambda peer: False,
    ) -> None:
        self._gossip = gossip
        self._registrar = registrar
        self._shunned = shunned
        self._changes = Allowances(CHANGES_S, CHANGES_SAVED)
        self._told: dict[str, dict[str, object]] = {}  # of a model, in each topic: said last

    def tell(self, record: Record) -> None:
        """A record of ours was signed just now."""
        if record.kind != Announcement.KIND:
            return
        told = read(record, Announcement)
        content = _content(told, record.boot)
        before, said = self._told.get(told.model, {}), dict[str, object]()
        for topic in sorted(_topics(told)):
            if before.get(topic) != content:
                self._gossip.publish(topic, encode(Told(topic, record.raw)))
                if not self._gossip.subscribed(topic):
                    continue  # it is said again with the next refresh
            said[topic] = content
        self._told[told.model] = said  # what was said where we are no more counts for nothing

    def judge(self, message: Message) -> Verdict:
        """What gossip is to make of a message (swarm/gossip.py)."""
        try:
            said = decode(message.data, Told, max_bytes=MESSAGE_BYTES_MAX)
            record = self._registrar.check(said.record)
            told = read(record, Announcement)
            if said.topic != message.topic or message.topic not in _topics(told):
                raise RemoteError(f"what does not belong to {message.topic}")
        except Stale:
            return "stale"
        except RemoteError:
            return "wrong"
        if self._shunned(told.peer):
            return "drop"
        held = self._registrar.hold(record)
        if held is None or held.digest != record.digest:
            late = held is not None and record.issued_s + REFRESH_S < held.issued_s
            return "stale" if late else "drop"
        now = trio.current_time()
        changes = self._changes.of(f"{told.peer} {message.topic}", now)
        return "pass" if changes.has(now) else "drop"


def _topics(told: Announcement) -> frozenset[str]:
    return topics_of(told.model, BlockRange(told.start, told.stop), CAPABILITY)


def _content(told: Announcement, boot: int) -> object:
    """What is worth telling when it changes."""
    load = round(math.log(1 + told.asked_tokens_s, LOAD_STEP))
    return boot, told.state, told.start, told.stop, load, told.cache_tokens_free > 0
