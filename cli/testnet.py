"""A swarm of several processes on this machine: start it, look at it, break it, end it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..node.testnet.lies import KINDS, SHARE, parse_lies
from .edge import ended_by_signals
from .options import Home, Json, Offline, note, print_json, say
from .simulate import LIES

if TYPE_CHECKING:
    from ..node.testnet.launcher import LocalSwarm
    from ..node.testnet.roster import Seat

testnet = typer.Typer(help="A swarm of several processes on this machine.")

Name = Annotated[str, typer.Argument(help="Which node: n1, n2, ...")]


@testnet.command(epilog=LIES)
def up(
    model: Annotated[
        str, typer.Option("--model", "-m", help="demo, a folder, or a hub id (org/name).")
    ] = "demo",
    nodes: Annotated[int, typer.Option(min=1, help="How many processes.")] = 4,
    replicas: Annotated[int, typer.Option(min=1, help="How many nodes serve each block.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of each node.")] = 1,
    ready_s: Annotated[float, typer.Option(min=1, help="How long to wait for all of them.")] = 120,
    isolated: Annotated[
        bool,
        typer.Option(
            "--isolated", help="Each in a network of its own, for chaos (Linux, as root)."
        ),
    ] = False,
    auto: Annotated[
        bool, typer.Option("--auto", help="Nodes choose their own blocks, and move: --blocks auto.")
    ] = False,
    epoch_s: Annotated[float, typer.Option(min=1, hidden=True)] = 30.0,
    max_memory: Annotated[
        int, typer.Option("--max-memory", min=0, metavar="MIB", help="Of each, with --auto.")
    ] = 0,
    cache_mib: Annotated[int, typer.Option("--cache-mib", min=0, hidden=True)] = 0,
    liars: Annotated[
        str,
        typer.Option(
            metavar="LIE,...",
            help=f"The last so many nodes lie, one each, to test the others: {', '.join(KINDS)}; "
            f"random:{SHARE} in that share of its chunks.",
        ),
    ] = "",
    home: Home = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Start nodes that share a model's blocks evenly, and wait until they all serve.

    They run on until `potluck testnet down`. Nodes beyond a multiple of --replicas become further
    replicas of the first blocks.

    \b
    Examples:
      potluck testnet up --nodes 4 --model demo --replicas 2
      potluck testnet up --nodes 8 --auto --max-memory 8
      potluck testnet up --nodes 12 --replicas 4 --liars four_bit,skip,random:0.1
    """
    from ..node.testnet.launcher import start_testnet

    plan = make_plan(
        model, home, nodes=nodes, replicas=replicas, threads=threads, offline=offline,
        ready_s=ready_s, isolated=isolated, liars=parse_lies(liars),
        epoch_s=epoch_s if auto else 0.0, memory_mib=max_memory, cache_mib=cache_mib,
    )  # fmt: skip
    with ended_by_signals(trio_inside=False):
        net = start_testnet(plan, tell=lambda seat: note(f"{seat.name} serves {_blocks(seat)}"))
    if json:
        print_json(facts(net))
        return
    where = f" --home {home}" if home else ""
    say(f"{nodes} nodes serve {plan.name}, {plan.blocks} blocks:")
    show_seats(net)
    if nodes % replicas and not auto:
        say(f"  ({nodes} is no multiple of {replicas}: the first blocks have a replica more)")
    say()
    say(f'  ask it:    potluck generate "The function returns" -m {plan.name}{where}')
    say(f"  elsewhere: --join {net.join[0]}")
    say(f"  break it:  potluck testnet kill {net.seats[-1].name}{where}")
    say(f"  end it:    potluck testnet down{where}")


@testnet.command()
def status(home: Home = None, json: Json = False) -> None:
    """Each node: its process, its blocks, and whether it lives. Exit code 1 when one is dead.

    \b
    Example:
      potluck testnet status
    """
    from ..node.testnet.launcher import find_testnet

    net = find_testnet(_home(home))
    if json:
        print_json(facts(net))
    else:
        show_seats(net)
    if any(seat.state == "dead" for seat in net.seats):
        raise typer.Exit(1)


@testnet.command()
def kill(
    name: Name,
    signal_name: Annotated[
        str, typer.Option("--signal", "-s", help="KILL, TERM, STOP, CONT, INT, ...")
    ] = "KILL",
    home: Home = None,
) -> None:
    """Send a node a signal: SIGKILL, unless told otherwise.

    \b
    Examples:
      potluck testnet kill n2
      potluck testnet kill n2 --signal STOP
    """
    from ..node.testnet.launcher import find_testnet

    find_testnet(_home(home)).send(name, _signal(signal_name))
    say(f"{name}: SIG{_signal(signal_name).name.removeprefix('SIG')} sent")


@testnet.command()
def restart(name: Name, home: Home = None, json: Json = False) -> None:
    """Start a dead node anew, under its old identity, and wait until it serves.

    \b
    Example:
      potluck testnet restart n2
    """
    from ..node.testnet.launcher import find_testnet

    seat = find_testnet(_home(home)).restart(name)
    if json:
        print_json(_seat_facts(seat))
    else:
        say(f"{seat.name} serves {_blocks(seat)}")


