"""A client's side of prompts that begin alike: what need not be sent again, nor computed.

One page a link, between what the session's machine sends (swarm/session.py) and the wire. To the
machine, to its journal and to the ledger a recalled step is a step as any: the same rows go in, the
same come out, and the server signs for them; so failover, audits and proofs are what they were.

    names at boundary 0: of the prompt ──▶ Ask ──▶ Held(count, gave)
                                                           └──▶ names at boundary 3 ──▶ Ask ...
    SendStep ─┬─ as far as its rows are held ──▶ Recall ──▶ Output, with rows, or none that we have
              └─ the rest ─────────────────────▶ Step ────▶ Output       both are one answer

What a server says that it gave is checked: against the rows that come, which are kept by the names
that we give them, and against those that go into the next hop, or nothing is recalled there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from ..errors import RemoteError
from ..swarm.adapter import Bundle
from ..swarm.prefix import GRAIN, Brought, Chain, Prompt, Rows
from ..swarm.routing import Hop
from ..swarm.session_events import Payload, SendStep
from ..swarm.wire import Ask, Held, Open, Output, Recall, Remember, Step


class Known:
    """What a process knows of prompts: for all of its sessions."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.brought = Brought()


class Prompts:
    """One session's prompt, as it is called at each boundary."""

    def __init__(self, prompt: Prompt, known: Known, row_bytes: int) -> None:
        self.prompt, self.known, self.row_bytes = prompt, known, row_bytes
        self._names = {0: prompt.names}
        self._wakes: list[Callable[[], None]] = []

    def at(self, hop: Hop, wake: Callable[[], None]) -> Recalls | None:
        """Of one link; None where its server remembers nothing. wake: when there may be something
        to ask."""
        if self.known.brought.is_mute(hop.peer):
            return None
        self._wakes.append(wake)
        return Recalls(self, hop)

    def names(self, block: int) -> tuple[bytes, ...]:
        """Of the rows that go into this block; none while they are not known."""
        return self._names.get(block, ())

    def tell(self, block: int, names: tuple[bytes, ...]) -> None:
        """So are the rows called that go into this block."""
        if block not in self._names:
            self._names[block] = names
            for wake in self._wakes:
                wake()


@dataclass(frozen=True, slots=True)
class Recalled:
    """What of a step is recalled. names: of what comes out. kept: that, if we have it."""

    asked: Recall
    names: tuple[bytes, ...]
    kept: bytes | None


@dataclass(frozen=True, slots=True)
class Part:
    """What of a step is sent in one frame. recalled: how; None: it is computed."""

    message: Step | Recall
    tokens: int
    payloads: tuple[Payload, ...]
    recalled: Recalled | None = None
    last: bool = True


