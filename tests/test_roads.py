"""Roads between the networks of a testnet: when a packet comes, and whether."""

from __future__ import annotations

from random import Random

import pytest

from potluck.node.testnet.roads import TCP_HEADERS, TRAIN, WAITING_S, Carrier, Road

HERE, THERE = bytes([198, 18, 0, 1]), bytes([198, 18, 0, 2])


def packet(size: int = 1000, source: bytes = HERE, target: bytes = THERE, mark: int = 0) -> bytes:
    """An IPv4 header, of which the roads read the addresses, and so many bytes in all."""
    return (b"\x45" + bytes([mark]) + bytes(10) + source + target).ljust(size, b"\x00")


def all_of(carrier: Carrier) -> list[tuple[float, bytes]]:
    """When each comes."""
    found = []
    while (next_s := carrier.next_s) is not None:
        found += [(next_s, one) for one in carrier.arrived(next_s)]
    return found


def test_a_packet_takes_its_bytes_and_its_way_and_those_behind_wait_for_the_bytes_alone() -> None:
    """1,000 bytes at 100,000 a second: 10 ms each, and 50 ms of way."""
    carrier = Carrier(Road(0.05, 100_000), Random(1))
    for mark in range(3):
        carrier.take(packet(mark=mark), 7.0)
    assert list(carrier.arrived(7.059)) == []
    came = all_of(carrier)
    assert [at_s - 7.0 for at_s, _ in came] == pytest.approx([0.06, 0.07, 0.08])
    assert [one[1] for _, one in came] == [0, 1, 2]


def test_each_direction_of_each_pair_has_a_road_of_its_own() -> None:
    carrier = Carrier(Road(0.05, 100_000), Random(1))
    other = bytes([198, 18, 0, 3])
    for source, target in ((HERE, THERE), (THERE, HERE), (HERE, other)):
        carrier.take(packet(source=source, target=target), 0.0)
    assert [at_s for at_s, _ in all_of(carrier)] == pytest.approx([0.06] * 3)


def test_what_would_wait_too_long_is_lost() -> None:
    """A router's queue is full after so many seconds' worth of bytes."""
    carrier = Carrier(Road(0.0, 100_000), Random(1))
    for _ in range(100):
        carrier.take(packet(), 0.0)
    came = all_of(carrier)
    assert len(came) == pytest.approx(WAITING_S * 100_000 / 1000, abs=1.1)
    carrier.take(packet(), 1.0)
    assert len(all_of(carrier)) == 1, "and then it is empty again"


@pytest.mark.parametrize("loss", [0.0, 0.1, 1.0])
def test_a_share_of_the_packets_is_lost(loss: float) -> None:
    """Of 4,000 a tenth, within five standard deviations."""
    carrier = Carrier(Road(0.01, loss=loss), Random(1))
    for number in range(4000):
        carrier.take(packet(), float(number))
    deviation = (4000 * loss * (1 - loss)) ** 0.5
    assert abs(len(all_of(carrier)) - 4000 * (1 - loss)) <= 5 * deviation


def test_a_train_of_segments_takes_the_time_of_all_their_bytes_and_headers() -> None:
    """Four segments, of which the last is short, and three further headers; then one alone."""
    carrier = Carrier(Road(0.05, 100_000), Random(1), trains=True)
    for size in (52 + 3 * 1000 + 10, 500):
        carrier.take(TRAIN.pack(1, 1, 52, 1000, 0, 0) + packet(size), 0.0)
    took_s = (3062 + 3 * TCP_HEADERS) / 100_000
    (first_s, train), (next_s, _) = all_of(carrier)
    assert first_s == pytest.approx(0.05 + took_s) and len(train) == TRAIN.size + 3062
    assert next_s == pytest.approx(0.05 + took_s + 0.005)
