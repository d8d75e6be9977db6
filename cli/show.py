"""Look at a swarm."""

from __future__ import annotations

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
