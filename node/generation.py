"""One answer: prompt in, tokens out, whatever dies on the way.

async with open_generation(host, router, worker, request) as answer:
    async for piece in answer:
        print(piece.text, end="")

With audits a server may be convicted in mid-answer, or go without signing for what it gave. Then
the answer goes back to the first words that rest on that, and they are made again: a piece whose
position is not behind the last one's takes the place of all from there on (`hear`). The last piece
comes once all that was drawn has been audited, so that whoever waits for the end has the right
words.

    token ─▶ token ─▶ token ─▶ last one, held ── settled ──▶ the end
      ▲                            │
      └──── convicted: go back ────┘
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ..crypto.keys import IdentityKey
from ..errors import Refused, UserError
from ..swarm.adapter import Bundle
from ..swarm.proof import NAME_MAX, Answer, write_proof
from ..swarm.routing import Hop
from ..swarm.session_events import Payload
from .compute.sampling import Settings
from .compute.voice import DTYPE, Voice
from .compute.worker import Worker
from .net.host import Host
from .router import Router
from .session import LiveSession, Recovery, SessionPlan, open_session
from .trust.auditor import Auditor
from .trust.docket import Tally
from .trust.watch import Watch, notes_of

CHUNK_TOKENS = 128  # algorithms.md 9: 128 to 256; a hop's chunk is on its way while the next fills


GREEDY = Settings()


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. `ids` is the prompt, checked by the voice.

    receipts: whether the servers shall sign, so that the answer can be proved. audit: whether a
    share of their work is computed again by others; they sign for it then too. amend: whether words
    that were given may be replaced; if not, a conviction that would is the end of the answer.
    adapter: that its sessions wear.
    """

    voice: Voice
    ids: tuple[int, ...]
    settings: Settings = GREEDY
    max_new_tokens: int = 64
    stops: tuple[str, ...] = ()
    wait_s: float = 0.0
    ignore_eos: bool = False  # benchmarks want a fixed length
    receipts: bool = False
    audit: bool = False
    amend: bool = True
    adapter: Bundle | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"{self.max_new_tokens} new tokens asked for; ask for 1 or more")


@dataclass(frozen=True, slots=True)
class Piece:
    """One token. `text` is what is certain by now: it may be empty, or the end of several tokens.

    position: of the token, the prompt's first being 0; a piece that is not behind the last one
    replaces that and all from there on. seconds: since the one before, or since the start. finish:
    why it is the last, or None.
    """

    token: int
    position: int
    text: str
    seconds: float
    route: tuple[Hop, ...]
    finish: str | None = None


