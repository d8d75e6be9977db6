"""The bars of E, strangers that lie: how each is measured, and when it holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .row import Row

ROOT = Path(__file__).parent.parent
AUDITS = 100_000
CHART = ROOT / "bars-errors.png"  # of honest peers and of each cheat, side by side
RUNS = 30
BLAMED_LEAST = 0.99
RECEIPT_BYTES_MAX = 300
COST_MAX = 0.02
RECEIPT_ROUNDS = {"tiny": 300, "small": 60}  # shapes, and pairs of answers of each
RECORDS = 1_000_000
EQUIVOCATOR_S = 10.0


def e1_liars() -> Iterator[Row]:
    from .liars import measure

    found = measure(RUNS)
    command = f"python -m integration.liars --runs {RUNS}"
    for name, one in found["until_ban"].items():
        low, high = one["interval_95"]
        yield Row(
            "E1",
            f"{name}: banned; chunks until then around 1 / (p q)",
            f"{one['banned']} of {one['runs']} banned after {one['mean']} false chunks "
            f"[{low}, {high}] in {one['samples']} runs, 1 / (p q) = {one['expected']}",
            one["banned"] == one["runs"]
            and one["samples"] >= RUNS
            and low <= one["expected"] <= high,
            command,
        )
    yield Row(
        "E1",
        "the right stage is blamed in at least 99 %, nobody honest is banned",
        f"{found['blamed_right']} of {found['blamed']}; {found['honest_banned']} honest banned",
        0 < BLAMED_LEAST * found["blamed"] <= found["blamed_right"] and not found["honest_banned"],
        command,
    )
    yield Row(
        "E1",
        "the client's final text is right",
        f"{found['texts_right']} of {found['texts']}",
        0 < found["texts"] == found["texts_right"],
        command,
    )


def e2_honest() -> Iterator[Row]:
    from .audits_honest import measure, uncovered

    CHART.unlink(missing_ok=True)
    found = measure(AUDITS, chart=CHART)
    lacking = uncovered(found["covered"])
    caught: dict[str, list[float]] = {}
    for row in found["cheats"]:
        caught.setdefault(row["what"], []).append(row.get("wrong", 0) / row["audits"])
    yield Row(
        "E2",
        f"{AUDITS:,} audits of honest peers: no false conviction",
        f"{found['judged']:,} judged, {found['falsely_convicted']} convicted; cheats are told "
        + ", ".join(f"{what[7:]} {min(shares):.1%}" for what, shares in sorted(caught.items())),
        found["judged"] >= AUDITS and not found["falsely_convicted"],
        f"python -m integration.audits_honest --audits {AUDITS} --plot {CHART.name}",
    )
    yield Row(
        "E2",
        "over batch sizes, thread counts, prefill and decode, every quantization; plotted",
        f"{len(found['covered'])} conditions, lacking: {', '.join(lacking) or 'none'}",
        not lacking and CHART.stat().st_size > 0,
        f"python -m integration.audits_honest --audits {AUDITS} --plot {CHART.name}",
    )


def e3_cost() -> Iterator[Row]:
    """Bytes are counted with bar 9."""
    from .receipt_cost import measure as audit_cost
    from .receipt_rate import measure

    audits = {name: one for name, one in audit_cost().items() if "audits" in one}
    for shape, rounds in RECEIPT_ROUNDS.items():
        found = measure(shape, rounds=rounds)
        cost = max(0.0, found["cost_of_positions"])
        yield Row(
            "E3",
            f"receipts cost at most {COST_MAX:.0%} of tokens/s, shape {shape}",
            f"{cost:.1%} ({found['tokens_per_s_without']} to {found['tokens_per_s_with']} "
            f"tokens/s in {rounds} pairs, whose median is {found['cost_median_of_pairs']:.1%})",
            cost <= COST_MAX,
            f"python -m integration.receipt_rate --shape {shape} --rounds {rounds}",
        )
        for name, one in audits.items():
            lengths = one["audits"].items()
            yield Row(
                "E3",
                f"audits at the floor rate ({name}) and receipts ({shape}) cost at most "
                f"{COST_MAX:.0%}",
                ", ".join(f"{share:.1%} in answers of {length}" for length, share in lengths)
                + f", and {cost:.1%} for receipts"
                + f"; a prompt's token costs {one['prompt_to_decode']:.2f} of a decoded one",
                max(one["audits"].values()) + cost <= COST_MAX,
                "python -m integration.receipt_cost",
            )


def e4_views() -> Iterator[Row]:
    from .sampling_sim import PEERS, ROUNDS, SLOTS, measure

    command = "python -m integration.sampling_sim"
    found = measure("spread", PEERS, SLOTS, ROUNDS, seed=1)["liars_share_of_views"]
    last, most = found[ROUNDS], max(one["largest"] for one in found.values())
    yield Row(
        "E4",
        f"{PEERS:,} peers, 30 % liars: the largest share of a view below 0.6 after {ROUNDS} "
        "rounds and falling, nobody isolated",
        f"largest {last['largest']} (once {most}), mean {last['mean']}, "
        f"{last['isolated']} isolated",
        last["largest"] < min(0.6, most) and not last["isolated"],
        f"{command} --story spread",
    )
    crowd = measure("crowd", PEERS, SLOTS, ROUNDS, seed=1)
    share = crowd["liars_share_of_samples"]
    yield Row(
        "E4",
        "a /24 of 18.8 % of the peers gets at most 1.2 % of samples",
        f"{share} of {crowd['samples']}",
        share is not None and share <= 0.012,
        f"{command} --story crowd",
    )


def e5_evidence() -> Iterator[Row]:
    """Processes of their own: what each check said is remembered there."""
    found = told("integration.evidence_sim", "--story", "equivocators")
    times = found["known_to_99_percent_s"]
    yield Row(
        "E5",
        f"an equivocator is known to 99 % of the honest within {EQUIVOCATOR_S:.0f} s",
        f"{times} s, {found['honest']} honest",
        bool(times) and all(one is not None and one <= EQUIVOCATOR_S for one in times),
        "python -m integration.evidence_sim --story equivocators",
    )
    found = told("integration.gossip_sim")
    spread_s = found["known_to_99_percent_s"]
    yield Row(
        "E5",
        "the daemon's own gossip tells 99 % of an item as soon, with 30 % silent",
        f"{spread_s} s, {found['honest']} honest",
        spread_s is not None and spread_s <= EQUIVOCATOR_S,
        "python -m integration.gossip_sim",
    )
    found = told("integration.evidence_sim", "--story", "accusers")
    yield Row(
        "E5",
        "30 % of peers flooding false evidence get no honest peer banned",
        f"{found['honest_banned']} of {found['honest']} banned by {found['false_accusations']} "
        f"false accusations",
        found["false_accusations"] > 0 and not found["honest_banned"],
        "python -m integration.evidence_sim --story accusers",
    )


def told(module: str, *words: str) -> dict[str, Any]:
    """What a measure prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def e6_flood() -> Iterator[Row]:
    from .false_flood import measure

    found = measure(RECORDS + RECORDS // 50)  # it rounds down, for each kind
    yield Row(
        "E6",
        f"{RECORDS:,} fuzzed, replayed, rolled-back records and evidence items: none accepted",
        f"{found['said']:,} said, {found['taken']} taken; what was held is "
        f"{'still' if found['hold_what_they_held'] else 'NOT'} held, what is true "
        f"{'still' if found['take_what_is_true'] else 'NOT'} taken",
        found["said"] >= RECORDS
        and not found["taken"]
        and found["hold_what_they_held"]
        and found["take_what_is_true"],
        "python -m integration.false_flood",
    )


def e7_credit() -> Iterator[Row]:
    from .bars_d import fairness
    from .credit_sim import measure

    found = measure()
    command = "python -m integration.credit_sim"
    sybils = {where: one for where, one in found["sybils"].items() if isinstance(one, dict)}
    for where, one in sybils.items():
        yield Row(
            "E7",
            f"50 Sybils with forged receipts, {where}: at most 1.05 of one honest idle client",
            f"{one['gain_in_its_place']} times in its place; beside it, "
            f"{one['together_to_one_beside_it']} times what it gets",
            one["gain_in_its_place"] <= 1.05,
            command,
        )
    worst = max(found["split"].values())
    yield Row(
        "E7",
        "splitting one identity into many gains at most 1.05 times",
        f"{worst} times, the best of {len(found['split'])} ways",
        worst <= 1.05,
        command,
    )
    for name, what in (("riders", "riders"), ("fresh_riders", "riders under ever new names")):
        ratios = {load.split()[1]: one["ratio"] for load, one in found[name].items()}
        yield Row(
            "E7",
            f"ten free {what} raise a contributor's p95 to the first token by at most 20 %",
            f"times, by its own load: {ratios}",
            max(ratios.values()) <= 1.2,
            command,
        )
    lane = {
        f"{one['load']}{' new names' if one['fresh_names'] else ''}": one["ratio"]
        for one in fairness()["riders"]
    }
    yield Row(
        "E7",
        "the same on the server's own lane, with its batches and pace",
        f"times, by its own load: {lane}",
        max(lane.values()) <= 1.2,
        "python -m integration.fairness",
    )


def e8_healing() -> Iterator[Row]:
    from potluck.dht.record import REFRESH_S

    from .healing_sim import PEERS, World

    for story in ("quiet", "refreshing"):
        found = World(PEERS, story, 1).measure()
        others, alike_s = found.get("others_after_one_refresh", 0), found["alike_after_s"]
        yield Row(
            "E8",
            f"{PEERS} peers after a parting, {story}: all honest registries equal within one "
            f"refresh ({REFRESH_S:.0f} s)",
            f"{others} of {found['honest']} hold something else then; equal after {alike_s} s",
            alike_s is not None and alike_s <= REFRESH_S,
            f"python -m integration.healing_sim --story {story}",
        )


def e9_bits() -> Iterator[Row]:
    """Bar 9, and bar 3's bytes, which are counted beside."""
    from .receipt_bits import measure

    found: dict[str, Any] = measure()
    command = "python -m integration.receipt_bits"
    yield Row(
        "E9",
        "an answer's receipt with any one bit changed fails, and says where",
        f"{found['bits']} bits: {found['unnoticed']} unnoticed, "
        f"{found['first_fault_on_another_line']} told of another line",
        found["bits"] > 0 and not found["unnoticed"] and not found["first_fault_on_another_line"],
        command,
    )
    yield Row(
        "E3",
        f"a receipt of 32 tokens takes at most {RECEIPT_BYTES_MAX} bytes a stage",
        f"{found['chunk_bytes']} bytes",
        found["chunk_bytes"] <= RECEIPT_BYTES_MAX,
        command,
    )


BARS: dict[str, Callable[[], Iterator[Row]]] = {
    "E1": e1_liars,
    "E2": e2_honest,
    "E3": e3_cost,
    "E4": e4_views,
    "E5": e5_evidence,
    "E6": e6_flood,
    "E7": e7_credit,
    "E8": e8_healing,
    "E9": e9_bits,
}
