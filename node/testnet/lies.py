"""What a node of a testnet may be told to lie about: `potluck testnet up --liars four_bit,skip`.

A node is told by POTLUCK_LIE in its environment, and says so loudly. Only a testnet's launcher sets
it, and only a node that bears a testnet's mark heeds it: there is no option of `potluck node`.

    in what it computes      four_bit, skip, smaller, collude      (compute/cheats.py)
    in what it answers       random:P, replay, false_receipt, false_load, black_hole, drip
    in what it announces     false_rate, false_load, forged_record, rolled_back_record, equivocate
    in what it does else     false_accusation, false_tally, flood_views, eclipse, many_names
                             (mischief.py)

For which words of the list of attacks each stands, and where the simulator has it, says
swarm/sim/lies.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from ...errors import UserError

LIE: Final = "POTLUCK_LIE"  # in the environment of a node that is to lie
RUN_LIE: Final = "POTLUCK_RUN_LIE"  # of a member of a run: an attack (run_liars.py)
LIARS: Final = "POTLUCK_RUN_LIARS"  # how many of them there are
PEER_ROADS: Final = "POTLUCK_PEER_ROADS"  # no lie, told in the same way: far_peers.py

Kind = Literal[
    "four_bit",  # its weights are rounded to 4 bits, whatever format it announces
    "skip",  # one block of its span adds nothing
    "smaller",  # every second one adds nothing
    "collude",  # all that it gives is a little too large, and so with whoever tells this lie too
    "random",  # random rows, in this share of the chunks that it signs for
    "replay",  # the rows before once more, in place of these
    "false_receipt",  # it gives other rows than it signs for
    "black_hole",  # it takes every step and answers none
    "drip",  # its answers come a few bytes at a time
    "false_rate",  # it announces a hundred times its speed
    "false_load",  # it announces that nobody uses it, and answers that nobody waits
    "forged_record",  # it puts records in the name of others
    "rolled_back_record",  # it puts records of a run before this one
    "equivocate",  # it puts two records of one number
    "false_accusation",  # it says that right work is wrong
    "false_tally",  # it shows tallies of work that nobody did
    "flood_views",  # it tells of peers that there are not
    "eclipse",  # the same, and all of it to one peer
    "many_names",  # it comes as several peers
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SHARED: Final = ("random",)  # of which a share can be given
SHARE: Final = 0.1  # issue E, bar 1


@dataclass(frozen=True, slots=True)
class Lie:
    """share: of the chunks in which it lies; all, where nothing else can be had."""

    kind: Kind
    share: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.share:g}" if self.kind in SHARED else self.kind


def parse_lie(text: str) -> Lie:
    """One lie, as `random:0.1`. Raises UserError."""
    kind, given, share = text.strip().partition(":")
    found = next((one for one in KINDS if one == kind), None)
    if found is None:
        raise UserError(f"no lie {kind!r}: give some of {', '.join(KINDS)}")
    if given and kind not in SHARED:
        raise UserError(f"{text}: {kind} is told always; a share can be given of random alone")
    if kind not in SHARED:
        return Lie(found)
    try:
        lie = Lie(found, float(share) if given else SHARE)
    except ValueError:
        lie = Lie(found, -1.0)
    if not 0 < lie.share <= 1:
        raise UserError(f"{text}: a share is a number above 0 and up to 1, as {kind}:{SHARE}")
    return lie


def parse_lies(text: str) -> tuple[Lie, ...]:
    """Several, with commas between; none in an empty text. Raises UserError."""
    return tuple(parse_lie(part) for part in text.split(",")) if text.strip() else ()
