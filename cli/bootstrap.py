"""Run an entry point for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .loading import loading
from .options import AllowOnly, Ban, Home, Join, Json, Relay, print_json, say
from .run import LISTEN_HELP, listen_addresses

if TYPE_CHECKING:
    from ..node.bootstrap import BootstrapConfig, Ready


def bootstrap(
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help=LISTEN_HELP),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any free one.")] = 0,
    join: Join = None,
    home: Home = None,
    relay: Relay = "yes",
    ban: Ban = None,
    allow_only: AllowOnly = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    json: Json = False,
) -> None:
    """Be an address to join by, and keep records for others; serves no model, and loads no torch.

    \b
    Examples:
      potluck bootstrap --listen all --port 4001
      potluck bootstrap --home /srv/potluck --join /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...
    """
    from ..node.config import find_access, find_join, home_of
    from ..node.process import refuse_second
    from .logs import show_logs

    show_logs(log_level)
    place = home_of(home)
    refuse_second(place)
    with loading():
        from ..node.bootstrap import BootstrapConfig

    _answer(
        BootstrapConfig(
            home=place,
            listen=listen_addresses(listen or ["127.0.0.1"], port),
            join=find_join(join or (), place),
            relay=relay,
            access=find_access(place, ban=ban or (), allow_only=allow_only or ()),
            ban=tuple(ban or ()),
            allow_only=tuple(allow_only or ()),
        ),
        json,
    )


def _answer(config: BootstrapConfig, json: bool) -> None:
    with loading():
        import trio

        from ..node.bootstrap import run_bootstrap

    async def answer() -> None:
        async with trio.open_nursery() as nursery:
            ready = await nursery.start(run_bootstrap, config)
            if json:
                print_json(facts(ready), indent=None)
            else:
                say(announcement(ready))

    trio.run(answer)


def facts(ready: Ready) -> dict[str, object]:
    return {
        "peer": ready.peer,
        "addresses": list(ready.addresses),
        "known": ready.known,
        "seconds": round(ready.seconds, 3),
    }


def announcement(ready: Ready) -> str:
    """What a light node says when it answers: the line to copy."""
    known = f"knows {ready.known} peers" if ready.known else "knows nobody yet"
    lines = [f"An entry point, as {ready.peer}; {known} ({ready.seconds:.1f} s)"]
    for address in ready.addresses:
        lines.append(f"  join by it:  potluck node -m demo --join {address}")
    return "\n".join(lines)
