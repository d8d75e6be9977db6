"""Measure how far honest peers are apart, and keep what audits may go by."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Home, Json, Offline, note, print_json, say


def calibrate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="demo, a folder, or a hub id (org/name)."),
    ] = "demo",
    windows: Annotated[
        int,
        typer.Option(min=1, help="Of 256 tokens; 2 make some hundred audits of a pair and length."),
    ] = 2,
    weights: Annotated[
        list[str] | None,
        typer.Option("--quantization", help="none, int8 or nf4; may be repeated. Default: all."),
    ] = None,
    wire: Annotated[
        str, typer.Option(help="f32, f16 or bf16: the dtype of rows on the way.")
    ] = "f32",
    home: Home = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """How far apart honest peers of two classes of numbers may be, for audits of a model's work.

    All that this machine can serve is measured: our kernels and torch, in each format of weights,
    as a prompt, token by token, in odd steps, on one and two threads, through 1, 2, 4, ... and all
    blocks. The limits are kept in the home, and come before those that are shipped (of the demo
    model, on CPUs).

    \b
    Examples:
      potluck calibrate demo
      potluck calibrate org/name --quantization int8 --windows 2
    """
    from dataclasses import asdict

    from ..errors import UserError
    from ..node.compute.calibration import FORMATS
    from ..node.compute.calibration import calibrate as measure
    from ..node.compute.checkpoint import open_checkpoint
    from ..node.compute.numerics import WINDOW, held_out
    from ..node.compute.tensor import TAGS
    from ..node.config import home_of
    from ..node.library import find_model
    from ..node.trust.limits import limits_of, save_limits

    chosen = tuple(weights or FORMATS)
    if unknown := set(chosen) - set(FORMATS):
        raise UserError(f"no format {', '.join(sorted(unknown))}: there are {', '.join(FORMATS)}")
    if wire not in TAGS:
        raise UserError(f"no dtype {wire}: there are {', '.join(TAGS)}")
    place = home_of(home)
    source = find_model(model, place).source
    checkpoint = open_checkpoint(source, offline=offline, home=place)
    ids = held_out(checkpoint, windows * WINDOW)
    found = measure(checkpoint, ids, formats=chosen, wire=wire, tell=note)
    path = save_limits(place, limits_of(checkpoint.digest(), found, wire))
    if json:
        print_json([asdict(one) for one in found])
        return
    from .tables import print_table

    print_table(
        ("SERVED", "AUDITED", "BLOCKS>", "AUDITS>", "MEDIAN>", "MOST>", "WORST TOKEN>", "LIMIT>"),
        [
            (
                one.one,
                one.other,
                str(one.blocks),
                str(one.audits),
                f"{one.median:.1e}",
                f"{one.most:.1e}",
                f"{one.worst:.1e}",
                f"{one.limit:.1e}" if one.limit else "equal bits",
            )
            for one in found
        ],
    )
    say(f"kept in {path}")
