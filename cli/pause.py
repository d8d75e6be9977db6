"""Have this machine's node rest, and serve again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import PotluckError, UserError
from .options import Home, Json, print_json, say

SEE_OFF_S = 30.0  # guess: a node that was started with a longer --drain-s may take longer
LOAD_S = 600.0  # guess: many GiB from a cold disk
LOOK_EVERY_S = 0.1
HEARS_S = 10.0  # a node looks twice a second


def pause(
    duration: Annotated[
        str, typer.Argument(metavar="[DURATION]", help="90s, 30m, 1h, 2d; default: until resumed.")
    ] = "",
    why: Annotated[str, typer.Option(help="For whoever looks at potluck status.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """Have the node of this home rest: sessions move first, then its memory is given back.

    It stays in the swarm meanwhile, and keeps records for others. It serves again when the time
    is up, on potluck resume, or when it is started anew.

    \b
    Examples:
      potluck pause 1h
      potluck pause 90m --why "a film"
      potluck pause && potluck status
    """
    import math
    import time

    from ..node.config import home_of
    from ..node.rest import Rest, ask_rest, parse_duration

    seconds = parse_duration(duration) if duration else math.inf
    place = home_of(home)
    _serving(place)
    ask_rest(place, Rest(time.time() + seconds, why))
    told = _until(place, ("resting",), SEE_OFF_S + HEARS_S)
    if json:
        print_json(_facts(told), indent=None)
    else:
        say(f"Resting {f'for {duration}' if duration else 'until told to resume'}: potluck resume")


def resume(home: Home = None, json: Json = False) -> None:
    """Have the node of this home serve again.

    It goes on resting while it has to for another reason: potluck status tells which.

    \b
    Example:
      potluck resume
    """
    from ..node.config import home_of
    from ..node.rest import end_rest

    place = home_of(home)
    told = _serving(place)
    end_rest(place)
    told = _until(place, ("serving",), LOAD_S)
    if json:
        print_json(_facts(told), indent=None)
    elif told["state"] != "serving":
        say(f"Still resting: {told['rest']['why']}")
    else:
        start, stop = told["blocks"]
        say(f"Serving blocks {start}:{stop} of {told['name']}")


def _serving(home: Path) -> dict[str, Any]:
    """What the node of this home says of itself. Raises UserError when none serves a model."""
    from ..node.rest import running

    told = running(home)
    if "state" not in told:
        raise UserError(f"what runs under {home} serves no blocks, or is of an older version")
    return told


def _until(home: Path, states: tuple[str, ...], within_s: float) -> dict[str, Any]:
    """Wait until the node says that it is in one of these states, or why it cannot be in that of
    serving. Raises PotluckError."""
    import time

    from ..node.rest import running

    deadline_s = time.monotonic() + within_s
    while (told := running(home))["state"] not in states:
        rules = (told.get("rest") or {}).get("rules", ())
        if told["state"] == "resting" and rules and "asked" not in rules:
            return told
        if told.get("trouble"):
            raise PotluckError(f"the node cannot serve: {told['trouble']}; it tries again")
        if time.monotonic() > deadline_s:
            raise PotluckError(
                f"the node is still {told['state']} after {within_s:.0f} s; it goes on by itself: "
                "look at its log"
            )
        time.sleep(LOOK_EVERY_S)
    return told


def _facts(told: dict[str, Any]) -> dict[str, Any]:
    return {key: told.get(key) for key in ("peer", "name", "blocks", "state", "rest")}
