"""What a user runs when something does not work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .loading import loading
from .options import Home, Join, Json, colour, print_json, say

if TYPE_CHECKING:
    from pathlib import Path

    from ..node.diagnosis import Facts
    from ..node.footing import Finding, Machine, Wanted

COLOURS = {"good": "green", "note": "white", "warning": "yellow", "bad": "red"}
SIGNS = {"good": "✓", "note": "-", "warning": "!", "bad": "✗"}
PLAIN_SIGNS = {"good": "ok", "note": "-", "warning": "!", "bad": "BAD"}


def doctor(
    join: Join = None,
    home: Home = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="What the node is to serve. Default: as the config file says.",
        ),
    ] = "",
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Where the node is to listen; 0: any free one. Default: as the config file says.",
        ),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Look at this machine, and ask nobody else.")
    ] = False,
    json: Json = False,
) -> None:
    """Look at everything a node needs, and say what is wrong and what to do.

    Of a running node it tells what that one knows; without one it tries the network out for some
    seconds: the router, the NAT, peers to join by, neighbours, the clock, the hub. Exit code 1 when
    something is bad.

    \b
    Examples:
      potluck doctor
      potluck doctor --port 4001 --join /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...
      potluck doctor -m org/name --alone
      potluck doctor --json | jq '.findings[] | select(.verdict == "bad")'
    """
    from ..node.config import home_of
    from .logs import show_logs

    show_logs("error")
    with loading():
        import trio

        from ..node.diagnosis import diagnose
        from ..node.doctor import look
        from .edge import until_signalled

        machine = look_at_machine()
    place = home_of(home)
    model, port = _as_configured(place, model, port)
    wanted = look_at_wanted(model, place) if model and machine.torch else None
    gathered: list[Facts] = []

    async def examine() -> int:
        with until_signalled() as interruption:
            gathered.append(
                await look(place, join or (), machine, port=port, alone=alone, model=wanted)
            )
        return interruption.exit_code

    if code := trio.run(examine):
        raise typer.Exit(code)
    findings = diagnose(gathered[0])
    if json:
        print_json({"facts": asdict(gathered[0]), "findings": [asdict(one) for one in findings]})
    else:
        _show(findings)
    if any(one.verdict == "bad" for one in findings):
        raise typer.Exit(1)


def _as_configured(home: Path, model: str, port: int | None) -> tuple[str, int]:
    """What the command line said, else the file; one that cannot be read is told later."""
    from ..node.config import command_table

    try:
        told = command_table(home, "node")
    except UserError:
        told = {}
    models, at = told.get("model"), told.get("port")
    first = models[0] if isinstance(models, list) and models else models
    if not model and isinstance(first, str) and first != "auto":
        model = first
    if port is None:
        port = at if isinstance(at, int) and 0 <= at <= 65535 else 0
    return model, port


def look_at_wanted(model: str, home: Path) -> Wanted:
    from ..node.compute.survey import look_at_model

    return look_at_model(model, home)


def look_at_machine() -> Machine:
    """The program and what it computes with; torch may be what is broken."""
    import platform
    import sys

    import psutil

    from .. import __version__
    from ..node.footing import Machine

    system = f"{platform.system()} {platform.machine()}"
    memory = psutil.virtual_memory()
    program = Machine(
        __version__,
        sys.version.split()[0],
        system,
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
    )
    try:
        from ..node.compute.survey import survey

        found = survey()
    except (ImportError, OSError, RuntimeError) as error:  # as torch's loading fails
        return replace(program, fault=str(error))
    return replace(
        program,
        torch=found.torch,
        device=f"{found.device} {found.name}".strip(),
        threads=found.threads,
        free_bytes=found.free_bytes,
        kernels=found.kernels,
        kernels_fault=found.kernels_fault,
        driver=found.driver,
        driver_fault=found.driver_fault,
    )


def _show(findings: Sequence[Finding]) -> None:
    import sys

    coloured = colour(sys.stdout)
    signs = SIGNS if _shows("".join(SIGNS.values())) else PLAIN_SIGNS
    wide = max(map(len, signs.values()))
    width = max(len(one.about) for one in findings)
    for one in findings:
        sign = f"{signs[one.verdict]:>{wide}}"
        if coloured:
            sign = typer.style(sign, fg=COLOURS[one.verdict], bold=one.verdict == "bad")
        say(f"{sign}  {one.about:<{width}}  {one.told}")
        if one.remedy:
            say(f"{'':>{width + wide + 4}}{one.remedy}")
    bad = sum(one.verdict == "bad" for one in findings)
    warned = sum(one.verdict == "warning" for one in findings)
    say(f"\n{bad} bad, {warned} to look at" if bad or warned else "\nNothing is wrong.")


def _shows(text: str) -> bool:
    """Whether stdout's encoding has these letters."""
    import sys

    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
