"""Breaks nodes of a testnet as a plan says, and mends them again.

It knows whom it has broken: who is well, and which blocks the well ones hold. A fault waits while
its victim, or the last other holder of its blocks, is not well yet: a plan guesses how soon a node
is back, a busy machine may take longer.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress

import psutil
import trio

from ...errors import PotluckError, UserError
from ...swarm.blocks import BlockRange
from ...swarm.chaos import Fault, uncovered
from ..process import end
from .islands import cut, heal
from .launcher import LocalSwarm
from .roster import Seat

LOOK_EVERY_S = 0.05
READY_S = 120.0
LEAVE_S = 60.0  # a node drains for up to 30 s (config.py), and closes; on a busy machine
SLOW_STOPPED_S, SLOW_RUNS_S = 0.09, 0.03  # a quarter of its speed
POSTPONED_MAX_S = 45.0


class Breaker:
    """Does faults to a testnet. `tell` hears a line for each that begins or ends."""

    def __init__(self, net: LocalSwarm, tell: Callable[[str], None], *, uncover: bool) -> None:
        self._net = net
        self._tell = tell
        self._uncover = uncover
        self._out: dict[str, Fault] = {}
        self._mended = trio.Event()

    @property
    def broken(self) -> dict[str, Fault]:
        """Whom we did something to that is not over, and what."""
        return dict(self._out)

    def serving(self) -> dict[str, Seat]:
        """Who should serve now, as far as we have let them, by peer; the slow ones too."""
        return {
            seat.peer: seat
            for seat in self._net.seats
            if seat.name not in self._out or self._out[seat.name].kind == "slow"
        }

    async def may_begin(self, fault: Fault, *, until_s: float) -> bool:
        """Wait until this fault does no more than was planned, and claim its victim for it; False
        when that does not come in time."""
        with trio.move_on_at(min(until_s, trio.current_time() + POSTPONED_MAX_S)):
            while not self._fits(fault):
                self._mended = trio.Event()
                await self._mended.wait()
            self._out[fault.node] = fault
            return True
        return False

    def _fits(self, fault: Fault) -> bool:
        if fault.kind == "join":
            return True
        if fault.node in self._out:
            return False
        self._net.look()
        well = [
            BlockRange(seat.start, seat.stop)
            for seat in self._net.seats
            if seat.name not in self._out and seat.name != fault.node and seat.process
        ]
        return self._uncover or not uncovered(well, self._net.roster.blocks)

    async def perform(self, fault: Fault, begun: Callable[[], None]) -> None:
        """Do what `may_begin` allowed, and undo it. `begun` is called when it is done. Raises
        PotluckError when the node does not do its part."""
        acts = {
            "kill": self._kill, "stall": self._stall, "slow": self._slow,
            "partition": self._part, "join": self._join, "leave": self._leave,
        }  # fmt: skip
        await acts[fault.kind](fault, begun)
        del self._out[fault.node]
        self._mended.set()

    async def _kill(self, fault: Fault, begun: Callable[[], None]) -> None:
        begun()
        await trio.to_thread.run_sync(self._net.send, fault.node, signal.SIGKILL)
        await trio.sleep(fault.for_s)
        await self._start(fault)

    async def _stall(self, fault: Fault, begun: Callable[[], None]) -> None:
        begun()
        self._net.send(fault.node, signal.SIGSTOP)
        await trio.sleep(fault.for_s)
        self._net.send(fault.node, signal.SIGCONT)
        self._tell(f"{fault.node} goes on")

    async def _slow(self, fault: Fault, begun: Callable[[], None]) -> None:
        process = self._process(fault.node)
        begun()
        try:
            with trio.move_on_after(fault.for_s):
                while True:
                    process.suspend()
                    await trio.sleep(SLOW_STOPPED_S)
                    process.resume()
                    await trio.sleep(SLOW_RUNS_S)
            process.resume()
        except psutil.NoSuchProcess:
            raise _died(fault.node) from None
        self._tell(f"{fault.node} is as fast as before")

    async def _part(self, fault: Fault, begun: Callable[[], None]) -> None:
        begun()
        await trio.to_thread.run_sync(cut, self._net.roster.folder, fault.node)
        await trio.sleep(fault.for_s)
        await trio.to_thread.run_sync(heal, self._net.roster.folder, fault.node)
        self._tell(f"{fault.node} is connected again")

    async def _join(self, fault: Fault, begun: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(
            self._net.add, fault.node, fault.blocks.start, fault.blocks.stop
        )
        await self._start(fault)
        begun()
        await trio.sleep(fault.for_s)
        await self._end(fault)
        await trio.to_thread.run_sync(self._net.remove, fault.node)

    async def _leave(self, fault: Fault, begun: Callable[[], None]) -> None:
        begun()
        await self._end(fault)
        await trio.sleep(fault.for_s)
        await self._start(fault)

    async def _start(self, fault: Fault) -> None:
        """Have it run, joining by who is well, and wait until it serves."""
        began_s = trio.current_time()
        join = [seat.addresses[0] for seat in self.serving().values() if seat.addresses]
        await trio.to_thread.run_sync(self._net.launch, fault.node, join)
        while self._net.ready(fault.node) is None:
            if trio.current_time() > began_s + READY_S:
                raise PotluckError(f"{fault.node} does not serve {READY_S:.0f} s after its start")
            await trio.sleep(LOOK_EVERY_S)
        word = "serves" if fault.kind == "join" else "serves again"
        self._tell(f"{fault.node} {word}, {trio.current_time() - began_s:.1f} s after its start")

    async def _end(self, fault: Fault) -> None:
        began_s = trio.current_time()
        self._net.send(fault.node, signal.SIGTERM)
        while self._net.seat(fault.node).process is not None:
            if trio.current_time() > began_s + LEAVE_S:
                raise PotluckError(f"{fault.node} runs {LEAVE_S:.0f} s after SIGTERM")
            await trio.sleep(LOOK_EVERY_S)
        self._tell(f"{fault.node} has left, {trio.current_time() - began_s:.1f} s after SIGTERM")

    def _process(self, name: str) -> psutil.Process:
        process = self._net.seat(name).process
        if process is None:
            raise _died(name)
        return process

    def abandon(self) -> None:
        """Undo at once what can be undone: nobody stays stopped or cut off, who joined ends."""
        for name, fault in self._out.items():
            if fault.kind == "partition":
                heal(self._net.roster.folder, name)
            with suppress(UserError, psutil.NoSuchProcess):
                process = self._net.seat(name).process
                if process is not None:
                    process.resume()
                    if fault.kind == "join":
                        end([process], grace_s=0)
                if fault.kind == "join":
                    self._net.remove(name)


def _died(name: str) -> PotluckError:
    return PotluckError(f"{name} died by itself: potluck testnet logs {name}")
