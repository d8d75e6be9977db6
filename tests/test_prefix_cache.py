"""Kept beginnings: what a session adopts is what it would have computed; sessions never lack."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sim.paged_stage import WIDTH, PagedStage, alone

from potluck.node.compute.pages import PAGE_TOKENS, Lease, Pool
from potluck.node.compute.prefix_cache import PrefixCache, Seen
from potluck.swarm.prefix import GRAIN, Chain, Scope

ROW_BYTES = WIDTH * 4
SCOPE: Scope = ("", 0, 2, "f32", 0)


@dataclass
class Talk:
    """A session on a stage of two blocks, which keeps what it fills and begins with what is kept.

    What it is to say is fixed by its seeds: the first pages by one of two, the rest by its own.
    """

    stage: PagedStage
    cache: PrefixCache
    lease: Lease
    rows: np.ndarray
    said: int = 0
    out: list[np.ndarray] = field(default_factory=list)

    def begin(self) -> None:
        chain = Chain(ROW_BYTES)
        chain.add(self.rows.tobytes())
        found = self.cache.find(SCOPE, chain.names, self.lease, 1 << 20)
        for number, seen in enumerate(found):
            page = self.rows[number * GRAIN : (number + 1) * GRAIN]
            theirs = Chain(ROW_BYTES)
            assert theirs.add(page.tobytes()) == [seen.took]
            self.out.append(np.frombuffer(seen.gave, np.float32).reshape(GRAIN, WIDTH))
        self.said = GRAIN * len(found)
        assert self.lease.length == self.said

    def say(self, count: int) -> None:
        stop = min(self.said + count, len(self.rows), self.lease.max_tokens)
        part = self.rows[self.said : stop]
        if not len(part):
            return
        self.lease.reserve(self.said, stop)
        runs = [(self.lease, self.said, len(part))]
        self.out.append(self.stage.forward_rows(torch.from_numpy(part.copy()), runs).numpy())
        self.lease.length = self.said = stop

    def keep(self) -> None:
        took, gave = Chain(ROW_BYTES), Chain(ROW_BYTES)
        leaves = took.add(self.rows[: self.said].tobytes())
        out = np.concatenate([np.zeros((0, WIDTH), np.float32), *self.out])
        gave.add(out.tobytes())
        for number in range(len(took.names)):
            raw = out[number * GRAIN : (number + 1) * GRAIN].tobytes()
            seen = Seen(leaves[number], gave.names[number], raw)
            self.cache.keep(SCOPE, tuple(took.names[: number + 1]), self.lease, seen)

    def back(self, at: int) -> None:
        self.said = min(self.said, at)
        self.lease.truncate(self.said)
        whole = np.concatenate([np.zeros((0, WIDTH), np.float32), *self.out])
        self.out = [whole[: self.said]]


def prompt(which: int, pages: int, seed: int) -> np.ndarray:
    common = np.random.default_rng(which).integers(0, 100, (PAGE_TOKENS * pages, WIDTH))
    own = np.random.default_rng(100 + seed).integers(0, 100, (100, WIDTH))
    return np.concatenate([common, own]).astype(np.float32)


ACTS = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 1), st.integers(0, 3)),
    st.tuples(st.just("say"), st.integers(0, 7), st.integers(1, 150)),
    st.tuples(st.just("keep"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("back"), st.integers(0, 7), st.integers(0, 250)),
    st.tuples(st.just("close"), st.integers(0, 7), st.just(0)),
)


@given(acts=st.lists(ACTS, max_size=40), spare=st.integers(0, 20))
def test_adopted_or_computed_the_rows_are_the_same_and_no_session_lacks_a_page(
    acts: list[tuple[str, int, int]], spare: int
) -> None:
    stage = PagedStage(0, 2)
    pool = Pool(budget_bytes=(30 + spare) * 4096, page_bytes=stage.page_bytes)
    cache = PrefixCache(pool)
    talks: list[Talk] = []
    for seed, (act, one, two) in enumerate(acts):
        if act == "open":
            if pool.free_pages >= 10:  # five columns of two blocks
                lease = pool.open(0, 2, 5 * PAGE_TOKENS)
                talks.append(Talk(stage, cache, lease, prompt(one, two, seed)))
                talks[-1].begin()
        elif talks:
            talk = talks[one % len(talks)]
            match act:
                case "say":
                    talk.say(two)
                case "keep":
                    talk.keep()
                case "back":
                    talk.back(two)
                case "close":
                    talk.lease.release()
                    talks.remove(talk)
        for talk in talks:
            said = np.concatenate([np.zeros((0, WIDTH), np.float32), *talk.out])
            assert np.array_equal(said, alone(talk.rows[: talk.said], 0, 2))
        assert cache.pages <= pool.pages // 2 and pool.used_pages <= pool.pages
    for talk in talks:
        talk.lease.release()
    assert pool.used_pages == cache.pages
    cache.clear()
    assert pool.used_pages == 0 and pool.free_pages == pool.pages


def test_what_is_kept_makes_room_for_sessions_the_longest_unused_first() -> None:
    stage = PagedStage(0, 2)
    pool = Pool(budget_bytes=24 * 4096, page_bytes=stage.page_bytes)
    cache = PrefixCache(pool)
    for which in range(3):
        talk = Talk(stage, cache, pool.open(0, 2, 5 * PAGE_TOKENS), prompt(which, 1, 0)[:64])
        talk.say(64)
        talk.keep()
        talk.lease.release()
    assert cache.pages == pool.used_pages == 9  # two of keys and values, one of rows, three times
    full = [pool.open(0, 2, 6 * PAGE_TOKENS), pool.open(0, 2, 4 * PAGE_TOKENS)]
    assert pool.free_pages == 4
    for lease in full:
        lease.reserve(0, lease.max_tokens)
    assert pool.used_pages == 23 and cache.pages == 3  # of the last one
    for lease in full:
        lease.release()
    talk = Talk(stage, cache, pool.open(0, 2, 5 * PAGE_TOKENS), prompt(2, 1, 0))
    talk.begin()
    assert talk.said == 64
