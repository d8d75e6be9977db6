"""One peer's part in a run by gossip: whom it pulls from, what it waits for, and what it takes.

    Begin(epoch, peers) ─▶ Ask x s ──┬─ Offered ─▶ Take ─▶ Came ──┐
                                     ├─ Failed ─▶ Ask a spare     ├─▶ Settled(peers, next epoch)
                                     └─ the deadline ─────────────┘
    Asked ─▶ Answer now, or once our own weights of that epoch are there, or Decline

There is no barrier. Who is asked waits a little for its own steps to end; what it has then is taken
unless it is more than `BEHIND_MAX` epochs old. Peers of unequal speed make unequal steps: whoever
is behind the middle one of its replies goes on with the epoch that this one is in, having made
fewer; whoever is ahead makes as many more in its next epoch (`lead`). So half of what it pulled
would have to lie to push a peer on or hold it back; fewer than three replies prove nothing, and
move it by one epoch at most.

Weights that came from two peers in the same bytes count once: one of them copied its work. (Not
before they came: else whoever signs for another's digest, and sends nothing, would silence it.) And
what others were told is compared with what was told here, so that two statements of one epoch are
found (statement.py).

The caller owes: `Asked.key` is any name of its own for a puller, each used once; `Gone` when that
has left; signatures are checked (`read_statement`) before `Offered` and `Shown`.

Source: NoLoCo (2025), for averaging without a collective; algorithms.md 3.3 and 5.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from ...errors import RemoteError
from ..machine import Fired, SetTimer, StopTimer
from .statement import SHOWN_MAX, WITHIN_MAX_S, Said

BEHIND_MAX: Final = 2  # guess: older weights pull back what was gained since
LEAD_MAX: Final = 7  # guess: a peer eight times as fast as the middle one waits
PROVING: Final = 3  # replies of which the middle one says where the run is
WAITING_MAX: Final = 64  # pullers that wait for our weights
SAID_MAX: Final = 512  # statements that are kept in a book, the oldest going first
SHOWN_FROM: Final = 64  # peers whose newest is shown to others


@dataclass(frozen=True, slots=True)
class Begin:
    """An event: the own steps of this epoch are done. peers: whom to ask, the spare ones last."""

    epoch: int
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """An event: our weights of this epoch may be given out."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Offered:
    """An event: a peer that was asked tells what it would send."""

    said: Said


@dataclass(frozen=True, slots=True)
class Came:
    """An event: all of it has come, and it is what was signed for."""

    peer: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An event: nothing comes from whom we asked. epoch: that is under way there, if it said so."""

    peer: str
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """An event: somebody else was told this."""

    said: Said


@dataclass(frozen=True, slots=True)
class Asked:
    """An event: a peer wants our weights of this epoch, and waits so long for them."""

    key: Hashable
    epoch: int
    within_s: float


@dataclass(frozen=True, slots=True)
class Gone:
    """An event: whoever asked has left."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class Ask:
    """An effect: pull from this peer."""

    peer: str


@dataclass(frozen=True, slots=True)
class Take:
    """An effect: go on receiving from it."""

    peer: str


@dataclass(frozen=True, slots=True)
class Leave:
    """An effect: whatever comes from this peer is not wanted; `why` is for a log."""

    peer: str
    why: str


@dataclass(frozen=True, slots=True)
class Settled:
    """An effect: the exchange is over. peers: whose weights came, in the order in which they were
    asked. next: the epoch to go on with. lead: how many epochs we are ahead."""

    peers: tuple[str, ...]
    next: int
    lead: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An effect: send what we have published last."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class Decline:
    """An effect: say that we have nothing that near."""

    key: Hashable


@dataclass(frozen=True, slots=True)
class Contradicted:
    """An effect: this peer signed both."""

    one: Said
    other: Said


Event = Begin | Published | Offered | Came | Failed | Shown | Asked | Gone | Fired
Effect = Ask | Take | Leave | Settled | Answer | Decline | Contradicted | SetTimer | StopTimer

