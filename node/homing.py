"""Has prompts go where their beginnings are: the rule of swarm/affinity.py, on queues just read.

route ─▶ who may hold it, of each span group ─▶ asked for their queues ─▶ one, or load decides
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial

import trio

from ..errors import MissingBlocks
from ..swarm.affinity import Placing, key_of, step_tokens
from ..swarm.blocks import BlockRange
from ..swarm.history import PeerHistory
from ..swarm.prefix import Prompt
from ..swarm.routing import ASKED_MAX, Route, find_route
from ..swarm.view import SwarmView
from .net.host import Host
from .queues import ask_queues
from .recalls import Known


class Homing:
    """One for a process. known: its prompts, for all of its sessions."""

    def __init__(
        self, host: Host, history: Callable[[str], PeerHistory], rng: random.Random
    ) -> None:
        self.known = Known()
        self._host, self._history, self._rng = host, history, rng

    async def place(
        self,
        view: SwarmView,
        blocks: BlockRange,
        cache_tokens: int,
        out: Collection[str],
        prompt: Prompt,
    ) -> Route | None:
        """A route by the beginning of this prompt; None: load decides. out: not to be used."""
        held = partial(self.known.brought.tokens, names=prompt.names)
        key = key_of(prompt.names) if prompt.shared else None
        placing = Placing(prompt.tokens, key, held)
        spans = [one for one in view.spans if one.peer not in out and one.blocks.overlaps(blocks)]
        asked = placing.asked(spans)
        if not 0 < len(asked) <= ASKED_MAX:
            return None
        told = await ask_queues(self._host, view.model, asked)
        now = trio.current_time()
        for peer, queue_s in told.items():
            self._history(peer).told_queue(queue_s, now)
        fresh = [
            replace(one, queue_s=self._history(one.peer).queue_s(now))
            for one in spans
            if one.peer in told or one.peer not in asked  # who does not answer is not there
        ]
        chosen = placing.prefer(fresh, len(view.blocks))
        if chosen is None:
            return None
        with suppress(MissingBlocks):
            return find_route(
                replace(view, spans=tuple(chosen)), blocks,
                tokens=step_tokens(prompt.tokens), cache_tokens=cache_tokens, draw=self._draw,
            )  # fmt: skip
        return None

    def _draw(self, mean: float) -> float:
        return self._rng.expovariate(1.0 / mean)
