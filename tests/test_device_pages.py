"""Pages in a tensor: as those of the processor, and not a bit changes while a session rests."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import Refused, RemoteError
from potluck.node.compute.device_pages import DevicePool, MovingLease, page_bytes_of
from potluck.node.compute.pages import PAGE_TOKENS, pages_for
from potluck.node.compute.spill import Budget, Residents

from .test_spill import SPEC

CPU = torch.device("cpu")
WIDTH = 4
PAGE = PAGE_TOKENS * WIDTH * 2


def pool_of(pages: int, host_pages: int = 0, dtype: torch.dtype = torch.bfloat16) -> DevicePool:
    budget = Budget(pages * PAGE, host_pages * PAGE)
    return DevicePool(budget=budget, page_bytes=PAGE, dtype=dtype, device=CPU)


def put(lease: MovingLease, at: int, stop: int, dice: random.Random) -> None:
    """Write positions of a lease that is on the device, as a pass would."""
    lease.reserve(at, stop)
    lease.home.clean()
    positions = torch.arange(at, stop)
    for row in lease.table:
        numbers = torch.tensor([float(dice.randint(1, 250)) for _ in range(stop - at)])
        pages = torch.from_numpy(row).long()[positions // PAGE_TOKENS]
        lease.home.rows[pages, positions % PAGE_TOKENS] = numbers[:, None].bfloat16()
    lease.length = stop


def got(lease: MovingLease) -> list[list[float]]:
    """Every position remembered, of each block, wherever it lies."""
    return [
        lease.pool.read([int(page) for page in row[: lease.pages]])
        .flatten(0, 1)[: lease.length, 0]
        .tolist()
        for row in lease.table
    ]


def test_a_page_holds_the_keys_and_values_of_its_positions() -> None:
    assert page_bytes_of(SPEC, 4) == PAGE_TOKENS * SPEC.kv_width * 4
    pool = pool_of(3)
    assert pool.rows.shape == (4, PAGE_TOKENS, WIDTH) and pool.nobodys == 3
    assert (pool.pages, pool.promised_max, pool.free_pages, pool.trim()) == (3, 3, 3, 0)
    with pytest.raises(Refused, match="4 pages asked for, 3 of 3 free"):
        pool.open(0, 2, 100)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(4, 12), st.integers(0, 20))
def test_however_sessions_rest_fork_and_come_back_each_remembers_its_own(
    dice: random.Random, pages: int, host_pages: int
) -> None:
    pool = pool_of(pages, pages // 2 + 1 + host_pages)
    residents = Residents(pool.budget)
    held: dict[MovingLease, list[list[float]]] = {}
    for _ in range(25):
        blocks, tokens = dice.randint(1, 2), dice.randint(1, 150)
        fits = blocks * pages_for(tokens) * PAGE <= pool.budget.session_bytes_max
        if fits and blocks * pages_for(tokens) <= pool.free_pages and dice.random() < 0.4:
            lease = pool.open(1, 1 + blocks, tokens)
            assert isinstance(lease, MovingLease)
            residents.open(lease)
            held[lease] = [[] for _ in range(blocks)]
        elif held and dice.random() < 0.2:
            lease = dice.choice(list(held))
            del held[lease]
            residents.close(lease)
            lease.release()
        elif held:
            some = dice.sample(list(held), dice.randint(1, len(held)))
            wanted = [(one, dice.randint(1, one.max_tokens)) for one in some]
            counts = residents.part(wanted)
            assert sum(counts) == len(wanted) and all(counts)
            for count in counts:
                now, wanted = wanted[:count], wanted[count:]
                residents.use_all(now)
                assert all(one.pool is pool for one, _ in now)
                for lease, stop in now:
                    put(lease, dice.randint(0, min(lease.length, stop)), stop, dice)
                    held[lease] = got(lease)
        assert residents.device_bytes <= pool.budget.device_bytes
        assert pool.host is not None
        here = sum(one.pages * len(one.table) for one in held if one.pool is pool)
        assert pool.used_pages == here
        away = sum(one.pages * len(one.table) for one in held if one.pool is pool.host)
        assert pool.host.used_pages == away <= pool.host.pages
        for lease, remembered in held.items():
            assert got(lease) == remembered
    for lease in list(held):
        lease.release()
    assert pool.used_pages == 0 and pool.free_pages == pool.promised_max
    assert not pool.rows[pool.nobodys].any()


def test_a_move_that_fails_leaves_everything_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, dice = pool_of(6, 10), random.Random(1)
    lease = pool.open(0, 2, 100)
    assert isinstance(lease, MovingLease) and pool.host is not None
    put(lease, 0, 100, dice)
    before = got(lease)
    with monkeypatch.context() as patched:
        patched.setattr(pool.host, "write", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
        with pytest.raises(RuntimeError):
            lease.go(CPU)
    assert (lease.pool, pool.host.used_pages, pool.used_pages) == (pool, 0, 4)
    assert got(lease) == before
    lease.go(CPU)
    assert (lease.pool, pool.host.used_pages, pool.used_pages) == (pool.host, 4, 0)
    assert got(lease) == before


def test_a_fork_of_a_session_at_rest_shares_its_pages_there() -> None:
    pool, dice = pool_of(8, 20), random.Random(1)
    lease = pool.open(0, 1, 100)
    assert isinstance(lease, MovingLease) and pool.host is not None
    put(lease, 0, 80, dice)
    lease.go(CPU)
    fork = lease.fork()
    assert isinstance(fork, MovingLease) and pool.host.used_pages == 2
    fork.come_back()
    put(fork, 70, 90, dice)
    assert got(fork)[0][:70] == got(lease)[0][:70]
    lease.release()
    fork.release()
    assert pool.host.used_pages == pool.used_pages == 0 and pool.free_pages == pool.promised_max


def test_a_page_is_cleared_before_it_is_written_and_never_after() -> None:
    pool, dice = pool_of(4), random.Random(1)
    pool.rows[: pool.pages] = torch.nan
    lease = pool.open(0, 1, 200)
    assert isinstance(lease, MovingLease)
    put(lease, 0, 70, dice)
    remembered = got(lease)
    assert not pool.rows[int(lease.table[0, 1]), 6:].any()
    put(lease, 70, 140, dice)
    assert [got(lease)[0][:70]] == remembered


def test_a_position_that_cannot_be_written_is_refused() -> None:
    lease = pool_of(4).open(0, 1, 100)
    assert isinstance(lease, MovingLease)
    lease.check(0, 100)
    for at, stop in ((1, 2), (-1, 2), (0, 101)):
        with pytest.raises(RemoteError):
            lease.check(at, stop)


@pytest.mark.gpu
def test_on_a_gpu_a_session_rests_in_the_host_s_memory() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    budget = Budget(4 * PAGE, 8 * PAGE)
    device = torch.device("cuda", 0)
    pool = DevicePool(budget=budget, page_bytes=PAGE, dtype=torch.bfloat16, device=device)
    lease, dice = pool.open(0, 1, 100), random.Random(1)
    assert isinstance(lease, MovingLease)
    put(lease, 0, 100, dice)
    before = got(lease)
    lease.go(CPU)
    assert got(lease) == before
    lease.come_back()
    assert got(lease) == before
