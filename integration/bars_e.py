"""The bars of E, strangers that lie: how each is measured, and when it holds.

Bars 4 to 8 are simulations with tables of their own (sampling_sim, evidence_sim, healing_sim,
credit_sim) and tests (tests/test_record.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .row import Row

AUDITS = 100_000
RUNS = 30
BLAMED_LEAST = 0.99
RECEIPT_BYTES_MAX = 300


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
            f"[{low}, {high}], 1 / (p q) = {one['expected']}",
            one["banned"] == one["runs"] and low <= one["expected"] <= high,
            command,
        )
    yield Row(
        "E1",
        "the right stage is blamed in at least 99 %, nobody honest is banned",
        f"{found['blamed_right']} of {found['blamed']}; {found['honest_banned']} honest banned",
        found["blamed_right"] >= BLAMED_LEAST * found["blamed"] and not found["honest_banned"],
        command,
    )
    yield Row(
        "E1",
        "the client's final text is right",
        f"{found['texts_right']} of {found['texts']}",
        found["texts_right"] == found["texts"],
        command,
    )


def e2_honest() -> Iterator[Row]:
    from .audits_honest import measure

    found = measure(AUDITS)
    caught: dict[str, list[float]] = {}
    for row in found["cheats"]:
        caught.setdefault(row["what"], []).append(row.get("wrong", 0) / row["audits"])
    yield Row(
        "E2",
        f"{AUDITS:,} audits of honest peers: no false conviction",
        f"{found['judged']:,} judged, {found['falsely_convicted']} convicted; cheats are told "
        + ", ".join(f"{what[7:]} {min(shares):.1%}" for what, shares in sorted(caught.items())),
        found["judged"] >= AUDITS and not found["falsely_convicted"],
        f"python -m integration.audits_honest --audits {AUDITS} --plot errors.png",
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
        not found["unnoticed"] and not found["first_fault_on_another_line"],
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
    "E9": e9_bits,
}
