"""The models that the swarm serves, and the weights that lie on this disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Home, Join, Json, Offline, print_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from ..node.weights.parts import About

models = typer.Typer(
    help="The models that the swarm serves; pull, ls, rm, prune: the weights on this disk.",
)


@models.callback(invoke_without_command=True)
def show(context: typer.Context, join: Join = None, home: Home = None, json: Json = False) -> None:
    """The models that the swarm serves; pull, ls, rm, prune: the weights on this disk.

    \b
    Examples:
      potluck models
      potluck models pull Qwen/Qwen3-0.6B --blocks 0:14
    """
    if context.invoked_subcommand is not None:
        return
    from .logs import show_logs
    from .picture import show_models

    show_logs("warning")
    raise typer.Exit(show_models(join or (), home, json=json))


@models.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="ORG/NAME[@REVISION]")],
    blocks: Annotated[
        str, typer.Option(metavar="START:STOP", help="Which blocks; : is the whole model.")
    ] = ":",
    max_weights_mib: Annotated[
        int,
        typer.Option(
            "--max-weights", min=0, metavar="MIB", help="For all weights; 0: what is free."
        ),
    ] = 0,
    join: Join = None,
    home: Home = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Bring a model's weights here, from peers that have them and from the hub.

    What is in the hub's cache stays there, and is used. What was fetched is kept when this is
    stopped: the next pull goes on from there.

    \b
    Examples:
      potluck models pull Qwen/Qwen3-0.6B
      potluck models pull Qwen/Qwen3-8B --blocks 0:9 --join /ip4/...
    """
    from .loading import loading
    from .logs import show_logs

    show_logs("warning")
    with loading():
        from .pulling import pull_weights
    facts = pull_weights(
        model, blocks, join or (), home, max_weights_mib << 20, offline, quiet=json
    )
    if json:
        print_json(facts)
    else:
        say(
            f"{facts['model']}: {_mib(facts['bytes'])} are here; {_mib(facts['from_peers'])} came"
            f" from peers, {_mib(facts['from_hub'])} from the hub"
        )


@models.command()
def ls(home: Home = None, json: Json = False) -> None:
    """The weight files that this home knows of: parts of its own, and whole ones elsewhere.

    \b
    Example:
      potluck models ls
    """
    found = [_facts(place_about) for place_about in _here(home)]
    if json:
        print_json(found)
    elif not found:
        say("No weights are here. To bring some: potluck models pull ORG/NAME")
    else:
        from .tables import print_table

        print_table(
            ("MODEL", "FILE", "HERE>", "OF>", "WHERE"),
            [
                (one["model"], one["file"], _mib(one["bytes"]), _mib(one["size"]), one["path"])
                for one in found
            ],
        )


@models.command()
def rm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As ls shows it, or its start.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Remove a model's weights from this home; files in the hub's cache or elsewhere stay.

    \b
    Example:
      potluck models rm Qwen/Qwen3-0.6B
    """
    from ..errors import UserError
    from ..node.config import home_of
    from ..node.weights.library import Library, hold_weights

    place = home_of(home)
    with hold_weights(place):
        library = Library(place)
        mine = [one for one in library.files() if _is(one.about.model, model)]
        if not mine:
            raise UserError(f"{model}: no weights of that name are here: see potluck models ls")
        freed = sum(library.remove(one.sha256) for one in mine)
    if json:
        print_json({"files": len(mine), "freed": freed})
    else:
        say(f"{_mib(freed)} freed")


@models.command()
def prune(
    keep_mib: Annotated[
        int, typer.Option("--keep", min=0, metavar="MIB", help="How much may stay.")
    ] = 0,
    home: Home = None,
    json: Json = False,
) -> None:
    """Remove weights until no more than so many MiB are left, what was used last stays longest.

    \b
    Examples:
      potluck models prune
      potluck models prune --keep 20000
    """
    from ..node.config import home_of
    from ..node.weights.library import Library, hold_weights

    place = home_of(home)
    with hold_weights(place):
        library = Library(place)
        before = library.used_bytes()
        gone = library.prune(keep_mib << 20)
        freed = before - library.used_bytes()
    if json:
        print_json({"files": len(gone), "freed": freed})
    else:
        say(f"{_mib(freed)} freed")


def _here(home: Path | None) -> list[tuple[Path, About]]:
    from ..node.config import home_of
    from ..node.weights.library import WEIGHTS, listed

    place = home_of(home)
    return [(place / WEIGHTS / about.sha256, about) for about in listed(place)]


def _facts(found: tuple[Path, About]) -> dict[str, Any]:
    from ..node.weights.parts import PieceFile

    folder, about = found
    file = PieceFile(folder, about)
    return {
        "model": about.model,
        "file": about.name,
        "sha256": about.sha256,
        "size": about.size,
        "bytes": about.size if about.elsewhere else file.bytes_here(),
        "whole": about.whole,
        "path": str(file.path),
        "ours": not about.elsewhere,
    }


def _is(known: str, named: str) -> bool:
    return named in (known, known.partition("@")[0])


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
