"""One look for all who look: made while a page is open, and told to each as it changes.

    Sight ──┐ each half second                      ┌─▶ page
    disk ───┼─ each two ──▶ newest of each part ──▶ ┼─▶ page     what a page has not seen yet
    counts ─┘ each second                           └─▶ page

A page that reads slowly misses what was in between, and never the newest; nothing is queued.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import trio

from ... import __version__
from ..client import Swarm
from ..jobs.store import Jobs
from . import ledger
from .sight import Sight

DISK_S: Final = 2.0
COUNT_S: Final = 1.0
SAMPLES_MAX: Final = 120  # seconds of throughput that a page shows
PAGES_MAX: Final = 16  # guess: at a time; more are told to come back


class Watch:
    """One for a process: `run` it beside the API. inside: what a node of this process counts; None
    where there is none."""

    def __init__(
        self,
        swarm: Swarm,
        sight: Sight,
        jobs: Jobs,
        *,
        home: Path,
        joined: tuple[str, ...] = (),
        inside: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self._swarm = swarm
        self._sight = sight
        self._jobs = jobs
        self._home = home
        self._generated: Callable[[], float] = lambda: 0.0
        self._answers: Callable[[], int] = lambda: 0
        self._joined = joined
        self._inside = inside
        sight.changed = self.look_again
        self._parts: dict[str, tuple[int, str]] = {}  # the newest of each, and its number
        self._number = 0
        self._news = trio.Event()
        self._wanted = trio.Event()
        self._looking: trio.CancelScope | None = None
        self.pages = 0
        self._samples: deque[float] = deque([0.0] * SAMPLES_MAX, SAMPLES_MAX)

    def counts(self, generated: Callable[[], float], answers: Callable[[], int]) -> None:
        """generated: tokens so far, of this process. answers: that are being made."""
        self._generated, self._answers = generated, answers

    async def run(self) -> None:
        """A service. Throughput is counted always, so that a page that opens has its past."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count)
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                while self.pages:  # one may come while the last leaves
                    with trio.CancelScope() as self._looking:
                        async with trio.open_nursery() as looks:
                            looks.start_soon(self._sight.look)
                            looks.start_soon(self._read_disk)
                self._looking = None

    @contextmanager
    def page(self) -> Iterator[None]:
        """While it is open somebody looks."""
        self.pages += 1
        self._wanted.set()
        try:
            yield
        finally:
            self.pages -= 1
            if not self.pages and self._looking is not None:
                self._looking.cancel()

    async def news(self, stopping: trio.Event) -> AsyncGenerator[str, None]:
        """What a page is told, part by part, until `stopping`: all there is, then what changes."""
        seen = 0
        while not stopping.is_set():
            news = self._news
            fresh = sorted(one for one in self._parts.values() if one[0] > seen)
            for number, text in fresh:
                yield text
                seen = number
            if not fresh:
                await _either(news, stopping)

    def look_again(self) -> None:
        """The swarm may look otherwise now."""
        self.tell("swarm", self._sight.facts())

    def tell(self, part: str, facts: Any) -> None:
        """The newest of one part, for all pages, if it is not what they have."""
        text = json.dumps({"part": part, "facts": facts}, separators=(",", ":"))
        if part in self._parts and self._parts[part][1] == text:
            return
        self._number += 1
        self._parts[part] = (self._number, text)
        self._news.set()
        self._news = trio.Event()

    async def _count(self) -> None:
        last, last_s = self._generated(), trio.current_time()
        while True:
            await trio.sleep(COUNT_S)
            made, now_s = self._generated(), trio.current_time()
            self._samples.append(round((made - last) / (now_s - last_s), 2))
            last, last_s = made, now_s
            if self.pages:
                self._tell_counts(made)

    def _tell_counts(self, made: float) -> None:
        host = self._swarm.member.host
        self.tell(
            "counts",
            {
                "version": __version__,
                "tokens": int(made),
                "tokens_s": list(self._samples),
                "answers": self._answers(),
                "connections": len(host.connected()),
                "known": len(self._swarm.member.directory.peers()),
                "node": None if self._inside is None else dict(self._inside()),
                "at_s": round(time.time()),
            },
        )

    async def _read_disk(self) -> None:
        while True:
            self._tell_counts(self._generated())
            scores = self._swarm.trust.scores()
            for part, facts in await trio.to_thread.run_sync(self._disk):
                self.tell(part, facts)
            self.tell("trust", ledger.trust_facts(scores, time.time()))
            await trio.sleep(DISK_S)

    def _disk(self) -> Iterable[tuple[str, Any]]:
        now = time.time()
        return [
            ("jobs", ledger.job_facts(self._jobs)),
            ("credit", ledger.credit_facts(self._home, now)),
            ("bans", ledger.ban_facts(self._home, now)),
            ("join", ledger.join_facts(self._home, self._joined)),
        ]


async def _either(one: trio.Event, other: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, one)
        nursery.start_soon(wait, other)
