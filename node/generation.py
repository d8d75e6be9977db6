"""One answer: prompt in, tokens out, whatever dies on the way.

async with open_generation(host, router, worker, request) as answer:
    async for piece in answer:
        print(piece.text, end="")

With audits a server may be convicted in mid-answer, or go without signing for what it gave. Then
the answer goes back to the first words that rest on that, and they are made again: a piece whose
position is not behind the last one's takes the place of all from there on (`hear`). The last piece
comes once all that was drawn has been audited: whoever waits for the end has the right words.

    token ─▶ token ─▶ token ─▶ last one, held ── settled ──▶ the end
      ▲                            │
      └──── convicted: go back ────┘

With drafts a step may hold guesses behind the token that is certain (drafting.py). Its output is
drawn from row by row, with the noise of each position, as far as the guesses are what is drawn; the
step after it takes the place of the others. So the words are the same.

    fed      t5 g6 g7 g8           g6 is t6, g7 is not t7: rows 1 and 2 gave t6 and t7
    drawn       t6 t7
    fed            t7 g8' ...      at position 7: the rows of g7 and g8 are taken back

Where guesses are nearly always right a further step, of guesses alone, is fed behind before this
one is answered, and the next once this was right to its last row: so the road is never empty. Is
one wrong, the answer to what is on the way is waited for, and dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from ..crypto.keys import IdentityKey
from ..errors import Refused, UserError
from ..swarm.proof import NAME_MAX, Answer, write_proof
from ..swarm.routing import Hop
from ..swarm.session_events import Payload
from ..swarm.wan import CHUNK_TOKENS, Shape
from .compute.worker import Worker
from .drafting import Drafter, Guessed
from .net.host import Host
from .pacing import Chunking, chunk_for
from .prompt import prompt_of
from .request import GREEDY as GREEDY
from .request import Piece as Piece
from .request import Request as Request
from .request import hear as hear
from .router import Router
from .session import LiveSession, Recovery, SessionPlan, open_session
from .trust.auditor import Auditor
from .trust.docket import Tally
from .trust.watch import Watch, notes_of


class Generation:
    """An answer on its way. Iterate over it once."""

    def __init__(
        self, session: LiveSession, worker: Worker, request: Request, watch: Watch | None = None,
        chunking: Chunking | None = None,
    ) -> None:  # fmt: skip
        """watch: over its audits, if there are any. chunking: how to send the rest of a prompt."""
        self._session = session
        self._chunking = chunking
        self._watch = watch
        self._worker = worker
        self._request = request
        self._history = list(request.ids)
        self._stream = request.voice.text.stream(request.ids, request.stops)
        self._last_s = trio.current_time()
        self._finished = False
        self._fed = 0  # tokens of the prompt
        self.prompt_tokens, self.prompt_read = len(request.ids), 0  # read: by all servers
        self.chunk = CHUNK_TOKENS  # in how many tokens at once it is sent
        self._owed = 0  # outputs of steps that were fed; of all but the last no row is wanted
        self._hidden: Payload | None = None  # rows that the next tokens are drawn from
        self._row = 0  # of those, the next one's
        self._guesses: tuple[int, ...] = ()  # that these rows rest on, all but the first
        self._ahead: deque[tuple[int, ...]] = deque()  # the step behind, fed before its answer came
        self._correction: tuple[Payload, int] | None = None  # to feed once that has come
        self._ready: deque[Piece] = deque()  # drawn, and not asked for yet
        self._held: Piece | None = None  # the last one, until it is sure
        drafts = request.drafts
        self._drafter = None if drafts is None else Drafter(drafts, request.settings)
        self._sent: deque[tuple[float, int, int]] = deque()  # when, its rows, hops lost before

    @property
    def recoveries(self) -> list[Recovery]:
        """The hops that were lost so far, and replaced."""
        return self._session.recoveries

    @property
    def seed(self) -> int | None:
        """The seed that was used, drawn or given; None when nothing is drawn."""
        return self._request.settings.seed

    @property
    def adapter(self) -> str | None:
        """The digest of what is worn, in hex."""
        return None if self._request.adapter is None else self._request.adapter.hex

    @property
    def exact(self) -> bool:
        """True while every block has stayed in the numerics class that it began in: then the words
        are, bit for bit, those of an undisturbed run. Otherwise no token is changed or lost either,
        but a later one may differ from what the first peers would have said."""
        return self._session.exact

    @property
    def guessed(self) -> Guessed | None:
        """What came of the guesses so far; None where none were asked for."""
        return None if self._drafter is None else self._drafter.guessed

    @property
    def route(self) -> tuple[Hop, ...]:
        return self._session.route

    @property
    def tokens(self) -> int:
        """That were drawn so far."""
        return len(self._history) - len(self._request.ids)

    @property
    def flowing(self) -> bool:
        """True from when the prompt has begun to go down the first hop."""
        return self._session.flowing

    @property
    def chained(self) -> int:
        """How many steps went from hop to hop, over one at least."""
        return self._session.chained or 0

    @property
    def audits(self) -> Tally | None:
        """What the audits came to so far; None where none were asked for."""
        return None if self._watch is None else self._watch.tally

    async def proof(self, key: IdentityKey) -> bytes:
        """The file by which `potluck verify` shows what this answer rests on, signed by the client.

        The last receipts are waited for, for some seconds; where nobody signed, the file says so.
        Only for a request with receipts.
        """
        await self._session.settle()
        ledger, voice = self._session.ledger, self._request.voice
        assert ledger is not None, "a request without receipts"
        accounts, shares = ledger.told()
        notes = notes_of(self._watch.findings if self._watch else [], accounts, shares)
        told = Answer(
            ledger.session,
            time.time(),
            ledger.model,
            voice.name[:NAME_MAX],
            voice.blocks,
            tuple(self._history),
            len(self._request.ids),
            self._session.length,
            tuple(shares),
            b"",
        )
        return write_proof(key, accounts, notes, told)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        """Cancelled, nothing is lost: the next call goes on from there. Raises Refused when words
        that were given would have to be replaced, and may not be."""
        if self._finished:
            raise StopAsyncIteration
        while True:
            await self._go_back()
            piece = self._held or await self._draw()
            if self._watch is not None and piece.finish is not None:
                self._held = piece
                await self._watch.settle()
            if self._watch is None or self._watch.back is None:
                self._finished = piece.finish is not None
                return piece
            self._held = None

    async def _draw(self) -> Piece:
        """The next token, from what is there."""
        if not self._ready:
            await self._feed_prompt()
            await self._correct()
            while self._owed > len(self._ahead):
                self._hidden = await self._session.output()
                self._owed -= 1
                unread = (self._owed - len(self._ahead)) * self.chunk
                self.prompt_read = max(0, self._fed - unread)
                self._took()
            while self._hidden is not None:
                await self._draw_row()
        return self._ready.popleft()

    async def _correct(self) -> None:
        """Feed what is to be at the place of guesses that are still on their way."""
        if self._correction is not None:
            await self._rest()
            payload, position = self._correction
            self._correction = None
            self._feed_guessed(payload, position)

    async def _rest(self) -> None:
        while self._owed:
            await self._session.output()
            self._owed -= 1
        self._sent.clear()

    async def _draw_row(self) -> None:
        """One token, from the next row. If it is not what was guessed, or nothing was, the next
        step is fed: the servers work on while the caller looks at these pieces."""
        assert self._hidden is not None
        size, position = len(self._hidden) // (1 + len(self._guesses)), len(self._history)
        row = memoryview(self._hidden)[self._row * size : (self._row + 1) * size]
        last = self._row == len(self._guesses)
        guess = self._guesses[self._row] if not last else self._ahead[0][0] if self._ahead else None
        room = 0 if self._drafter is None else self._room(position)
        token, payload, guesses = await self._worker.run(self._choose, row, position, guess, room)
        self._history.append(token)
        text, finish = self._judge(token)
        if guess is not None and self._drafter is not None:
            self._drafter.guessed.accepted += token == guess
            self._drafter.guessed.missed += token != guess
        if token == guess and finish is None and not last:
            self._row += 1
        elif token == guess and finish is None:  # the step behind is right so far, and on its way
            self._hidden, self._row, self._guesses = None, 0, self._ahead.popleft()[1:]
            assert self._drafter is not None
            self._drafter.reached(self._history, len(self._guesses), self._sent[0][0])
            self._feed_ahead(position)
        else:
            self._hidden, self._row, self._guesses = None, 0, guesses
            flying = bool(self._ahead)
            self._ahead.clear()
            if finish is None and flying:
                self._correction = payload, position
            elif finish is None:
                self._feed_guessed(payload, position)
            elif self._drafter is not None and not flying and self._session.length > position:
                self._session.take_back(position)
        now_s = trio.current_time()
        seconds, self._last_s = now_s - self._last_s, now_s
        route, right = self._session.route, token == guess
        self._ready.append(Piece(token, position, text, seconds, route, finish, right))

    def _choose(
        self, row: Payload, position: int, guess: int | None, room: int
    ) -> tuple[int, Payload, tuple[int, ...]]:
        """On the worker: the token, and what to feed with it, unless it is the one that was guessed
        and so was fed already."""
        voice, history = self._request.voice, self._history
        token, payload = voice.next_token(row, self._request.settings, position, history)
        if token == guess or self._drafter is None:
            return token, payload, ()
        guesses = self._drafter.offer([*history, token], room)
        if not guesses:
            return token, payload, ()
        return token, b"".join((payload, voice.embed(guesses))), guesses

    def _room(self, position: int) -> int:
        """How many guesses may follow the token at this position: the last token of an answer is
        never fed."""
        last = len(self._request.ids) + self._request.max_new_tokens - 1
        return max(0, min(self._session.rows_alike - 1, last - 1 - position))

    def _feed_guessed(self, payload: Payload, position: int) -> None:
        rows = 1 + len(self._guesses)
        self._feed_rows(payload, rows, position)
        if self._drafter is not None:
            self._drafter.fed(rows - 1)
            self._feed_ahead(position)

    def _feed_ahead(self, position: int) -> None:
        """One more step, of guesses alone, where all that is on the way is as good as certain. Not
        where servers sign: what was taken back on the way would be in their accounts."""
        if self._drafter is None or self._ahead or self._session.ledger is not None:
            return
        flying, last = 1 + len(self._guesses), self._request.max_new_tokens + len(self._request.ids)
        room = min(self._session.rows_alike, last - 1 - position - flying)
        block = self._drafter.ahead(self._guesses, room)
        if block:
            self._ahead.append(block)
            self._feed_rows(self._request.voice.embed(block), len(block), position + flying)

    def _feed_rows(self, payload: Payload, rows: int, position: int) -> None:
        self._sent.append((trio.current_time(), rows, len(self.recoveries)))
        self._session.feed(payload, rows, rows, position, splits=rows > 1)
        self._owed += 1

    def _took(self) -> None:
        """A step's output has come: what it took, if nothing was lost on the way."""
        if self._drafter is None or not self._sent:
            return
        sent_s, rows, lost = self._sent.popleft()
        if lost == len(self.recoveries):
            self._drafter.took(rows, self._session.answered_s - sent_s)
        if self._watch is not None and self._drafter.pace.fell():
            self._watch.hint()

    async def _go_back(self) -> None:
        """Take back what rests on work that is not to be relied on."""
        watch, begun = self._watch, len(self._request.ids)
        while watch is not None and (at := watch.back) is not None:
            if not self._request.amend and len(self._history) > max(begun, at + 1):
                raise Refused(
                    "a server of this answer was convicted of wrong work: ask again",
                    retry_after_s=0,
                )
            at = min(at, len(self._history) - 1)  # not to a guess that was not accepted
            await self._rest()  # or it could not be taken back
            tokens = self._history[at : min(at + CHUNK_TOKENS, begun) if at < begun else at + 1]
            payload = await self._worker.run(self._request.voice.embed, tokens)
            watch.went_back(at)  # and not before: whoever is cancelled comes back to it
            self._fed = min(at + len(tokens), begun)
            self._session.feed(payload, len(tokens), int(self._fed == begun), at)
            self._owed += 1
            del self._history[max(at + 1, begun) :]
            self._hidden, self._row, self._guesses, self._correction = None, 0, (), None
            self._ahead.clear()
            self._held = None  # the last piece may have waited for its audit when we were cancelled
            self._ready = deque(one for one in self._ready if one.position < len(self._history))
            if self._drafter is not None:
                self._drafter.restart()
            self._stream = self._request.voice.text.stream(self._request.ids, self._request.stops)
            for said in self._history[begun:]:
                self._stream.push(said)

    def _judge(self, token: int) -> tuple[str, str | None]:
        """The text that this token makes certain, and why the answer ends with it, if it does."""
        request = self._request
        if token in request.voice.text.eos and not request.ignore_eos:
            return self._stream.finish(), "eos"
        text = self._stream.push(token)
        if self._stream.stopped:
            return text, "stop"
        if self.tokens >= request.max_new_tokens:
            return text + self._stream.finish(), "length"
        return text, None

    async def _feed_prompt(self) -> None:
        """What of it is not fed yet."""
        ids = self._request.ids
        if not self._fed and self._session.chained is not None:
            await self._session.opened()  # a step that comes sooner goes by star, and all behind it
        while self._fed < len(ids):
            at = self._fed
            chunk = ids[at : at + self.chunk]
            payload = await self._worker.run(self._request.voice.embed, chunk)
            self._fed += len(chunk)
            self._session.feed(payload, len(chunk), int(self._fed == len(ids)), at)
            self._owed += 1
            if at == 0 and self._fed < len(ids) and self._chunking is not None:
                self.chunk = await self._chunking(self._session, len(ids) - self._fed)
            if self._drafter is not None and self._fed == len(ids):  # while the servers work
                await self._worker.run(self._drafter.read, ids)


