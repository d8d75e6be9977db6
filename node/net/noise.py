"""Who the other end is, and that nobody else listens: Noise XX, wire-compatible with libp2p.

Source: github.com/libp2p/specs/blob/master/noise. The handshake's arithmetic is noiseprotocol's,
which py-libp2p stands on too; its payload and all that comes after it are ours, for py-libp2p reads
each message with two calls and sends each with one, which costs more than the cipher. A message is
a length of 2 bytes, at most 65,535, and the ciphertext with its 16-byte tag:

    receive   one recv of up to 256 KiB, then every whole message in it is decrypted
    push      all messages of a burst are encrypted side by side, then one send

Neither side of a link has a lock: one task receives, and `push` never waits.

In a private swarm the swarm's key goes into the handshake before anything else (XXpsk0 of the Noise
framework): to whoever lacks it nothing is told, not even who we are. It is a protocol of its own.
"""

import struct
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from noise.connection import Keypair, NoiseConnection

from ...crypto.keys import IdentityKey, peer_id_of, verify
from ...errors import RemoteError, TransportError
from . import protobuf
from .carrier import Carrier
from .guard import foreign

PROTOCOL = "/noise"
PATTERN = b"Noise_XX_25519_ChaChaPoly_SHA256"
PRIVATE_PROTOCOL = "/potluck/noise-psk/1"
PRIVATE_PATTERN = b"Noise_XXpsk0_25519_ChaChaPoly_SHA256"
SIGNED = b"noise-libp2p-static-key:"  # before the static key, under the identity's signature
ED25519_KEY = bytes.fromhex("08011220")  # protobuf: type Ed25519, 32 bytes follow
IDENTITY_KEY, IDENTITY_SIGNATURE = 1, 2  # fields of the handshake's payload
TAG_BYTES = 16
MESSAGE_BYTES_MAX = 65_535
PLAINTEXT_BYTES_MAX = MESSAGE_BYTES_MAX - TAG_BYTES
BATCH_MESSAGES_MAX = 4  # 256 KiB a send
RECEIVE_BYTES = 256 * 1024
# An Ed25519 payload has about 120 bytes, with extensions some more; stop whoever announces 8 KiB.
HANDSHAKE_BYTES_MAX = 8 * 1024

_NONCE = struct.Struct("<IQ")
_LENGTH = struct.Struct(">H")


class Identity:
    """Our identity key, and the static key of this run that it vouches for.

    swarm_key: 32 secret bytes that all of a private swarm have; b"" in the open one.
    """

    def __init__(self, seed: bytes, swarm_key: bytes = b"") -> None:
        self.swarm_key = swarm_key
        self.protocol = PRIVATE_PROTOCOL if swarm_key else PROTOCOL
        self.key = IdentityKey.from_bytes(seed)
        self.peer_id = self.key.peer_id
        static = X25519PrivateKey.generate()
        self.static = static.private_bytes_raw()
        signature = self.key.sign(SIGNED + static.public_key().public_bytes_raw())
        self.payload = protobuf.field(IDENTITY_KEY, ED25519_KEY + self.key.public) + protobuf.field(
            IDENTITY_SIGNATURE, signature
        )


class Session:
    """A finished handshake: who the peer is, and the two keys."""

    def __init__(self, peer: str, protocol: Any) -> None:
        self.peer = peer
        self.encrypt_key: bytes = protocol.cipher_state_encrypt.k
        self.decrypt_key: bytes = protocol.cipher_state_decrypt.k


