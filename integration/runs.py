"""Issue F, bars 3 and 4: a run of eight processes over shaped links, beside synchronous training.

    python -m integration.runs --mode pairwise|robust|disturbed [--epochs 5] [--steps 64]
        [--batch 4] [--peers 8] [--killed 2] [--late 4] [--mbit 50] [--alone]    one JSON line

Each peer is a process in a network of its own (nat_ground.py), 50 ms and 50 Mbit/s from all others.
What it sent is what its interface counted: payload, headers, the directory and all. Beside it one
process takes as many steps, each with the gradient of all peers' batches of that step: what
synchronous data-parallel training computes, on the very same sequences. Of both the loss is
measured on the same held-out ones.

A disturbed run has fewer and smaller steps, for all processes share this machine's cores, and is
judged beside an undisturbed one of its own size (`--mode disturbed --killed 0 --late 0`).
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

from .nat_ground import Ground, open_ground
from .run_group import Group, Member, Wanted, open_group

PEERS, LATE = 8, 4
KILLED_OF: Final = 4  # one of so many
RTT_S: Final = 0.05
MBIT: Final = 50
FAST_MBIT, FAST_EPOCHS = 100, 3  # for the share of the time that steps have
NEAR: Final = 0.01
CHARACTERS: Final = 400_000
PORT: Final = "4001"
PATIENCE_S: Final = 3600.0  # for all of a run, on two cores
ALL: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROBUST: Final = Wanted(
    rank=16, targets=ALL, tokens=64, batch=4, steps=64, epochs=5, epoch_s=600.0, rate=1e-3,
    aggregator="judged", asked=6, liars=2, bits=4, gate_sequences=8,
)  # fmt: skip
PAIRWISE: Final = replace(ROBUST, aggregator="mean", asked=1, liars=0, bits=8)
DISTURBED: Final = replace(ROBUST, batch=2, steps=16, epochs=6)
WANTED: Final = {"pairwise": PAIRWISE, "robust": ROBUST, "disturbed": DISTURBED}


@cache
def gossip(
    wanted: Wanted, *, peers: int = PEERS, killed: int = 0, late: int = 0, mbit: int = MBIT
) -> dict[str, Any]:
    """One run, to its end. killed: of the first ones, a third on; late: join when it is half over,
    by somebody who is not killed."""
    with (
        tempfile.TemporaryDirectory(prefix="potluck-runs-") as folder,
        open_ground(RTT_S) as ground,
    ):
        places: dict[str, str] = {}
        around = partial(_inside, ground)
        with open_group(
            Path(folder), wanted, characters=CHARACTERS, around=around,
            options=lambda name: ["--listen", places[name], "--port", PORT],
            patience_s=PATIENCE_S,
        ) as group:  # fmt: skip
            began_s, worked_s = time.monotonic(), _children_cpu_s()
            names = [f"p{at}" for at in range(peers + late)]
            for name in names:
                places[name] = _place(ground, name, mbit)
            first = group.start(names[0], peers=peers - 1)
            address = first.address
            members = [
                first,
                *(group.start(one, address, peers=peers - 1) for one in names[1:peers]),
            ]
            told = [one.started() for one in members]
            before = {one: _sent_bytes(ground, one) for one in names}
            if killed or late:
                members = _disturb(group, members, wanted, killed, names[peers:])
            ends = [one.finishes() for one in members]
            sent = sum(_sent_bytes(ground, one) - before[one] for one in names)
            found = _facts(list(group.members.values()), members, ends, told, sent)
            found["s"] = round(time.monotonic() - began_s, 1)
            found["cpu_s"] = round(_children_cpu_s() - worked_s, 1)
            return found


def _disturb(
    group: Group, members: list[Member], wanted: Wanted, killed: int, late: list[str]
) -> list[Member]:
    """Who is left, and who has come."""
    stays = members[killed]
    stays.reaches(wanted.epochs // 3)
    for one in members[:killed]:
        one.kill()
    stays.reaches(wanted.epochs // 2)
    return members[killed:] + [group.start(name, stays.address) for name in late]


def _facts(
    everybody: list[Member],
    members: list[Member],
    ends: list[dict[str, Any]],
    told: list[dict[str, Any]],
    sent_bytes: int,
) -> dict[str, Any]:
    epochs = {one.name: one.events("epoch") for one in everybody}
    last = {name: said[-1] for name, said in epochs.items() if said}
    steps, trained = sum(one["steps"] for one in last.values()), told[0]["trained"]
    shares = [sum(one["share"] for one in said) / len(said) for said in epochs.values() if said]
    counted = [[one["epoch"] for one in said] for said in epochs.values()]
    return {
        "losses": [one["held_out"] for one in ends],
        "peer_ids": [one["peer"] for one in told],
        "trained": trained,
        "steps": steps,
        "wire": sent_bytes / trained / steps,
        "told": sum(one["sent_bytes"] for one in last.values()) / trained / steps,
        "share": sum(shares) / len(shares),
        "share_least": min(shares),
        "finished": len(ends),
        "expected": len(members),
        "twice": sum(len(one) - len(set(one)) for one in counted),
        "refusals": sum(one.complaints().count("was refused") for one in everybody),
    }


def _children_cpu_s() -> float:
    """Of all processes of ours that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def synchronous(
    wanted: Wanted, peers: list[str], characters: int = CHARACTERS
) -> tuple[float, float]:
    """The held-out loss at the start, and at the end of as many steps, at each of which the
    gradients of all peers' batches are averaged."""
    from .lesson import Lesson  # torch: the measured processes are others

    with tempfile.TemporaryDirectory(prefix="potluck-sync-") as name:
        folder = Path(name)
        with open_group(folder, wanted, characters=characters):
            lesson = Lesson.of(folder, wanted.tokens)
    before = lesson.loss()
    lesson.synchronous(peers)
    return before, lesson.loss()


