"""Pages: none is lost, none has two owners unawares, and contents survive fork and truncation."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from potluck.errors import LocalError, Refused, RemoteError
from potluck.node.compute.pages import NO_PAGE, PAGE_TOKENS, Lease, Pool, pages_for, whole_pages
from potluck.swarm.admission import Admission, AdmissionConfig
from potluck.swarm.blocks import BlockRange

KIB = 1 << 10
SYSTEM_PAGE = mmap.PAGESIZE
SLOT = 8  # bytes that a test writes for one position of one block


def put(lease: Lease, position: int, values: list[bytes]) -> None:
    """Write one position, as a kernel would: a value for each block."""
    page, place = divmod(position, PAGE_TOKENS)
    for block, value in enumerate(values):
        lease.pool.page(lease.table[block, page])[place * SLOT : (place + 1) * SLOT] = value


def got(lease: Lease) -> list[list[bytes]]:
    """Every position remembered."""
    return [
        [
            bytes(
                lease.pool.page(row[position // PAGE_TOKENS])[
                    position % PAGE_TOKENS * SLOT : (position % PAGE_TOKENS + 1) * SLOT
                ]
            )
            for row in lease.table
        ]
        for position in range(lease.length)
    ]


class Sharing(RuleBasedStateMachine):
    """Leases that open, grow, are taken back, fork and end, beside plain lists of what was written.

    The pool is so small that it is full again and again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(budget_bytes=24 * SYSTEM_PAGE, page_bytes=SYSTEM_PAGE)
        self.held: list[tuple[Lease, list[list[bytes]]]] = []
        self.written = 0

    @rule(blocks=st.integers(1, 3), tokens=st.integers(1, 300))
    def open(self, blocks: int, tokens: int) -> None:
        free = self.pool.free_pages
        try:
            self.held.append((self.pool.open(4, 4 + blocks, tokens), []))
        except Refused:
            assert blocks * pages_for(tokens) > free
        else:
            assert self.pool.free_pages == free - blocks * pages_for(tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """A step anywhere inside: it never fails, however full the pool is."""
        lease, remembered = data.draw(st.sampled_from(self.held))
        at = data.draw(st.integers(0, lease.length))
        stop = data.draw(st.integers(at, lease.max_tokens))
        lease.reserve(at, stop)
        del remembered[at:]
        for position in range(at, stop):
            self.written += 1
            values = [
                self.written.to_bytes(4, "big") + block.to_bytes(4, "big")
                for block in range(len(lease.table))
            ]
            put(lease, position, values)
            remembered.append(values)
        lease.length = stop

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        lease, remembered = data.draw(st.sampled_from(self.held))
        at = data.draw(st.integers(0, lease.length))
        lease.truncate(at)
        del remembered[at:]
        assert lease.pages == pages_for(at)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        lease, remembered = data.draw(st.sampled_from(self.held))
        used, free = self.pool.used_pages, self.pool.free_pages
        try:
            self.held.append((lease.fork(), list(remembered)))
        except Refused:
            assert lease.table.size > free
        assert self.pool.used_pages == used

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease, remembered = data.draw(st.sampled_from(self.held))
        self.held.remove((lease, remembered))
        lease.release()
        lease.release()

    @rule()
    def trim(self) -> None:
        self.pool.trim()

    @invariant()
    def contents_are_what_was_written(self) -> None:
        for lease, remembered in self.held:
            assert got(lease) == remembered

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        owners: dict[int, int] = {}
        for lease, _ in self.held:
            for page in lease.table.flat:
                if page != NO_PAGE:
                    owners[int(page)] = owners.get(int(page), 0) + 1
        assert owners == {
            page: self.pool.owners(page)
            for page in range(self.pool.pages)
            if self.pool.owners(page)
        }
        assert self.pool.used_pages == len(owners) <= self.pool.warm_pages <= self.pool.pages
        promised = sum(lease.table.size for lease, _ in self.held)
        assert self.pool.free_pages == self.pool.pages - promised >= 0

    def teardown(self) -> None:
        for lease, _ in self.held:
            lease.release()
        assert self.pool.used_pages == 0
        assert self.pool.free_pages == self.pool.pages


Sharing.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_pages_are_neither_lost_nor_mixed_up = Sharing.TestCase


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 900)), max_size=30),
)
def test_what_is_announced_as_free_is_what_the_pool_can_promise(
    pages: int, asked: list[tuple[int, int, int]]
) -> None:
    """Sessions over any blocks, that grow, are taken back and end: the book of leases, whose figure
    is announced, and the pool never differ by a page, and whoever is admitted has his pages."""
    pool = Pool(budget_bytes=pages * SYSTEM_PAGE, page_bytes=SYSTEM_PAGE)
    book = Admission(AdmissionConfig(pool.pages * PAGE_TOKENS, PAGE_TOKENS))
    held: list[tuple[object, Lease]] = []
    for number, (start, count, tokens) in enumerate(asked):
        free = book.free_tokens
        wanted = count * whole_pages(tokens)
        key = object()
        try:
            book.admit(key, f"p{number}", BlockRange(start, start + count), tokens, 0.0)
        except Refused:
            assert wanted > free
            if held:
                key, lease = held.pop(0)
                lease.release()
                book.release(key, 1.0)
        else:
            lease = pool.open(start, start + count, tokens)
            lease.reserve(0, tokens)
            lease.length = tokens
            lease.truncate(tokens // 2)
            held.append((key, lease))
        assert book.free_tokens == pool.free_pages * PAGE_TOKENS


def test_an_empty_lease_has_a_promise_and_no_page() -> None:
    pool = Pool(budget_bytes=100 * SYSTEM_PAGE, page_bytes=SYSTEM_PAGE)
    lease = pool.open(2, 5, 129)
    assert lease.table.shape == (3, 3) and (lease.table == NO_PAGE).all()
    assert (pool.free_pages, pool.used_pages, pool.warm_pages) == (91, 0, 0)
    assert whole_pages(129) == 192


def test_a_fork_copies_the_page_that_it_writes_to_and_no_other() -> None:
    pool = Pool(budget_bytes=100 * SYSTEM_PAGE, page_bytes=SYSTEM_PAGE)
    lease = pool.open(0, 2, 200)
    lease.reserve(0, 150)
    lease.length = 150
    fork = lease.fork(300)
    assert pool.used_pages == 6
    fork.reserve(150, 151)
    assert pool.used_pages == 8  # the third page of each block
    assert (fork.table[:, :2] == lease.table[:, :2]).all()
    assert (fork.table[:, 2] != lease.table[:, 2]).all()
    lease.reserve(150, 151)
    assert pool.used_pages == 8  # it has its own again
    fork.reserve(64, 65)  # behind a whole shared page nothing need be copied
    assert pool.used_pages == 8
    assert (fork.table[:, 0] == lease.table[:, 0]).all()


def test_what_no_honest_client_asks_is_refused_and_changes_nothing() -> None:
    pool = Pool(budget_bytes=100 * SYSTEM_PAGE, page_bytes=SYSTEM_PAGE)
    lease = pool.open(0, 1, 100)
    lease.reserve(0, 70)
    lease.length = 70
    for at, stop in ((71, 72), (-1, 5), (70, 101)):
        with pytest.raises(RemoteError):
            lease.reserve(at, stop)
    with pytest.raises(RemoteError):
        lease.truncate(71)
    with pytest.raises(LocalError):
        lease.fork(69)
    assert (lease.length, lease.pages, pool.used_pages) == (70, 2, 2)


def test_addresses_are_multiples_of_the_page_and_the_table_stays_in_place() -> None:
    pool = Pool(budget_bytes=1 << 20, page_bytes=5000)
    assert pool.page_bytes % SYSTEM_PAGE == 0 and pool.page_bytes >= 5000
    assert pool.base % 64 == 0
    lease = pool.open(0, 2, 500)
    address = lease.table.ctypes.data
    lease.reserve(0, 500)
    assert lease.table.ctypes.data == address and lease.table.flags.c_contiguous


def test_pages_that_nobody_wanted_since_the_last_trim_go_back() -> None:
    pool = Pool(budget_bytes=64 * SYSTEM_PAGE, page_bytes=SYSTEM_PAGE)
    lease = pool.open(0, 1, 40 * PAGE_TOKENS)
    lease.reserve(0, 40 * PAGE_TOKENS)
    lease.length = 40 * PAGE_TOKENS
    lease.truncate(10 * PAGE_TOKENS)
    assert pool.trim() == 0  # they were just freed
    lease.reserve(lease.length, 20 * PAGE_TOKENS)  # ten of them are wanted again
    lease.length = 20 * PAGE_TOKENS
    assert pool.trim() == 20
    assert pool.warm_pages == pool.used_pages == 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pool_at_rest_is_small() -> None:
    """64 MiB are written, freed and, two trims later, the system's again."""
    size = 64 << 20
    pool = Pool(budget_bytes=4 * size, page_bytes=64 * KIB)
    lease = pool.open(0, 1, size // (64 * KIB) * PAGE_TOKENS)
    lease.reserve(0, lease.max_tokens)
    for page in lease.table.flat:
        pool.page(page)[:] = b"\1" * (64 * KIB)
    assert resident_bytes(pool) > 0.9 * size
    lease.release()
    pool.trim()
    pool.trim()
    assert resident_bytes(pool) < 0.2 * size


def resident_bytes(pool: Pool) -> int:
    """Bytes of the pool's own mapping that are in memory: mincore(2)."""
    size = pool.pages * pool.page_bytes
    told = (ctypes.c_ubyte * (size // SYSTEM_PAGE))()
    at, length = ctypes.c_void_p(pool.base), ctypes.c_size_t(size)
    assert ctypes.CDLL(None).mincore(at, length, told) == 0
    return sum(one & 1 for one in told) * SYSTEM_PAGE
