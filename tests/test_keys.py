"""The identity keys: libp2p's own ids, and no signature but the right one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from potluck.crypto.keys import IdentityKey, peer_id_of, public_of, verify
from potluck.errors import RemoteError

seeds = st.binary(min_size=32, max_size=32)


@given(seeds)
def test_a_peer_id_is_the_one_that_libp2p_gives_the_same_key(seed: bytes) -> None:
    theirs = create_new_key_pair(seed)
    ours = IdentityKey.from_bytes(seed)
    assert ours.peer_id == str(ID.from_pubkey(theirs.public_key))
    assert ours.public == theirs.public_key.to_bytes()
    assert ours.seed() == seed


@given(seeds)
def test_a_peer_id_gives_its_public_key_back(public: bytes) -> None:
    assert public_of(peer_id_of(public)) == public


@given(st.text(max_size=80) | st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz",
                                       min_size=52, max_size=52))  # fmt: skip
def test_a_text_is_refused_or_is_the_one_form_of_its_key(text: str) -> None:
    try:
        public = public_of(text)
    except RemoteError:
        return
    assert peer_id_of(public) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12D3KooW",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",  # an RSA id, hashed
        "12D3KooWEAoQ6aoNfK14Jtc4vq5X7ekysyVraSjRT4cYu9fVTpo0",  # 0 is no base58 character
        "z" * 52,
        "1" * 52,
    ],
)
def test_what_is_no_ed25519_peer_id_is_refused(text: str) -> None:
    with pytest.raises(RemoteError):
        public_of(text)


@given(seeds, st.binary(max_size=100), st.integers(0, 63), st.integers(0, 7))
def test_one_flipped_bit_breaks_a_signature(seed: bytes, data: bytes, at: int, bit: int) -> None:
    key = IdentityKey.from_bytes(seed)
    signature = key.sign(data)
    assert verify(key.public, signature, data)
    broken = bytearray(signature)
    broken[at] ^= 1 << bit
    assert not verify(key.public, bytes(broken), data)
    assert not verify(key.public, signature, data + b"x")


def test_keys_and_signatures_of_a_wrong_size_are_no_error_but_false() -> None:
    key = IdentityKey.generate()
    assert not verify(b"", key.sign(b"x"), b"x")
    assert not verify(key.public, b"short", b"x")
    assert not verify(b"\xff" * 32, b"\xff" * 64, b"x")


def test_the_secret_is_not_in_the_repr() -> None:
    key = IdentityKey.from_bytes(b"s" * 32)
    assert key.seed().hex() not in repr(key) and key.peer_id in repr(key)
