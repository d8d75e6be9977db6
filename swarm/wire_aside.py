"""Messages of streams beside the ordinary session's (wire.py has the pictures): blocks that are
trained, and beginnings of prompts that are remembered. And the kinds of numbers in all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from ..crypto.codec import Range, Size
from ..crypto.merkle import Digest
from .prefix import NAMES_MAX

Position = Annotated[int, Range(0, 1 << 24)]  # of a token in a session; or a number of tokens
BlockNumber = Annotated[int, Range(0, 1 << 16)]
Seconds = Annotated[float, Range(0.0, 1e6)]

WORN_BYTES_MAX: Final = 512 * 1024 * 1024  # of an adapter: rank 16 of all that 70B has, in bf16
TRAIN_BYTES_MAX: Final = WORN_BYTES_MAX  # of one request, and of its answer
BATCH_MAX: Final = 1 << 12  # sequences


@dataclass(frozen=True, slots=True)
class Train:
    """Run `batch` sequences of `tokens` positions through blocks start:stop, and forget them.

    forward: the hidden states follow. backward: they, and the gradient of what they gave. Behind
    them, in fp32, deep prompts of so many positions for each block. adapter: its digest, whose
    parts for these blocks have `size` bytes; empty: none. within_s: an answer is of use until then.
    """

    kind: Literal["forward", "backward"]
    model: Annotated[str, Size(64)]  # hex digest
    start: BlockNumber
    stop: BlockNumber
    batch: Annotated[int, Range(1, BATCH_MAX)]
    tokens: Annotated[int, Range(1, 1 << 20)]
    dtype: Annotated[str, Size(4)]
    within_s: Seconds
    prompts: Annotated[int, Range(0, 1 << 12)] = 0
    adapter: Annotated[bytes, Size(32)] = b""
    size: Annotated[int, Range(0, WORN_BYTES_MAX)] = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """The answer to `Train`: so many bytes follow in pieces.

    forward: hidden states. backward: the gradient of the hidden states; then in fp32 those of the
    deep prompts, and of the adapter's matrices by block and module, A before B.
    """

    size: Annotated[int, Range(0, TRAIN_BYTES_MAX)]
    compute_s: Seconds
    queue_s: Seconds


@dataclass(frozen=True, slots=True)
class Ask:
    """How far is this chain of rows known here? Once, before the first step. names: prefix.py."""

    names: Annotated[tuple[Digest, ...], Size(NAMES_MAX, 1)]


@dataclass(frozen=True, slots=True)
class Held:
    """The first `count` of these names are: they may be recalled in this session. gave: how those
    rows are called that came out; none where they were not kept, as behind the last block."""

    count: Annotated[int, Range(0, NAMES_MAX)]
    gave: Annotated[tuple[Digest, ...], Size(NAMES_MAX)]

    def __post_init__(self) -> None:
        if len(self.gave) not in (0, self.count):
            raise ValueError(f"{len(self.gave)} names of what {self.count} gave")


@dataclass(frozen=True, slots=True)
class Recall:
    """As `Step`, of rows that are held here: none follow. known: the client has what comes out, by
    its name, so that it need not be sent."""

    at: Position
    sizes: Annotated[tuple[Position, ...], Size(1024, 1)]
    rows: Position
    known: bool
