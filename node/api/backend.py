"""What the API needs of a swarm, and the swarm that gives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from ...errors import UserError
from ...swarm.wan import CHUNK_TOKENS
from ..adapters import is_digest
from ..client import VOICES_MAX, Swarm
from ..compute.voice import DTYPE
from ..compute.worker import Worker
from ..generation import Generation, Request
from ..latest import Latest
from ..library import Shelf, find_model
from ..session import SessionPlan, open_session
from .language import Language
from .problem import no_model

T = TypeVar("T")
Tuned = Callable[[], Awaitable[Mapping[str, tuple[str, Path]]]]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that may be asked for. peers: how many say that they serve some of it."""

    name: str
    digest: str
    blocks: int
    peers: int


class Backend(Protocol):
    """A swarm, as the API sees it."""

    async def offers(self) -> tuple[Offer, ...]:
        """The models that may be asked for, by name."""

    async def language(self, name: str) -> Language:
        """A model's own, loaded once. Raises a Problem (404) or UserError."""

    async def source(self, name: str) -> str:
        """What another process of this home loads a model by. Raises a Problem (404)."""

    def answer(self, request: Request) -> AbstractAsyncContextManager[Generation]:
        """As `open_generation`."""

    async def proof(self, answer: Generation) -> bytes:
        """What an answer with receipts rests on, signed: `Generation.proof`."""

    async def hidden(self, language: Language, ids: Sequence[int], wait_s: float) -> Floats:
        """(width,): the mean over all tokens of what the last block gives."""

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        """`fn(*args)`, which may take a while, on a thread that no answer waits for."""

    def peers(self) -> int:
        """How many peers we know to be there."""


@dataclass(frozen=True, slots=True)
class Flow:
    """An answer that is being made. began_s: on trio's clock."""

    number: int
    model: str
    answer: Generation
    began_s: float


async def _none_tuned() -> Mapping[str, tuple[str, Path]]:
    return {}


