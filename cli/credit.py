"""What this home gave and took, and what is owed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .options import Home, Json, print_json, say

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    """One peer and this home. owed: what we gave it beyond what it gave us; faded, as credit is."""

    peer: str
    gave: float
    took: float
    owed: float
    last_s: float


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


def read_accounts(home: Path, now: float) -> tuple[str, list[Account]] | None:
    """(who this home is, its accounts, those most is owed of first); None when no node has run
    there. Raises UserError."""
    from ..node.credit.tallies import FILE, open_tallies
    from ..node.identity import load_if_any
    from ..swarm.credit import Credit

    key = load_if_any(home)
    if key is None:
        return None
    me = key.peer_id
    if not (home / FILE).exists():
        return me, []
    tallies = open_tallies(home, me)
    reckoned = Credit(me, now, tallies.book())
    accounts = []
    for tally in tallies.sums()[0]:
        reckoned.settle(tally, now)
        (peer,) = set(tally.peers) - {me}
        took, gave = reckoned.owed(peer, now)
        accounts.append(Account(peer, tally.gave(me), tally.gave(peer), gave - took, tally.at_s))
    return me, sorted(accounts, key=lambda one: (-one.owed, one.peer))


def facts(peer: str | None, accounts: list[Account]) -> dict[str, object]:
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
        "sum": dict(zip(("gave", "took", "owed"), _sums(accounts), strict=True)),
    }


def show(accounts: list[Account]) -> None:
    from .answer import short
    from .tables import print_table

    rows = [
        (short(one.peer), *map(_number, (one.gave, one.took, one.owed)), _day(one.last_s))
        for one in accounts
    ]
    rows.append(("all", *map(_number, _sums(accounts)), ""))
    print_table(("PEER", "GAVE>", "TOOK>", "OWED>", "LAST"), rows)


def _sums(accounts: list[Account]) -> tuple[float, float, float]:
    return (
        sum(one.gave for one in accounts),
        sum(one.took for one in accounts),
        sum(one.owed for one in accounts),
    )


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