@testnet.command()
def logs(
    name: Name,
    lines: Annotated[int, typer.Option("-n", min=1, help="How many lines, from the end.")] = 20,
    home: Home = None,
) -> None:
    """The last lines that a node wrote; also after the testnet is down.

    \b
    Example:
      potluck testnet logs n1 -n 50
    """
    from ..node.process import last_lines
    from ..node.testnet.launcher import folder_of
    from ..node.testnet.logs import LOG

    log = folder_of(_home(home)) / name / LOG
    if not log.is_file():
        raise UserError(f"no log of a node {name} under {log.parent.parent}")
    for line in last_lines(log, lines):
        say(line)


@testnet.command()
def chaos(
    seed: Annotated[int, typer.Option(help="The same seed plans the same faults.")] = 1,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long faults come.")] = 2.0,
    sessions: Annotated[int, typer.Option(min=1, help="How many at a time.")] = 8,
    kill: Annotated[bool, typer.Option("--kill", help="SIGKILL, and start anew later.")] = False,
    stall: Annotated[bool, typer.Option("--stall", help="SIGSTOP for some seconds.")] = False,
    slow: Annotated[bool, typer.Option("--slow", help="A quarter of its speed.")] = False,
    partition: Annotated[
        bool, typer.Option("--partition", help="Cut off; after testnet up --isolated.")
    ] = False,
    join: Annotated[bool, typer.Option("--join", help="A new node comes, and leaves.")] = False,
    leave: Annotated[bool, typer.Option("--leave", help="SIGTERM; it comes back.")] = False,
    uncover: Annotated[
        bool, typer.Option("--uncover", help="Blocks may be left without any node.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Break the testnet's nodes under load, and check that nobody who asks notices.

    Without a kind of fault, all that can be had here. Each session is held against its undisturbed
    run. Exit code 1 when a rule broke; the last line says which, and the command that repeats it.

    \b
    Examples:
      potluck testnet up --nodes 8 --replicas 2 && potluck testnet chaos --seed 7
      potluck testnet chaos --seed 7 --minutes 0.5 --kill --stall
    """
    from ..node.testnet.chaos import Wish
    from ..node.testnet.launcher import find_testnet
    from ..swarm.chaos import KINDS
    from .chaos import play
    from .logs import show_logs

    show_logs("error")
    place = _home(home)
    given = (kill, stall, slow, partition, join, leave)
    asked = tuple(kind for kind, wanted in zip(KINDS, given, strict=True) if wanted)
    isolated = find_testnet(place).roster.isolated
    kinds = asked or tuple(kind for kind in KINDS if isolated or kind != "partition")
    words = [f"--seed {seed} --minutes {minutes:g} --sessions {sessions}"]
    words += [f"--{kind}" for kind in asked]
    words += ["--uncover"] if uncover else []
    words += [f"--home {home}"] if home else []
    again = f"potluck testnet chaos {' '.join(words)}"
    wish = Wish(seed, 60 * minutes, kinds, sessions, uncover)
    raise typer.Exit(play(wish, place, again, json=json))


@testnet.command()
def down(home: Home = None, json: Json = False) -> None:
    """End every process of the testnet, whatever became of it. Keys and logs stay.

    \b
    Example:
      potluck testnet down
    """
    from ..node.testnet.launcher import take_down

    place = _home(home)
    ended = take_down(place)
    if json:
        print_json({"ended": ended})
    else:
        say(f"{ended} node{'' if ended == 1 else 's'} ended" if ended else "no testnet runs here")


def make_plan(model: str, home: Path | None, **options: Any) -> Any:
    """The plan of a testnet for a model, whose files are looked at first. Raises UserError."""
    from ..node.compute.checkpoint import open_checkpoint
    from ..node.library import find_model
    from ..node.testnet.launcher import Plan

    place = _home(home)
    shelf = find_model(model, place)
    checkpoint = open_checkpoint(shelf.source, offline=options.get("offline", False), home=place)
    return Plan(
        home=place, source=shelf.source, name=shelf.name, blocks=checkpoint.spec.blocks, **options
    )


def facts(net: LocalSwarm) -> dict[str, Any]:
    return {
        "model": net.roster.model,
        "blocks": net.roster.blocks,
        "join": list(net.join),
        "nodes": [_seat_facts(seat) for seat in net.seats],
    }


def _seat_facts(seat: Seat) -> dict[str, Any]:
    return {
        "name": seat.name,
        "state": seat.state,
        "pid": seat.pid,
        "blocks": [seat.start, seat.stop],
        "peer": seat.peer,
        "addresses": list(seat.addresses),
        "lie": seat.lie,
    }


def show_seats(net: LocalSwarm) -> None:
    from .tables import print_table

    lies = any(seat.lie for seat in net.seats)
    print_table(
        ("  NODE", "STATE", "BLOCKS", "PROCESS>", *(["LIE"] if lies else []), "PEER"),
        [
            (
                f"  {seat.name}", seat.state, f"{seat.start}:{seat.stop}", str(seat.pid),
                *([seat.lie] if lies else []), seat.peer,
            )
            for seat in net.seats
        ],
    )  # fmt: skip


def _blocks(seat: Seat) -> str:
    return f"blocks {seat.start}:{seat.stop}"


def _home(home: Path | None) -> Path:
    from ..node.config import home_of

    return home_of(home)


def _signal(name: str) -> signal.Signals:
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise UserError(f"no signal {name}: give KILL, TERM, STOP, CONT or INT") from None
