"""Bar G3: whatever makes answers come sooner changes no word of them.

    python -m integration.same_words                  200 answers, each in six ways
    python -m integration.same_words --answers 16     a look at it

A hundred questions, each answered greedily and sampled, by real daemons: three stages of two peers.
First plain: one token a step, each over the client, one answer after another. Then the SHA-256 of
each answer, its tokens and its text, is held against that of the same request

    guesses      verified several in a step
    chain        with steps that go from hop to hop
    batch        eight answers at once, so that servers take their steps together
    all          all three
    killed       all three, and in the middle of each eight answers one of the servers is killed

The wire is f32 there, the one codec that loses nothing. What another codec loses it loses alike, so
for a part of the requests the same is asked of it: all three, killed, against plain in that codec.

A way that was not gone (no guess was right, no step pushed, no hop lost) has shown nothing: then
the bar falls short, too. Over 200 answers it takes four minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import trio

from potluck.node.client import Swarm, open_swarm
from potluck.node.compute.voice import Voice
from potluck.node.library import DEMO_FOLDER
from potluck.node.testnet.launcher import LocalSwarm, Plan, open_testnet

STAGES = 3
REPLICAS = 2
ANSWERS = 200
TOKENS = 24
PROMPT = 32  # tokens
AT_ONCE = 8
COVER_S = 60.0  # for a killed server to be back, where its stage had no other
PLAIN: dict[str, Any] = {"draft": "off", "chain": "off"}
ALL: dict[str, Any] = {"draft": "auto", "chain": "auto"}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95}
CODED = ("bf16", "int8")  # what rounds, and is asked of every fifth request


@dataclass
class Way:
    """What came of one way to answer. digests: of each answer. lost: answers that lost a hop."""

    digests: list[str]
    seconds: float = 0.0
    guesses: int = 0
    accepted: int = 0
    pushed: int = 0
    lost: int = 0
    kills: int = 0
    inexact: int = 0


@dataclass
class Eight:
    """Answers on their way together. wanted: tokens, of which a server is killed; 0: none is."""

    net: LocalSwarm
    stage: int
    wanted: int
    tokens: int = 0
    peers: Counter[str] = field(default_factory=Counter)  # who computed tokens of that stage
    killed: str = ""

    def came(self, peer: str) -> None:
        """A token. Kills, once half of them are there, who computed most of them."""
        self.tokens += 1
        self.peers[peer] += 1
        if self.wanted and not self.killed and self.tokens >= self.wanted:
            victim = self.peers.most_common(1)[0][0]
            self.killed = next(seat.name for seat in self.net.seats if seat.peer == victim)
            self.net.send(self.killed, signal.SIGKILL)


@dataclass(frozen=True)
class Asked:
    """One request: a prompt, and how to draw."""

    ids: tuple[int, ...]
    how: dict[str, Any]


def requests(voice: Voice, answers: int) -> list[Asked]:
    """Pieces of a text, from places that are far from each other; each greedily and sampled."""
    texts = (DEMO_FOLDER / "README.md", Path(__file__))
    ids = voice.text.encode("".join(one.read_text(encoding="utf-8") for one in texts))
    count = -(-answers // 2)
    stride = max(1, (len(ids) - PROMPT) // count)
    found = []
    for number in range(count):
        piece = tuple(ids[number * stride : number * stride + PROMPT])
        found += [Asked(piece, {}), Asked(piece, SAMPLED | {"seed": number})]
    return found[:answers]


async def answer(
    swarm: Swarm, asked: Asked, how: dict[str, Any], way: Way, place: int, eight: Eight
) -> None:
    """One of the eight, put down at its place."""
    async with swarm.generation(
        "demo", asked.ids, max_new_tokens=TOKENS, ignore_eos=True, wait_s=COVER_S,
        **asked.how, **how,
    ) as said:  # fmt: skip
        tokens, text = list[int](), ""
        async for piece in said:
            tokens.append(piece.token)
            text += piece.text
            if eight.stage < len(piece.route):
                eight.came(piece.route[eight.stage].peer)
        way.digests[place] = hashlib.sha256(json.dumps([tokens, text]).encode()).hexdigest()
        if said.guessed is not None:
            way.guesses += said.guessed.sent
            way.accepted += said.guessed.accepted
        way.pushed += said.chained
        way.lost += bool(said.recoveries)
        way.inexact += not said.exact


async def go(
    swarm: Swarm,
    net: LocalSwarm,
    asked: Sequence[Asked],
    how: dict[str, Any],
    *,
    at_once: int = 1,
    kill: bool = False,
) -> Way:
    """Have all answered in one way."""
    way, began_s = Way([""] * len(asked)), time.monotonic()
    for number, first in enumerate(range(0, len(asked), at_once)):
        some = asked[first : first + at_once]
        wanted = len(some) * TOKENS // 2 if kill else 0
        eight = Eight(net, number % STAGES, wanted)
        async with trio.open_nursery() as nursery:
            for place, one in enumerate(some, first):
                nursery.start_soon(answer, swarm, one, how, way, place, eight)
        if eight.killed:
            way.kills += 1
            await trio.to_thread.run_sync(net.restart, eight.killed)
    way.seconds = round(time.monotonic() - began_s, 1)
    return way


async def compare(answers: int = ANSWERS) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="potluck-same-") as folder:
        plan = Plan(
            home=Path(folder), source=str(DEMO_FOLDER), name="demo", blocks=8,
            nodes=STAGES * REPLICAS, replicas=REPLICAS,
        )  # fmt: skip
        with open_testnet(plan) as net:
            async with open_swarm(net.join, home=folder, threads=1) as swarm:
                asked = requests(await swarm.voice("demo"), answers)
                plain = await go(swarm, net, asked, PLAIN)
                ways = {
                    "guesses": await go(swarm, net, asked, PLAIN | {"draft": "auto"}),
                    "chain": await go(swarm, net, asked, PLAIN | {"chain": "auto"}),
                    "batch": await go(swarm, net, asked, PLAIN, at_once=AT_ONCE),
                    "all": await go(swarm, net, asked, ALL, at_once=AT_ONCE),
                    "killed": await go(swarm, net, asked, ALL, at_once=AT_ONCE, kill=True),
                }
                some, coded = asked[:: len(asked) // min(len(asked), 40)], {}
                for codec in CODED:
                    wire = {"wire": codec}
                    coded[codec] = (
                        await go(swarm, net, some, PLAIN | wire),
                        await go(swarm, net, some, ALL | wire, at_once=AT_ONCE, kill=True),
                    )
    return summary(plain, ways, coded)


def summary(plain: Way, ways: dict[str, Way], coded: dict[str, tuple[Way, Way]]) -> dict[str, Any]:
    """Counts of answers that are the same, and what shows that the ways were gone."""
    told = {name: _told(way, plain) for name, way in ways.items()}
    told |= {f"{codec} killed": _told(way, first) for codec, (first, way) in coded.items()}
    gone = (
        ways["guesses"].accepted > 0
        and ways["chain"].pushed > 0
        and min(ways["all"].accepted, ways["all"].pushed) > 0
        and min(ways["killed"].lost, ways["killed"].pushed) > 0
        and all(way.lost > 0 for _, way in coded.values())
    )
    whole = hashlib.sha256("".join(plain.digests).encode()).hexdigest()
    return {
        "answers": len(plain.digests),
        "different_ones": len(set(plain.digests)),
        "sha256_of_all": whole,
        "seconds_plain": plain.seconds,
        "ways": told,
        "gone": gone,
        "holds": gone and all(one["same"] == one["answers"] for one in told.values()),
    }


def _told(way: Way, plain: Way) -> dict[str, Any]:
    same = sum(one == other for one, other in zip(way.digests, plain.digests, strict=True))
    found = asdict(way)
    del found["digests"]
    return {"answers": len(way.digests), "same": same, **found}


def measure(answers: int = ANSWERS) -> dict[str, Any]:
    return trio.run(compare, answers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--answers", type=int, default=ANSWERS)
    print(json.dumps(measure(parser.parse_args().answers), indent=1))
