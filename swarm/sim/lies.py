"""What peers lie about here: each lie as a real daemon tells it, and in the simulator.

Issue by issue the words are those of the list of attacks to test against; the names are those of
`potluck testnet up --liars` (node/testnet/lies.py), which runs them as daemons. In the simulator
(`potluck simulate strangers`) the daemon's own objects decide (swarm/audit, reputation, evidence,
replica, score, sampling, credit, schedule, vouching, routing): here is only what a liar does.

    words of the list               lie                  simulated in    caught or shunned by
    wrong weights: int4             four_bit             work            audits, then evidence B
    wrong weights: skipped block    skip                 work            audits, then evidence B
    wrong weights: smaller model    smaller              work            audits, then evidence B
    random output, some chunks      random:P             work            audits, then evidence B
    replayed output                 replay               work            audits, then evidence B
    colluding auditor and target    collude              work            audits by lot, canaries
    receipts for work not done      false_receipt        work            hashes of each hop's bytes
    forged records                  forged_record        hearsay         signatures; the score
    rolled-back records             rolled_back_record   hearsay         boot and seq; the score
    equivocation                    equivocate           hearsay         evidence A: two signatures
    false accusations               false_accusation     hearsay         refuted: two strikes
    receipts for work not done      false_tally          hearsay         evidence A: two signatures
    view flooding                   flood_views          views           BASALT's ranked slots
    eclipse                         eclipse              views           BASALT, of one victim
    Sybil splitting                 many_names           credit          even parts of networks
    false rate                      false_rate           pace            times measured here
    false load                      false_load           pace            queues measured here
    black hole                      black_hole           pace            hop deadlines
    slow drip                       drip                 pace            hop deadlines, times
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from ...errors import UserError

Act = Literal["work", "hearsay", "views", "credit", "pace"]
ACTS: Final[tuple[Act, ...]] = get_args(Act)
SHARE: Final = 0.1  # of the chunks, of `random` without a share: bar 1 of the liars


@dataclass(frozen=True, slots=True)
class Line:
    """A lie of the table above. words: of the list; by: what catches or shuns who tells it."""

    lie: str
    words: str
    act: Act
    by: str


TABLE: Final = (
    Line("four_bit", "wrong weights: int4", "work", "audits, then evidence B"),
    Line("skip", "wrong weights: skipped block", "work", "audits, then evidence B"),
    Line("smaller", "wrong weights: smaller model", "work", "audits, then evidence B"),
    Line("random", "random output, some chunks", "work", "audits, then evidence B"),
    Line("replay", "replayed output", "work", "audits, then evidence B"),
    Line("collude", "colluding auditor and target", "work", "audits by lot, canaries"),
    Line("false_receipt", "receipts for work not done", "work", "hashes of each hop's bytes"),
    Line("forged_record", "forged records", "hearsay", "signatures; the score"),
    Line("rolled_back_record", "rolled-back records", "hearsay", "boot and seq; the score"),
    Line("equivocate", "equivocation", "hearsay", "evidence A: two signatures"),
    Line("false_accusation", "false accusations", "hearsay", "refuted: two strikes"),
    Line("false_tally", "receipts for work not done", "hearsay", "evidence A: two signatures"),
    Line("flood_views", "view flooding", "views", "BASALT's ranked slots"),
    Line("eclipse", "eclipse", "views", "BASALT, of one victim"),
    Line("many_names", "Sybil splitting", "credit", "even parts of networks"),
    Line("false_rate", "false rate", "pace", "times measured here"),
    Line("false_load", "false load", "pace", "queues measured here"),
    Line("black_hole", "black hole", "pace", "hop deadlines"),
    Line("drip", "slow drip", "pace", "hop deadlines, times"),
)
LIES: Final = {line.lie: line for line in TABLE}


@dataclass(frozen=True, slots=True)
class Told:
    """share: of the chunks in which it lies."""

    line: Line
    share: float = 1.0


def told_in(text: str) -> tuple[Told, ...]:
    """Lies by commas, as `four_bit,random:0.1`; all that there are, in an empty text. Raises
    UserError."""
    return tuple(_told(part.strip()) for part in (text.strip() or ",".join(LIES)).split(","))


def _told(text: str) -> Told:
    name, _, share = text.partition(":")
    if name not in LIES:
        raise UserError(f"no lie {name!r} is simulated: give some of {', '.join(LIES)}")
    try:
        part = float(share) if share else SHARE if name == "random" else 1.0
    except ValueError:
        part = -1.0
    if not 0 < part <= 1:
        raise UserError(f"{text}: a share is a number above 0 and up to 1, as random:{SHARE}")
    return Told(LIES[name], part)


def table(lines: Sequence[Line] = TABLE) -> str:
    """For people: one line each."""
    rows = [("LIE", "OF THE LIST", "SIMULATED", "CAUGHT OR SHUNNED BY")]
    rows += [(one.lie, one.words, one.act, one.by) for one in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