def _inside(ground: Ground, name: str) -> list[str]:
    """How a command is run in a peer's network."""
    return ground.command(f"{ground.prefix}{name}", [])


def _place(ground: Ground, name: str, mbit: int) -> str:
    """A network for a peer, its link shaped both ways; its address."""
    address = ground.public(name)
    ends = ((f"{ground.prefix}{name}", "wan"), (f"{ground.prefix}net", f"w{ground.wans}"))
    for namespace, link in ends:
        ground.inside(
            namespace, "tc", "qdisc", "add", "dev", link, "root", "tbf", "rate", f"{mbit}mbit",
            "burst", "64kb", "latency", "400ms",
        )  # fmt: skip
    return address


def _sent_bytes(ground: Ground, name: str) -> int:
    """By the interface's own count, headers and all."""
    path = "/sys/class/net/wan/statistics/tx_bytes"
    return int(ground.inside(f"{ground.prefix}{name}", "cat", path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=list(WANTED), default="pairwise")
    parser.add_argument("--peers", type=int, default=PEERS)
    for name in ("epochs", "steps", "batch"):
        parser.add_argument(f"--{name}", type=int, help="else as the mode has it")
    parser.add_argument("--killed", type=int, help="if disturbed; else a quarter of all")
    parser.add_argument("--late", type=int, default=LATE, help="if disturbed")
    parser.add_argument("--mbit", type=int, default=MBIT)
    parser.add_argument("--alone", action="store_true", help="without synchronous training beside")
    asked = parser.parse_args()
    said = {name: getattr(asked, name) for name in ("epochs", "steps", "batch")}
    wanted = replace(WANTED[asked.mode], **{name: one for name, one in said.items() if one})
    churn: dict[str, int] = {}
    if asked.mode == "disturbed":
        killed = asked.peers // KILLED_OF if asked.killed is None else asked.killed
        churn = {"killed": killed, "late": asked.late}
    found = gossip(wanted, peers=asked.peers, mbit=asked.mbit, **churn)
    if not churn and not asked.alone:
        found["synchronous"] = synchronous(wanted, found["peer_ids"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
