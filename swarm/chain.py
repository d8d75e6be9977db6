"""Hop to hop: which steps of a session go straight from one server to the next.

The session's machine (session.py) knows nothing of it. To it every step goes from here to a hop and
back, and so all that it promises holds. A chain is what happens underneath: a step is sent to the
first hop with the order to push its output on, and each hop sends the same rows to us behind the
push, a mirror. When a mirror has come, the machine wants it sent to the next hop, which has it
already: nothing is sent, and the answer of that hop, which may be here, is handed in.

      star      us ─▶ A ─▶ us ─▶ B ─▶ us ─▶ C ─▶ us        2 P roads a step
      chain     us ─▶ A ─▶ B ─▶ C ─▶ us                    P + 1 roads (algorithms.md 9)
                      └─▶ us  └─▶ us                       mirrors, that no hop waits for

An output is delivered once all mirrors of its step are here, so whatever dies after that, the
journal has what a replay needs, without asking anyone. It costs no time where a road to us is no
longer than the way over the other hops, and of our own road what the star costs it one way. To
rebuild lost mirrors from upstream instead would save that, and make two deaths at once a replay
from the beginning of the model.

    line of a server     due ──── SendStep of the very rows that were mirrored ──▶ asked
                          │ early: answers to these                                 │ answered
                          └── anything else ──▶ fence: older pushes are void ───────┴─▶ held

Either pushes are on the way to a server or what we send it ourselves, never both: so what it
computes, and signs for, has one order. What does not fit waits (`held`) until the pushes are
answered, or a `Fence` has made them void; then it goes by star, from the mirrors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

from ..errors import RemoteError
from .session_events import AskSign, Payload, SendStep
from .wire import Taken

AHEAD_MAX: Final = 6  # pushes on the way to a server that queues but eight
EARLY_AHEAD_MAX: Final = 48  # to one of the second version: all chunks of a prompt
Asked = SendStep | AskSign


class Steps(Protocol):
    """What is asked of the session's machine (session.py)."""

    @property
    def order(self) -> tuple[int, ...]:
        """The links as their blocks follow each other; 0: a gap, or one that is not open."""

    def next_place(self, link: int) -> int | None:
        """Where the next step begins that this link is to be sent; None: not at once."""

    def wanted(self, at: int) -> int:
        """How many rows of the last hop's output are wanted of the step at this position."""


@dataclass(frozen=True, slots=True)
class Road:
    """How a step is pushed on. rows: of the last hop that it is pushed to."""

    number: int
    epoch: int
    hops: int
    rows: int


@dataclass(frozen=True, slots=True)
class Carry:
    """An effect: send this to the link's server. road: and have it pushed on. back: first have the
    server forget what it may have computed from there on. again: it was counted as sent before."""

    what: Asked
    road: Road | None = None
    back: int | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Await:
    """An effect: this step comes to the link's server from the hop before."""

    step: SendStep


@dataclass(frozen=True, slots=True)
class Raise:
    """An effect: have this link's server forget older pushes; apart: and take no more."""

    link: int
    epoch: int
    apart: bool


Effect = Carry | Await | Raise


@dataclass(slots=True, eq=False)
class Pushed:
    """A step on its way from the link `giver`. payload: what that one mirrored, once it has. step:
    once the machine has sent it."""

    number: int
    giver: int
    at: int
    tokens: int
    rows: int
    payload: Payload | None = None
    step: SendStep | None = None

    def fits(self, told: Taken) -> bool:
        return (told.number, told.at, told.tokens, told.rows) == (
            self.number, self.at, self.tokens, self.rows,
        )  # fmt: skip

    def is_sent_as(self, what: Asked) -> bool:
        """Whether the machine sends the very rows that were pushed, and wants the same of them."""
        return (
            isinstance(what, SendStep)
            and (what.at, what.sizes, what.rows) == (self.at, (self.tokens,), self.rows)
            and what.payloads[0] is self.payload
        )


@dataclass(slots=True, eq=False)
class Line:
    """What is on the way to one link's server. asked: sent or pushed, and not answered; None: sent
    by us. void: pushes up to this number are not waited for any more."""

    leader: int = 0  # the link whose server pushes to it; 0: none does
    ahead_max: int = AHEAD_MAX
    due: deque[Pushed] = field(default_factory=deque)
    asked: deque[Pushed | None] = field(default_factory=deque)
    early: deque[tuple[Taken, Payload]] = field(default_factory=deque)
    held: deque[Asked] = field(default_factory=deque)
    fence: int = 0  # the epoch whose Fenced is waited for
    void: int = 0
    ahead: int | None = None  # from where on it may have computed what became void

    def pushed(self) -> Iterator[Pushed]:
        yield from (one for one in self.asked if one is not None)
        yield from self.due

    @property
    def pushes(self) -> bool:
        """Whether any is on the way."""
        return next(self.pushed(), None) is not None

    @property
    def sends(self) -> bool:
        """Whether anything of ours is, or waits."""
        return bool(self.fence or self.held or None in self.asked)


