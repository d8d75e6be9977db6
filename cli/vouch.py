"""For whom this home vouches, and who is vouched for here."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from .options import Home, Json, print_json, say

vouch = typer.Typer(
    help="Say that a peer is honest: with those who trust you it is sooner out of probation."
)

Peer = Annotated[str, typer.Argument(metavar="PEER_ID")]


@vouch.command()
def add(
    peer: Peer,
    days: Annotated[float, typer.Option(help="Until when; at most 90.")] = 90.0,
    home: Home = None,
    json: Json = False,
) -> None:
    """Vouch for a peer that you know: its node is yours, or a friend's.

    You answer for it: if it is convicted of lying on evidence, your own standing falls with it. The
    node under this home tells those who ask.

    \b
    Example:
      potluck vouch add 12D3KooW... --days 30
    """
    from ..node.config import home_of
    from ..node.identity import load_or_create
    from ..node.trust.vouched import vouch_for

    place = home_of(home)
    given = vouch_for(place, load_or_create(place), peer, time.time(), days=days)
    if json:
        print_json({"peer": peer, "by": given.voucher, "until_s": given.told.expires_s})
    else:
        say(f"{given.voucher} vouches for {peer} until {_day(given.told.expires_s)}")


@vouch.command()
def rm(peer: Peer, home: Home = None, json: Json = False) -> None:
    """Take it back. You answer for what that peer did before for a month more.

    \b
    Example:
      potluck vouch rm 12D3KooW...
    """
    from ..node.config import home_of
    from ..node.identity import load_or_create
    from ..node.trust.vouched import take_back

    place = home_of(home)
    given = take_back(place, load_or_create(place), peer, time.time())
    if json:
        print_json({"peer": peer, "by": given.voucher, "revoked_s": given.told.issued_s})
    else:
        say(f"{given.voucher} does not vouch for {peer} any more")


@vouch.command()
def ls(home: Home = None, json: Json = False) -> None:
    """For whom this home vouches.

    \b
    Example:
      potluck vouch ls
    """
    from ..node.config import home_of
    from ..node.trust.vouched import load_vouched

    now = time.time()
    found = [one.told for one in load_vouched(home_of(home)) if not one.told.revoked]
    if json:
        print_json([{"peer": told.peer, "until_s": told.expires_s} for told in found])
    elif not found:
        say("This home vouches for nobody. To do so: potluck vouch add PEER_ID")
    for told in () if json else found:
        over = "  over" if told.expires_s <= now else ""
        say(f"{told.peer}  until {_day(told.expires_s)}{over}")


def _day(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")
