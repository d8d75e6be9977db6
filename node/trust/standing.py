"""Whose word counts as to some blocks: who serves them, how far we trust it, where, since when.

What swarm/evidence.py asks of a peer before it believes what it attests. Who serves what is learned
from every look into the directory; since when we know a peer outlives the process, or no node that
is restarted each week would ever know anybody for one.

    home/met    a Book of first meetings, by the one codec, written at leisure
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import trio

from ...crypto.codec import Range, Size, decode, encode
from ...dht.network import NOWHERE, Prefixes, place_of
from ...dht.record import Announcement
from ...errors import RemoteError
from ...swarm.banned import STRANGER, Acquaintance
from ...swarm.blocks import BlockRange
from ...swarm.evidence import Standing
from ...swarm.receipt import Opening
from ...swarm.testimony import Peer
from ..home import replace_file
from ..log import get_logger

if TYPE_CHECKING:  # it brings numpy, and light nodes are without it
    from ..placing import Finds

MET: Final = "met"
MET_MAX: Final = 8192  # who was seen last; 0.6 MB
MET_BYTES_MAX: Final = 128 * MET_MAX
SERVING_MAX: Final = 8192
WRITE_EVERY_S: Final = 600.0  # guess: a week is to be told from a day

log = get_logger()


@dataclass(frozen=True, slots=True)
class Meeting:
    peer: Peer
    first_s: Annotated[float, Range(0, 1e11)]


@dataclass(frozen=True, slots=True)
class Book:
    """The last seen comes last."""

    met: Annotated[tuple[Meeting, ...], Size(MET_MAX)]


class Standings:
    """trust: of a peer, in 0..1, as our own audits found it; home: None keeps nothing on disk."""

    def __init__(
        self,
        trust: Callable[[str], float],
        home: Path | None = None,
        *,
        where: Callable[[str], Prefixes] = lambda peer: NOWHERE,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Blocks for as long as reading a file takes. where: the network in which the road shows a
        peer (Host.where)."""
        self._where = where
        self._trust = trust
        self._wall = wall
        self._path = None if home is None else home / MET
        met = _read(self._path) if self._path is not None else Book(())
        self._met = OrderedDict((one.peer, one.first_s) for one in met.met)
        self._serving: OrderedDict[tuple[str, str], Announcement] = OrderedDict()

    def learn(self, found: Iterable[Announcement]) -> None:
        """What was read in the directory just now."""
        for told in found:
            _put(self._met, told.peer, self._met.get(told.peer, self._wall()), MET_MAX)
            _put(self._serving, (told.model, told.peer), told, SERVING_MAX)

    def of(self, peer: str, opening: Opening) -> Standing | None:
        """None for a peer that does not serve these blocks, as far as we know."""
        told = self._serving.get((opening.model.hex(), peer))
        now = self._wall()
        if told is None or told.expires_s <= now:
            return None
        if not BlockRange(told.start, told.stop).covers(opening.blocks):
            return None
        known_s = max(0.0, now - self._met.get(peer, now))
        alike = told.numerics == opening.numerics
        return Standing(self._trust(peer), self._network(told), known_s, alike)

    def acquaintance(self, peer: str) -> Acquaintance:
        """How we know a peer that is being banned: for how long, and where."""
        first_s = self._met.get(peer)
        if first_s is None:
            return STRANGER
        told = (one for (_, name), one in self._serving.items() if name == peer)
        network = next((self._network(one) for one in told), "")
        return Acquaintance(max(1.0, self._wall() - first_s), network)

    def _network(self, told: Announcement) -> str:
        """Its /16, or as wide a part of another kind; where it is not on the Internet, one for
        all."""
        return place_of(told.addresses, self._where(told.peer))[1]

    def lately(self) -> frozenset[str]:
        """The peers that say of themselves that they serve something."""
        now = self._wall()
        return frozenset(told.peer for told in self._serving.values() if now < told.expires_s)

    async def keep(self) -> None:
        """A service: write down whom we met, now and then, and when it is cancelled."""
        written = tuple(self._met.items())
        try:
            while self._path is not None:
                await trio.sleep(WRITE_EVERY_S)
                met = tuple(self._met.items())
                if met != written and await trio.to_thread.run_sync(_write, self._path, met):
                    written = met
            await trio.sleep_forever()
        finally:
            if self._path is not None:
                _write(self._path, tuple(self._met.items()))


class Cleared:
    """A directory whose answers are learned from, and leave out whom we shun."""

    def __init__(self, finds: Finds, standings: Standings, banned: Callable[[str], bool]) -> None:
        self._finds = finds
        self._standings = standings
        self._banned = banned

    async def find(self, model: str) -> tuple[Announcement, ...]:
        found = await self._finds.find(model)
        self._standings.learn(found)
        return tuple(told for told in found if not self._banned(told.peer))


def _put(into: OrderedDict, key: object, value: object, most: int) -> None:  # type: ignore[type-arg]
    into.pop(key, None)
    into[key] = value
    if len(into) > most:
        into.popitem(last=False)


def _read(path: Path) -> Book:
    try:
        with path.open("rb") as file:
            return decode(file.read(MET_BYTES_MAX + 1), Book, max_bytes=MET_BYTES_MAX)
    except FileNotFoundError:
        return Book(())
    except (OSError, RemoteError) as error:
        log.warning("meetings forgotten", path=str(path), reason=str(error))
        return Book(())


def _write(path: Path, met: tuple[tuple[str, float], ...]) -> bool:
    """Whether it is on disk now."""
    try:
        replace_file(path, encode(Book(tuple(Meeting(*one) for one in met))))
    except OSError as error:
        log.warning("meetings not written", path=str(path), reason=str(error))
        return False
    return True
