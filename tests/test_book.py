"""The address book is bounded, prefers what worked, and leaves alone what failed a moment ago."""

from __future__ import annotations

from potluck.node.net.address import Address
from potluck.node.net.book import (
    ADDRESSES_MAX,
    FIRST_BACKOFF_S,
    LAST_BACKOFF_S,
    PEERS_MAX,
    AddressBook,
)

HERE, THERE = Address("ip4", "192.0.2.1", 1), Address("ip4", "192.0.2.2", 2)


def test_the_address_that_worked_comes_first() -> None:
    book = AddressBook()
    book.learn("peer", [HERE, THERE])
    assert book.known("peer") == [HERE, THERE]
    book.worked("peer", THERE, now=1.0)
    assert book.known("peer") == [THERE, HERE]


def test_an_address_that_fails_is_left_alone_for_twice_as_long_each_time() -> None:
    book = AddressBook()
    book.learn("peer", [HERE])
    now, waits = 100.0, []
    for _ in range(8):
        book.failed("peer", HERE, now)
        assert book.due("peer", now) == []
        wait_s = FIRST_BACKOFF_S
        while not book.due("peer", now + wait_s):
            wait_s *= 2
        waits.append(min(wait_s, LAST_BACKOFF_S))
        now += wait_s
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    book.worked("peer", HERE, now)
    book.failed("peer", HERE, now)
    assert book.due("peer", now + FIRST_BACKOFF_S) == [HERE]


def test_nobody_can_fill_the_book() -> None:
    book = AddressBook()
    for port in range(1, 100):
        book.learn("peer", [Address("ip4", "192.0.2.1", port)])
    assert len(book.known("peer")) == ADDRESSES_MAX
    assert book.known("peer")[-1].port == 99
    for number in range(PEERS_MAX):
        book.learn(f"peer {number}", [HERE])
    assert book.known("peer") == []
    book.failed("peer", HERE, now=0.0)  # of a peer that is forgotten


def test_an_address_is_the_same_with_and_without_its_peer() -> None:
    book = AddressBook()
    book.learn("peer", [HERE, Address(HERE.kind, HERE.host, HERE.port, "peer")])
    assert book.known("peer") == [HERE]
