"""Who signs: Ed25519 identity keys, and the peer ids they give.

A peer id is libp2p's: base58 of the identity multihash of the protobuf-encoded public key
(libp2p specs, peer-ids: keys of at most 42 bytes are inlined), so the id *is* the key and
whoever knows the id can check a signature without asking anybody.

    00 24 │ 08 01 12 20 │ 32 bytes          ──base58──▶  12D3KooW...
    identity   Ed25519     public key
"""

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import RemoteError

PUBLIC_BYTES = 32
SEED_BYTES = 32
SIGNATURE_BYTES = 64
PEER_ID_CHARS = 52  # base58 of 38 bytes whose first are 00 24 08 01: always this long

_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"  # Bitcoin's alphabet
_VALUE_OF = {char: value for value, char in enumerate(_BASE58)}


class IdentityKey:
    """A private key, and the peer that it makes of whoever holds it."""

    __slots__ = ("_private", "peer_id", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.peer_id = peer_id_of(self.public)

    @classmethod
    def generate(cls) -> "IdentityKey":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, seed: bytes) -> "IdentityKey":
        """The key of these 32 secret bytes (RFC 8032's private key); ValueError otherwise."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def seed(self) -> bytes:
        return self._private.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)

    def __repr__(self) -> str:
        return f"IdentityKey({self.peer_id})"  # never the secret


@lru_cache(maxsize=4096)  # base58 costs 10 us; a swarm's ids come back all the time
def peer_id_of(public: bytes) -> str:
    """The libp2p peer id of an Ed25519 public key of 32 bytes; ValueError otherwise."""
    if len(public) != PUBLIC_BYTES:
        raise ValueError(f"a public key has {PUBLIC_BYTES} bytes, not {len(public)}")
    number = int.from_bytes(_PREFIX + public)
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return _BASE58[0] + "".join(reversed(digits))  # one leading zero byte, one leading "1"


@lru_cache(maxsize=4096)
def public_of(peer_id: str) -> bytes:
    """The public key inside a peer id. Raises RemoteError when it is not an Ed25519 id."""
    if len(peer_id) != PEER_ID_CHARS:
        raise RemoteError(f"an Ed25519 peer id has {PEER_ID_CHARS} characters, not {len(peer_id)}")
    number = 0
    for char in peer_id:
        value = _VALUE_OF.get(char)
        if value is None:
            raise RemoteError(f"{char!r} is not a base58 character of a peer id")
        number = number * 58 + value
    size = len(_PREFIX) + PUBLIC_BYTES
    if number.bit_length() > size * 8:
        raise RemoteError("the peer id is not that of an Ed25519 key")
    raw = number.to_bytes(size)
    public = raw[len(_PREFIX) :]
    if not raw.startswith(_PREFIX) or peer_id_of(public) != peer_id:
        raise RemoteError("the peer id is not that of an Ed25519 key")
    return public


def verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `public` signed `data`. Never raises: a key or signature of a wrong size is False."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except InvalidSignature:
        return False
    return True
