"""A signed payload, with its domain.

What is signed is the domain and the body together, so that a signature made for one purpose is
never valid for another:

    signature over   "potluck signed\\0" │ length of domain │ domain │ body
    on the wire      {body, public, signature}, canonical MessagePack
"""

from dataclasses import dataclass
from typing import Annotated

from ..errors import RemoteError
from .codec import BYTES_MAX, Size, decode, encode
from .keys import PUBLIC_BYTES, SIGNATURE_BYTES, IdentityKey, peer_id_of, verify

_CONTEXT = b"potluck signed\0"
OVERHEAD_BYTES = 128  # what an envelope adds to its body: key, signature, names; rounded up


@dataclass(frozen=True, slots=True)
class Envelope:
    body: bytes
    public: Annotated[bytes, Size(PUBLIC_BYTES, least=PUBLIC_BYTES)]
    signature: Annotated[bytes, Size(SIGNATURE_BYTES, least=SIGNATURE_BYTES)]


def sign(key: IdentityKey, domain: str, body: bytes) -> bytes:
    """`body`, signed by `key` for this domain (ASCII, at most 255 characters)."""
    return encode(Envelope(body, key.public, key.sign(_signed(domain, body))))


def open_(raw: bytes, domain: str, *, max_bytes: int = BYTES_MAX) -> tuple[str, bytes]:
    """(peer id of the signer, body). Raises RemoteError unless the signature is good."""
    envelope = decode(raw, Envelope, max_bytes=max_bytes)
    if not verify(envelope.public, envelope.signature, _signed(domain, envelope.body)):
        raise RemoteError(f"a bad signature on a {domain}")
    return peer_id_of(envelope.public), envelope.body


def _signed(domain: str, body: bytes) -> bytes:
    name = domain.encode("ascii")
    return b"".join((_CONTEXT, bytes((len(name),)), name, body))
