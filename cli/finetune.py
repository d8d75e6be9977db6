"""Train an adapter, alone or together with whoever has the same file."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError
from ..node.testnet.lies import RUN_LIE
from .loading import loading
from .options import (
    Home,
    Join,
    Json,
    Listen,
    LogJson,
    LogLevel,
    Offline,
    Port,
    note,
    print_json,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..node.runs.checkpoint import Progress
    from ..node.runs.finetune import Finished, Started, Wish
    from ..node.runs.kinds import Open

MEGA = 1e6


def finetune(
    run: Annotated[
        Path, typer.Argument(metavar="RUN.toml", help="What is trained, on what, and how.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the adapter is put, as PEFT reads it; default: the run's "
            "file without its ending.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The loss as a picture; default: beside the adapter."),
    ] = None,
    where: Annotated[
        Literal["auto", "here", "swarm"],
        typer.Option(
            help="Where the model's blocks are computed; auto: here, if all of it is on this disk."
        ),
    ] = "auto",
    peers: Annotated[
        int, typer.Option(min=0, help="Others to wait for before the first step.")
    ] = 0,
    linger_s: Annotated[
        float,
        typer.Option("--linger", min=0, metavar="SECONDS", help="To be there for slower peers."),
    ] = 30.0,
    join: Join = None,
    listen: Listen = None,
    port: Port = 0,
    home: Home = None,
    offline: Offline = False,
    log_level: LogLevel = "warning",
    log_json: LogJson = False,
    json: Json = False,
) -> None:
    """Take part in a run: start it, or join whoever is in it already.

    A run that was stopped, or killed, goes on where it was when it is started again. The least
    that its file says (all keys: README):

    \b
      name = "tales"
      model = "demo"
      [data]
      files = ["tales.jsonl"]

    \b
    Examples:
      potluck finetune tales.toml
      potluck finetune tales.toml --join /ip4/... --listen all
      potluck generate "Once" -m demo --adapter ./tales
    """
    with loading():
        from ..node.config import find_join, home_of
        from ..node.runs.finetune import Wish
        from .logs import show_logs
        from .serve import LOOPBACK, listen_addresses

    show_logs(log_level, as_json=log_json)
    place = home_of(home)
    folder = out or run.with_suffix("")
    if folder == run:
        raise UserError(f"{run}: has no ending, so the adapter has no place: give --out")
    wish = Wish(
        run, place, folder, listen_addresses(listen or LOOPBACK, port),
        find_join(join or (), place), offline, where, peers, linger_s,
    )  # fmt: skip
    raise typer.Exit(_train(wish, plot or folder.with_name(f"{folder.name}.png"), json=json))


def _train(wish: Wish, plot: Path, *, json: bool) -> int:
    """The exit code."""
    import trio

    from ..node.runs.finetune import take_part
    from ..node.runs.kinds import KINDS
    from .edge import until_signalled

    kinds: Mapping[str, Open] = KINDS
    if RUN_LIE in os.environ:
        from ..node.testnet.run_liars import lying_kinds

        kinds = lying_kinds()

    found: list[Finished] = []
    code = 0

    async def train() -> None:
        nonlocal code
        with until_signalled() as told:
            tell = _tell_json if json else _tell
            begin = _begin_json if json else _begin
            found.append(await take_part(wish, started=begin, tell=tell, kinds=kinds))
        code = told.exit_code

    trio.run(train)
    for finished in found:
        _end(finished, plot, json=json)
    if code:
        note("stopped; the same command goes on from the last checkpoint")
    return code


def _begin(facts: Started) -> None:
    where = "here" if facts.here else "over the swarm"
    say(f"run {facts.run[:16]}: {facts.trained:,} numbers, {facts.sequences:,} sequences of which"
        f" {facts.held_out} are held out; blocks are computed {where}")  # fmt: skip
    for address in facts.addresses[:1]:
        say(f"others join with the same file and --join {address}")


def _begin_json(facts: Started) -> None:
    print_json({"event": "started", **asdict(facts)}, indent=None)


def _tell(progress: Progress) -> None:
    held_out = "" if progress.held_out is None else f"  held out {progress.held_out:.4f}"
    say(
        f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.4f}{held_out}"
        f"  {progress.tokens_s:.0f} tokens/s  {progress.sent_bytes / MEGA:.2f} MB sent"
        f"  {progress.peers} peers"
    )


def _tell_json(progress: Progress) -> None:
    print_json({"event": "epoch", **asdict(progress)}, indent=None)


def _end(finished: Finished, plot: Path, *, json: bool) -> None:
    drawn: Path | None = plot
    try:
        from .loss_plot import draw

        draw(finished.history, plot)
    except UserError as error:
        drawn = None
        note(f"no picture of the loss: {error}")
    if json:
        told = {"folder": str(finished.folder), "held_out": finished.held_out}
        print_json({"event": "finished", **told, "plot": drawn and str(drawn)}, indent=None)
        return
    loss = "" if finished.held_out is None else f", held-out loss {finished.held_out:.4f}"
    say(f"{finished.folder}: the adapter{loss}")
    if drawn:
        say(f"{drawn}: its loss over the tokens")
