"""What `potluck bench wan` shows, a line for each kind of answer, the first token, the bars; and
`potluck bench wire`, a line for each codec."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import trio
import typer

from ..node.bench.laboratory import Wanted
from ..node.bench.many import bench_many, many_rows
from ..node.bench.wan import bench_wan, rows_of
from ..node.compute.wire_cost import Cost, measure
from ..node.config import default_home
from ..node.library import find_model
from .edge import until_signalled
from .logs import show_logs
from .options import print_json
from .tables import print_table

COLUMNS = (
    "ANSWER",
    "WAY",
    "PLAIN/S>",
    "FORMULA>",
    "GUESSED/S>",
    "FORMULA>",
    "TIMES>",
    "ACCEPTED>",
    "FIRST, MS>",
)
WORDS = {True: "yes", False: "no", None: "of another run"}


def run_wan(wanted: Wanted, *, json: bool) -> None:
    """Ends the program where it is interrupted. Raises UserError."""
    found = _measured(bench_wan, wanted)
    if json:
        print_json(found)
        return
    print_table(COLUMNS, rows_of(found))
    ways = cast("dict[str, dict[str, Any]]", found["ways"])
    for shape, way in ways.items():
        if (first := way["first_token"]) is not None:
            typer.echo(
                f"{shape}: first token of {first['prompt']} in chunks of {first['chunk']}: "
                f"{first['ms']} ms, by the formula {first['formula_ms']}; stored and forwarded "
                f"{first['stored_and_forwarded_ms']}, by the formula "
                f"{first['stored_and_forwarded_formula_ms']}"
            )
        held = "; ".join(f"bar {bar}: {WORDS[holds]}" for bar, holds in way["bars"].items())
        typer.echo(f"{shape}: {held}")
    _tell_laboratory(found)


def run_many(wanted: Wanted, sessions: int, *, json: bool) -> None:
    """The same for many sessions at once."""
    found = _measured(partial(bench_many, sessions=sessions), wanted)
    if json:
        print_json(found)
        return
    print_table(
        ("WAY", "SESSIONS>", "TOKENS/S>", "FORMULA>", "SLOWEST STAGE>", "OF IT>", "ONE ALONE>"),
        many_rows(found),
    )
    typer.echo(f"bar 6: {WORDS[cast('bool | None', found['bar_6'])]}")
    _tell_laboratory(found)


def _measured(
    measure: Callable[[Wanted], Awaitable[dict[str, object]]], wanted: Wanted
) -> dict[str, object]:
    show_logs("warning")
    found: dict[str, object] = {}

    async def run() -> int:
        with until_signalled(with_children=True) as interruption:
            found.update(await measure(wanted))
        return interruption.exit_code

    if code := trio.run(run):
        raise typer.Exit(code)
    return found


def _tell_laboratory(found: dict[str, object]) -> None:
    typer.echo(
        f"roads {found['roads']}; alone {found['solo_per_s']} tokens/s; a hop's overhead "
        f"{found['overhead_ms']} ms, the client's {found['client_ms']} ms"
    )


def run_wire(model: str, hops: int, windows: int, *, json: bool) -> None:
    """Raises UserError."""
    source = find_model(model, default_home()).source
    costs = {cost.codec: cost for cost in measure(source, hops=hops, windows=windows)}
    if json:
        print_json({"codecs": [asdict(cost) for cost in costs.values()], "bar_8": _bar_8(costs)})
        return
    print_table(
        ("CODEC", "BYTES A ROW>", "ERROR MEDIAN>", "P99>", "PERPLEXITY>", "SAME BEST>"),
        [
            (
                cost.codec,
                str(cost.row_bytes),
                f"{cost.error:.1e}",
                f"{cost.error_p99:.1e}",
                f"{cost.perplexity:.4f}",
                f"{cost.agree:.1%}",
            )
            for cost in costs.values()
        ],
    )
    typer.echo(f"bar 8: {WORDS[_bar_8(costs)]}")


def _bar_8(costs: dict[str, Cost]) -> bool:
    """int8 within 0.5 % of bf16's perplexity, in half its bytes and a scale a group."""
    plain, eight = costs["bf16"], costs["int8"]
    return (
        eight.perplexity <= 1.005 * plain.perplexity and eight.row_bytes <= 0.52 * plain.row_bytes
    )
