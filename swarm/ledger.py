"""What a client believes of receipts: nothing but what it sent and got itself.

One page a link. It notes what was sent and what came back; when receipts come it makes of that what
they have to say (receipt.py, `Unsigned`: the very rule by which the server cuts), and compares. So
a receipt that is kept is right about its rows; whether the rows are right only an audit tells.

    sent ─┐                    ┌─▶ Part due ─┐
    got ──┴─▶ leaves, in order ┘             ├─ equal? ─▶ Account, and Work that may be audited
    Receipts ──────────────────▶ Chunk said ─┘   else RemoteError: the link is lost, with blame

The rows of a boundary are hashed when receipts are looked at, and once, though two servers sign for
them: one gave what the other took. Nothing is hashed or kept where no receipts were asked for. They
are looked at when their client has nothing else to do (`come`, then `examine`), or when somebody
asks for what they tell.

Receipts tell of what was accepted: rows of guesses that proved wrong are taken back before they are
signed for, and of a step that splits (journal.py) what is left may still be computed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ..crypto.merkle import leaves_of
from ..errors import RemoteError
from .blocks import BlockRange
from .proof import SHARES_MAX, Share
from .receipt import Account, Part, Unsigned, adapter_of
from .routing import Hop
from .session_events import Payload, SendStep
from .testimony import Contradiction, fork_of

HASHED_MAX: Final = 1024  # guess: payloads that wait for a second signer, 32 at each boundary


@dataclass(frozen=True, slots=True)
class Work:
    """One signed chunk that may be audited: enough to compute it again.

    place: its number in account.chunks. sizes, took: all steps from position 0 to the chunk's end,
    in their original sizes. gave: the last `rows` rows of the chunk, as they came. adapter: the
    digest of what the session wore; empty: nothing.
    """

    peer: str
    account: Account
    place: int
    blocks: BlockRange
    numerics: str
    dtype: str
    sizes: tuple[int, ...]
    took: tuple[Payload, ...]
    rows: int
    gave: Payload
    adapter: bytes = b""


@dataclass(slots=True)
class _Output:
    """The rows that came for positions start to stop."""

    start: int
    stop: int
    payload: Payload


@dataclass(slots=True)
class _Come:
    """Receipts, and what they are for: as `_Page` has it. back: gone back to before they were."""

    raws: tuple[bytes, ...]
    done: list[tuple[SendStep, Payload]]
    counted: list[range]
    back: int | None


@dataclass(slots=True)
class _Page:
    hop: Hop
    account: Account
    unsigned: Unsigned = field(default_factory=Unsigned)
    # and not answered; or a position that it goes back to behind them, before it signs
    sent: deque[SendStep | int] = field(default_factory=deque)
    done: list[tuple[SendStep, Payload]] = field(default_factory=list)  # and not signed for
    counted: list[range] = field(default_factory=list)  # whose outputs are in the answer
    shares: list[range] = field(default_factory=list)  # and were signed for since
    fed: list[tuple[int, int, Payload]] = field(default_factory=list)  # (at, tokens, rows)
    torn: bool = False  # a step was taken back in its middle: it cannot be computed again
    come: list[_Come] = field(default_factory=list)  # receipts that were not looked at

    def leave_out(self, at: int) -> None:
        """Positions from `at` on."""
        self.counted, self.shares = (
            [range(one.start, min(one.stop, at)) for one in ranges if one.start < at]
            for ranges in (self.counted, self.shares)
        )


class Ledger:
    """One session's receipts. works: whether chunks are to be handed out, to be audited. on_fork:
    told of two that contradict each other."""

    def __init__(
        self,
        session: bytes,
        model: str,
        blocks: BlockRange,
        width: int,
        dtype: str,
        row_bytes: int,
        *,
        works: bool = False,
        adapter: bytes = b"",
    ) -> None:
        """model: its digest, as hex. blocks: all of it. adapter: the digest of what is worn."""
        self.session = session
        self.model = bytes.fromhex(model)
        self._blocks = blocks
        self._width = width
        self._dtype = dtype
        self._row_bytes = row_bytes
        self._works = works
        self._adapter = adapter
        self.on_fork: Callable[[Contradiction], None] = lambda item: None
        self.examines: Callable[[int], object] = self.examine  # whoever takes works and faults
        self._pages: dict[int, _Page] = {}
        self._lost: dict[int, _Page] = {}
        # by identity, with the payload, so that no other can get its number meanwhile
        self._leaves: dict[int, tuple[Payload, list[bytes]]] = {}

    def opened(self, link: int, hop: Hop, raw: bytes, numerics: str) -> None:
        """A link's server has signed that it opens. Raises RemoteError unless it is what was asked
        for, by that very peer."""
        if not raw:
            raise RemoteError("opened without a receipt, which was asked for")
        account = Account(raw)
        said = account.opening
        if account.peer != hop.peer:
            raise RemoteError(f"an opening of {hop.peer} signed by {account.peer}")
        told = (said.session, said.model, said.blocks, said.width, said.dtype, said.numerics)
        asked = (self.session, self.model, hop.blocks, self._width, self._dtype, numerics)
        if told != asked or adapter_of(said) != self._adapter:
            raise RemoteError("an opening of something else than was asked for")
        self._pages[link] = _Page(hop, account)

    def sent(self, step: SendStep) -> None:
        self._pages[step.link].sent.append(step)

    def asked(self, link: int, back: int) -> None:
        """It is asked to sign, and before that to forget positions from `back` on."""
        self._pages[link].sent.append(back)

    def got(self, link: int, payload: Payload) -> None:
        """The answer to the oldest step that was not answered; its shape is right."""
        page = self._pages[link]
        step = page.sent.popleft()
        assert isinstance(step, SendStep), "an answer instead of receipts"
        page.done.append((step, payload))

    def counted(self, link: int, first: int, until: int) -> None:
        """What this link answered for these positions is what went on: it is in the answer."""
        self._pages[link].counted.append(range(first, until))

    def uncounted(self, block: int, at: int) -> None:
        """What came up to this block for positions from `at` on is not in the answer."""
        self._look()
        for page in (*self._pages.values(), *self._lost.values()):
            if page.hop.blocks.stop == block:
                page.leave_out(at)

    def taken_back(self, at: int) -> None:
        """Positions from `at` on are not in the answer."""
        self._look()
        for page in (*self._pages.values(), *self._lost.values()):
            page.leave_out(at)
        self._leaves.clear()

    def lost(self, link: int) -> None:
        """Nothing more comes of this link. What its server signed for stays; for what is in the
        answer and was not signed, an older receipt may stand, of what was taken back since."""
        page = self._pages.pop(link, None)
        if page is not None and (page.shares or page.counted):
            self._lost[link] = _Page(
                page.hop, page.account, counted=page.counted, shares=page.shares
            )
        self._leaves.clear()  # what it was to be asked for; others hash a chunk again at most

    def signed(self, link: int, raws: tuple[bytes, ...]) -> list[Work]:
        """`come`, and `examine`."""
        self.come(link, raws)
        return self.examine(link)

    def come(self, link: int, raws: tuple[bytes, ...]) -> None:
        """The receipts of all that was answered on this link have come."""
        page = self._pages[link]
        first = page.sent[0] if page.sent else None
        back = first if isinstance(first, int) else None
        if back is not None:
            page.sent.popleft()
        page.come.append(_Come(raws, page.done, page.counted, back))
        page.done, page.counted = [], []

    def examine(self, link: int) -> list[Work]:
        """Look at what has come. Raises RemoteError when a receipt is not what it has to be; those
        before it are kept."""
        page, works = self._pages[link], list[Work]()
        while page.come:
            come = page.come.pop(0)
            try:
                works += self._examine(page, come)
            except RemoteError:
                page.counted[:0] = [one for told in (come, *page.come) for one in told.counted]
                page.come.clear()
                raise
        return works

    def _look(self) -> None:
        """Somebody asks for what receipts tell."""
        for link in [link for link, page in self._pages.items() if page.come]:
            self.examines(link)

    def _examine(self, page: _Page, come: _Come) -> list[Work]:
        outputs: list[_Output] = []
        for step, payload in come.done:
            self._replay(page, step, payload, outputs)
        if come.back is not None:
            page.unsigned.truncate(come.back)
            self._forget(page, come.back, outputs, torn=False)
        due = page.unsigned.take()
        if len(come.raws) != len(due):
            raise RemoteError(f"{len(come.raws)} receipts, where {len(due)} are due")
        works = []
        for raw, part in zip(come.raws, due, strict=True):
            try:
                page.account.add(raw, part)
            except RemoteError:
                if (fork := fork_of(page.account, raw)) is not None:
                    self.on_fork(fork)
                raise
            if self._works and not page.torn:
                works.append(self._work(page, part, outputs))
        for one in come.counted:
            last = page.shares.pop() if page.shares and page.shares[-1].stop == one.start else one
            page.shares.append(range(last.start, one.stop))
        return works

    def given_by(self, peer: str) -> list[tuple[Account, range]]:
        """What is in the answer of this peer's, whether it was signed for or not."""
        self._look()
        pages = (*self._lost.values(), *self._pages.values())
        return [
            (page.account, one)
            for page in pages
            if page.hop.peer == peer
            for one in (*page.shares, *page.counted)
        ]

    def unsigned(self) -> list[tuple[str, int]]:
        """Who has gone without signing for what it gave, and from which position on that is in the
        answer."""
        return [(page.hop.peer, one.start) for page in self._lost.values() for one in page.counted]

    def told(self) -> tuple[list[Account], list[Share]]:
        """Whose receipts tell of the answer, in the order in which they were opened; and of which
        part: of more than a proof can hold, the first."""
        self._look()
        pages = {**self._lost, **self._pages}
        counted = [pages[link] for link in sorted(pages) if pages[link].shares]
        shares = [
            Share(place, one.start, one.stop)
            for place, page in enumerate(counted)
            for one in page.shares
        ]
        return [page.account for page in counted], shares[:SHARES_MAX]

    def _replay(
        self, page: _Page, step: SendStep, payload: Payload, outputs: list[_Output]
    ) -> None:
        """One answered step, as its server's notary saw it."""
        shared = page.hop.blocks.start > self._blocks.start
        took = [leaf for one in step.payloads for leaf in self._leaves_of(one, shared)]
        page.unsigned.took(step.at, took)
        gave = self._leaves_of(payload, page.hop.blocks.stop < self._blocks.stop)
        page.unsigned.gave(gave)
        if not self._works:
            return
        self._forget(page, step.at, outputs, torn=step.torn)
        at = step.at
        for size, one in zip(step.sizes, step.payloads, strict=True):
            page.fed.append((at, size, one))
            at += size
        if gave:
            outputs.append(_Output(at - len(gave), at, payload))

    def _forget(self, page: _Page, at: int, outputs: list[_Output], *, torn: bool) -> None:
        """Positions from `at` on, in what would be computed again. torn: of a step that can only be
        computed whole."""
        while page.fed and page.fed[-1][0] >= at:
            page.fed.pop()
        while outputs and outputs[-1].start >= at:
            outputs.pop()
        if outputs and outputs[-1].stop > at:
            last = outputs[-1]
            last.stop, last.payload = at, self._first(last.payload, at - last.start)
        if not page.fed or sum(page.fed[-1][:2]) <= at:
            return
        page.torn = page.torn or torn
        start, _, payload = page.fed[-1]
        page.fed[-1] = start, at - start, self._first(payload, at - start)

    def _first(self, payload: Payload, rows: int) -> Payload:
        """As a copy: the rest is not to be kept in memory."""
        return bytes(memoryview(payload)[: rows * self._row_bytes])

    def _leaves_of(self, payload: Payload, shared: bool) -> list[bytes]:
        """shared: two servers sign for these rows. Whoever is the second has no third behind it,
        but where a hop is sent again what another had, or a standby: then nobody asks for them, and
        they go when there are too many."""
        if not len(payload):
            return []
        if not shared:
            return leaves_of(payload, self._row_bytes)
        known = self._leaves.pop(id(payload), None)
        if known is not None:
            return known[1]
        leaves = leaves_of(payload, self._row_bytes)
        self._leaves[id(payload)] = (payload, leaves)
        if len(self._leaves) > HASHED_MAX:
            del self._leaves[next(iter(self._leaves))]
        return leaves

    def _work(self, page: _Page, part: Part, outputs: list[_Output]) -> Work:
        stop = part.at + part.tokens
        fed = [(size, one) for at, size, one in page.fed if at < stop]
        given = [one.payload for one in outputs if stop - part.rows <= one.start < stop]
        return Work(
            page.hop.peer,
            page.account,
            len(page.account.chunks) - 1,
            page.hop.blocks,
            page.account.opening.numerics,
            self._dtype,
            tuple(size for size, _ in fed),
            tuple(one for _, one in fed),
            part.rows,
            given[0] if len(given) == 1 else b"".join(given),
            self._adapter,
        )