class Generation:
    """An answer on its way. Iterate over it once."""

    def __init__(
        self, session: LiveSession, worker: Worker, request: Request, watch: Watch | None = None
    ) -> None:
        """watch: over its audits, if there are any."""
        self._session = session
        self._watch = watch
        self._worker = worker
        self._request = request
        self._history = list(request.ids)
        self._stream = request.voice.text.stream(request.ids, request.stops)
        self._last_s = trio.current_time()
        self._finished = False
        self._fed = 0  # tokens of the prompt
        self._owed = 0  # outputs of steps that were fed; of all but the last no row is wanted
        self._hidden: Payload | None = None  # that the next token is drawn from
        self._held: Piece | None = None  # the last one, until it is sure

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
        worn = self._request.adapter
        return None if worn is None else worn.hex

    @property
    def exact(self) -> bool:
        """True while every block has stayed in the numerics class that it began in: then the words
        are, bit for bit, those of an undisturbed run. Otherwise no token is changed or lost either,
        but a later one may differ from what the first peers would have said."""
        return self._session.exact

    @property
    def route(self) -> tuple[Hop, ...]:
        return self._session.route

    @property
    def flowing(self) -> bool:
        """True from when the prompt has begun to go down the first hop."""
        return self._session.flowing

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
        findings = [] if self._watch is None else self._watch.findings
        notes = notes_of(findings, accounts, shares)
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
        request = self._request
        await self._feed_prompt()
        while self._owed:
            self._hidden = await self._session.output()
            self._owed -= 1
        assert self._hidden is not None
        position = len(self._history)
        token, payload = await self._worker.run(
            request.voice.next_token, self._hidden, request.settings, position, self._history
        )
        self._hidden = None
        self._history.append(token)
        text, finish = self._judge(token)
        if finish is None:  # the servers work on while the caller looks at this piece
            self._feed(payload, 1, 1, position)
        now_s = trio.current_time()
        seconds, self._last_s = now_s - self._last_s, now_s
        return Piece(token, position, text, seconds, self._session.route, finish)

    async def _go_back(self) -> None:
        """Take back what rests on work that is not to be relied on."""
        watch, begun = self._watch, len(self._request.ids)
        while watch is not None and (at := watch.back) is not None:
            if not self._request.amend and len(self._history) > max(begun, at + 1):
                raise Refused(
                    "a server of this answer was convicted of wrong work: ask again",
                    retry_after_s=0,
                )
            while self._owed:  # a session is taken back at rest
                await self._session.output()
                self._owed -= 1
            tokens = self._history[at : min(at + CHUNK_TOKENS, begun) if at < begun else at + 1]
            payload = await self._worker.run(self._request.voice.embed, tokens)
            watch.went_back(at)  # and not before: whoever is cancelled comes back to it
            self._fed = min(at + len(tokens), begun)
            self._feed(payload, len(tokens), int(self._fed == begun), at)
            del self._history[max(at + 1, begun) :]
            self._hidden = None
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
        if len(self._history) - len(request.ids) >= request.max_new_tokens:
            return text + self._stream.finish(), "length"
        return text, None

    async def _feed_prompt(self) -> None:
        """What of it is not fed yet."""
        ids = self._request.ids
        while self._fed < len(ids):
            at = self._fed
            chunk = ids[at : at + CHUNK_TOKENS]
            payload = await self._worker.run(self._request.voice.embed, chunk)
            self._fed += len(chunk)
            self._feed(payload, len(chunk), int(self._fed == len(ids)), at)

    def _feed(self, payload: Payload, tokens: int, rows: int, at: int) -> None:
        self._session.feed(payload, tokens, rows, at)
        self._owed += 1


def hear(pieces: list[Piece], piece: Piece) -> bool:
    """Put a piece behind those that stand. True when it takes the place of some of them."""
    count = len(pieces)
    while pieces and pieces[-1].position >= piece.position:
        pieces.pop()
    pieces.append(piece)
    return len(pieces) <= count


@asynccontextmanager
async def open_generation(
    host: Host, router: Router, worker: Worker, request: Request, auditor: Auditor | None = None
) -> AsyncIterator[Generation]:
    """Route, open, and iterate. Leaving it frees every server's cache at once.

    auditor: where the request wants audits.
    """
    voice = request.voice
    tokens = min(len(request.ids) + request.max_new_tokens, voice.context)
    if len(request.ids) + request.max_new_tokens > voice.context:
        raise UserError(
            f"{len(request.ids)} prompt tokens and {request.max_new_tokens} new ones are more than "
            f"the context of {voice.name}, {voice.context}; ask for at most "
            f"{voice.context - len(request.ids)} new tokens"
        )
    plan = SessionPlan(
        model=voice.digest,
        name=voice.name,
        blocks=voice.blocks,
        width=voice.width,
        tokens=tokens,
        dtype=DTYPE,
        wait_s=request.wait_s,
        receipts=request.receipts or request.audit,
        adapter=request.adapter,
    )
    if not request.audit:
        async with open_session(host, router, plan) as session:
            yield Generation(session, worker, request)
        return
    assert auditor is not None, "a request for audits, and nobody who makes them"
    watch = Watch(auditor, amend=request.amend)
    async with open_session(host, router, plan, watch.signed) as session:
        watch.attend(session)
        try:
            yield Generation(session, worker, request, watch)
        finally:
            watch.end()


def encode_request(voice: Voice, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """The ids of a prompt given as text or as ids. Raises UserError."""
    if not isinstance(prompt, str):
        return tuple(voice.check(prompt))
    return tuple(voice.prompt(check_text(prompt, "the prompt")))


def check_text(text: str, what: str) -> str:
    """The text itself. Raises UserError when it holds what Python puts for bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not text: character {error.start + 1} is no UTF-8; write it as UTF-8"
        ) from error
    return text
