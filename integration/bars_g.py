"""The bars of G, fast across the wide area: how each is measured, and when it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import trio

from .row import Row

HOPS, RTTS_S = (2, 4, 8), (0.02, 0.06, 0.1, 0.2)
SHORT = 32  # tokens of an answer where only its rate is asked for
PERPLEXITY_MAX = 1.005
BYTES_MAX = 0.52  # of bf16's: half, and a scale of two bytes for each 128


def _over(**wanted: Any) -> dict[str, Any]:
    """From hop to hop, `chain = "auto"`: the best that the product has, by one option."""
    from potluck.node.bench.laboratory import Wanted
    from potluck.node.bench.wan import bench_wan

    found = trio.run(bench_wan, Wanted(way="chain", **wanted))
    return {**found, **found["ways"]["chain"]}


def g1_plain() -> Iterator[Row]:
    shares = {}
    for hops in HOPS:
        for rtt_s in RTTS_S:
            found = _over(hops=hops, rtt_s=rtt_s, tokens=SHORT, prompt=0)
            shares[hops, rtt_s] = min(one["of_formula"] for one in found["kinds"].values())
    (hops, rtt_s), least = min(shares.items(), key=lambda one: one[1])
    yield Row(
        "G1",
        "plain decoding: 80 % of 1/R(1) at 20, 60, 100, 200 ms and 2, 4, 8 hops",
        f"{least:.0%} at {hops} hops of {rtt_s * 1e3:.0f} ms, the worst of {len(shares)} runs",
        least >= 0.8,
        "potluck bench wan --hops 4 --rtt 60 --way chain",
    )


def g2_guesses() -> Iterator[Row]:
    found = _over(hops=4, rtt_s=0.06)
    kinds, first = found["kinds"], found["first_token"]
    command = "potluck bench wan --hops 4 --rtt 60 --way chain"
    told = "; ".join(
        f"{kind} {one['times']} ({one['guessed_of_formula']:.0%} of the formula)"
        for kind, one in kinds.items()
    )
    yield Row(
        "G2",
        "guesses at 60 ms, 4 hops: chat 2.0 times plain, code 2.5, none 0.98, formula within 15 %",
        told,
        found["bars"]["2"] and all(one["same"] for one in kinds.values()),
        command,
    )
    yield Row(
        "G5",
        "first token of 2,048 over 4 hops: at most 1.3 times the cut-through formula",
        f"{first['of_formula']} times: {first['ms']:.0f} ms in chunks of {first['chunk']}, formula "
        f"{first['formula_ms']:.0f} ms; stored and forwarded {first['stored_and_forwarded_ms']:.0f}"
        f" ms, {first['times']} times that",
        found["bars"]["5"],
        command,
    )


def g3_words() -> Iterator[Row]:
    from .same_words import measure

    found = measure()
    ways = found["ways"]
    same = min(ways[name]["same"] for name in ("guesses", "chain", "batch", "all", "killed"))
    told = "; ".join(f"{name} {one['same']} of {one['answers']}" for name, one in ways.items())
    yield Row(
        "G3",
        "200 answers, greedy and sampled: the same SHA-256 with guesses, chains, batches and codecs"
        " on and off, and with a server killed in the middle",
        f"{same} of {found['answers']} in every way: {told}; {ways['killed']['kills']} killed, "
        f"{ways['killed']['lost']} answers lost a hop, {ways['all']['accepted']} guesses were "
        f"right, {ways['all']['pushed']} steps pushed",
        found["holds"],
        "python -m integration.same_words",
    )


def g4_near() -> Iterator[Row]:
    """Of the random shape that comes nearest to what Mesh-LLM was measured with."""
    found = _over(hops=2, rtt_s=0.02, model="brisk", prompt=0)
    chat = found["kinds"]["chat"]
    yield Row(
        "G4",
        "two stages at 20 ms, 77 tokens/s alone: 17 plain, 25 with guesses",
        f"{chat['plain_per_s']} and {chat['guessed_per_s']}, alone {found['solo_per_s']}",
        found["bars"]["4"],
        "potluck bench wan --hops 2 --rtt 20 --model brisk --prompt 0 --way chain",
    )


def g6_many() -> Iterator[Row]:
    """Of the random shape whose passes are long enough for sixteen to keep a stage at work."""
    from potluck.node.bench.laboratory import Wanted
    from potluck.node.bench.many import bench_many

    wanted = Wanted(hops=4, rtt_s=0.06, tokens=64, model="small", way="chain")
    found: dict[str, Any] = trio.run(bench_many, wanted, 16)
    one = found["ways"]["chain"]
    yield Row(
        "G6",
        "16 sessions over 4 hops at 60 ms: at least 90 % of the slowest stage's batched capacity",
        f"{one['per_s']} tokens/s, {one['of_capacity']:.0%} of {found['capacity_per_s']}; the "
        f"formula allows {one['formula_per_s']}, of which it is {one['of_formula']:.0%}; one "
        f"session alone {one['alone_per_s']}",
        found["bar_6"],
        "potluck bench wan --hops 4 --rtt 60 --sessions 16 --tokens 64 --model small --way chain",
    )


def g8_codecs() -> Iterator[Row]:
    from potluck.node.compute.wire_cost import measure
    from potluck.node.library import DEMO_FOLDER

    costs = {one.codec: one for one in measure(str(DEMO_FOLDER))}
    plain, eight = costs["bf16"], costs["int8"]
    worse, size = eight.perplexity / plain.perplexity, eight.row_bytes / plain.row_bytes
    yield Row(
        "G8",
        "int8 on the wire: perplexity within 0.5 % of bf16's, half the bytes",
        f"{worse - 1:+.2%} and {size:.2f} of the bytes; error of a row {eight.error:.1e}, int4 "
        f"{costs['int4'].perplexity / plain.perplexity - 1:+.1%}",
        worse <= PERPLEXITY_MAX and size <= BYTES_MAX,
        "potluck bench wire",
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "G1": g1_plain,
    "G2": g2_guesses,
    "G3": g3_words,
    "G4": g4_near,
    "G6": g6_many,
    "G8": g8_codecs,
}
