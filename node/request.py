"""What is asked for, and what comes of it: a prompt and its settings; tokens, one by one.

Request ─▶ generation.py ─▶ Piece, Piece, ... ─▶ hear: those that stand
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from ..swarm.adapter import Bundle
from ..swarm.prefix import Prefix
from ..swarm.routing import Hop
from .compute.sampling import Settings
from .compute.voice import Voice
from .drafting import Drafts

GREEDY = Settings()


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. `ids` is the prompt, checked by the voice.

    receipts: whether the servers shall sign, so that the answer can be proved. audit: whether a
    share of their work is computed again by others; they sign for it then too. amend: whether words
    that were given may be replaced; if not, a conviction that would is the end of the answer.
    adapter: that its sessions wear. drafts: whether, and how, the answer is guessed ahead. prefix:
    who finds what is said again at the servers. chain: whether steps go from hop to hop where they
    can."""

    voice: Voice
    ids: tuple[int, ...]
    settings: Settings = GREEDY
    max_new_tokens: int = 64
    stops: tuple[str, ...] = ()
    wait_s: float = 0.0
    ignore_eos: bool = False  # benchmarks want a fixed length
    receipts: bool = False
    audit: bool = False
    amend: bool = True
    adapter: Bundle | None = None
    drafts: Drafts | None = None
    prefix: Prefix = "off"
    chain: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"{self.max_new_tokens} new tokens asked for; ask for 1 or more")


@dataclass(frozen=True, slots=True)
class Piece:
    """One token. `text` is what is certain by now: it may be empty, or the end of several tokens.

    position: of the token, the prompt's first being 0; a piece that is not behind the last one
    replaces that and all from there on. seconds: since the one before, or since the start. finish:
    why it is the last, or None. guessed: it was, and so came with the one before.
    """

    token: int
    position: int
    text: str
    seconds: float
    route: tuple[Hop, ...]
    finish: str | None = None
    guessed: bool = False


def hear(pieces: list[Piece], piece: Piece) -> bool:
    """Put a piece behind those that stand. True when it takes the place of some of them."""
    count = len(pieces)
    while pieces and pieces[-1].position >= piece.position:
        pieces.pop()
    pieces.append(piece)
    return len(pieces) <= count