class SwarmBackend:
    """The backend over a real swarm.

    worker: for tokens alone. loader: for what takes long, so that no answer waits for it.
    """

    def __init__(
        self, swarm: Swarm, *, worker: Worker, loader: Worker, home: Path, offline: bool
    ) -> None:
        self._swarm = swarm
        self._worker = worker
        self._loader = loader
        self._home = home
        self._offline = offline
        self._named: dict[str, Language] = {}  # by the owner: they stay
        self._asked: Latest[str, Language] = Latest(VOICES_MAX)  # by clients
        self._sources: dict[str, str] = {}  # of those that the owner named
        self.tuned: Tuned = _none_tuned
        self.flows: dict[int, Flow] = {}  # the answers that are being made
        self._flows = 0
        self._loading = trio.Lock()

    async def preload(self, ref: str) -> Language:
        """Load what `ref` means, a folder too: what the owner names, no client does."""
        shelf = find_model(ref, self._home)
        self._named[shelf.name] = language = await self._load(ref, shelf)
        self._sources[shelf.name] = shelf.source
        return language

    async def _load(self, ref: str, shelf: Shelf) -> Language:
        voice = await self._swarm.voice(ref)
        return await self._loader.run(
            lambda: Language.load(shelf, voice, offline=self._offline, home=self._home)
        )

    async def dress(self, told: str) -> Language:
        """Load what `BASE:NAME=PATH` or `BASE:NAME=DIGEST` means; it may be asked for as BASE:NAME.
        Raises UserError."""
        name, _, ref = told.partition("=")
        base, _, own = name.rpartition(":")
        if not base or not own or not ref:
            raise UserError(f"--adapter {told} is not MODEL:NAME=PATH, as in demo:poet=./my-lora")
        language = self._named.get(base) or await self.preload(base)
        self._named[name] = dressed = await self._wear(language, name, ref)
        return dressed

    async def _wear(self, language: Language, name: str, ref: str) -> Language:
        return language.wearing(name, await self._swarm.adapter(language.voice, ref))

    def _known(self, name: str) -> Language | None:
        return self._named.get(name) or self._asked.get(name)

    async def offers(self) -> tuple[Offer, ...]:
        found = await self._swarm.models()
        offers = {one.name: Offer(one.name, one.model, one.blocks, len(one.peers)) for one in found}
        for name, language in (*self._asked.items(), *self._named.items()):
            voice = language.voice
            base = name if language.adapter is None else name.rpartition(":")[0]
            mine = [one for one in found if (one.name, one.model) == (base, voice.digest)]
            peers = len(mine[0].peers) if mine else 0
            offers[name] = Offer(name, voice.digest, voice.blocks, peers)
        for name, (base, _) in (await self.tuned()).items():
            if base in offers:
                offers[name] = replace(offers[base], name=name)
        return tuple(offers[name] for name in sorted(offers))

    async def language(self, name: str) -> Language:
        if (known := self._known(name)) is not None:
            return known
        base, _, digest = name.rpartition(":")
        if base and is_digest(digest):
            try:
                worn = await self._wear(await self.language(base), name, digest)
                return self._asked.put(name, worn)
            except UserError as error:
                raise no_model(name, f"has no such adapter here ({error})") from error
        if (made := (await self.tuned()).get(name)) is not None:
            model, folder = made
            try:
                worn = await self._wear(await self.language(model), name, str(folder))
                return self._asked.put(name, worn)
            except UserError as error:
                raise no_model(name, f"has lost its adapter ({error})") from error
        async with self._loading:
            if (known := self._known(name)) is not None:
                return known
            offered = [one for one in await self._swarm.models() if one.name == name]
            if not offered:
                raise no_model(name, "is not served here; GET /v1/models tells what is")
            try:
                language = await self._load(name, find_model(name, self._home))
            except UserError as error:
                raise no_model(
                    name, f"has no files here ({error}); start potluck api with --model"
                ) from error
            if language.voice.digest not in {one.model for one in offered}:
                raise no_model(name, "is served from other files than those found here")
            return self._asked.put(name, language)

    @asynccontextmanager
    async def answer(self, request: Request) -> AsyncIterator[Generation]:
        """Audited where the home's settings say so. OpenAI's stream knows no word that takes back
        others, and to hold each text back until it is audited would make all wait for what befalls
        one in many: an answer whose server is convicted ends with an error, and asked again it goes
        by others."""
        habits = self._swarm
        asked = replace(request, audit=habits.audits, amend=False, chain=habits.chains)
        async with self._swarm.answer(asked, self._worker) as answer:
            self._flows += 1
            number = self._flows
            self.flows[number] = Flow(number, asked.voice.name, answer, trio.current_time())
            try:
                yield answer
            finally:
                del self.flows[number]

    async def source(self, name: str) -> str:
        language = await self.language(name)
        if language.adapter is None:
            return self._sources.get(name, name)
        base = name.rpartition(":")[0]
        return f"{self._sources.get(base, base)}:{language.adapter.hex}"

    async def proof(self, answer: Generation) -> bytes:
        return await answer.proof(self._swarm.member.key)

    async def hidden(self, language: Language, ids: Sequence[int], wait_s: float) -> Floats:
        voice = language.voice
        plan = SessionPlan(
            model=voice.digest,
            name=voice.name,
            blocks=voice.blocks,
            width=voice.width,
            tokens=len(ids),
            dtype=DTYPE,
            wait_s=wait_s,
            adapter=language.adapter,
        )
        chunks = [ids[at : at + CHUNK_TOKENS] for at in range(0, len(ids), CHUNK_TOKENS)]
        total = np.zeros(voice.width, dtype=np.float64)
        async with open_session(self._swarm.member.host, self._swarm.router, plan) as session:
            for chunk in chunks:
                payload = await self._worker.run(voice.embed, chunk)
                session.feed(payload, tokens=len(chunk), rows=len(chunk))
            for chunk in chunks:
                rows = np.frombuffer(await session.output(), dtype="<f4")
                total += rows.reshape(len(chunk), voice.width).sum(axis=0, dtype=np.float64)
        return np.asarray(total / len(ids), dtype=np.float32)

    async def run(self, fn: Callable[..., T], *args: Any) -> T:
        return await self._loader.run(fn, *args)

    def peers(self) -> int:
        return len(self._swarm.member.directory.peers())
