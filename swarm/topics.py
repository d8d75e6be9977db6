"""What neighbours in gossip say to each other, and under which topics what is told.

Messages are not signed by who passes them on (StrictNoSign of libp2p's pubsub): each item in them
is signed by who says it, and must hold whoever brings it; a second signature, by whoever was first
to publish, would cost as much to check and prove nothing that is asked. So nobody is told who that
was, and a message is its content: `id_of`, as js-libp2p names messages that are not signed.

    /potluck/evidence/2                      contradictions: they concern everybody
    /potluck/evidence/2/runs                 those of who trains: nodes that know of no runs would
                                             take them for nonsense, and are not told
    /potluck/evidence/2/<model>/<segment>    accusations of work in these 8 blocks, and what came of
                                             computing it again: who serves them can tell
    /potluck/cap/1/<model>/<segment>         what a peer can do that serves some of these 8 blocks:
                                             its record, when it has changed (node/capability.py)

A flood of one of the two kinds takes nothing from the other: each has budgets and room of its own.

Source: github.com/libp2p/specs, pubsub/README.md, gossipsub-v1.0 to v1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from ..crypto.codec import decode
from ..crypto.digest import DIGEST_BYTES
from ..crypto.envelope import Envelope
from .blocks import BlockRange
from .receipt import Opening
from .testimony import (
    ACCUSATION_BYTES_MAX,
    ATTESTATION_BYTES_MAX,
    ITEM_BYTES_MAX,
    OF_RUNS,
    Accusation,
    Attestation,
    Contradiction,
    Item,
    SignedAccusation,
    SignedAttestation,
)
from .wire import OPENING_BYTES_MAX

PROTOCOL: Final = "/meshsub/1.2.0"
SEGMENT_BLOCKS: Final = 8  # algorithms.md 3.5
EVIDENCE: Final = "/potluck/evidence/2"
RUNS: Final = f"{EVIDENCE}/runs"
CAPABILITY: Final = "/potluck/cap/1"
KINDS: Final = (EVIDENCE, CAPABILITY)  # the first is told of first
TOPIC_CHARS_MAX: Final = 128
MESSAGE_BYTES_MAX: Final = ITEM_BYTES_MAX + 64
ID_BYTES: Final = DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Rpc:
    """All that may stand in what one neighbour says at once; ids are those of messages."""

    subscriptions: tuple[tuple[str, bool], ...] = ()
    messages: tuple[Message, ...] = ()
    ihave: tuple[tuple[str, tuple[bytes, ...]], ...] = ()  # in this topic there are these
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()  # send me all of this topic, as I do you
    prune: tuple[tuple[str, int], ...] = ()  # no more; and ask again after so many seconds
    idontwant: tuple[bytes, ...] = ()


def id_of(data: bytes) -> bytes:
    return sha256(data).digest()


def topic_of(model: str, block: int, kind: str = EVIDENCE) -> str:
    """Where work of this block is told of; `model` is a digest in hex."""
    return f"{kind}/{model}/{block // SEGMENT_BLOCKS}"


def topics_of(model: str, blocks: BlockRange, kind: str = EVIDENCE) -> frozenset[str]:
    """What a peer that serves these blocks has to hear."""
    first, last = blocks.start // SEGMENT_BLOCKS, (blocks.stop - 1) // SEGMENT_BLOCKS
    return frozenset(
        topic_of(model, segment * SEGMENT_BLOCKS, kind) for segment in range(first, last + 1)
    )


def kind_of(topic: str) -> str:
    """Whose budgets and room it takes."""
    return CAPABILITY if topic.startswith(f"{CAPABILITY}/") else EVIDENCE


def is_ours(topic: str) -> bool:
    """Whether it is worth remembering who has subscribed to it."""
    return topic == EVIDENCE or topic.startswith((f"{EVIDENCE}/", f"{CAPABILITY}/"))


def home_of(item: Item) -> str:
    """The topic of an item; "" of an attestation, which only names its accusation. RemoteError."""
    match item:
        case SignedAccusation():
            told = told_in(item)
            assert isinstance(told, Accusation)
            envelope = decode(told.opening, Envelope, max_bytes=OPENING_BYTES_MAX)
            opening = decode(envelope.body, Opening)
            return topic_of(opening.model.hex(), opening.start)
        case SignedAttestation():
            return ""
        case Contradiction():
            return RUNS if item.domain in OF_RUNS else EVIDENCE


def fits(item: Item, topic: str) -> bool:
    """Whether it is told where it belongs, by what it says."""
    belongs = home_of(item)
    return topic == belongs if belongs else topic not in (EVIDENCE, RUNS)


def told_in(item: SignedAccusation | SignedAttestation) -> Accusation | Attestation:
    """What it says; nothing is checked yet. Raises RemoteError."""
    if isinstance(item, SignedAccusation):
        body = decode(item.raw, Envelope, max_bytes=ACCUSATION_BYTES_MAX).body
        return decode(body, Accusation, max_bytes=ACCUSATION_BYTES_MAX)
    body = decode(item.raw, Envelope, max_bytes=ATTESTATION_BYTES_MAX).body
    return decode(body, Attestation, max_bytes=ATTESTATION_BYTES_MAX)
