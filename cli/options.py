"""The options that several commands share, and how answers reach the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import UserError

Home = Annotated[
    Path | None,
    typer.Option(help="Where keys, digests and running nodes are kept. [env: POTLUCK_HOME]"),
]
Join = Annotated[
    list[str] | None,
    typer.Option(
        "--join",
        metavar="MULTIADDR",
        help="A peer to join by; may be repeated. Default: POTLUCK_JOIN, the config file, or what "
        "runs under this home.",
    ),
]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="all (every interface, IPv4 and IPv6; 0.0.0.0 and :: mean the same), an IP address, "
        "or a multiaddr; may be repeated. Default: 127.0.0.1, this machine alone.",
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any free one.")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
LogJson = Annotated[
    bool, typer.Option("--log-json", help="Log as JSON: an object a line, for whatever collects.")
]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Anonymous = Annotated[
    bool, typer.Option("--anonymous", help="Ask on no node's account, as a stranger.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")]
Relay = Annotated[
    Literal["auto", "yes", "no"],
    typer.Option(
        help="Pass on, within limits, for peers behind NATs: auto is once strangers can dial us."
    ),
]
Ban = Annotated[
    list[str] | None,
    typer.Option(
        "--ban",
        metavar="PEER|NETWORK|FILE",
        help="Have nothing to do with a peer (its id), an IP address or a network "
        "(203.0.113.0/24), or those in a file, one in a line; may be repeated.",
    ),
]
AllowOnly = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-only",
        metavar="PEER|NETWORK|FILE",
        help="Have to do with these alone; may be repeated. A client has another id each time: "
        "allow it by its address.",
    ),
]
Pinned = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="PEER_ID[@ADDRESS]",
        help="Hold on to this peer, whatever others say of it: it is dialled first, always known, "
        "and trusted from the start; may be repeated. See `potluck pin`.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="End before this text, in which \\n and \\t stand for a new line and a tab; "
        "may be repeated."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="demo, a folder, a hub id (org/name or org/name@revision), or a name served here.",
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="demo, a folder, a hub id (org/name or org/name@revision), or a name served here; "
        "auto: the one that the swarm needs served most. May be repeated, to serve several.",
    ),
]


def stops_of(told: Sequence[str] | None) -> tuple[str, ...]:
    """The texts that --stop means: shells have no easy way to write a new line. Raises
    UserError."""
    if "" in (told or ()):
        raise UserError("--stop is empty: give the text before which an answer ends")
    return tuple(one.replace("\\n", "\n").replace("\\t", "\t") for one in told or ())


def say(text: str = "", *, end: str = "\n") -> None:
    """To stdout, at once."""
    typer.echo(text + end, nl=False, color=colour(sys.stdout))


def note(text: str) -> None:
    """An aside, to stderr."""
    typer.echo(typer.style(text, dim=True), err=True, color=colour(sys.stderr))


def print_json(facts: Any, *, indent: int | None = 2) -> None:
    typer.echo(json.dumps(facts, indent=indent, ensure_ascii=False))


def colour(stream: Any) -> bool:
    """Whether this stream shows colours: a terminal, unless NO_COLOR says otherwise. None: it was
    closed before we came."""
    return "NO_COLOR" not in os.environ and stream is not None and bool(stream.isatty())
