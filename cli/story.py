"""What the demo does, told step by step as it happens."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
import typer

from ..errors import PotluckError
from ..node.client import Swarm, open_swarm
from ..node.config import home_of
from ..node.generation import Piece
from ..node.testnet.launcher import LocalSwarm, open_testnet
from ..node.testnet.roster import Seat
from .answer import Question, Told, follow, short
from .edge import DONE, FAILED, ended_by_signals, until_signalled
from .habits import Habits
from .options import colour, print_json, say
from .testnet import make_plan

NODES, REPLICAS = 6, 2  # three stages, each of which can lose a server
FOLDER = "demo"  # of the home: so that a testnet of the user's own is left alone
WIDTH = 76


@dataclass(frozen=True, slots=True)
class Script:
    """What is to happen. kill_after: tokens."""

    prompt: str
    model: str
    max_new_tokens: int
    kill_after: int


@dataclass(slots=True)
class Loss:
    """Who was killed, and what it cost. stall_s: the longest wait for a token after it."""

    seat: Seat
    instead: Seat | None = None
    stall_s: float = 0.0


def play(script: Script, home: Path | None, *, json: bool) -> int:
    """Play it, and end everything. The exit code."""
    place = home_of(home) / FOLDER
    stage = Stage(quiet=json)
    with ended_by_signals():
        plan = make_plan(script.model, place, nodes=NODES, replicas=REPLICAS)
        stage.title(f"{NODES} processes on this machine share {plan.name}, of {plan.blocks} blocks")
        began_s = time.monotonic()
        with open_testnet(plan, tell=stage.node) as net:
            ready_s = time.monotonic() - began_s
            stage.ready(ready_s)
            told, again = Told(), Told()
            loss: list[Loss] = []
            code = trio.run(_ask_twice, script, net, stage, told, again, loss)
    if code:
        return code
    same = told.tokens == again.tokens and told.text == again.text
    stage.verdict(same)
    if json:
        print_json(_facts(script, told, again, loss[0], ready_s, same))
    return DONE if same else FAILED


async def _ask_twice(
    script: Script, net: LocalSwarm, stage: Stage, told: Told, again: Told, loss: list[Loss]
) -> int:
    question = Question(script.prompt, script.model, Habits(script.max_new_tokens))
    with until_signalled(with_children=True) as interruption:
        async with open_swarm(net.join, home=net.roster.folder.parent) as swarm:
            stage.title("It answers, and a process that serves is killed in the middle")
            loss.append(await _ask_and_kill(swarm, question, script.kill_after, net, stage, told))
            stage.loss(loss[0])
            stage.title("The same question once more, undisturbed")
            stage.begin(script.prompt)
            await follow(swarm, question, again, stage.stream)
            stage.end(again)
    return interruption.exit_code


async def _ask_and_kill(
    swarm: Swarm, question: Question, after: int, net: LocalSwarm, stage: Stage, told: Told
) -> Loss:
    """Ask, and kill whoever serves the middle of the model once `after` tokens have come."""
    loss: list[Loss] = []
    seats = {seat.peer: seat for seat in net.seats}

    def kill(piece: Piece) -> None:
        if len(told.pieces) == after:
            victim = seats[piece.route[len(piece.route) // 2].peer]
            net.send(victim.name, signal.SIGKILL)
            stage.mark(f"[{victim.name} killed]")
            loss.append(Loss(victim))

    stage.begin(question.prompt)
    await follow(swarm, question, told, stage.stream, kill)
    stage.end(told)
    if not loss or len(told.pieces) == after:
        raise PotluckError(
            f"the answer ended after {len(told.pieces)} tokens, before a loss could be seen: "
            "ask something else, or kill earlier by --kill-after"
        )
    served = [hop.peer for hop in told.route if hop.blocks.start <= loss[0].seat.start]
    loss[0].instead = seats[served[-1]]
    loss[0].stall_s = max(piece.seconds for piece in told.pieces[after:])
    return loss[0]


class Stage:
    """How the story looks: numbered steps, the answer between them, wrapped by hand."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._steps = 0
        self._column = 0
        self._colour = colour(sys.stdout)

    def title(self, text: str) -> None:
        self._steps += 1
        self._say(f"\n{self._bold(f'{self._steps}. {text}')}")

    def node(self, seat: Seat) -> None:
        self._say(f"   {seat.name} holds blocks {seat.start}:{seat.stop}")

    def ready(self, ready_s: float) -> None:
        self._say(f"   None of them holds the model. All serve after {ready_s:.1f} s.")

    def begin(self, prompt: str) -> None:
        self._column = 0
        self._say()
        self._put(prompt, bold=True)

    def stream(self, text: str) -> None:
        self._put(text)

    def mark(self, text: str) -> None:
        self._put(f" {text} ", colour=typer.colors.RED)

    def end(self, told: Told) -> None:
        rate = told.tokens_per_s
        speed = f", {rate:.0f} a second" if rate else ""
        self._say(f"\n\n   {len(told.pieces)} tokens through {len(told.route)} processes{speed}.")

    def loss(self, loss: Loss) -> None:
        dead, instead = loss.seat, loss.instead
        self._say(
            f"   {dead.name} (peer ...{short(dead.peer)}), which served blocks "
            f"{dead.start}:{dead.stop}, was killed by SIGKILL."
        )
        if instead is not None:
            self._say(
                f"   {instead.name} (peer ...{short(instead.peer)}) took over: the client "
                "replayed to it what it had kept."
            )
        self._say(f"   The longest wait for a token after that: {loss.stall_s * 1e3:.0f} ms.")

    def verdict(self, same: bool) -> None:
        word = "yes" if same else "NO"
        tint = typer.colors.GREEN if same else typer.colors.RED
        painted = typer.style(word, fg=tint, bold=True) if self._colour else word
        self._say("\nAll processes have ended. A swarm of your own: potluck testnet up")
        self._say(f"{self._bold('Same words:')} {painted}")

    def _put(self, text: str, *, bold: bool = False, colour: str | None = None) -> None:
        """A piece of the answer: indented, and broken at the first blank behind WIDTH."""
        out = []
        for letter in text:
            if letter == "\n" or (letter == " " and self._column > WIDTH):
                out.append("\n")
                self._column = 0
                continue
            if self._column == 0:
                out.append("   ")
            out.append(letter)
            self._column += 1
        shown = "".join(out)
        plain = not self._colour or not (bold or colour)
        self._say(shown if plain else typer.style(shown, bold=bold, fg=colour), end="")

    def _bold(self, text: str) -> str:
        return typer.style(text, bold=True) if self._colour else text

    def _say(self, text: str = "", *, end: str = "\n") -> None:
        if not self._quiet:
            say(text, end=end)


def _facts(
    script: Script, told: Told, again: Told, loss: Loss, ready_s: float, same: bool
) -> dict[str, Any]:
    return {
        "prompt": script.prompt,
        "model": script.model,
        "ready_s": round(ready_s, 3),
        "killed": {
            "node": loss.seat.name,
            "peer": loss.seat.peer,
            "blocks": [loss.seat.start, loss.seat.stop],
            "after_tokens": script.kill_after,
        },
        "instead": loss.instead.peer if loss.instead else None,
        "stall_ms": round(loss.stall_s * 1e3, 3),
        "disturbed": told.facts(),
        "undisturbed": again.facts(),
        "same": same,
    }
