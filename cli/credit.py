"""What this home gave and took, and what is owed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .options import Home, Json, print_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from ..node.credit.accounts import Account


def credit(home: Home = None, json: Json = False) -> None:
    """What this home gave and took, and who owes whom.

    GAVE and TOOK are sums that both sides signed, since they met: tokens through a billion weights,
    a token of an answer counting twice. OWED is what is left of the difference, for it fades, by
    half in a week: above zero that peer serves us before others, below it is served by us. It is
    read from this home's disk, so it does not matter whether its node runs.

    \b
    Example:
      potluck credit
      potluck credit --json | jq .sum.owed
    """
    from ..node.config import home_of
    from ..node.credit.accounts import read_accounts
    from .logs import show_logs

    show_logs("warning")
    place = home_of(home)
    found = read_accounts(place, time.time())
    peer, accounts = found if found is not None else (None, [])
    if json:
        print_json(facts(peer, accounts))
    elif not accounts:
        say(_empty(place, served=peer is not None))
    else:
        show(accounts)


def facts(peer: str | None, accounts: list[Account]) -> dict[str, object]:
    from ..node.credit.accounts import sums

    return {
        "peer": peer,
        "peers": [
            {
                "peer": one.peer,
                "gave": one.gave,
                "took": one.took,
                "owed": one.owed,
                "signed_s": one.last_s,
            }
            for one in accounts
        ],
        "sum": dict(zip(("gave", "took", "owed"), sums(accounts), strict=True)),
    }


def show(accounts: list[Account]) -> None:
    from ..node.credit.accounts import sums
    from .answer import short
    from .tables import print_table

    rows = [
        (short(one.peer), *map(_number, (one.gave, one.took, one.owed)), _day(one.last_s))
        for one in accounts
    ]
    rows.append(("all", *map(_number, sums(accounts)), ""))
    print_table(("PEER", "GAVE>", "TOOK>", "OWED>", "LAST"), rows)


def _number(work: float) -> str:
    return f"{work:,.0f}" if abs(work) >= 100 else f"{work:,.3g}"


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))


def _empty(home: Path, *, served: bool) -> str:
    if not served:
        return (
            f"Nothing was given or taken under {home}: no node has run there.\n"
            "Credit is earned by serving: potluck node -m demo"
        )
    return (
        "Nothing is signed yet: nobody with a node of its own has asked this one, nor has this home"
        " asked others.\nKeep it running: potluck node -m auto. To ask: potluck generate"
    )
