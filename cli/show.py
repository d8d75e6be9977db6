"""Look at a swarm."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Home, Join, Json


def status(join: Join = None, home: Home = None, json: Json = False) -> None:
    """Who serves what, and how well it is covered.

    LINK is as we reach that peer; of one that we do not reach, as its record says. TOKENS/S is
    through all blocks of that peer, by its own word; CACHE is free token positions. Of a node that
    runs here it tells how the network reaches it; potluck doctor tells more.

    \b
    Example:
      potluck status
      potluck status --json | jq '.models[].missing'
    """
    from .logs import show_logs
    from .picture import show_status

    show_logs("warning")
    raise typer.Exit(show_status(join or (), home, json=json))


def peers(join: Join = None, home: Home = None, json: Json = False) -> None:
    """The peers that serve, each with what it holds and how we reach it.

    \b
    Examples:
      potluck peers
      potluck peers --json | jq '.[] | select(.link == "relayed") | .peer'
    """
    from .logs import show_logs
    from .picture import show_peers

    show_logs("warning")
    raise typer.Exit(show_peers(join or (), home, json=json))


def top(
    join: Join = None,
    home: Home = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    count: Annotated[int, typer.Option(min=0, help="How often; 0: until Ctrl-C.")] = 0,
    json: Json = False,
) -> None:
    """Watch the swarm, live: what potluck status tells, until Ctrl-C.

    Where the output is no terminal it is plain text, one picture after another.

    \b
    Examples:
      potluck top
      potluck top --every 60 >> swarm.log
    """
    from .logs import show_logs
    from .top import watch

    show_logs("error")
    raise typer.Exit(watch(join or (), home, every_s=every, count=count, json=json))
