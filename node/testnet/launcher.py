"""A swarm of several processes on this machine, for trying and for testing.

    home/testnet/testnet.json    what was started, written before and after each start (roster.py)
    home/testnet/n1/             the home of node n1: its key, its log, node.json while it runs

The nodes outlive whoever started them, unless on a leash. However that ends, `take_down` finds all
of them: by what is written down, and by the mark that each was born with (process.py).

    start_testnet(plan)                      # leaves them running
    with open_testnet(plan) as net: ...      # ends them
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ...errors import LocalError, PotluckError, UserError
from ..config import AUTO, RUNNING, TESTNET
from ..home import prepare_home
from ..leash import leash
from ..process import ProcessId, end, find, last_lines, marked, process_id, start
from .islands import address_of, make_island, on_island, remove_islands, why_not
from .lies import LIE, PEER_ROADS, Lie
from .logs import LOG
from .roads import Road, lay_roads
from .roster import STATE, Roster, Seat

MARK = "POTLUCK_TESTNET"  # in the environment of every node: the folder of its testnet
GRACE_S = 3.0  # to withdraw and close: a node of a testnet has no long sessions to see off
READY_S = 120.0  # guess: a few GiB from a cold disk, several nodes at once
LOOK_EVERY_S = 0.02  # for a node.json
SWEEPS = 5  # more than one only when a node was born while the others were ended
# -P: no folder that we happen to stand in may shadow a module
PROGRAM = (sys.executable, "-P", "-m", "potluck.cli", "node")

Tell = Callable[[Seat], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start. source: where the model's files are. blocks: of the whole model.

    threads: of each node; one, because OpenMP's spinning barriers make processes on few cores
    collapse: four nodes of two threads took 69 steps a second, of one 250. isolated: each in a
    network of its own, that can be cut off (islands.py). road: so far from one another and from us
    (roads.py). liars: what the last so many nodes lie about, one each. epoch_s: of nodes that
    choose their own blocks, as fit in `memory_mib`, of which `cache_mib` are for sessions; 0: laid
    out here. peer_roads: how far apart they seem, as far_peers.py reads it."""

    home: Path
    source: str
    name: str
    blocks: int
    nodes: int = 4
    replicas: int = 1
    threads: int = 1
    offline: bool = False
    ready_s: float = READY_S
    isolated: bool = False
    road: Road | None = None
    liars: tuple[Lie, ...] = ()
    epoch_s: float = 0.0
    memory_mib: int = 0
    cache_mib: int = 0
    peer_roads: str = ""

    @property
    def folder(self) -> Path:
        return folder_of(self.home)

    def roster(self, program: Sequence[str], owner: ProcessId) -> Roster:
        """Raises UserError for a plan that cannot be."""
        spans = lay_out(self.blocks, self.nodes, self.replicas)
        if (honest := self.nodes - len(self.liars)) < 0:
            raise UserError(f"{len(self.liars)} liars among {self.nodes} nodes: give more --nodes")
        names = [f"n{number}" for number in range(1, self.nodes + 1)]
        lies = [""] * honest + [str(lie) for lie in self.liars]
        options = ["--model", self.source, "--name", self.name, "--threads", str(self.threads)]
        if self.epoch_s:
            options += ["--epoch-s", str(self.epoch_s), "--max-memory", str(self.memory_mib)]
            options += ["--cache-mib", str(self.cache_mib)]
        return Roster(
            folder=self.folder,
            source=self.source,
            model=self.name,
            blocks=self.blocks,
            program=(*program, *options, *(["--offline"] if self.offline else [])),
            environment={
                "OMP_NUM_THREADS": str(self.threads),
                "GOMP_SPINCOUNT": "0",
                "PYTHONUNBUFFERED": "1",  # the log is read while they run
                "POTLUCK_JOIN": "",  # ours is no business of theirs
                "POTLUCK_GUEST": "no",  # whoever tries a swarm here wants it to work meanwhile
                PEER_ROADS: self.peer_roads,
            },
            seats={
                name: Seat(name, *span, lie=lie)
                for name, span, lie in zip(names, spans, lies, strict=True)
            },
            owner=owner,
            isolated=self.isolated or self.road is not None,
            epoch_s=self.epoch_s,
        )


