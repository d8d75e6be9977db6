"""What `potluck bench wan` shows, a line for each kind of answer, the first token, the bars; and
`potluck bench wire`, a line for each codec."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import trio
import typer

from ..node.bench.wan import Wanted, bench_wan, rows_of
from ..node.compute.wire_cost import Cost, measure
from ..node.config import default_home
from ..node.library import find_model
from .edge import until_signalled
from .logs import show_logs
from .options import print_json
from .tables import print_table

COLUMNS = (
    "ANSWER",
    "PLAIN/S>",
    "FORMULA>",
    "GUESSED/S>",
    "FORMULA>",
    "TIMES>",
    "ACCEPTED>",
    "FIRST, MS>",
)
WORDS = {True: "yes", False: "no", None: "of another run"}


def run_wan(
    hops: int,
    rtt_ms: float,
    mbit: float,
    loss: float,
    tokens: int,
    prompt: int,
    model: str,
    *,
    json: bool,
) -> None:
    """loss: percent. Ends the program where it is interrupted."""
    show_logs("warning")
    wanted = Wanted(hops, rtt_ms / 1e3, mbit * 1e6 / 8, loss / 100, tokens, prompt, model)
    found: dict[str, object] = {}

    async def run() -> int:
        with until_signalled(with_children=True) as interruption:
            found.update(await bench_wan(wanted))
        return interruption.exit_code

    if code := trio.run(run):
        raise typer.Exit(code)
    if json:
        print_json(found)
        return
    print_table(COLUMNS, rows_of(found))
    first = cast("dict[str, Any] | None", found["first_token"])
    if first is not None:
        typer.echo(
            f"first token of {first['prompt']} in chunks of {first['chunk']}: {first['ms']} ms, by "
            f"the formula {first['formula_ms']}; stored and forwarded "
            f"{first['stored_and_forwarded_formula_ms']}"
        )
    held = cast("dict[str, bool | None]", found["bars"])
    typer.echo("; ".join(f"bar {bar}: {WORDS[holds]}" for bar, holds in held.items()))
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
