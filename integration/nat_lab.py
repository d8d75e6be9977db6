"""The NAT matrix (issue B, bar 3), measured: `python -m integration.nat_lab`.

Six kinds of home on either side, three public peers that relay, each a process in a network
namespace of its own. Every pair meets once: does it connect within 10 s, is it direct within 30 s?
Then homes with IPv6 and a firewall, in a town whose relays have it too; then a session: a node
behind one NAT, `potluck generate` behind another, begun over the relay.

What theory allows: a punch needs one port that can be foretold. Behind a symmetric NAT there is
none, so the other side has to let in whatever comes from that address, or from any. With IPv6 every
port can be foretold, so that the worst of NATs beside it does no harm.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import nat_session
from .nat_ground import KINDS, SIX_KINDS, Kind, SixKind, why_not, why_not_six
from .nat_town import Town, open_town, until_ready

RTT_S = 0.04  # between any two networks: two homes of one country
OPEN: frozenset[Kind] = frozenset(("full-cone", "address"))  # take any port of a peer they dialed


def allowed(one: Kind | SixKind, other: Kind | SixKind) -> bool:
    """Whether theory lets this pair go direct."""
    if "symmetric" not in (one, other):
        return True
    return one in OPEN or other in OPEN


def matrix(level: str, logs: Path, rtt_s: float) -> dict[str, Any]:
    """Every kind on the left dials every kind on the right."""
    with open_town(logs, rtt_s, level=level) as town:
        town.homes("left")
        town.homes("right")
        names = [f"{side}-{kind}" for side in ("left", "right") for kind in KINDS]
        before = until_ready(town, names)
        rows: list[dict[str, Any]] = []
        for shift in range(len(KINDS)):  # each home is in one pair at a time
            pairs = [(one, KINDS[(at + shift) % len(KINDS)]) for at, one in enumerate(KINDS)]
            with ThreadPoolExecutor(len(pairs)) as pool:
                rows += pool.map(lambda pair: _meet(town, *pair), pairs)
        after = {name: town.peers[name].tell(do="report")["nat"] for name in names}
    return {"rows": rows, "homes": after, "at_first": {k: v["nat"] for k, v in before.items()}}


def matrix_six(level: str, logs: Path, rtt_s: float) -> dict[str, Any]:
    """The same with IPv6; theory allows every pair."""
    with open_town(logs, rtt_s, six=True, level=level) as town:
        ground = town.ground
        names = []
        for side, kind in product(("left", "right"), SIX_KINDS):
            ground.home_six(f"{side}-{kind}", kind)
            names.append(f"{side}-{kind}")
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(town.start_six, names))
        until_ready(town, names)
        rows: list[dict[str, Any]] = []
        for order in (SIX_KINDS, SIX_KINDS[::-1]):
            with ThreadPoolExecutor(len(SIX_KINDS)) as pool:
                rows += pool.map(partial(_meet, town), SIX_KINDS, order)
        after = {name: town.peers[name].tell(do="report")["nat"] for name in names}
    return {**summary(rows), "rows": rows, "homes": after}


def _meet(town: Town, left: Kind | SixKind, right: Kind | SixKind) -> dict[str, Any]:
    dialer, dialed = town.peers[f"left-{left}"], town.peers[f"right-{right}"]
    where = dialed.tell(do="report")
    found = dialer.tell(do="meet", peer=where["peer"], addresses=where["addresses"])
    dialer.tell(do="part", peer=where["peer"])
    return {"left": left, "right": right, "allowed": allowed(left, right), **found}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    connected = [row for row in rows if row["connected_s"] is not None and row["talks"]]
    direct = [row for row in rows if row["direct_s"] is not None]
    may = [row for row in rows if row["allowed"]]
    punched = sorted(row["direct_s"] for row in direct if row["relayed"])
    return {
        "pairs": len(rows),
        "connected": len(connected),
        "connected_s_max": max((row["connected_s"] for row in connected), default=None),
        "allowed": len(may),
        "allowed_direct": sum(row["direct_s"] is not None for row in may),
        "direct": len(direct),
        "direct_share": round(len(direct) / len(rows), 3),
        "direct_s_p50": punched[len(punched) // 2] if punched else None,
        "direct_s_max": max(punched, default=None),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: dialer down, dialed across; seconds until direct, or how it stays."""
    cells = {(row["left"], row["right"]): _cell(row) for row in rows}
    kinds = list(dict.fromkeys(row["left"] for row in rows))
    lines = ["| dials ↓ | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for left in kinds:
        lines.append(f"| {left} | " + " | ".join(cells[left, right] for right in kinds) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["connected_s"] is None:
        return "FAILED"
    if row["direct_s"] is None:
        return "relayed" if not row["allowed"] else "RELAYED"
    return f"direct {row['direct_s']:.1f} s"


def measure(
    *, rtt_s: float = RTT_S, level: str = "info", logs: Path | None = None
) -> dict[str, Any]:
    """Bar 3: the matrix, and a session that moves. Raises RuntimeError where it cannot be run.

    six: the homes with IPv6; None where there is none.
    """
    reason = why_not()
    if reason is not None:
        raise RuntimeError(reason)
    with TemporaryDirectory(prefix="potluck-nat-") as folder:
        place = logs or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        found = matrix(level, place, rtt_s)
        six = None if why_not_six() else matrix_six(level, place, rtt_s)
    session = nat_session.measure("port", "port", rtt_s=rtt_s)
    return {
        **summary(found["rows"]),
        **found,
        "session": session,
        "rtt_ms": rtt_s * 1e3,
        "six": six,
    }


def holds(found: dict[str, Any]) -> bool:
    """Whether bar 3 does."""
    sessions = len(found["session"]["runs"])
    six = found["six"]
    return bool(
        (six is None or six["connected"] == six["direct"] == six["pairs"])
        and found["connected"] == found["pairs"]
        and found["allowed_direct"] == found["allowed"]
        and found["direct_share"] >= 0.7
        and found["session"]["equal"] == found["session"]["moved"] == sessions
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--log", default="info")
    parser.add_argument("--rtt-ms", type=float, default=RTT_S * 1e3)
    asked = parser.parse_args()
    found = measure(rtt_s=asked.rtt_ms / 1e3, level=asked.log, logs=asked.logs)
    print(table(found["rows"]))
    print(json.dumps(summary(found["rows"])))
    if found["six"]:
        print(table(found["six"]["rows"]))
        print(json.dumps(summary(found["six"]["rows"])))
    print(json.dumps(found["session"]))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0 if holds(found) else 1


if __name__ == "__main__":
    sys.exit(main())
