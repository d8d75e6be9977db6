"""What a node's owner allows it, as the command line says it: the defaults are BOINC's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError

if TYPE_CHECKING:
    from ..swarm.guest import Manners

Guest = Annotated[
    bool,
    typer.Option(
        "--guest/--no-guest",
        envvar="POTLUCK_GUEST",
        help="Rest while the owner needs this machine, as the next ones say; sessions move to "
        "other nodes first, and the memory is given back. Without, only potluck pause counts.",
    ),
]
Hours = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[DAYS ]HH:MM-HH:MM",
        help="Serve at these hours alone, by the local clock: 22:00-07:00, or with days: "
        '"mon-fri 18:00-24:00"; may be repeated. Default: always.',
    ),
]
WhileActive = Annotated[
    Literal["auto", "yes", "no"],
    typer.Option(
        help="Serve while somebody uses keyboard or mouse: auto is on processors, but not on GPUs, "
        "unless this node was started from a terminal."
    ),
]
IdleMinutes = Annotated[
    float, typer.Option(min=0, help="How long nobody must have, before nobody is there.")
]
OnBattery = Annotated[bool, typer.Option(help="Serve while a battery feeds the machine.")]
BusyPercent = Annotated[
    float,
    typer.Option(
        min=0,
        max=100,
        help="Rest while other programs use more of the processors; twice as much while nobody is "
        "there. 0: never.",
    ),
]
RestFor = Annotated[
    list[str] | None,
    typer.Option(metavar="PROGRAM", help="Rest while it runs: its name; may be repeated."),
]
ShareGpu = Annotated[
    bool, typer.Option(help="Serve on a GPU on which another process computes, or plays.")
]
MaxCelsius = Annotated[
    float, typer.Option(min=0, help="Rest while the device is hotter; 0: at any temperature.")
]
MaxWatts = Annotated[
    float,
    typer.Option(min=0, help="Rest for five minutes when a GPU draws more; 0: at any power."),
]
MaxUp = Annotated[
    int,
    typer.Option(
        min=0, metavar="KIB/S", help="Bandwidth to all peers together; 0: no limit, else 128 or up."
    ),
]
MaxDown = Annotated[int, typer.Option(min=0, metavar="KIB/S", help="The same from them.")]
MaxDisk = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="MIB",
        help="For what can be made or fetched anew: quantized blocks, adapters, blocks fetched "
        "ahead; 0: no limit but that 100 MiB stay free.",
    ),
]


def manners_of(
    guest: bool,
    *,
    hours: Sequence[str],
    while_active: str,
    idle_minutes: float,
    on_battery: bool,
    busy_percent: float,
    rest_for: Sequence[str],
    share_gpu: bool,
    max_celsius: float,
    max_watts: float,
) -> Manners | None:
    """What it all means. Raises UserError."""
    from ..swarm.guest import Manners
    from ..swarm.hours import parse_hours

    if while_active == "auto" and sys.stdin is not None and sys.stdin.isatty():
        while_active = "yes"  # who has just typed this wants it to work
    windows = tuple(parse_hours(one) for one in hours)
    names = [one.strip().lower().removesuffix(".exe") for one in rest_for]
    if not all(names):
        raise UserError("--rest-for names no program: give what it is called, such as steam")
    if not guest:
        return None
    return Manners(
        hours=windows,
        while_active={"auto": None, "yes": True, "no": False}[while_active],
        idle_s=60 * idle_minutes,
        on_battery=on_battery,
        busy=busy_percent / 100,
        programs=frozenset(names),
        share_gpu=share_gpu,
        celsius=max_celsius,
        watts=max_watts,
    )


def check_pace(option: str, kib_s: int) -> int:
    """Raises UserError for a bandwidth at which connections die."""
    from ..node.net.pace import LEAST_BYTES_S

    if kib_s and kib_s * 1024 < LEAST_BYTES_S:
        raise UserError(
            f"{option} {kib_s}: connections do not live on less than {LEAST_BYTES_S >> 10} KiB/s; "
            "give that or more, or 0 for no limit"
        )
    return kib_s
