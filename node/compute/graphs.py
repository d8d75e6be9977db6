"""Passes of few rows as graphs: recorded once for a shape, then started with one call.

A pass through thirty blocks is a thousand short kernels, and starting each of them from Python
takes longer than most of them run. A graph starts them all at once, but fixes addresses and shapes:
so what differs between two passes lies in a few tensors that are filled before each start, and
passes are filled up to few shapes (tile_plan.py).

    key new    compute ──▶ its result serves; record, start once, the same bits? ──▶ kept
    key known  fill, start ──▶ result
    a fault, or other bits ──▶ nothing is recorded any more, passes are computed as before

Source: CUDA graphs as vLLM and others use them for decoding (Kwon et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...errors import LocalError
from ..log import get_logger
from .quant.race import faults

log = get_logger()

GRAPHS_MAX: Final = 48  # guess: of a pool; each has its place for what lies between the kernels
_WARM: Final = 2  # runs before recording: libraries choose kernels and take their memory in them


@dataclass(frozen=True, slots=True)
class Inputs:
    """What differs between two passes of one key. hidden: (rows, width); numbers: int64, [n];
    turns: complex, (rows, 1, pairs) of each kind."""

    key: Hashable
    hidden: Tensor
    numbers: Tensor
    turns: tuple[Tensor, ...]

    def on(self, device: torch.device) -> Inputs:
        """Copies, in memory of their own."""
        turns = tuple(one.to(device, copy=True) for one in self.turns)
        hidden = self.hidden.to(device, copy=True)
        return Inputs(self.key, hidden, self.numbers.to(device, copy=True), turns)

    def fill(self, other: Inputs) -> None:
        """Take the numbers of another pass of this key."""
        self.hidden.copy_(other.hidden)
        self.numbers.copy_(other.numbers)
        for mine, one in zip(self.turns, other.turns, strict=True):
            mine.copy_(one)


class Recorder(Protocol):
    """A device's way to record kernels."""

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """`run`'s kernels on the addresses that it uses now. What the call gives is overwritten by
        the next. Raises RuntimeError where they cannot be recorded."""


class CudaRecorder:
    """CUDA graphs; all of them share one memory for what lies between their kernels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Any = None

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            beside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            beside.wait_stream(here)
            with torch.cuda.stream(beside):
                for _ in range(_WARM):
                    run()
            here.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # of this thread alone: others copy to the device meanwhile
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                found = run()
            self._memory = self._memory or graph.pool()

        def again() -> Tensor:
            graph.replay()
            return found

        return again


def recorder_of(device: torch.device) -> Recorder | None:
    """None: this device starts kernels one by one."""
    return CudaRecorder(device) if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: Inputs
    again: Callable[[], Tensor]


class Graphs:
    """Of one stage. On the worker's thread alone."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._recorded: WeakKeyDictionary[Any, dict[Hashable, _Recorded]] = WeakKeyDictionary()
        self.why_not = ""  # nothing is recorded any more

    def run(
        self, pool: object, inputs: Inputs, compute: Callable[[Inputs], Tensor]
    ) -> Tensor | None:
        """What `compute` gives for these inputs; the next call may overwrite it. None: not here.

        pool: whose pages `compute` reads and writes, twice where a pass is recorded.
        """
        if self.why_not:
            return None
        known = self._recorded.setdefault(pool, {})
        found = known.get(inputs.key)
        if found is not None:
            found.inputs.fill(inputs)
            return found.again()
        if len(known) >= GRAPHS_MAX:
            return None
        own = inputs.on(inputs.hidden.device)
        result = compute(own)
        known_faults: tuple[type[BaseException], ...] = (LocalError, *faults())
        try:
            known[inputs.key] = self._record(own, compute, result)
        except known_faults as error:
            self.why_not = f"{type(error).__name__}: {error}"
            self._recorded.clear()
            log.warning("passes are not recorded", why=self.why_not)
        return result

    def _record(
        self, own: Inputs, compute: Callable[[Inputs], Tensor], result: Tensor
    ) -> _Recorded:
        again = self._recorder.record(lambda: compute(own))
        if not torch.equal(again(), result):
            raise LocalError("a recorded pass gives other bits")
        return _Recorded(own, again)