class Chain:
    """One session's. `ready` names the links with an early answer that may be handed in now."""

    def __init__(self, steps: Steps, *, receipts: bool) -> None:
        """receipts: whether servers sign; then no push goes to one before it is asked for all that
        came before, since what it signs for is what it has computed by then."""
        self._steps = steps
        self._receipts = receipts
        self._lines: dict[int, Line] = {}
        self._tried: set[tuple[int, int]] = set()
        self._number = 0
        self.epoch = 0  # of steps that are ordered now
        self.ready: deque[int] = deque()
        self.chained = 0  # steps that were pushed over at least one hop

    def opens(self, link: int) -> None:
        self._lines[link] = Line()

    def lost(self, link: int) -> list[Effect]:
        """Nothing comes of this link any more, nor of its pushes."""
        self._lines.pop(link, None)
        self.epoch += 1  # what was ordered to be pushed to it is not for who takes its place
        effects = self._fence({link})
        for number, line in self._lines.items():
            if line.leader == link:  # it may push on, though nobody orders it to
                effects += self.apart(number)
        return effects

    # ---- which servers are one behind the other

    def pairs(self) -> list[tuple[int, int]]:
        """Links of which the second's server may be told to follow the first's; each once."""
        found = [
            pair
            for pair in pairwise(self._steps.order)
            if all(one in self._lines for one in pair) and pair not in self._tried
        ]
        self._tried.update(found)
        return found

    def joined(self, leader: int, follower: int, ahead_max: int = AHEAD_MAX) -> None:
        """The second takes pushes of the first, so many ahead of their mirrors."""
        if leader in self._lines and follower in self._lines:
            self._lines[follower].leader, self._lines[follower].ahead_max = leader, ahead_max

    def apart(self, link: int, *, behind: bool = False) -> list[Effect]:
        """This link's server follows nobody any more; behind: nobody follows it."""
        found = [
            number
            for number, line in self._lines.items()
            if line.leader and (line.leader if behind else number) == link
        ]
        effects: list[Effect] = []
        for number in found:
            self._lines[number].leader = 0
            effects += self._fence({number}, first=number)
        return effects

    def late(self, link: int) -> list[Effect]:
        """It did not answer in time; it may be that a push never came."""
        line = self._lines.get(link)
        return self.apart(link) if line is not None and line.pushes else []

    # ---- steps

    def post(self, what: Asked) -> list[Effect]:
        """The machine sends this."""
        line = self._lines[what.link]
        if not line.pushes and not line.sends:
            return [self._carry(line, what)]
        if line.due and not line.sends and line.due[0].is_sent_as(what):
            pushed = line.due.popleft()
            assert isinstance(what, SendStep)
            pushed.step, line.ahead = what, None  # it takes the place of what was there
            line.asked.append(pushed)
            if line.early:
                self.ready.append(what.link)
            return [Await(what)]
        if line.due:
            line.held.append(what)
            return self._fence({what.link}, first=what.link)
        if line.pushes or line.fence or line.held:
            line.held.append(what)
            return []
        return [self._carry(line, what)]

    def gave(self, link: int, at: int, payload: Payload) -> None:
        """This link's server answered so: it is what it should have pushed, too."""
        for line in self._lines.values():
            for one in line.due:
                if one.giver == link and one.at == at and one.payload is None:
                    one.payload = payload
                    return

    def answered(self, link: int) -> None:
        """An answer to what we sent ourselves. Raises RemoteError when there is nothing."""
        line = self._lines[link]
        if not line.asked or line.asked[0] is not None:
            raise RemoteError("an answer to nothing")
        line.asked.popleft()

    def taken(self, link: int, told: Taken, payload: Payload) -> Pushed | list[Effect]:
        """An answer to a push: the step, if the machine waits for this; else it is kept, or of no
        use. Whoever answers pushes that nobody ordered was pushed them, or says so: it is let
        follow nobody, without blame, for nobody can tell."""
        line = self._lines[link]
        head = line.asked[0] if line.asked else None
        if head is not None and head.fits(told):
            line.asked.popleft()
            return head
        if told.number <= line.void:
            return []
        place = len(line.early)
        if head is None and place < len(line.due) and line.due[place].fits(told):
            line.early.append((told, payload))
            return []
        if line.leader:
            return self.apart(link)
        if line.fence:
            return []
        raise RemoteError("an answer to a push, of whoever follows nobody")

    def early(self, link: int) -> tuple[Pushed, Taken, Payload] | None:
        """The next early answer to what the machine has sent."""
        line = self._lines.get(link)
        if line is None or not line.early or not line.asked or line.asked[0] is None:
            return None
        pushed = line.asked.popleft()
        assert pushed is not None
        return pushed, *line.early.popleft()

    def put_back(self, link: int, pushed: Pushed) -> None:
        """Its answer is of no use: the step is to be sent again, once its pusher was lost."""
        self._lines[link].asked.appendleft(pushed)

    def flush(self, link: int) -> list[Effect]:
        """Send what waited for pushes to be answered, once they are."""
        line = self._lines.get(link)
        if line is None or line.fence or line.pushes:
            return []
        return self._release(line, [])

    def fenced(self, link: int, epoch: int) -> list[Effect]:
        """No older push is computed there any more. Raises RemoteError when nobody asked."""
        line = self._lines[link]
        if not line.fence or epoch > line.fence:
            raise RemoteError("a fence that nobody raised")
        if epoch < line.fence:
            return []
        line.fence = 0
        again = [one.step for one in line.asked if one is not None and one.step is not None]
        line.asked.clear()
        return self._release(line, again)

    def _release(self, line: Line, again: list[SendStep]) -> list[Effect]:
        held = list(line.held)
        line.held.clear()
        return [
            *(self._carry(line, one, again=True) for one in again),
            *(self._carry(line, one) for one in held),
        ]

    def _carry(self, line: Line, what: Asked, *, again: bool = False) -> Carry:
        road = self._road(what) if isinstance(what, SendStep) else None
        back, line.ahead = line.ahead, None
        line.asked.append(None)
        return Carry(what, road, None if isinstance(what, SendStep) else back, again)

    def _road(self, step: SendStep) -> Road | None:
        """Over which hops it is pushed on: one live step, as far as servers are in line for it."""
        order = self._steps.order
        if len(step.sizes) != 1 or step.rows != step.sizes[0] or step.link not in order:
            return None
        previous, tokens, run = step.link, step.rows, list[int]()
        for number in order[order.index(step.link) + 1 :]:
            if not self._may(number, previous, step.at):
                break
            run.append(number)
            previous = number
        if not run:
            return None
        self._number += 1
        self.chained += 1
        last = self._steps.wanted(step.at) if run[-1] == order[-1] else tokens
        for giver, number in pairwise((step.link, *run)):
            rows = last if number == run[-1] else tokens
            pushed = Pushed(self._number, giver, step.at, tokens, rows)
            self._lines[number].due.append(pushed)
        return Road(self._number, self.epoch, len(run), last)

    def _may(self, link: int, leader: int, at: int) -> bool:
        """Whether a step at this position may be pushed to it: whatever it was sent before is
        behind it, and nothing else comes in between."""
        line = self._lines.get(link)
        if line is None or line.leader != leader or line.sends:
            return False
        if len(line.due) + len(line.asked) >= line.ahead_max or (self._receipts and line.due):
            return False
        place = self._steps.next_place(link)
        if place is None:
            return False
        return at == (line.due[-1].at + line.due[-1].tokens if line.due else place)

    def _fence(self, void: set[int], first: int = 0) -> list[Effect]:
        """Make void all that these links push, and what comes of that; `first` with what is pushed
        to it."""
        found: list[int] = []
        grows = True
        while grows:
            grows = False
            for number, line in self._lines.items():
                given = number == first or any(one.giver in void for one in line.pushed())
                if given and number not in found:
                    found.append(number)
                    void = void | {number}
                    grows = True
        if not found:
            return []
        self.epoch += 1
        return [self._raise(number) for number in sorted(found)]

    def _raise(self, number: int) -> Raise:
        line = self._lines[number]
        line.fence, line.void = self.epoch, self._number
        if line.due:
            at = line.due[0].at
            line.ahead = at if line.ahead is None else min(at, line.ahead)
        line.due.clear()
        line.early.clear()
        return Raise(number, self.epoch, apart=not line.leader)
