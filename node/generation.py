"""One answer: prompt in, tokens out, whatever dies on the way.

async with open_generation(host, router, worker, request) as answer:
    async for piece in answer:
        print(piece.text, end="")
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ..crypto.keys import IdentityKey
from ..errors import UserError
from ..swarm.proof import NAME_MAX, Answer, write_proof
from ..swarm.routing import Hop
from ..swarm.session_events import Payload
from .compute.sampling import Settings
from .compute.voice import DTYPE, Voice
from .compute.worker import Worker
from .net.host import Host
from .router import Router
from .session import LiveSession, Recovery, SessionPlan, open_session

CHUNK_TOKENS = 128  # algorithms.md 9: 128 to 256; a hop's chunk is on its way while the next fills


GREEDY = Settings()


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. `ids` is the prompt, checked by the voice. receipts: whether the servers
    shall sign, so that the answer can be proved."""

    voice: Voice
    ids: tuple[int, ...]
    settings: Settings = GREEDY
    max_new_tokens: int = 64
    stops: tuple[str, ...] = ()
    wait_s: float = 0.0
    ignore_eos: bool = False  # benchmarks want a fixed length
    receipts: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"{self.max_new_tokens} new tokens asked for; ask for 1 or more")


@dataclass(frozen=True, slots=True)
class Piece:
    """One token. `text` is what is certain by now: it may be empty, or the end of several tokens.

    seconds: since the one before, or since the start. finish: why it is the last, or None.
    """

    token: int
    position: int
    text: str
    seconds: float
    route: tuple[Hop, ...]
    finish: str | None = None


class Generation:
    """An answer on its way. Iterate over it once."""

    def __init__(self, session: LiveSession, worker: Worker, request: Request) -> None:
        self._session = session
        self._worker = worker
        self._request = request
        self._history = list(request.ids)
        self._stream = request.voice.text.stream(request.ids, request.stops)
        self._last_s = trio.current_time()
        self._finished = False
        self._fed = 0  # tokens of the prompt
        self._silent = 0  # chunks of it that no row was wanted of, and that are still to end
        self._hidden: Payload | None = None  # that the next token is drawn from

    @property
    def recoveries(self) -> list[Recovery]:
        """The hops that were lost so far, and replaced."""
        return self._session.recoveries

    @property
    def seed(self) -> int | None:
        """The seed that was used, drawn or given; None when nothing is drawn."""
        return self._request.settings.seed

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

    async def proof(self, key: IdentityKey) -> bytes:
        """The file by which `potluck verify` shows what this answer rests on, signed by the client.

        The last receipts are waited for, for some seconds; where nobody signed, the file says so.
        Only for a request with receipts.
        """
        await self._session.settle()
        ledger, voice = self._session.ledger, self._request.voice
        assert ledger is not None, "a request without receipts"
        accounts, shares = ledger.told()
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
        return write_proof(key, accounts, (), told)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        """Cancelled, nothing is lost: the next call goes on from there."""
        if self._finished:
            raise StopAsyncIteration
        request = self._request
        await self._feed_prompt()
        if self._hidden is None:
            self._hidden = await self._session.output()
        position = len(self._history)
        token, payload = await self._worker.run(
            request.voice.next_token, self._hidden, request.settings, position, self._history
        )
        self._hidden = None
        self._history.append(token)
        text, finish = self._judge(token)
        if finish is None:  # the servers work on while the caller looks at this piece
            self._session.feed(payload, tokens=1, rows=1)
        self._finished = finish is not None
        now_s = trio.current_time()
        seconds, self._last_s = now_s - self._last_s, now_s
        return Piece(token, position, text, seconds, self._session.route, finish)

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
            chunk = ids[self._fed : self._fed + CHUNK_TOKENS]
            payload = await self._worker.run(self._request.voice.embed, chunk)
            self._fed += len(chunk)
            last = self._fed == len(ids)
            self._session.feed(payload, tokens=len(chunk), rows=int(last))
            self._silent += not last
        while self._silent:
            await self._session.output()
            self._silent -= 1


@asynccontextmanager
async def open_generation(
    host: Host, router: Router, worker: Worker, request: Request
) -> AsyncIterator[Generation]:
    """Route, open, and iterate. Leaving it frees every server's cache at once."""
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
        receipts=request.receipts,
    )
    async with open_session(host, router, plan) as session:
        yield Generation(session, worker, request)


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
