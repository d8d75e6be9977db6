"""What a guarded group says: the same bytes as ever, and nothing else is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from guards import key
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import encode
from potluck.errors import RemoteError
from potluck.swarm.run.btard_wire import (
    CLAIM_BYTES_MAX,
    DOMAIN,
    GROUP_MAX,
    MESSAGE_BYTES_MAX,
    Accusation,
    Ask,
    Body,
    Complaint,
    Load,
    Message,
    Pledge,
    Proof,
    Reduced,
    Reveal,
    Ruling,
    Settled,
    Sums,
    hear,
    read_message,
    say,
)
from potluck.swarm.run.coin import Secret
from potluck.swarm.testimony import check_contradiction, contradiction_of

RUN, KEY = b"r" * 32, key(1)


def words(letter: str, count: int = 2) -> tuple[bytes, ...]:
    return tuple(letter.encode() * 31 + bytes((at,)) for at in range(count))


def bodies(count: int = 2) -> list[Body]:
    standing, seen = b"s" * 32, words("e", count)
    return [
        Pledge(standing, b"a" * 32, b"c" * 32, words("p", count), b"t" * 32, "plain"),
        Reduced(standing, b"o" * 32, seen),
        Reveal(standing, Secret(b"v" * 32, b"n" * 32), seen),
        Sums(standing, (0.5,) * count, (1.5,) * count, seen),
        Settled(standing, b"o" * 32, seen),
        Complaint(0, 1, True),
        Accusation(standing, "part", 1, seen),
        Ruling(b"k" * 32, (1,)),
    ]


def messages() -> list[Message]:
    said = [say(KEY, RUN, 7, body) for body in bodies()]
    one, other = sorted((said[5].claim, say(KEY, RUN, 7, Complaint(0, 2, True)).claim))
    return [
        *said,
        Proof(7, one, other),
        Load(7, b"l" * 32, 4096),
        Ask(7, b"q" * 32, 3),
    ]


def lines() -> list[str]:
    return [f"{type(one).__name__} {encode(one).hex()}" for one in messages()]


def test_the_bytes_are_these() -> None:
    golden = Path(__file__).parent / "golden" / "guarded.hex"
    assert lines() == golden.read_text(encoding="utf-8").splitlines()


def test_all_is_read_as_it_was_said() -> None:
    for body, message in zip(bodies(), messages(), strict=False):
        read = read_message(encode(message))
        assert read == message
        heard = hear(read)  # type: ignore[arg-type]
        assert heard.peer == KEY.peer_id and heard.body == body
    assert [read_message(encode(one)) for one in messages()] == messages()


def test_of_the_largest_group_all_fits() -> None:
    for body in bodies(GROUP_MAX):
        said = say(KEY, RUN, (1 << 40) - 1, body)
        assert len(said.claim) <= CLAIM_BYTES_MAX
        assert len(encode(said)) <= MESSAGE_BYTES_MAX
        hear(said)


@given(st.binary(max_size=300))
def test_no_other_bytes_are_a_message(raw: bytes) -> None:
    with pytest.raises(RemoteError):
        read_message(raw)


def test_neither_another_body_nor_another_step_goes_with_a_claim() -> None:
    said, other = (say(KEY, RUN, 7, Complaint(0, about, True)) for about in (1, 2))
    for wrong in (replace(said, body=other.body), replace(said, epoch=8)):
        with pytest.raises(RemoteError):
            hear(wrong)


def test_two_claims_for_one_place_convict_before_anybody_and_two_places_nobody() -> None:
    one, two, later = (
        say(KEY, RUN, 7, body)
        for body in (Complaint(0, 1, True), Complaint(0, 2, True), Complaint(1, 2, True))
    )
    assert check_contradiction(contradiction_of(DOMAIN, one.claim, two.claim)) == KEY.peer_id
    stranger = say(key(2), RUN, 7, Complaint(0, 2, True))
    for other in (later, say(KEY, RUN, 8, Complaint(0, 2, True)), stranger):
        with pytest.raises(RemoteError):
            check_contradiction(contradiction_of(DOMAIN, one.claim, other.claim))
