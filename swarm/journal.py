"""What a session has sent over each boundary between its hops: enough to replay all of it.

Keyed by (boundary, step), so that a hop may be split, merged or moved at any time. The inputs of a
boundary grow as the hop before it answers; at the first boundary they are what the caller feeds.

      boundary 0           3                6              8
      journal  i0 i1 i2    i0 i1 i2         i0 i1          (delivered: i0)

Steps are replayed in their original sizes, because the bits of a product depend on its shape. Only
one that `splits`, whose rows have the bits of steps of their own, becomes shorter when its end is
taken back, as guesses are that proved wrong.

Where receipts are wanted the journal says after which steps all servers sign (a cut): after one of
several tokens, after so many of single ones, before what is taken back, and when a hop is lost or
leaves. Behind one that splits it waits for the next, to know what is left of it. No frame reaches
over a cut, whenever it is sent, so that all accounts are cut alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .blocks import BlockRange
from .session_events import Deliver, Payload

SIZES_MAX = 1024  # steps in one replay frame: keeps its header below 4 KiB


@dataclass(slots=True)
class Step:
    """`tokens` rows of input at position `at`, of whose outputs the last `rows` are wanted.

    cut: whoever has computed it signs for all until its end. splits: its rows have the bits of
    steps of their own.
    """

    at: int
    tokens: int
    rows: int
    cut: bool = False
    splits: bool = False

    @property
    def stop(self) -> int:
        return self.at + self.tokens


@dataclass(slots=True)
class Frame:
    """Steps `first` to `first + count` on their way; a take-back lowers `count`, never the rest.

    sign: no steps at all, but a signature for all before.
    """

    first: int
    count: int
    at: int
    tokens: int
    rows: int
    sign: bool = False

    def take_back(self, kept: int) -> None:
        self.count = max(0, min(self.count, kept - self.first))


class Journal:
    """The steps of one session, and their inputs at each boundary where one of its hops begins."""

    def __init__(
        self, blocks: BlockRange, row_bytes: int, group_tokens: int, cut_tokens: int = 0
    ) -> None:
        self._blocks = blocks
        self._row_bytes = row_bytes
        self._group_tokens = group_tokens
        self._cut_tokens = cut_tokens
        self._uncut = 0  # tokens since the last cut
        self._steps: list[Step] = []
        self._inputs: dict[int, list[Payload]] = {blocks.start: []}
        self._delivered = 0
        self._length = 0

    @property
    def length(self) -> int:
        """The position after the last step."""
        return self._length

    @property
    def idle(self) -> bool:
        """True when every step has been delivered."""
        return self._delivered == len(self._steps)

    def check(self, step: Step, payload: Payload) -> None:
        """Raises ValueError for a step that cannot be the next one."""
        if len(payload) != step.tokens * self._row_bytes or step.tokens < 1:
            raise ValueError("the payload is not what the step says")
        self.check_back(step.at)

    def check_back(self, at: int) -> None:
        """Raises ValueError for a position to which it cannot go back."""
        if not 0 <= at <= self._length:
            raise ValueError(f"a step at {at} leaves a hole after {self._length}")
        if at < self._length and not self.idle:
            raise ValueError("only a session at rest can be taken back")

    def add(self, step: Step, payload: Payload) -> None:
        if self._uncut >= self._cut_tokens:
            self.cut()  # what is left of steps that split, which were waited for
        self._steps.append(step)
        self._length = step.stop
        self._inputs[self._blocks.start].append(payload)
        if self._cut_tokens:
            self._uncut += step.tokens
            whole = step.tokens > 1 and not step.splits
            full = step.tokens == 1 and self._uncut >= self._cut_tokens
            if whole or full:
                self.cut()

    def cut(self, stop: int | None = None) -> None:
        """Have all that was fed so far signed for; or only the steps before this number."""
        if stop is None:
            stop, self._uncut = len(self._steps), 0
        if self._cut_tokens and stop:
            self._steps[stop - 1].cut = True

    def cut_at(self, stop: int) -> bool:
        """Whether whoever has been sent the steps before number `stop` shall sign for them."""
        return self._steps[stop - 1].cut

    def take_back(self, at: int) -> int:
        """Forget the steps that begin at `at` or later; how many are left. One that began before
        keeps its size, for a replay must have its shape, and the next step's `at` truncates what
        it overran. What is left is signed for by itself, for the next step is at another place
        to those who begin anew than to those who were sent what is taken back. Of one that splits
        the end is forgotten alone, and the next step follows it for all."""
        before = len(self._steps)
        while self._steps and self._steps[-1].at >= at:
            self._uncut -= self._steps.pop().tokens
        kept = self._delivered = len(self._steps)
        for payloads in self._inputs.values():
            del payloads[kept:]
        self._uncut = max(0, self._uncut)
        last = self._steps[-1] if self._steps else None
        if last is not None and last.splits and last.stop > at:
            self._shorten(last, at - last.at)
        if kept < before or (last is not None and last.stop > at):
            self.cut()
        self._length = at
        return kept

    def _shorten(self, last: Step, tokens: int) -> None:
        """The last step ends behind so many tokens."""
        self._uncut = max(0, self._uncut - (last.tokens - tokens))
        last.tokens, last.rows = tokens, min(last.rows, tokens)
        for payloads in self._inputs.values():
            if len(payloads) == len(self._steps):  # a copy: the rest is not to be kept in memory
                payloads[-1] = bytes(memoryview(payloads[-1])[: tokens * self._row_bytes])

    def keep(self, boundaries: Iterable[int]) -> list[int]:
        """Remember inputs at these boundaries, and at no other; those that are forgotten."""
        kept = {start: self._inputs.get(start, []) for start in boundaries}
        forgotten = [start for start in self._inputs if start not in kept]
        self._inputs = kept
        return forgotten

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self._steps)

    def end(self, stop: int) -> int:
        """Where the last step before this number ends; 0: there is none."""
        return self._steps[stop - 1].stop if stop else 0

    def place(self, number: int) -> int:
        """Where that step begins."""
        return self._steps[number].at if number < len(self._steps) else self._length

    def passed(self, block: int) -> int:
        """How many steps went on from this boundary: their output is known behind a later one."""
        later = [len(rows) for start, rows in self._inputs.items() if start > block]
        return max([self._delivered, *later])

    def held(self, blocks: BlockRange) -> int:
        """How many steps have an input for these blocks."""
        return len(self._inputs[blocks.start])

    def known(self, blocks: BlockRange) -> int:
        """How many steps have an output that is known downstream of these blocks."""
        if blocks.stop == self._blocks.stop:
            return self._delivered
        return len(self._inputs[blocks.stop])

    def tokens(self, first: int, stop: int) -> int:
        """Of these steps together."""
        return sum(step.tokens for step in self._steps[first:stop])

    def wanted(self, at: int) -> int:
        """How many rows of its output are wanted of the step at this position."""
        return next(step.rows for step in reversed(self._steps) if step.at == at)

    def next_frame(
        self, blocks: BlockRange, first: int, stop: int, *, alone: bool = False
    ) -> Frame:
        """The longest run of steps from `first` on, and below `stop`, that may travel together.

        Together go steps that follow each other without a truncation between, of which either
        every output is known downstream already (rows 0), or every output is wanted whole.
        alone: of these each for itself.
        """
        last_hop = blocks.stop == self._blocks.stop
        known = self.known(blocks)
        if first < known:
            stop = min(known, stop)
        elif last_hop or alone:
            stop = first + 1
        tokens = count = 0
        for step in self._steps[first:stop]:
            follows = count == 0 or step.at == self._steps[first].at + tokens
            fits = count == 0 or tokens + step.tokens <= self._group_tokens
            if not follows or not fits or count == SIZES_MAX:
                break
            tokens += step.tokens
            count += 1
            if step.cut:
                break
        wanted = self._steps[first].rows if last_hop else tokens
        rows = 0 if first < known else wanted
        return Frame(first, count, self._steps[first].at, tokens, rows)

    def pieces(
        self, blocks: BlockRange, frame: Frame
    ) -> tuple[tuple[int, ...], tuple[Payload, ...]]:
        """The sizes of a frame's steps, and their inputs for these blocks."""
        stop = frame.first + frame.count
        sizes = tuple(step.tokens for step in self._steps[frame.first : stop])
        return sizes, tuple(self._inputs[blocks.start][frame.first : stop])

    def fits(self, frame: Frame, rows: int, payload: Payload) -> bool:
        """Whether an answer to this frame has the shape that was asked for."""
        return rows == frame.rows and len(payload) == rows * self._row_bytes

    def take(self, blocks: BlockRange, frame: Frame, payload: Payload) -> list[Deliver]:
        """Keep what these blocks answered, as inputs of the next ones; or deliver it, once."""
        if blocks.stop == self._blocks.stop:
            if frame.count == 0 or frame.first < self._delivered:
                return []
            assert frame.first == self._delivered
            self._delivered = frame.first + frame.count
            return [Deliver(frame.first, payload)]
        outputs = self._inputs[blocks.stop]
        whole = memoryview(payload)
        offset = 0
        for index in range(frame.first, frame.first + frame.count if frame.rows else frame.first):
            size = self._steps[index].tokens * self._row_bytes
            if index == len(outputs):  # of one step the very object: who took it is who gave it
                outputs.append(payload if size == len(whole) else whole[offset : offset + size])
            offset += size
        return []