@asynccontextmanager
async def open_generation(
    host: Host, router: Router, worker: Worker, request: Request, auditor: Auditor | None = None
) -> AsyncIterator[Generation]:
    """Route, open, and iterate. Leaving it frees every server's cache at once.

    auditor: where the request wants audits.
    """
    voice, tokens = request.voice, len(request.ids) + request.max_new_tokens
    if tokens > voice.context:
        raise UserError(
            f"{len(request.ids)} prompt tokens and {request.max_new_tokens} new ones are more than "
            f"the context of {voice.name}, {voice.context}; ask for at most "
            f"{voice.context - len(request.ids)} new tokens"
        )
    plan = SessionPlan(
        voice.digest, voice.name, voice.blocks, voice.width, tokens, voice.wire, request.wait_s,
        receipts=request.receipts or request.audit, adapter=request.adapter,
        prompt=await prompt_of(voice, request.ids, request.prefix, worker), chain=request.chain,
    )  # fmt: skip
    # what is recalled is recalled by pages: its chunks are of whole ones
    shape: Shape = "chain" if plan.chained else "star"
    chunking = partial(chunk_for, router, voice, shape) if plan.prompt is None else None
    if not request.audit:
        async with open_session(host, router, plan) as session:
            yield Generation(session, worker, request, chunking=chunking)
        return
    assert auditor is not None, "a request for audits, and nobody who makes them"
    watch = Watch(auditor, amend=request.amend)
    async with open_session(host, router, plan, watch.signed) as session:
        watch.attend(session)
        try:
            yield Generation(session, worker, request, watch, chunking)
        finally:
            watch.end()