async def shake_hands(
    wire: "Wire",
    identity: Identity,
    peer: str | None,
    *,
    proved: Callable[[], Awaitable[None]] | None = None,
) -> Session:
    """Run the handshake, as the dialer of `peer` or, with None, as the listener.

    proved: awaited by the dialer once the peer has shown who it is, and does not know us yet.
    Raises RemoteError when the other end is not who it should be, TransportError when it leaves.
    """
    noise = NoiseConnection.from_name(PRIVATE_PATTERN if identity.swarm_key else PATTERN)
    if identity.swarm_key:
        noise.set_psks(identity.swarm_key)
    noise.set_keypair_from_private_bytes(Keypair.STATIC, identity.static)
    if peer is None:
        noise.set_as_responder()
    else:
        noise.set_as_initiator()
    noise.start_handshake()
    state: Any = noise.noise_protocol.handshake_state  # noiseprotocol forgets it at the end
    if peer is None:
        with foreign("noise message 1"):
            noise.read_message(await _hear(wire))
            answer = noise.write_message(identity.payload)  # no secret comes of a key of low order
        await _tell(wire, answer)
        with foreign("noise message 3"):
            payload = bytes(noise.read_message(await _hear(wire)))
    else:
        await _tell(wire, noise.write_message(b""))
        with foreign("noise message 2"):
            payload = bytes(noise.read_message(await _hear(wire)))
    found = _identified(payload, state.rs.public_bytes)
    if peer is not None:
        if found != peer:
            raise RemoteError(f"{found} answers where {peer} was dialed")
        if proved is not None:
            await proved()
        await _tell(wire, noise.write_message(identity.payload))
    if found == identity.peer_id:
        raise RemoteError("that is this node itself")
    return Session(found, noise.noise_protocol)


def _identified(payload: bytes, static: bytes) -> str:
    """The peer id that vouches for this static key. Raises RemoteError."""
    found = protobuf.fields(payload)
    key = protobuf.only_bytes(found, IDENTITY_KEY)
    signature = protobuf.only_bytes(found, IDENTITY_SIGNATURE)
    public = key[len(ED25519_KEY) :]
    if not key.startswith(ED25519_KEY) or len(public) != 32:
        raise RemoteError("a peer whose identity is not an Ed25519 key")
    if not verify(public, signature, SIGNED + static):
        raise RemoteError("a peer that does not own the identity it shows")
    return peer_id_of(public)


async def _hear(wire: "Wire") -> bytes:
    return await wire.read(int.from_bytes(await wire.read(2)))


async def _tell(wire: "Wire", message: bytes | bytearray) -> None:
    await wire.write(_LENGTH.pack(len(message)) + message)


class Scratch:
    """Buffers that all links of one trio run share: each is empty again before any task switch."""

    def __init__(self) -> None:
        self.received = memoryview(bytearray(2 + MESSAGE_BYTES_MAX + RECEIVE_BYTES))
        self.sealed = memoryview(bytearray(BATCH_MESSAGES_MAX * (2 + MESSAGE_BYTES_MAX)))


class Wire:
    """A carrier during the handshake: what is written leaves with the next read, in one send."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.arrived = bytearray()
        self._corked = bytearray()

    async def write(self, data: bytes) -> None:
        self._corked += data

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises TransportError when the other end closes before."""
        if size > HANDSHAKE_BYTES_MAX:
            raise RemoteError(f"a handshake message of {size} bytes")
        while len(self.arrived) < size:
            await self.more()
        taken = bytes(self.arrived[:size])
        del self.arrived[:size]
        return taken

    async def more(self) -> None:
        """Send what is corked, then wait for at least one more byte."""
        await self.flush()
        while True:
            try:
                piece = self.carrier.recv(HANDSHAKE_BYTES_MAX)
                break
            except BlockingIOError:
                await self.carrier.readable()
            except OSError as error:
                raise TransportError(f"connection broke in the handshake: {error}") from error
        if not piece:
            raise TransportError("connection closed in the handshake")
        self.arrived += piece

    async def flush(self) -> None:
        while self._corked:
            try:
                del self._corked[: self.carrier.send(self._corked)]
            except BlockingIOError:
                await self.carrier.writable()
            except OSError as error:
                raise TransportError(f"connection broke in the handshake: {error}") from error