Book = OrderedDict[tuple[str, int], Said]  # by peer and epoch

_DEADLINE: Final = "deadline"


class Gossip:
    """The machine. asked: s. reply_s: from `Begin` on, for all that is asked then."""

    def __init__(self, me: str, *, asked: int, reply_s: float) -> None:
        self._me = me
        self._most = asked
        self._reply_s = reply_s
        self._epoch = 0
        self._published: int | None = None
        self._open = False  # between Begin and Settled
        self._order: list[str] = []
        self._spare: list[str] = []
        self._asked: set[str] = set()  # and nothing said yet
        self._taken: dict[str, Said] = {}  # that are being received
        self._came: dict[str, Said] = {}
        self._heard: list[int] = []  # the epochs of whoever said one
        self._waiting: OrderedDict[Hashable, int] = OrderedDict()
        self._said: Book = OrderedDict()  # to us
        self._hearsay: Book = OrderedDict()  # to others: a flood of it moves nothing of ours
        self._liars: set[str] = set()

    @property
    def epoch(self) -> int:
        """That is under way."""
        return self._epoch

    @property
    def liars(self) -> Collection[str]:
        """Who contradicted itself: never asked again."""
        return self._liars

    def lately(self, turn: int = 0) -> Sequence[Said]:
        """What to show whom we ask: some of what we were told last, at each turn others of it."""
        newest: dict[str, Said] = {}
        for said in reversed(self._said.values()):
            newest.setdefault(said.peer, said)
            if len(newest) == SHOWN_FROM:
                break
        told = list(newest.values())
        count = min(SHOWN_MAX, len(told))
        return [told[(turn * SHOWN_MAX + at) % len(told)] for at in range(count)]

    def resume(self, epoch: int) -> None:
        """Begin in this epoch."""
        self._epoch = epoch

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Raises RemoteError at what no honest peer says."""
        match event:
            case Begin(epoch, peers):
                return self._begin(epoch, peers, now)
            case Offered(said):
                return self._offered(said)
            case Came(peer):
                return self._took(peer)
            case Failed(peer, epoch):
                if epoch is not None and self._open and peer in self._asked:
                    self._heard.append(epoch)
                return self._failed(peer)
            case Shown(said):
                return self._keep(said, self._hearsay)
            case Fired("deadline") if self._open:
                return self._settle()
            case Published(epoch):
                return self._publish(epoch)
            case Asked(key, epoch, within_s):
                return self._answer_or_wait(key, epoch, within_s, now)
            case Fired(("waiter", key)) if key in self._waiting:
                return [self._end_wait(key)]
            case Gone(key) if key in self._waiting:
                del self._waiting[key]
                return [StopTimer(("waiter", key))]
        return []

    # ---- pulling

    def _begin(self, epoch: int, peers: tuple[str, ...], now: float) -> list[Effect]:
        asked = [one for one in dict.fromkeys(peers) if one != self._me and one not in self._liars]
        self._epoch, self._open = epoch, True
        self._order, self._spare = asked[: self._most], asked[self._most :]
        self._asked = set(self._order)
        self._taken, self._came, self._heard = {}, {}, []
        if not self._order:
            return self._settle()
        return [SetTimer(_DEADLINE, now + self._reply_s), *map(Ask, self._order)]

    def _offered(self, said: Said) -> list[Effect]:
        peer, told = said.peer, said.statement
        if not self._open or peer not in self._asked:
            return [Leave(peer, "it was not asked, or not now")]
        effects = self._keep(said, self._said)
        if peer in self._liars:
            return [*effects, *self._drop(peer, "it contradicts itself")]
        self._heard.append(told.epoch)
        if told.epoch < self._epoch - BEHIND_MAX:
            return [*effects, *self._drop(peer, f"it is at epoch {told.epoch}")]
        self._asked.discard(peer)
        self._taken[peer] = said
        return [*effects, Take(peer)]

    def _drop(self, peer: str, why: str) -> list[Effect]:
        return [Leave(peer, why), *self._failed(peer)]

    def _took(self, peer: str) -> list[Effect]:
        if not self._open or peer not in self._taken:
            return []
        if any(one.statement.weights == self._taken[peer].statement.weights
               for one in self._came.values()):  # fmt: skip
            return self._failed(peer)
        self._came[peer] = self._taken.pop(peer)
        return self._settle_if_all()

    def _failed(self, peer: str) -> list[Effect]:
        if not self._open or not (peer in self._asked or peer in self._taken):
            return []
        self._asked.discard(peer)
        self._taken.pop(peer, None)
        while self._spare:
            other = self._spare.pop(0)
            if other not in self._liars:
                self._order.append(other)
                self._asked.add(other)
                return [Ask(other)]
        return self._settle_if_all()

    def _settle_if_all(self) -> list[Effect]:
        return [] if self._asked or self._taken else self._settle()

    def _settle(self) -> list[Effect]:
        self._open = False
        late = [Leave(one, "it is too late") for one in sorted({*self._asked, *self._taken})]
        peers = tuple(one for one in self._order if one in self._came)
        self._asked, self._taken, self._came = set(), {}, {}
        self._epoch, lead = pace(self._epoch, self._heard)
        return [StopTimer(_DEADLINE), *late, Settled(peers, self._epoch, lead)]

    # ---- what was said

    def _keep(self, said: Said, book: Book) -> list[Effect]:
        """Remember it, or find that it contradicts what is remembered."""
        peer, name = said.peer, (said.peer, said.statement.epoch)
        if peer == self._me or peer in self._liars:
            return []
        for before in (self._said.get(name), self._hearsay.get(name)):
            if before is not None and before.statement != said.statement:
                self._liars.add(peer)
                return [Contradicted(before, said)]
        book.setdefault(name, said)
        while len(book) > SAID_MAX:
            book.popitem(last=False)
        return []

    # ---- being pulled from

    def _publish(self, epoch: int) -> list[Effect]:
        self._published = epoch
        ready = [key for key, wanted in self._waiting.items() if wanted <= epoch]
        effects: list[Effect] = []
        for key in ready:
            del self._waiting[key]
            effects += [StopTimer(("waiter", key)), Answer(key)]
        return effects

    def _answer_or_wait(
        self, key: Hashable, epoch: int, within_s: float, now: float
    ) -> list[Effect]:
        if self._published is not None and self._published >= epoch:
            return [Answer(key)]
        self._waiting[key] = epoch
        if within_s <= 0 or len(self._waiting) > WAITING_MAX:
            return [self._end_wait(key)]
        return [SetTimer(("waiter", key), now + min(within_s, WITHIN_MAX_S))]

    def _end_wait(self, key: Hashable) -> Effect:
        """What we have, if it is of use."""
        wanted = self._waiting.pop(key)
        last = self._published
        return Answer(key) if last is not None and last >= wanted - BEHIND_MAX else Decline(key)


def pace(epoch: int, others: Sequence[int]) -> tuple[int, int]:
    """Where to go on, and by how many epochs we are ahead, by the middle one of what others say."""
    if not others:
        return epoch + 1, 0
    middle = sorted(others)[(len(others) - 1) // 2]
    if len(others) < PROVING:
        middle = min(max(middle, epoch - 1), epoch + 1)
    return max(epoch, middle) + 1, min(max(0, epoch - middle), LEAD_MAX)


def near(epochs: Sequence[int]) -> tuple[int, list[int]]:
    """For a newcomer: the middle epoch of the replies, and the places of those that are near it.
    Raises RemoteError for none."""
    if not epochs:
        raise RemoteError("nobody tells where the run is")
    middle = sorted(epochs)[(len(epochs) - 1) // 2]
    return middle, [at for at, one in enumerate(epochs) if abs(one - middle) <= BEHIND_MAX]
