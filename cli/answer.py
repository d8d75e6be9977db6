"""One question to the swarm, told as it comes or as one JSON object at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from ..node.client import Swarm, open_swarm
from ..node.drafting import Guessed
from ..node.generation import Piece, hear
from ..node.session import Recovery
from ..node.trust.docket import Tally
from ..swarm.routing import Hop
from .bars import prefill_bar
from .edge import until_signalled
from .habits import Habits
from .options import note, print_json, say
from .receipt import check_place, write_receipt

AMENDED = "[a server was found wrong, or left without signing: its words are made again by others]"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the arguments of `Swarm.generation`. receipt: the file for its proof."""

    prompt: str
    model: str
    habits: Habits
    stop: tuple[str, ...] = ()
    receipt: Path | None = None


@dataclass(slots=True)
class Told:
    """What came so far."""

    pieces: list[Piece] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    began_s: float = 0.0
    finish: str = "failed"
    seed: int | None = None
    exact: bool = True
    audits: Tally | None = None
    adapter: str | None = None  # the digest
    guessed: Guessed | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list[int]:
        return [piece.token for piece in self.pieces]

    @property
    def route(self) -> tuple[Hop, ...]:
        return self.pieces[-1].route if self.pieces else ()

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token, whose time is that of the prompt."""
        spent_s = sum(piece.seconds for piece in self.pieces[1:])
        return (len(self.pieces) - 1) / spent_s if spent_s > 0 else None

    def facts(self) -> dict[str, Any]:
        rate = self.tokens_per_s
        return {
            "text": self.text,
            "tokens": self.tokens,
            "seconds": [round(piece.seconds, 6) for piece in self.pieces],
            "time_to_first_token_s": round(self.pieces[0].seconds, 6) if self.pieces else None,
            "tokens_per_s": None if rate is None else round(rate, 3),
            "route": [_hop(hop) for hop in self.route],
            "recoveries": [
                {
                    "peer": lost.peer,
                    "blocks": [lost.blocks.start, lost.blocks.stop],
                    "reason": lost.reason,
                    "after_s": round(lost.at_s - self.began_s, 6),
                    "moved": lost.moved,
                }
                for lost in self.recoveries
            ],
            "exact": self.exact,
            "audits": None if self.audits is None else asdict(self.audits),
            "adapter": self.adapter,
            "guesses": None if self.guessed is None else guesses(self.guessed),
            "seed": self.seed,
            "finish": self.finish,
        }

    def summary(self) -> str:
        """One line for a reader."""
        count, rate = len(self.pieces), self.tokens_per_s
        parts = [f"{count} token{'' if count == 1 else 's'}"]
        if rate is not None:
            parts.append(f"{rate:.1f} tokens/s")
        if self.pieces:
            parts.append(f"first after {self.pieces[0].seconds * 1e3:.0f} ms")
        parts.append(f"{len(self.route)} hop{'' if len(self.route) == 1 else 's'}")
        if self.guessed is not None and self.guessed.sent:
            parts.append(f"{self.guessed.accepted} of {self.guessed.sent} guesses right")
        if self.adapter is not None:
            parts.append(f"adapter {self.adapter}")
        lost = ", ".join(short(one.peer) for one in self.recoveries if not one.moved)
        if lost:
            parts.append(f"went on without {lost}")
        if any(one.moved for one in self.recoveries):
            parts.append("left a relay for a direct way")
        if not self.exact:
            parts.append("by a peer that rounds otherwise")
        if self.audits is not None:
            parts.append(audits_line(self.audits))
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return f"[{', '.join(parts)}; {self.finish}]"


def tell_answer(
    question: Question,
    *,
    join: Sequence[str],
    home: Path | None,
    offline: bool,
    anonymous: bool = False,
    json: bool,
    quiet: bool,
) -> int:
    """Ask, and print. Returns the exit code; raises what the swarm raised, after what came."""
    told, live = Told(), not json
    if question.receipt is not None:
        check_place(question.receipt)

    async def ask() -> int:
        nonlocal live
        with until_signalled() as interruption:
            async with open_swarm(join, home=home, offline=offline, anonymous=anonymous) as swarm:
                audit = question.habits.audit
                if swarm.audits if audit is None else audit:  # what a pipe was given, it has
                    live = live and sys.stdout is not None and sys.stdout.isatty()
                show = _stream if live else (lambda text: None)
                await follow(swarm, question, told, show, bar=not quiet and not json)
        if interruption.number:
            told.finish = "interrupted"
        return interruption.exit_code

    try:
        return trio.run(ask)
    finally:
        if json:
            print_json(told.facts())
        elif told.pieces:
            if not live:
                say(told.text, end="")
            say(end="" if told.text.endswith("\n") else "\n")
            if not quiet:
                note(told.summary())


async def follow(
    swarm: Swarm,
    question: Question,
    told: Told,
    show: Callable[[str], None],
    after: Callable[[Piece], None] = lambda piece: None,
    *,
    bar: bool = False,
) -> None:
    """Put one answer into `told`, and its text to `show`, as it comes; what stands of it once more,
    behind a line that says why, when a part of it is replaced. bar: show how far a long prompt
    is."""
    options = question.habits.options()
    options["stop"] = question.stop
    options["receipts"] = question.receipt is not None
    async with swarm.generation(question.model, question.prompt, **options) as answer:
        told.began_s = trio.current_time()
        told.recoveries = answer.recoveries
        told.seed = answer.seed
        told.audits = answer.audits
        told.adapter = answer.adapter
        told.guessed = answer.guessed
        with prefill_bar(answer, bar) as was_read:
            async for piece in answer:
                was_read()
                if hear(told.pieces, piece):
                    show("\n" + AMENDED + "\n" + told.text)
                else:
                    show(piece.text)
                after(piece)
        told.finish = told.pieces[-1].finish or "failed"
        told.exact = answer.exact
        if question.receipt is not None:
            write_receipt(question.receipt, await answer.proof(swarm.member.key))


def audits_line(audits: Tally) -> str:
    """What they came to, for a reader."""
    found = ((audits.right, "right"), (audits.wrong, "wrong"), (audits.open, "open"))
    told = ", ".join(f"{count} {what}" for count, what in found if count)
    line = f"{audits.audited} of {audits.signed} signed chunks audited" + (f": {told}" * bool(told))
    if audits.unaudited:
        line += f", {audits.unaudited} that nobody could audit"
    if audits.convicted:
        line += f", convicted {' '.join(map(short, audits.convicted))}"
    return line


def guesses(guessed: Guessed) -> dict[str, Any]:
    """As facts. share: of those that were sent, right."""
    share = guessed.share
    return {
        "sent": guessed.sent,
        "accepted": guessed.accepted,
        "share": None if share is None else round(share, 3),
        "steps": guessed.steps,
    }


def short(peer: str) -> str:
    """The end of a peer id: all of them begin alike."""
    return peer[-8:]


def _stream(text: str) -> None:
    if text:
        say(text, end="")


def _hop(hop: Hop) -> dict[str, Any]:
    return {"peer": hop.peer, "blocks": [hop.blocks.start, hop.blocks.stop]}
