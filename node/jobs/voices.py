"""The swarm that a batch asks: joined as a client, its models loaded by the names in the lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ..adapters import is_digest
from ..api.backend import SwarmBackend
from ..api.language import Language
from ..api.service import STEPS_QUEUED_MAX
from ..client import Swarm, open_swarm
from ..compute.worker import open_worker
from .batch import Open, Voices
from .lines import BatchSpec
from .progress import WINDOW_S

BYTES_PER_NUMBER: Final = 4  # compute/voice.py, DTYPE: activations go as fp32


class SwarmVoices:
    """The voices over a real swarm.

    What is sent is counted by the tokens that peers computed, those of replays included, and the
    width of the widest model asked: activations, without the frames and the noise around them.
    """

    def __init__(self, swarm: Swarm, backend: SwarmBackend, spec: BatchSpec) -> None:
        self.backend = backend
        self._spec = spec
        self._languages: dict[str, Language] = {}
        self._loading = trio.Lock()
        self._tokens = 0
        self._seen_s: dict[str, float] = {}
        swarm.router.took = partial(self._took, swarm.router.took)

    async def language(self, model: str) -> Language:
        if model not in self._languages:
            async with self._loading:
                if model not in self._languages:  # another task may have been first
                    self._languages[model] = await self._load(model)
        return self._languages[model]

    async def _load(self, model: str) -> Language:
        ref = self._spec.sources.get(model, model)
        base, _, worn = ref.rpartition(":")
        if not (base and is_digest(worn)):
            base, worn = ref, ""
        language = await self.backend.preload(base)
        if not worn and model == self._spec.model:
            worn = self._spec.adapter
        if not worn:
            return language
        return await self.backend.dress(f"{language.voice.name}:job={worn}")

    def sent_bytes(self) -> int:
        width = max((one.voice.width for one in self._languages.values()), default=0)
        return self._tokens * width * BYTES_PER_NUMBER

    def peers(self) -> int:
        since_s = trio.current_time() - WINDOW_S
        return sum(at_s >= since_s for at_s in self._seen_s.values())

    def _took(
        self, then: Callable[[str, int, float], None], peer: str, tokens: int, work: float
    ) -> None:
        self._tokens += tokens
        self._seen_s[peer] = trio.current_time()
        then(peer, tokens, work)


def opener(home: Path) -> Open:
    """How a batch of this home joins."""

    @asynccontextmanager
    async def open_voices(spec: BatchSpec) -> AsyncIterator[Voices]:
        async with (
            open_swarm(
                spec.join, home=home, offline=spec.offline, anonymous=spec.anonymous
            ) as swarm,
            open_worker(queued_max=STEPS_QUEUED_MAX) as worker,
            open_worker() as loader,
        ):
            backend = SwarmBackend(
                swarm, worker=worker, loader=loader, home=home, offline=spec.offline
            )
            yield SwarmVoices(swarm, backend, spec)

    return open_voices
