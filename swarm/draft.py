"""What an answer may say next: what it, or its prompt, has said before.

Prompt look-up (Saxena, 2023; algorithms.md 9): the last words are looked for in what was read and
said so far, and what followed them there is guessed to follow here. It costs nothing, and is right
where a text copies: code that is edited, sources that are summed up, names that come again.

    ... def total(rows): ... def total(      last three tokens: "def", "total", "("
            └────────────┘ followed by: rows ) :      is the guess

Guesses are verified by the model in one step of several rows. The words are the same as without
them only where a row has the same bits in such a step as it has alone: `rows_alike`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 3  # algorithms.md 9: n-grams of 3 to 1 tokens
PLACES_MAX: Final = 8  # guess: of one n-gram, the latest; the longest match among them is taken
MATCH_MAX: Final = 16  # tokens by which matches are told apart
SHORT_ROWS: Final = 16  # of torch's tiles that are not whole (node/compute/tile_check.py, FEW)
ANY_ROWS: Final = 1 << 10  # more than any step has


@dataclass(frozen=True, slots=True)
class Offer:
    """Tokens that may come next. source: where they are from, and how good the reason is; offers of
    one source are right about equally often."""

    tokens: tuple[int, ...]
    source: str


def rows_alike(numerics: str) -> int:
    """Up to how many rows a step of this class may have for each row to have the bits of a step of
    its own; 1: nothing is promised.

    Ours ("c1") and whole tiles ("tiles1"): any. Tiles that are not whole ("tiles1s"): as few as go
    through the tile of tokens. Whatever names neither sums up by shape.
    """
    for word in numerics.split():
        if word[:1] == "c" and word[1:].isdigit():
            return ANY_ROWS
        if word.startswith("tiles"):
            number = word.removeprefix("tiles")
            if number.isdigit():
                return ANY_ROWS
            if number.endswith("s") and number[:-1].isdigit():
                return SHORT_ROWS
    return 1


class LookUp:
    """The n-grams of one text as it grows, and what followed them."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], deque[int]] = {}  # where the following token stands

    def __len__(self) -> int:
        """Tokens read so far."""
        return len(self._ids)

    def read(self, ids: Sequence[int]) -> None:
        """The next tokens of the text."""
        mine = self._ids
        for token in ids:
            place = len(mine)
            for size in range(1, min(LONGEST, place) + 1):
                key = tuple(mine[place - size :])
                places = self._after.get(key)
                if places is None:
                    self._after[key] = places = deque(maxlen=PLACES_MAX)
                places.append(place)
            mine.append(token)

    def offer(self, most: int) -> Offer | None:
        """At most so many tokens; None where the last one was never said before.

        A text that goes in circles is guessed to go on so: what follows the match may be the
        present, which is read on from the match again.
        """
        mine = self._ids
        for size in range(min(LONGEST, len(mine)), 0, -1):
            places = self._after.get(tuple(mine[len(mine) - size :]))
            if most > 0 and places:
                place = max(places, key=lambda one: (self._match(one), one))
                circle = len(mine) - place
                tokens = tuple(mine[place + number % circle] for number in range(most))
                return Offer(tokens, f"said {_rank(self._match(place))}")
        return None

    def _match(self, place: int) -> int:
        """How many tokens before this place are the last ones of the text."""
        mine, length = self._ids, 0
        while length < min(MATCH_MAX, place) and mine[place - 1 - length] == mine[-1 - length]:
            length += 1
        return length


def _rank(length: int) -> int:
    """Lengths of a match that are about equally good reasons."""
    return max(one for one in (1, 2, 3, 4, 8, 16) if one <= length)
