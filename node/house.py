"""All that one node serves: a holder for each of its models, and who else serves the same.

    session streams ──▶ House ── by the model that is asked for ──▶ Holder ──▶ Server
                          ├─ Room: a holder, and the segment of its model
                          └─ Room: ...

The models share the machine: a processor's threads by the system, memory in equal parts, so that
what one may take does not depend on which was loaded first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from ..errors import PotluckError, UserError
from ..swarm.blocks import BlockRange
from ..swarm.wire import Open, Train
from .compute.choice import host_share
from .compute.room import free_on
from .config import NodeConfig
from .gossip.segment import Segment
from .holder import WITHDRAW_S, Holder
from .net.host import Host
from .net.stream import Stream
from .opening import serve_stream
from .queues import Told, tell_queue
from .rest import Wishes
from .server import Server
from .training import Training

MODELS_MAX = 8  # that a peer's list of models has room for (dht/record.py)
_MIB = 1 << 20


def configs_of(config: NodeConfig) -> list[NodeConfig]:
    """The settings of each model of a node, memory divided. Raises UserError."""
    each = [config, *(replace(config, model=one.model, blocks=one.blocks, name=one.name)
                      for one in config.also)]  # fmt: skip
    if len(each) > MODELS_MAX:
        raise UserError(f"{len(each)} models, where a node serves {MODELS_MAX} at most")
    if len(each) == 1:
        return each
    whole = _shared(config)

    def part(mib: int) -> int:
        return mib and max(1, mib // len(each))  # 0 means that nothing was said

    return [
        replace(
            one,
            max_memory_mib=part(whole.max_memory_mib),
            part_mib=part(whole.part_mib),
            cache_mib=part(whole.cache_mib),
            spill_mib=whole.spill_mib and whole.spill_mib // len(each),
        )
        for one in each
    ]


def _shared(config: NodeConfig) -> NodeConfig:
    """With figures for what the owner left open, and each model for itself would take again."""
    part_mib, spill_mib = 0, config.spill_mib
    if not config.max_memory_mib:
        part_mib = free_on(config.device) // _MIB
    if spill_mib is None:
        spill_mib = host_share() // _MIB
    return replace(config, part_mib=part_mib, spill_mib=spill_mib)


@dataclass(frozen=True, slots=True)
class Room:
    """One model of the node, and the peers that serve it too."""

    holder: Holder
    segment: Segment

    def around(self) -> BlockRange | None:
        """The blocks served now."""
        return self.holder.current.blocks if self.holder.current is not None else None


class House:
    """The rooms of a node, the first of which is what it was started for."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        assert rooms
        self.rooms = tuple(rooms)
        self._told: dict[str, Told] = {}  # by model

    @property
    def holders(self) -> tuple[Holder, ...]:
        return tuple(room.holder for room in self.rooms)

    @property
    def first(self) -> Holder:
        return self.rooms[0].holder

    @property
    def state(self) -> str:
        """The holders' state, `changing` while they are not in the same one."""
        states = {holder.state for holder in self.holders}
        return states.pop() if len(states) == 1 else "changing"

    @property
    def holds(self) -> bool:
        """Whether the weights of any model are loaded."""
        return any(holder.current is not None for holder in self.holders)

    @property
    def trouble(self) -> str:
        return next((holder.trouble for holder in self.holders if holder.trouble), "")

    async def serve(self, stream: Stream) -> None:
        """The handler of session streams."""
        await serve_stream(stream, Open, lambda asked: self._choose(asked, stream.peer))

    async def train(self, stream: Stream) -> None:
        """The handler of training streams."""
        await serve_stream(stream, Train, self._choose_training)

    def _choose_training(self, asked: Train) -> Training | None:
        mine = (one for one in self.holders if one.model.digest == asked.model)
        return next(mine, self.first).choose_training(asked)

    def _choose(self, asked: Open, peer: str) -> Server | None:
        """Of a model that is not held the first one's server, which says so."""
        if asked.model in self._told:
            self._told[asked.model].came(peer, trio.current_time())
        mine = (one for one in self.holders if one.model.digest == asked.model)
        return next(mine, self.first).choose(asked)

    def serving(self) -> list[tuple[str, BlockRange]]:
        """Which blocks of which models (digests in hex) are served now."""
        found = ((room.holder.model.digest, room.around()) for room in self.rooms)
        return [(model, blocks) for model, blocks in found if blocks is not None]

    def counts(self) -> dict[str, int]:
        """What is open in all rooms: a leak shows here."""
        found: Counter[str] = Counter()
        for room in self.rooms:
            found.update(room.holder.counts())
            found.update(room.segment.counts())
        return dict(found)

    async def take(self) -> None:
        """Load the blocks of each model, one after the other. Raises UserError; then nobody is
        left to believe that we join."""
        try:
            for holder in self.holders:
                await holder.take()
        except PotluckError:
            for holder in self.holders:
                await holder.unsay(WITHDRAW_S)
            raise

    async def keep(self, services: trio.Nursery) -> int:
        """Start what keeps each room; how many other peers keep our announcements."""
        kept: list[int] = []
        for room in self.rooms:
            services.start_soon(room.segment.run, room.around)
            kept.append(await services.start(room.holder.keep_told))
        return min(kept)

    def tell_queues(self, host: Host) -> None:
        """Tell whoever asks how long a step would wait here."""
        for holder in self.holders:
            digest = holder.model.digest
            self._told[digest] = tell_queue(host, digest, holder.queue_s, holder.step_s)

    def keep_places(
        self, services: trio.Nursery, changed: Callable[[], None], wishes: Wishes
    ) -> None:
        """From now on blocks may move, and rest as wished. changed: called after each change."""
        for holder in self.holders:
            holder.changed, holder.wishes = changed, wishes
            services.start_soon(holder.keep_rest)
            services.start_soon(holder.keep_place)

    def hurry(self) -> None:
        """Sessions that have not moved yet have no time left."""
        for holder in self.holders:
            holder.patience.cancel()

    async def leave(self, within_s: float) -> None:
        """Hand over every session of every model, and withdraw. Once."""
        async with trio.open_nursery() as leaving:
            for holder in self.holders:
                holder.changed = lambda: None
                leaving.start_soon(holder.leave, within_s)
