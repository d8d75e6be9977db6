"""What chaos did to a testnet, told as it happens, and in a table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
import typer

from ..node.testnet.chaos import COVERED_S, Outcome, Wish, quantile, run_chaos
from ..node.testnet.launcher import find_testnet
from .edge import DONE, FAILED, ended_by_signals, until_signalled
from .options import print_json, say
from .tables import print_table


def play(wish: Wish, home: Path, again: str, *, json: bool) -> int:
    """Make chaos, and tell of it. again: the command that repeats it. The exit code."""
    net = find_testnet(home)
    told: list[Outcome] = []

    def tell(line: str) -> None:
        if not json:
            say(f"  {line}")

    async def run() -> int:
        with until_signalled(with_children=True) as interruption:
            told.append(await run_chaos(net, wish, tell))
        return interruption.exit_code

    with ended_by_signals():
        code = trio.run(run)
    if code:
        return code
    outcome = told[0]
    if json:
        print_json(facts(wish, outcome) | {"again": again})
    else:
        show(outcome)
    for failure in outcome.failures[:1]:
        more = f" (and {len(outcome.failures) - 1} more)" if len(outcome.failures) > 1 else ""
        typer.echo(f"potluck: {failure}{more}; again: {again}", err=True)
    return FAILED if outcome.failures else DONE


def show(outcome: Outcome) -> None:
    say()
    print_table(
        ("  FAULT", "TIMES>", "HIT>", "STALL P50>", "P95>", "MAX>", "COVERED P95>", "MAX>"),
        [
            (
                f"  {kind}", str(one["faults"]), str(one["sessions_hit"]),
                *(_ms(one[name]) for name in ("stall_s_p50", "stall_s_p95", "stall_s_max")),
                *(_ms(one[name]) for name in ("covered_s_p95", "covered_s_max")),
            )
            for kind, one in by_kind(outcome).items()
        ],
    )  # fmt: skip
    waits, calm = outcome.waits_s, outcome.calm_s
    say(
        f"\n  {outcome.finished} of {outcome.sessions} sessions have ended with the words of the "
        f"undisturbed run, {outcome.tokens} tokens; {outcome.losses} hops were lost and replaced."
    )
    say(
        f"  Waits for a token: p50 {_ms(quantile(waits, 0.5))}, p99 {_ms(quantile(waits, 0.99))}, "
        f"at most {_ms(max(waits, default=None))} "
        f"(undisturbed: p50 {_ms(quantile(calm, 0.5))}, p99 {_ms(quantile(calm, 0.99))})."
    )
    p95 = quantile(outcome.covered_s, 0.95)
    say(f"  A new session's first token after a fault: p95 {_ms(p95)}; {COVERED_S:.0f} s allowed.")
    say(f"  The directory lacked a block that was served for {outcome.bare_s:.1f} s at most.")
    if outcome.moves_after is not None:
        after = ", ".join(str(one) for one in outcome.moves_after)
        say(f"  {outcome.moves} moves; of them in the epochs after the last fault: {after}.")
    if not outcome.failures:
        say("  No process is left over, no cache is still reserved.")
    for failure in outcome.failures:
        say(f"  BROKEN: {failure}")


def by_kind(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """The price of each kind of fault, in seconds. A stall is the longest wait for a token of one
    session that was hit: whom the node served when its fault began, or who lost it since."""
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted({made.fault.kind for made in outcome.made}):
        made = [one for one in outcome.made if one.fault.kind == kind]
        stalls = [stall_s for one in made for stall_s in one.stalls_s]
        covered = [one.covered_s for one in made if one.covered_s is not None]
        found[kind] = {
            "faults": len(made),
            "sessions_hit": len(stalls),
            "stall_s_p50": _round(quantile(stalls, 0.5)),
            "stall_s_p95": _round(quantile(stalls, 0.95)),
            "stall_s_max": _round(max(stalls, default=None)),
            "covered_s_p95": _round(quantile(covered, 0.95)),
            "covered_s_max": _round(max(covered, default=None)),
        }
    return found


def facts(wish: Wish, outcome: Outcome) -> dict[str, Any]:
    stalls = [stall_s for made in outcome.made for stall_s in made.stalls_s]
    return {
        "seed": wish.seed,
        "seconds": wish.seconds,
        "holds": not outcome.failures,
        "failures": outcome.failures,
        "faults": len(outcome.made),
        "left_out": len(outcome.skipped),
        "sessions": outcome.sessions,
        "finished": outcome.finished,
        "tokens": outcome.tokens,
        "hops_lost": outcome.losses,
        "wait_s_p50": _round(quantile(outcome.waits_s, 0.5)),
        "wait_s_p99": _round(quantile(outcome.waits_s, 0.99)),
        "wait_s_max": _round(max(outcome.waits_s, default=None)),
        "stall_s_p50": _round(quantile(stalls, 0.5)),
        "stall_s_p95": _round(quantile(stalls, 0.95)),
        "stall_s_max": _round(max(stalls, default=None)),
        "covered_s_p50": _round(quantile(outcome.covered_s, 0.5)),
        "covered_s_p95": _round(quantile(outcome.covered_s, 0.95)),
        "covered_s_max": _round(max(outcome.covered_s, default=None)),
        "directory_bare_s": _round(outcome.bare_s),
        "moves": outcome.moves,
        "moves_after": outcome.moves_after,
        "kinds": by_kind(outcome),
        "made": [
            {
                "at_s": made.fault.at_s,
                "kind": made.fault.kind,
                "node": made.fault.node,
                "blocks": [made.fault.blocks.start, made.fault.blocks.stop],
                "for_s": made.fault.for_s,
                "postponed_s": _round(made.postponed_s),
                "stalls_s": [_round(one) for one in made.stalls_s],
                "covered_s": _round(made.covered_s),
            }
            for made in outcome.made
        ],
    }


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f} ms"
