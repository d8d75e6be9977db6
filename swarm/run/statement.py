"""What peers of a run say to each other, and what each of them signs: its weights, once an epoch.

    puller                              peer
      Pull(run, epoch, within_s) ─────▶  waits for its own weights of that epoch, so long at most
      ◀──────────────────── Told(signed Statement), Part, Part ...
      ◀──────────────────── Absent(epoch)      it has none that near
      Meet(run) ──────────────────────▶
      ◀──────────────────── Same(epoch)        or Other(terms): another run of this name

A statement binds the peer to (run, epoch): whoever tells two pullers different weights at one epoch
has signed two statements that anybody can compare (testimony.py). So pullers show each other some
of what they were told, within `Pull`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from ...crypto.codec import Range, Size, decode, encode
from ...crypto.digest import digest
from ...crypto.envelope import OVERHEAD_BYTES, open_, sign
from ...crypto.keys import IdentityKey
from ...crypto.merkle import Digest
from ...errors import RemoteError
from .plan import EPOCHS_MAX, TERMS_BYTES_MAX

PROTOCOL: Final = "/potluck/run/1"
DOMAIN: Final = "run weights"  # of a statement's signature, and of the digest in it
STATEMENT_BYTES_MAX: Final = 256 + OVERHEAD_BYTES
PART_BYTES: Final = 48 * 1024  # other streams of the connection take turns in between
LETTER_BYTES_MAX: Final = 64 * 1024
WITHIN_MAX_S: Final = 60.0
SHOWN_MAX: Final = 2  # guess: a tenth of a percent of a pull of 500 kB

Epoch = Annotated[int, Range(0, EPOCHS_MAX)]
Raw = Annotated[bytes, Size(STATEMENT_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class Statement:
    """ "After the steps of this epoch my weights are those with this digest." tokens: that those
    steps were made of. size: in bytes, as they are sent."""

    run: Digest
    epoch: Epoch
    tokens: Annotated[int, Range(0, 2**53)]
    size: Annotated[int, Range(1, 2**40)]
    weights: Digest


@dataclass(frozen=True, slots=True)
class Pull:
    """Your weights of this epoch; else, after so many seconds, of one as near as you have. shown:
    what others said of late."""

    TAG: ClassVar[str] = "pull"

    run: Digest
    epoch: Epoch
    within_s: Annotated[float, Range(0.0, WITHIN_MAX_S)]
    shown: Annotated[tuple[Raw, ...], Size(SHOWN_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """The bytes of the weights follow in parts."""

    TAG: ClassVar[str] = "told"

    statement: Raw


@dataclass(frozen=True, slots=True)
class Part:
    TAG: ClassVar[str] = "part"

    raw: Annotated[bytes, Size(PART_BYTES, 1)]


@dataclass(frozen=True, slots=True)
class Absent:
    """No weights of such an epoch are here. epoch: that is under way."""

    TAG: ClassVar[str] = "absent"

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Meet:
    """Are we in one run?"""

    TAG: ClassVar[str] = "meet"

    run: Digest


@dataclass(frozen=True, slots=True)
class Same:
    """Yes. epoch: that is under way."""

    TAG: ClassVar[str] = "same"

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Other:
    """No: this is ours."""

    TAG: ClassVar[str] = "other"

    terms: Annotated[bytes, Size(TERMS_BYTES_MAX)]


QUESTIONS: Final = (Pull, Meet)
ANSWERS: Final = (Told, Part, Absent, Same, Other)


@dataclass(frozen=True, slots=True)
class Said:
    """A statement whose signature was checked. raw: as it was signed."""

    peer: str
    statement: Statement
    raw: bytes


def state(key: IdentityKey, run: bytes, epoch: int, tokens: int, weights: bytes) -> Said:
    """Sign for the weights of an epoch, as they are sent. To be done once for each."""
    told = Statement(run, epoch, tokens, len(weights), digest(DOMAIN, weights))
    return Said(key.peer_id, told, sign(key, DOMAIN, encode(told)))


def read_statement(raw: bytes, run: bytes) -> Said:
    """Raises RemoteError unless somebody signed this for this run."""
    peer, body = open_(raw, DOMAIN, max_bytes=STATEMENT_BYTES_MAX)
    told = decode(body, Statement, max_bytes=STATEMENT_BYTES_MAX)
    if told.run != run:
        raise RemoteError("weights of another run")
    return Said(peer, told, bytes(raw))


def check_weights(said: Said, weights: bytes | bytearray) -> None:
    """Raises RemoteError unless these are the bytes that were signed for. Blocks: it hashes."""
    told = said.statement
    if len(weights) != told.size or digest(DOMAIN, weights) != told.weights:
        raise RemoteError("weights that are not those that were signed for")


def statement_name(body: bytes) -> tuple[object, ...]:
    """What an honest peer states once: two of one name contradict each other (testimony.py)."""
    told = decode(body, Statement, max_bytes=STATEMENT_BYTES_MAX)
    return told.run, told.epoch
