"""A conversation: lines in, answers out, until there is nothing more to say.

The client is the blocking one, so that the terminal keeps its line editing and Ctrl-C its meaning:
at the prompt it ends the program, in an answer it ends the answer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

from ..errors import LocalError, PotluckError, UserError
from ..node.blocking import BlockingSwarm, connect
from ..node.compute.voice import Voice
from ..node.generation import Piece, hear
from ..node.prompt import check_text
from .answer import AMENDED
from .edge import complain
from .habits import Habits
from .options import note, say

with suppress(ImportError):  # not on Windows
    import readline as readline  # input() edits lines by it

Message = dict[str, str]


def talk(
    model: str,
    habits: Habits,
    *,
    system: str,
    join: Sequence[str],
    home: Path | None,
    offline: bool,
    anonymous: bool = False,
    quiet: bool,
) -> None:
    """Raises UserError when there is no such model, or it cannot chat; and, where nobody sits
    before it, whatever hinders an answer."""
    habits.check()
    check_text(system, "--system")
    if sys.stdin is None:
        raise UserError("questions are read from stdin, which is closed; use generate")
    with connect(join, home=home, offline=offline, anonymous=anonymous) as swarm:
        voice = swarm.voice(model)
        voice.text.chat([{"role": "user", "content": "Hello"}])  # has it a template at all?
        if habits.adapter is not None:
            swarm.adapter(model, habits.adapter)
        start: list[Message] = [{"role": "system", "content": system}] if system else []
        messages = list(start)
        interactive = sys.stdin.isatty()
        if interactive and not quiet:
            note(f"{voice.name}: /reset begins anew, /quit or Ctrl-D ends, Ctrl-C stops an answer")
        while (line := _line("> " if interactive else "")) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit":
                    return
                case "/reset":
                    messages = list(start)
                    continue
            messages.append({"role": "user", "content": line})
            try:
                answer = _answer(swarm, voice, model, habits, messages, quiet)
            except LocalError:
                raise
            except PotluckError as error:
                if not interactive:
                    raise  # a script would take the next answer for this one's
                complain(str(error))
                answer = None
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        if prompt:
            say()
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"a line on stdin is not UTF-8 ({error.reason})") from error


def _answer(
    swarm: BlockingSwarm,
    voice: Voice,
    model: str,
    habits: Habits,
    messages: list[Message],
    quiet: bool,
) -> str | None:
    """Print an answer as it comes; None when there was none. Raises PotluckError."""
    pieces: list[Piece] = []
    text, shown = "", 0
    check_text(messages[-1]["content"], "the line")
    ids, room = _fit(voice, messages)
    asked = habits.options()
    asked["max_new_tokens"] = min(habits.max_new_tokens, room)
    try:
        with closing(swarm.generate(model, ids, **asked)) as answer:  # type: ignore[type-var]
            for piece in answer:
                if hear(pieces, piece):
                    say(f"\n{AMENDED}")
                    text, shown = "".join(one.text for one in pieces).lstrip(), 0
                else:
                    text += piece.text if text else piece.text.lstrip()
                say(text[shown:], end="")
                shown = len(text)
    except KeyboardInterrupt:
        pass  # enough of this answer
    except PotluckError:
        say(end="\n" if pieces else "")
        raise
    say()
    if pieces and not quiet:
        note(_summary(pieces))
    return text.strip() or None


def _fit(voice: Voice, messages: list[Message]) -> tuple[list[int], int]:
    """The ids of the conversation, and how many more fit. Forgets the oldest turns if it must."""
    while True:
        ids = voice.text.chat(messages)
        room = voice.context - len(ids)
        if room > 0:
            return ids, room
        oldest = 1 if messages[0]["role"] == "system" else 0
        if len(messages) - oldest < 3:
            raise UserError(
                f"that is more than the {voice.context} tokens that {voice.name} reads: shorten it"
            )
        del messages[oldest : oldest + 2]
        note("(the oldest question and its answer are forgotten: the context is full)")


def _summary(pieces: Sequence[Piece]) -> str:
    spent_s = sum(piece.seconds for piece in pieces[1:])
    rate = f", {(len(pieces) - 1) / spent_s:.1f} tokens/s" if spent_s > 0 else ""
    hops = len(pieces[-1].route)
    changes = sum(one.route != other.route for one, other in pairwise(pieces))
    changed = f", {changes} change{'' if changes == 1 else 's'} of route" if changes else ""
    return f"[{len(pieces)} tokens{rate}, {hops} hop{'' if hops == 1 else 's'}{changed}]"