class Recalls:
    """One link's. The caller owes: `take` for each step before it is sent, in order; what `ask`
    gives is sent at once; `rows` for each answer to what was recalled."""

    def __init__(self, prompts: Prompts, hop: Hop) -> None:
        self._prompts = prompts
        self._hop = hop
        self._names: tuple[bytes, ...] = ()  # that were asked for
        self._gave: tuple[bytes, ...] = ()
        self._count = 0
        self._told = trio.Event()
        self._begun = False  # a step was sent, or is about to be
        self._over = False  # nothing more is recalled
        self._in = Chain(prompts.row_bytes)
        self._out = Chain(prompts.row_bytes)

    def opening(self, asked: Open) -> Open:
        """What the server is opened with, in place of this."""
        return Remember(
            asked.session, asked.model, asked.start, asked.stop, asked.tokens, asked.dtype,
            asked.receipts, shared=self._prompts.prompt.shared,
        )  # fmt: skip

    @property
    def due(self) -> bool:
        """Whether there is something to ask."""
        known = self._prompts.names(self._hop.blocks.start)
        return bool(known) and not self._names and not self._begun

    def ask(self) -> Ask | None:
        """What to ask now, if anything."""
        if not self.due:
            return None
        self._names = self._prompts.names(self._hop.blocks.start)
        return Ask(self._names)

    def mute(self) -> None:
        """The server is of an older kind."""
        self._prompts.known.brought.note_mute(self._hop.peer)

    def held(self, told: Held) -> None:
        """Its answer. Raises RemoteError for one to nothing."""
        if not self._names or self._told.is_set() or told.count > len(self._names):
            raise RemoteError(f"{told.count} names held, of {len(self._names)} asked for")
        self._count, self._gave = told.count, told.gave
        self._note(told.count)
        if told.gave:
            self._prompts.tell(self._hop.blocks.stop, told.gave)
        self._told.set()

    async def take(self, step: SendStep) -> list[Part]:
        """What to send of this step, in order."""
        self._begun = True
        if self._names and not self._over:
            await self._told.wait()  # as long as the link waits for the step
        held = 0 if self._over else self._held_of(step)
        tokens, whole = sum(step.sizes[:held]), sum(step.sizes)
        parts: list[Part] = []
        if held:
            first, stop = step.at // GRAIN, (step.at + tokens) // GRAIN
            names, rows = self._gave[first:stop], min(step.rows, tokens)
            kept = self._prompts.known.rows.find(names) if rows else None
            asked = Recall(step.at, step.sizes[:held], rows, kept is not None)
            parts.append(Part(asked, tokens, (), Recalled(asked, names, kept), tokens == whole))
        if tokens < whole:
            self._over = True
            if step.at < GRAIN * len(self._prompts.prompt.names):
                self._note((step.at + whole) // GRAIN)  # it keeps what it is sent
            rest = Step(step.at + tokens, step.sizes[held:], max(0, step.rows - tokens))
            parts.append(Part(rest, whole - tokens, step.payloads[held:]))
        return parts

    def _held_of(self, step: SendStep) -> int:
        """How many of these pieces the server has, which are the very rows, and can give out."""
        whole = sum(step.sizes)
        if step.at != self._in.length or step.rows not in ((0, whole) if self._gave else (0,)):
            return 0
        held, stop = 0, step.at
        for number, (size, payload) in enumerate(zip(step.sizes, step.payloads, strict=True), 1):
            stop += size
            if stop > GRAIN * self._count:
                break
            self._in.add(payload)
            if tuple(self._in.names) != self._names[: stop // GRAIN]:
                break
            if stop % GRAIN == 0:
                held = number
        return held

    def rows(self, recalled: Recalled, payload: Payload) -> Payload:
        """What came out of a step that was recalled. Raises RemoteError for other rows than were
        named."""
        asked = recalled.asked
        if not asked.rows or recalled.kept is not None:
            if len(payload):
                raise RemoteError("rows that nobody wanted")
            self._out.skip(recalled.names)
            return payload if recalled.kept is None else recalled.kept
        size = GRAIN * self._prompts.row_bytes
        if len(payload) != len(recalled.names) * size:
            raise RemoteError(f"{len(payload)} bytes of {len(recalled.names)} pages")
        self._out.add(payload)
        if tuple(self._out.names[-len(recalled.names) :]) != recalled.names:
            raise RemoteError("rows that are not those it named")
        view = memoryview(payload)
        for place, name in enumerate(recalled.names):
            self._prompts.known.rows.put(name, view[place * size : (place + 1) * size])
        return payload

    def _note(self, held: int) -> None:
        names = self._prompts.prompt.names
        self._prompts.known.brought.note(self._hop.peer, names, held)


class Halves:
    """Makes one answer of those to a step's parts: to the machine a step has one."""

    def __init__(self) -> None:
        self._first: tuple[Output, Payload] | None = None  # the rest is to come

    def join(
        self, told: Output, payload: Payload, *, last: bool
    ) -> tuple[int, int, Payload] | None:
        """Where it is, its rows, and they; None: more is to come."""
        if not last:
            self._first = told, payload
            return None
        if self._first is None:
            return told.at, told.rows, payload
        (before, first), self._first = self._first, None
        return before.at, before.rows + told.rows, b"".join((first, payload))


def plain(step: SendStep) -> Part:
    """A step as it is."""
    return Part(Step(step.at, step.sizes, step.rows), sum(step.sizes), step.payloads)


def prompts_of(
    prompt: Prompt | None, adapter: Bundle | None, known: Known, row_bytes: int
) -> Prompts | None:
    """Of a session; None where nothing is to be remembered: what wears an adapter is not."""
    return None if prompt is None or adapter else Prompts(prompt, known, row_bytes)


def without(asked: Open) -> Open:
    """The same question, as older servers know it."""
    return Open(
        asked.session, asked.model, asked.start, asked.stop, asked.tokens, asked.dtype,
        asked.receipts,
    )  # fmt: skip
