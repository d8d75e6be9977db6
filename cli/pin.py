"""Peers that the owner holds on to."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Home, Json, print_json, say

pin = typer.Typer(
    help="Peers to hold on to, whatever others say of them: friends' nodes, as a rule."
)

Pins = Annotated[
    list[str],
    typer.Argument(
        metavar="PEER_ID[@ADDRESS]",
        help="Its id, with @ and where it listens if you know that; or the address that it prints.",
    ),
]


@pin.command()
def add(pins: Pins, home: Home = None, json: Json = False) -> None:
    """Pin peers: dialled first, always known, trusted from the start; from the next start on.

    \b
    Examples:
      potluck pin add 12D3KooW...
      potluck pin add 12D3KooW...@/ip4/203.0.113.7/tcp/4001
    """
    from ..node.config import home_of
    from ..node.pins import load_pins, parse_pin, save_pins, together

    place = home_of(home)
    given = [parse_pin(one) for one in pins]
    save_pins(place, together(given, load_pins(place)))  # a new address takes the old one's place
    _show(home, json)


@pin.command()
def rm(
    peers: Annotated[list[str], typer.Argument(metavar="PEER_ID")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Pin these no more.

    \b
    Example:
      potluck pin rm 12D3KooW...
    """
    from ..errors import UserError
    from ..node.config import home_of
    from ..node.pins import load_pins, parse_pin, save_pins

    place = home_of(home)
    gone = {parse_pin(one).peer for one in peers}
    before = load_pins(place)
    if missing := gone - {one.peer for one in before}:
        raise UserError(f"{', '.join(sorted(missing))}: not pinned here: see potluck pin ls")
    save_pins(place, [one for one in before if one.peer not in gone])
    _show(home, json)


@pin.command()
def ls(home: Home = None, json: Json = False) -> None:
    """Who is pinned, by config.toml too.

    \b
    Example:
      potluck pin ls
    """
    _show(home, json)


def _show(home: Home, json: bool) -> None:
    from ..node.config import find_pins, home_of

    found = find_pins(home_of(home))
    if json:
        print_json([{"peer": one.peer, "address": one.address or None} for one in found])
    elif not found:
        say("Nobody is pinned. To hold on to a friend's node: potluck pin add PEER_ID@ADDRESS")
    for one in () if json else found:
        say(str(one))