class Link:
    """One connection after the handshake: whole plaintexts in, whole plaintexts out."""

    def __init__(self, wire: Wire, session: Session, scratch: Scratch) -> None:
        self.peer = session.peer
        self.carrier = wire.carrier
        self.closed = False
        self.blocked = False  # sealed bytes wait for room in the carrier
        self._rest = bytes(wire.arrived)  # ciphertext that is not a whole message yet
        self._fresh = bool(self._rest)
        self._unsent = b""
        self._scratch = scratch
        self._encrypt = ChaCha20Poly1305(session.encrypt_key).encrypt_into
        self._decrypt = ChaCha20Poly1305(session.decrypt_key).decrypt
        self._sent_messages = 0
        self._received_messages = 0

    async def receive(self) -> list[bytes]:
        """Wait for at least one whole message; return the plaintexts of all that have come.

        Raises TransportError at the connection's end, RemoteError on a forged message. Cancelled,
        nothing is lost.
        """
        pieces: list[bytes] = []
        if self._fresh:
            self._fresh = False
            kept = len(self._rest)
            self._scratch.received[:kept] = self._rest
            pieces = self._open(kept)
        while not pieces:
            pieces = self._open(await self._fill())
        return pieces

    def push(self, messages: list[bytes]) -> None:
        """Seal up to BATCH_MESSAGES_MAX messages and send what the carrier takes, at once.

        Not while `blocked`. Raises TransportError.
        """
        out = self._scratch.sealed
        at = 0
        for message in messages:
            size = len(message) + TAG_BYTES
            _LENGTH.pack_into(out, at, size)
            nonce = _NONCE.pack(0, self._sent_messages)
            self._sent_messages += 1
            self._encrypt(nonce, message, None, out[at + 2 : at + 2 + size])
            at += 2 + size
        sent = self._send(out[:at])
        if sent < at:
            self._unsent = bytes(out[sent:at])
            self.blocked = True

    async def resume(self) -> None:
        """Wait for room in the carrier, and send more of what is sealed. Raises TransportError."""
        await self.carrier.writable()
        self._unsent = self._unsent[self._send(memoryview(self._unsent)) :]
        self.blocked = bool(self._unsent)

    def path_rtt_s(self) -> float:
        """The shortest round trip seen below, in seconds; 0 where nobody knows."""
        return self.carrier.path_rtt_s()

    def close(self) -> None:
        """Close the carrier; whoever waits on it gets TransportError."""
        self.closed = True
        self.carrier.close()

    async def _fill(self) -> int:
        """Put the kept rest and one recv into the shared buffer; return how much is there."""
        if self.closed:
            raise TransportError("connection closed")
        buffer = self._scratch.received
        while True:
            try:
                await self.carrier.readable()
                kept = len(self._rest)
                size = self.carrier.recv_into(buffer[kept : kept + RECEIVE_BYTES])
                break
            except BlockingIOError:
                continue
            except OSError as error:
                raise TransportError(f"connection broke: {error}") from error
        if not size:
            raise TransportError("connection closed by the peer")
        buffer[:kept] = self._rest
        return kept + size

    def _open(self, end: int) -> list[bytes]:
        """Decrypt every whole message in the shared buffer, and keep the rest."""
        buffer = self._scratch.received
        pieces: list[bytes] = []
        at = 0
        while end - at >= 2:
            stop = at + 2 + (buffer[at] << 8 | buffer[at + 1])
            if stop > end:
                break
            nonce = _NONCE.pack(0, self._received_messages)
            try:
                piece = self._decrypt(nonce, buffer[at + 2 : stop], None)
            except InvalidTag as error:
                raise RemoteError("a noise message that does not verify") from error
            self._received_messages += 1
            if piece:
                pieces.append(piece)
            at = stop
        self._rest = bytes(buffer[at:end])
        return pieces

    def _send(self, data: memoryview) -> int:
        try:
            return self.carrier.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise TransportError(f"connection broke: {error}") from error
