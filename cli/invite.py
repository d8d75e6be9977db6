"""A swarm of one's own: ask friends in, and accept."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Home, Json, print_json, say


def invite(
    join: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MULTIADDR",
            help="Where friends can reach a member; may be repeated. Default: what the node under "
            "this home says.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PEER|NETWORK",
            help="Admit these alone, even of those that have the token; may be repeated.",
        ),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Print a token that lets friends into a swarm of your own; the first time, found that swarm.

    Without the token nobody can list, read, join or use anything of it. All that runs under this
    home is in it from its next start; remove the file `swarm` in the home to leave it.

    \b
    Examples:
      potluck invite; potluck node -m demo --listen all --port 4001    # the first time
      potluck invite
      potluck invite --allow 12D3KooW... --allow 192.168.0.0/16
    """
    from ..node.config import home_of, running_nodes
    from ..node.identity import load_or_create
    from ..node.invite import found, load_private, save_private, swarm_file, token_of

    place = home_of(home)
    before = load_private(place)
    running = running_nodes(place) if before is not None else ()
    reached = [str(one) for told in running for one in told.get("addresses", ())]
    reached = [one for one in reached if not is_here(one)] or reached
    mine = (load_or_create(place).peer_id,) if allow else ()
    private = (before or found()).with_more(join=join or reached, allow=(*mine, *(allow or ())))
    save_private(place, private)
    if json:
        facts = {"token": token_of(private), "join": private.join, "allow": private.allow}
        print_json(facts | {"founded": before is None})
        return
    if before is None:
        say(
            f"A swarm of your own is founded: {swarm_file(place)} holds its key. Start its first "
            "node, with a --port that stays,\nand invite again for a token that says where it is."
        )
    elif not private.join:
        say("No node runs under this home: friends need a --join of their own.")
    say(f"For friends alone; whoever has it is in:\n\n  potluck join {token_of(private)}\n")
    if private.allow:
        say(f"And on the list: {', '.join(private.allow)}")


def is_here(address: str) -> bool:
    """Whether it leads to this machine alone."""
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


def join(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="What `potluck invite` printed.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Accept an invitation: from its next start on all under this home is in that swarm.

    A newer token of the same swarm brings its addresses and its list up to date.

    \b
    Example:
      potluck join potluck1-...
    """
    from ..errors import UserError
    from ..node.config import home_of
    from ..node.identity import load_or_create
    from ..node.invite import load_private, read_token, save_private, swarm_file

    place = home_of(home)
    private, before = read_token(token), load_private(place)
    if before is not None and before.key != private.key:
        raise UserError(
            f"{place} is in another swarm already: remove {swarm_file(place)} to leave that, or "
            "give this one a --home of its own"
        )
    save_private(place, private)
    me = load_or_create(place).peer_id
    if json:
        print_json({"peer": me, "join": private.join, "allow": private.allow})
        return
    say("You are in, from the next start: potluck node, potluck chat, ...")
    if private.allow and me not in private.allow:
        say(f"It has a list. Ask to be put on it, and for the newer token: {me}")
