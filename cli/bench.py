"""Measure: one hop, one answer, the network alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, print_json

bench = typer.Typer(help="Measure the software on this machine.")

SHAPES_SAID = "tiny, brisk, small or medium"  # node/compute/shapes.py, which takes torch along

Measure = Callable[[], Awaitable[Mapping[str, object]]]


@bench.command()
def hop(json: Json = False) -> None:
    """One token through one block at another process: the time beyond the block's own.

    \b
    Example:
      potluck bench hop --json
    """
    from ..node.bench.road import bench_hop

    _measure(bench_hop, json)


@bench.command()
def generate(
    shape: Annotated[str, typer.Option(help=f"Of a random model: {SHAPES_SAID}.")] = "tiny",
    servers: Annotated[int, typer.Option(min=1, help="Processes that share its blocks.")] = 2,
    tokens: Annotated[int, typer.Option(min=1, help="How many to generate.")] = 128,
    json: Json = False,
) -> None:
    """Tokens a second through several server processes on this machine, one thread each.

    \b
    Example:
      potluck bench generate --shape tiny --servers 2
    """
    from ..node.bench.road import bench_generate

    _measure(lambda: bench_generate(shape=shape, servers=servers, tokens=tokens), json)


@bench.command()
def draft(
    hops: Annotated[int, typer.Option(min=1, max=8, help="Processes that share the model.")] = 2,
    rtt: Annotated[float, typer.Option(min=0, help="Milliseconds to each hop and back.")] = 60.0,
    tokens: Annotated[int, typer.Option(min=8, max=400, help="Of each answer.")] = 96,
    sampled: Annotated[bool, typer.Option(help="Draw with a temperature of 0.7.")] = False,
    json: Json = False,
) -> None:
    """Tokens a second with guesses and without, for code edits, summaries, chat and more.

    \b
    Example:
      potluck bench draft --hops 2 --rtt 60
    """
    from ..node.bench.drafts import bench_drafts

    _measure(lambda: bench_drafts(hops=hops, rtt_ms=rtt, tokens=tokens, sampled=sampled), json)


@bench.command()
def wan(
    hops: Annotated[int, typer.Option(min=1, max=8, help="Nodes that share the model.")] = 4,
    rtt: Annotated[float, typer.Option(min=0, help="Milliseconds from any to any and back.")] = 100,
    mbit: Annotated[float, typer.Option(min=0.1, help="Mbit/s of each road and direction.")] = 100,
    loss: Annotated[
        float, typer.Option(min=0, max=50, help="Percent of packets lost; Linux, as root.")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=8, max=400, help="Of each answer.")] = 96,
    prompt: Annotated[
        int, typer.Option(min=0, max=3000, help="Tokens of a long prompt; 0: none.")
    ] = 2048,
    model: Annotated[
        str, typer.Option(help=f"demo, or the shape of a random one: {SHAPES_SAID}.")
    ] = "demo",
    way: Annotated[
        str, typer.Option(help="star: all over the client; chain: from hop to hop; or both.")
    ] = "both",
    draft: Annotated[
        str, typer.Option(help="What guesses: auto, or a small model with the same tokens too.")
    ] = "auto",
    sessions: Annotated[
        int, typer.Option(min=1, max=64, help="So many answers at once, and nothing else.")
    ] = 1,
    json: Json = False,
) -> None:
    """Real nodes on long roads: tokens a second, guesses, first tokens, beside the formula.

    \b
    Example:
      potluck bench wan --hops 4 --rtt 60
      potluck bench wan --hops 2 --rtt 20 --mbit 50 --loss 0.5 --way chain --json
      potluck bench wan --hops 4 --rtt 60 --sessions 16 --model small
    """
    from ..node.bench.laboratory import Wanted, check_way
    from .wan import run_many, run_wan

    wanted = Wanted(
        hops, rtt / 1e3, mbit * 1e6 / 8, loss / 100, tokens, prompt, model, check_way(way), draft
    )
    if sessions > 1:
        run_many(wanted, sessions, json=json)
    else:
        run_wan(wanted, json=json)


@bench.command()
def chain(
    hops: Annotated[int, typer.Option(min=1, max=8, help="Processes that share the model.")] = 4,
    rtt: Annotated[float, typer.Option(min=0, help="Milliseconds, of every road.")] = 60.0,
    tokens: Annotated[int, typer.Option(min=8, max=400, help="Of each answer.")] = 48,
    sampled: Annotated[bool, typer.Option(help="Draw with a temperature of 0.7.")] = False,
    drafts: Annotated[bool, typer.Option(help="With guesses.")] = False,
    receipts: Annotated[bool, typer.Option(help="The servers sign.")] = False,
    json: Json = False,
) -> None:
    """Tokens a second where hops push to hops, where all goes over the client, and by the formula.

    \b
    Example:
      potluck bench chain --hops 4 --rtt 60
    """
    from ..node.bench.chains import bench_chain

    how = {"sampled": sampled, "drafts": drafts, "receipts": receipts}
    _measure(lambda: bench_chain(hops=hops, rtt_ms=rtt, tokens=tokens, **how), json)


@bench.command()
def train(
    shape: Annotated[str, typer.Option(help=f"Of a random model: {SHAPES_SAID}.")] = "tiny",
    servers: Annotated[int, typer.Option(min=1, help="Processes that share its blocks.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Of each.")] = 64,
    json: Json = False,
) -> None:
    """Tokens a second forward and backward through several server processes, one thread each.

    \b
    Example:
      potluck bench train --servers 2 --json
    """
    from ..node.bench.training import bench_train

    _measure(lambda: bench_train(shape=shape, servers=servers, batch=batch, tokens=tokens), json)


@bench.command()
def quiet(
    shape: Annotated[str, typer.Option(help=f"Of a random model: {SHAPES_SAID}.")] = "small",
    json: Json = False,
) -> None:
    """How long a ping and an opening wait while a node computes one step of 2,048 tokens.

    \b
    Example:
      potluck bench quiet
    """
    from ..node.bench.road import bench_quiet

    _measure(lambda: bench_quiet(shape=shape), json)


@bench.command()
def gpu(
    blocks: Annotated[int, typer.Option(min=1, help="Of Llama-3.1-8B, with random weights.")] = 4,
    json: Json = False,
) -> None:
    """What the first GPU reaches: decode against copying, prefill against products, bitsandbytes'.

    \b
    Example:
      potluck bench gpu --json
    """
    from dataclasses import asdict

    from ..node.compute.cards import measure

    found = measure(blocks)
    if json:
        print_json(asdict(found))
        return
    from .tables import print_table

    print_table(
        ("MEASURED", "VALUE>"),
        [
            ("card", found.name),
            ("copy, GB/s", f"{found.copy_gb_s:.0f}"),
            ("products, TFLOP/s", f"{found.matrix_tflops:.1f}"),
        ],
    )
    print_table(
        (
            "FORMAT",
            "STAGE",
            "TOKENS/S>",
            "OF COPY>",
            "BITSANDBYTES>",
            "PREFILL OF PRODUCTS>",
            "OUTSIDE US>",
        ),
        [
            (
                one.format,
                "in tiles" if one.tiled else "one session",
                f"{one.tokens_s:.0f}",
                f"{one.of_copy:.0%}",
                f"{one.theirs_of_copy:.0%}" if one.theirs_of_copy else "-",
                f"{one.of_matrix:.0%}",
                f"{one.outside_us:.0f}",
            )
            for one in found.formats
        ],
    )
    for one in found.formats:
        if one.told:
            typer.echo(one.told)


@bench.command()
def net(json: Json = False) -> None:
    """Streams of ours beside TLS of trio's, in the same minute: requests, bulk, connecting.

    \b
    Example:
      potluck bench net
    """
    from ..node.net.bench import bench_net

    _measure(bench_net, json)


@bench.command()
def dht(json: Json = False) -> None:
    """64 hosts in seven processes: put, read, idle; then 30 % are killed at once, and read again.

    \b
    Example:
      potluck bench dht
    """
    from ..node.bench.directory import bench_dht

    _measure(bench_dht, json)


@bench.command()
def numerics(
    model: Annotated[str, typer.Option("--model", "-m", help="A directory or hub id.")] = "demo",
    windows: Annotated[int, typer.Option(min=1, help="Of 256 tokens of held-out text.")] = 10,
    json: Json = False,
) -> None:
    """How far the classes of numbers differ: formats, our kernels, torch's; and what each costs.

    \b
    Example:
      potluck bench numerics
    """
    from dataclasses import asdict

    from ..node.compute.numerics import measure
    from ..node.config import default_home
    from ..node.library import find_model

    found = measure(find_model(model, default_home()).source, windows=windows)
    if json:
        print_json(asdict(found))
        return
    from .tables import print_table

    print_table(
        ("CLASS", "AGAINST", "UPDATE MEDIAN>", "P99>", "LOGITS>", "SAME BEST>"),
        [
            (
                one.of,
                one.reference,
                f"{one.median:.1e}",
                f"{one.p99:.1e}",
                f"{one.logits:.1e}",
                f"{one.agree:.1%}",
            )
            for one in found.differences
        ],
    )
    print_table(
        ("CLASS", "PERPLEXITY>"),
        [(name, f"{value:.3f}") for name, value in found.perplexity.items()],
    )


@bench.command()
def wire(
    model: Annotated[str, typer.Option("--model", "-m", help="A directory or hub id.")] = "demo",
    hops: Annotated[int, typer.Option(min=1, help="So often its rows go over the wire.")] = 4,
    windows: Annotated[int, typer.Option(min=1, help="Of 256 tokens of held-out text.")] = 10,
    json: Json = False,
) -> None:
    """What sending hidden states in fewer bytes costs: error of a row, perplexity, words.

    \b
    Example:
      potluck bench wire --hops 8
    """
    from .wan import run_wire

    run_wire(model, hops, windows, json=json)


@bench.command()
def average(
    rules: Annotated[
        str,
        typer.Option(
            help="By comma: mean, median, trimmed mean, CenteredClip, nearest neighbours, CS+, "
            "ours, judged."
        ),
    ] = "judged,mean",
    attacks: Annotated[
        str, typer.Option(help="By comma; a wrong name tells which there are.")
    ] = "sign flip,inner product,delayed,mimicry,adaptive",
    shares: Annotated[str, typer.Option(help="Of 32 peers that lie, by comma.")] = "0.2",
    deals: Annotated[
        str, typer.Option(help="How the text is dealt out: uneven, even, or both by comma.")
    ] = "uneven",
    full: Annotated[
        bool, typer.Option("--full", help="All there is, at 0.1, 0.2 and 0.3: hours.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of every dice.")] = 1,
    keep: Annotated[
        Path | None, typer.Option(help="A JSON file to keep what was found in, and to go on from.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(help="Draw it into this PNG (needs matplotlib).")
    ] = None,
    json: Json = False,
) -> None:
    """Peers that train one adapter of the demo model, some of them liars: what each average saves.

    \b
    Example:
      potluck bench average --rules judged,mean --attacks "sign flip,mimicry" --shares 0.1,0.3
      potluck bench average --full --keep table.json --plot table.png
    """
    from .averaging import run_averaging

    run_averaging(
        rules, attacks, shares, deals, full=full, seed=seed, json=json, keep=keep, plot=plot
    )


def _measure(measure: Measure, json: bool) -> None:
    import trio

    from .edge import until_signalled
    from .logs import show_logs

    show_logs("warning")
    found: dict[str, object] = {}

    async def run() -> int:
        with until_signalled(with_children=True) as interruption:
            found.update(await measure())
        return interruption.exit_code

    code = trio.run(run)
    if code:
        raise typer.Exit(code)
    if json:
        print_json(found)
        return
    from .tables import print_table

    print_table(("MEASURED", "VALUE>"), [(name, str(value)) for name, value in found.items()])
