"""Signed payloads: whoever opens one knows who signed it, for what, and that no bit was changed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.crypto.codec import encode
from potluck.crypto.envelope import OVERHEAD_BYTES, Envelope, open_, sign
from potluck.crypto.keys import IdentityKey
from potluck.errors import RemoteError

ALICE = IdentityKey.from_bytes(b"a" * 32)
MALLORY = IdentityKey.from_bytes(b"m" * 32)


@given(st.binary(max_size=2000))
def test_an_envelope_gives_its_signer_and_its_body(body: bytes) -> None:
    raw = sign(ALICE, "record", body)
    assert open_(raw, "record") == (ALICE.peer_id, body)
    assert len(raw) <= len(body) + OVERHEAD_BYTES


def test_a_signature_is_good_for_one_domain_only() -> None:
    raw = sign(ALICE, "record", b"body")
    with pytest.raises(RemoteError):
        open_(raw, "receipt")
    # The length of the domain is signed too: it cannot be moved into the body.
    shifted = Envelope(b"d" + b"body", ALICE.public, ALICE.sign(b"recorbody"))
    with pytest.raises(RemoteError):
        open_(encode(shifted), "recor")


def test_nobody_signs_for_another() -> None:
    forged = Envelope(b"body", ALICE.public, MALLORY.sign(b"body"))
    with pytest.raises(RemoteError):
        open_(encode(forged), "record")


@given(st.binary(max_size=60), st.data())
def test_one_flipped_bit_is_noticed(body: bytes, data: st.DataObject) -> None:
    raw = bytearray(sign(ALICE, "record", body))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    with pytest.raises(RemoteError):
        open_(bytes(raw), "record")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(RemoteError):
        open_(raw, "record")


def test_an_oversize_envelope_is_refused() -> None:
    with pytest.raises(RemoteError, match="allowed"):
        open_(sign(ALICE, "record", b"x" * 100), "record", max_bytes=100)