def lay_out(blocks: int, nodes: int, replicas: int) -> tuple[tuple[int, int], ...]:
    """Which blocks each node serves, as (start, stop): nodes // replicas even stages.

    Node k serves stage k % stages, so that nodes beyond a multiple become further replicas of the
    first stages. Raises UserError.
    """
    if nodes < 1 or replicas < 1:
        raise UserError(f"{nodes} nodes with {replicas} replicas: ask for 1 or more of each")
    if replicas > nodes:
        raise UserError(
            f"{nodes} nodes cannot hold {replicas} replicas: give --nodes {replicas} or more"
        )
    stages = min(nodes // replicas, blocks)
    cuts = [blocks * stage // stages for stage in range(stages + 1)]
    return tuple((cuts[k % stages], cuts[k % stages + 1]) for k in range(nodes))


class LocalSwarm:
    """A testnet, and what can be done to it. Made by the functions below."""

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def seats(self) -> tuple[Seat, ...]:
        return tuple(self.roster.seats.values())

    @property
    def join(self) -> tuple[str, ...]:
        """An address of each node that lives."""
        return tuple(seat.addresses[0] for seat in self.seats if seat.addresses and seat.process)

    def seat(self, name: str) -> Seat:
        """Raises UserError when there is no such node."""
        try:
            return self.roster.seats[name]
        except KeyError:
            names = ", ".join(self.roster.seats)
            raise UserError(f"no node {name} in this testnet: it has {names}") from None

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a node a signal; after SIGKILL it is gone. Raises UserError when it was before."""
        process = self.seat(name).process
        gone = UserError(f"{name} is dead already: potluck testnet restart {name}")
        if process is None:
            raise gone
        if number == signal.SIGKILL:
            end([process], grace_s=0)
            self._home(name, RUNNING).unlink(missing_ok=True)  # nobody should join by it
            return
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:  # it was faster
            raise gone from None

    def restart(self, name: str) -> Seat:
        """Start a dead node anew under its old identity. Raises UserError when it lives."""
        self.launch(name, self.join)
        self._await([name], time.monotonic() + READY_S, lambda seat: None)
        return self.seat(name)

    def launch(self, name: str, join: Sequence[str]) -> None:
        """Begin to start a dead node, which `ready` waits for. Raises UserError when it lives."""
        if self.seat(name).process is not None:
            raise UserError(f"{name} lives: potluck testnet kill {name} first")
        self._launch(name, join)

    def ready(self, name: str) -> Seat | None:
        """A node that was launched, once it serves. Raises PotluckError when it ended before."""
        if (ready := self._ready(name)) is not None:
            self.roster.note(ready)
        elif (code := self._children[name].poll()) is not None:
            raise self._failure(name, f"ended with code {code}", bad_input=code == 2)
        return ready

    def add(self, name: str, start: int, stop: int, lie: str = "") -> None:
        """One more seat, of which nothing runs yet."""
        self.roster.note(Seat(name, start, stop, lie=lie))

    def remove(self, name: str) -> None:
        """Forget the seat of a dead node. Raises UserError when it lives."""
        if self.seat(name).process is not None:
            raise UserError(f"{name} lives: potluck testnet kill {name} first")
        self.roster.forget(name)
        (child := self._children.pop(name, None)) is None or child.wait()

    def look(self) -> None:
        """See which blocks the nodes serve now, where they choose them."""
        for seat in self.seats if self.roster.epoch_s else ():
            now = self._ready(seat.name)
            if now is not None and seat.peer and now != seat:
                self.roster.note(now)

    def reap(self) -> None:
        """Wait for the children of this process that have ended."""
        for child in self._children.values():
            child.wait()

    def start_all(self, ready_s: float, tell: Tell) -> None:
        """The first node, then all others by it. `tell` hears of each that serves. Raises UserError
        or PotluckError, with the last words of the node that did not."""
        deadline_s = time.monotonic() + ready_s
        first, *others = self.roster.seats
        self._launch(first, ())
        self._await([first], deadline_s, tell)
        for name in others:
            self._launch(name, self.seat(first).addresses)
        self._await(others, deadline_s, tell)

    def _launch(self, name: str, join: Sequence[str]) -> None:
        try:
            self._begin(name, join)
        except OSError as error:
            where = error.filename or self.roster.folder
            raise UserError(
                f"{where}: {error.strerror}; {name} cannot be started: mend that, or give another "
                "--home"
            ) from error

    def _begin(self, name: str, join: Sequence[str]) -> None:
        seat = replace(self.seat(name), pid=0, created_s=0.0, peer="", addresses=())
        self.roster.note(seat)
        self._home(name).mkdir(mode=0o700, exist_ok=True)
        self._home(name, RUNNING).unlink(missing_ok=True)  # of a run before
        if (before := self._children.pop(name, None)) is not None:
            before.wait()
        blocks = AUTO if self.roster.epoch_s else f"{seat.start}:{seat.stop}"
        joining = [part for address in join for part in ("--join", address)]
        own = ["--home", str(self._home(name)), "--blocks", blocks]
        command = [*self.roster.program, *own, *joining]
        if self.roster.isolated:
            make_island(self.roster.folder, name)
            command += ["--listen", address_of(self.roster.folder, name)]
            command = on_island(self.roster.folder, name, command)
        child = start(
            command,
            mark=(MARK, str(self.roster.folder)),
            environment={**self.roster.environment, LIE: seat.lie},
            log=self._home(name, LOG),
        )
        self._children[name] = child
        born = process_id(child.pid)  # there even if it died: it was not waited for yet
        self.roster.note(replace(seat, pid=born.pid, created_s=born.created_s))

    def _await(self, names: Sequence[str], deadline_s: float, tell: Tell) -> None:
        waiting = list(names)
        while waiting:
            for name in list(waiting):
                if (ready := self._ready(name)) is not None:
                    waiting.remove(name)
                    self.roster.note(ready)
                    tell(ready)
                elif (code := self._children[name].poll()) is not None:
                    raise self._failure(name, f"ended with code {code}", bad_input=code == 2)
            if waiting and time.monotonic() > deadline_s:
                raise self._failure(waiting[0], "was not ready in time", bad_input=False)
            if waiting:
                with suppress(subprocess.TimeoutExpired):
                    self._children[waiting[0]].wait(LOOK_EVERY_S)

    def _ready(self, name: str) -> Seat | None:
        """What a node wrote down when it began to serve."""
        try:
            told = json.loads(self._home(name, RUNNING).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        seat = self.seat(name)
        if told.get("pid") != seat.pid:
            return None
        start, stop = told["blocks"] if self.roster.epoch_s else (seat.start, seat.stop)
        peer, addresses = told["peer"], tuple(told["addresses"])
        return replace(seat, start=start, stop=stop, peer=peer, addresses=addresses)

    def _failure(self, name: str, what: str, *, bad_input: bool) -> PotluckError:
        log = self._home(name, LOG)
        said = last_lines(log, 1)
        why = said[0].removeprefix("potluck: ") if said else "it said nothing"
        line = f"{name} {what}: {why} (its log: {log})"
        return UserError(line) if bad_input else PotluckError(line)

    def _home(self, name: str, *file: str) -> Path:
        return self.roster.folder.joinpath(name, *file)


def folder_of(home: Path) -> Path:
    """Where the testnet of a home is kept. It is also its mark: so it has to be one spelling."""
    return home.resolve() / TESTNET


def find_testnet(home: Path) -> LocalSwarm:
    """The testnet of this home. Raises UserError when there is none."""
    roster = Roster.read(folder_of(home))
    if roster is None:
        raise UserError(f"no testnet under {home}: start one by potluck testnet up")
    return LocalSwarm(roster)


def start_testnet(
    plan: Plan, *, tell: Tell = lambda seat: None, program: Sequence[str] = PROGRAM
) -> LocalSwarm:
    """Start a testnet and leave it running, once all its nodes serve.

    Interrupted or failing, it ends all that it started. Raises UserError when one runs already.
    """
    net = _claim(plan, program)
    with ExitStack() as undone:
        undone.callback(take_down, plan.home, grace_s=0)
        _start(net, plan, tell)
        net.roster.release()
        undone.pop_all()
    return net


@contextmanager
def open_testnet(
    plan: Plan, *, tell: Tell = lambda seat: None, program: Sequence[str] = PROGRAM
) -> Iterator[LocalSwarm]:
    """A testnet for as long as this lasts, and no longer, though this process be killed."""
    net = _claim(plan, program)
    with leash(MARK, str(plan.folder)):
        try:
            _start(net, plan, tell)
            yield net
        finally:
            take_down(plan.home, grace_s=0)
            net.reap()


def take_down(home: Path, *, grace_s: float = GRACE_S) -> int:
    """End every process of this home's testnet; how many they were. The logs and keys stay.

    Nodes are asked first, and killed after `grace_s`. Without a testnet this does nothing.
    """
    folder = folder_of(home)
    try:
        roster = Roster.read(folder)
    except UserError:  # unreadable: every node still bears its mark
        roster = None
    if roster is not None and roster.owner not in (None, process_id()):
        owner = find(roster.owner) if roster.owner else None
        end([owner] if owner else [], grace_s=GRACE_S)  # it must not start another one meanwhile
    ended: set[int] = set()
    for _ in range(SWEEPS):
        written = [seat.process for seat in roster.seats.values()] if roster else []
        found = {one.pid: one for one in [*written, *marked(MARK, str(folder))] if one}
        if not found:
            break
        end(found.values(), grace_s=grace_s)
        ended |= set(found)
    else:
        raise LocalError(f"something goes on starting nodes under {folder}")
    remove_islands(folder)
    for left in [*folder.glob(f"*/{RUNNING}"), *folder.glob(f".{STATE}.*"), folder / STATE]:
        left.unlink(missing_ok=True)
    return len(ended)


def _start(net: LocalSwarm, plan: Plan, tell: Tell) -> None:
    if plan.road is not None:
        lay_roads(plan.folder, [*net.roster.seats], plan.road, (MARK, str(plan.folder)))
    net.start_all(plan.ready_s, tell)


def _claim(plan: Plan, program: Sequence[str]) -> LocalSwarm:
    """Make the testnet's folder ours. Raises UserError when a testnet lives there."""
    folder = plan.folder
    if plan.isolated and (why := why_not()) is not None:
        raise UserError(f"no networks of their own: {why}; start without --isolated")
    roster = plan.roster(program, process_id())
    runs = UserError(f"a testnet runs already: potluck testnet down --home {plan.home} ends it")
    prepare_home(folder)
    old = Roster.read(folder)
    if old is not None and old.runs:
        raise runs
    take_down(plan.home)  # what a crash left behind
    try:
        roster.create()
    except FileExistsError:  # another launcher was faster
        raise runs from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free the disk") from error
    for log in folder.glob(f"*/{LOG}"):
        log.unlink(missing_ok=True)
    return LocalSwarm(roster)
