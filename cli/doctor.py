"""What a user runs when something does not work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .loading import loading
from .options import Home, Join, Json, colour, print_json, say

if TYPE_CHECKING:
    from ..node.diagnosis import Facts, Finding, Machine

COLOURS = {"good": "green", "note": "white", "warning": "yellow", "bad": "red"}
SIGNS = {"good": "ok", "note": "-", "warning": "!", "bad": "BAD"}


def doctor(
    join: Join = None,
    home: Home = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the node is to listen; 0: any free one.")
    ] = 0,
    alone: Annotated[
        bool, typer.Option("--alone", help="Look at this machine, and ask nobody else.")
    ] = False,
    json: Json = False,
) -> None:
    """Look at everything a node needs, and say what is wrong and what to do.

    Of a running node it tells what that one knows; without one it tries the network out for some
    seconds: the router, the NAT, peers to join by, neighbours, the clock. Exit code 1 when
    something is bad.

    \b
    Examples:
      potluck doctor
      potluck doctor --port 4001 --join /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...
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
    gathered: list[Facts] = []

    async def examine() -> int:
        with until_signalled() as interruption:
            gathered.append(await look(home_of(home), join or (), machine, port=port, alone=alone))
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


def look_at_machine() -> Machine:
    """The program and what it computes with; torch may be what is broken."""
    import platform
    import sys

    from .. import __version__
    from ..node.diagnosis import Machine

    system = f"{platform.system()} {platform.machine()}"
    program = Machine(__version__, sys.version.split()[0], system)
    try:
        from ..node.compute.survey import survey

        found = survey()
    except (ImportError, OSError, RuntimeError) as error:  # as torch's loading fails
        return Machine(program.version, program.python, system, fault=str(error))
    return Machine(
        program.version,
        program.python,
        system,
        found.torch,
        "",
        f"{found.device} {found.name}".strip(),
        found.threads,
        found.free_bytes,
    )


def _show(findings: Sequence[Finding]) -> None:
    import sys

    coloured = colour(sys.stdout)
    width = max(len(one.about) for one in findings)
    for one in findings:
        sign = f"{SIGNS[one.verdict]:>3}"
        if coloured:
            sign = typer.style(sign, fg=COLOURS[one.verdict], bold=one.verdict == "bad")
        say(f"{sign}  {one.about:<{width}}  {one.told}")
        if one.remedy:
            say(f"{'':>{width + 7}}{one.remedy}")
    bad = sum(one.verdict == "bad" for one in findings)
    warned = sum(one.verdict == "warning" for one in findings)
    say(f"\n{bad} bad, {warned} to look at" if bad or warned else "\nNothing is wrong.")
