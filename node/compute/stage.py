"""A span on a device: hidden states in, hidden states out.

A stage holds the weights of consecutive blocks: of our own block, or of transformers' layers
(layers.py). A session uses some or all of them through its own cache. Everything here runs on the
one thread that touches the device (worker.py).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...errors import RemoteError, UserError
from .adapted import NOTHING, PlacedAdapter
from .adapter import Adapter
from .block import Block
from .cache import Cache
from .checkpoint import Checkpoint
from .device import choose_device, choose_dtype, numerics_class
from .layers import Layers
from .layout import Layout, layout_of
from .loading import Loader, block_bytes, counted
from .memory import require_memory
from .quant.formats import QUANTIZATIONS, Quantization, choose
from .quant.race import Chosen, settle
from .rating import decode_and_prefill, median_s
from .rope import Ropes, Turns, is_stretched
from .sight import plan_step
from .spec import ModelSpec
from .tiles import aligned
from .weight import Format


class Runner(Protocol):
    """What computes a stage's blocks."""

    weight_bytes: int
    kernels: tuple[Chosen, ...]  # that were chosen on this device

    def open(self, start: int, stop: int, max_tokens: int) -> Cache:
        """The memory of a new session over blocks start..stop."""
        ...

    def run(self, hidden: Tensor, cache: Cache, at: int) -> Tensor:
        """hidden: (tokens, width), on the device; its first row is the cache's next position."""
        ...


class Blocks:
    """The runner of our own block."""

    def __init__(
        self,
        spec: ModelSpec,
        start: int,
        blocks: list[Block],
        *,
        dtype: torch.dtype,
        device: torch.device,
        weight_bytes: int,
        kernels: tuple[Chosen, ...] = (),
    ) -> None:
        self.weight_bytes = weight_bytes
        self.kernels = kernels
        self._spec = spec
        self._start = start
        self.blocks = blocks
        self._dtype = dtype
        self._device = device
        self._ropes = Ropes(spec)
        self._turns: dict[tuple[bool, ...], tuple[Turns, ...]] = {}

    @staticmethod
    def load(
        checkpoint: Checkpoint,
        start: int,
        stop: int,
        coding: Quantization,
        *,
        dtype: torch.dtype,
        device: torch.device,
        cache_dir: Path | None,
    ) -> "Blocks":
        """Load blocks start..stop, one after another. Raises UserError."""
        spec = checkpoint.spec
        layouts = {index: layout_of(spec, index) for index in range(start, stop)}
        for layout in layouts.values():
            checkpoint.require(layout.shapes)
        needed = sum(block_bytes(layout, coding, dtype) for layout in layouts.values())
        require_memory(needed, device, f"{checkpoint.name}: blocks {start}:{stop}")
        kernels = settle_kernels(layouts.values(), coding, dtype, device)
        loader = Loader(checkpoint, coding, cache_dir)
        blocks = []
        with torch.inference_mode():
            for index in counted(layouts):
                blocks.append(Block(spec, index, loader.block(index), dtype=dtype, device=device))
        return Blocks(
            spec, start, blocks, dtype=dtype, device=device, weight_bytes=needed, kernels=kernels
        )

    def open(self, start: int, stop: int, max_tokens: int) -> Cache:
        return Cache(
            self._spec, start, stop, max_tokens=max_tokens, dtype=self._dtype, device=self._device
        )

    def run(self, hidden: Tensor, cache: Cache, at: int) -> Tensor:
        stop = at + len(hidden)
        windows = frozenset(self._spec.windows[cache.start : cache.stop])
        turns = tuple(one.rows(at, stop) for one in self.turns_of(cache.max_tokens))
        plan = plan_step(turns, windows, at, stop, device=self._device)
        for index in range(cache.start, cache.stop):
            block = self.blocks[index - self._start]
            addends = NOTHING if cache.adapter is None else cache.adapter.of(index)
            hidden = block.forward(hidden, cache.rows(index), plan, addends)
        return hidden

    def turns_of(self, session_tokens: int) -> tuple[Turns, ...]:
        """The turns of a session of this size, by kind of block."""
        spec = self._spec
        ropes = (spec.rope,) if spec.local_rope is None else (spec.rope, spec.local_rope)
        key = tuple(is_stretched(rope, session_tokens) for rope in ropes)
        if key not in self._turns:
            self._turns[key] = tuple(
                Turns(self._ropes.angles(rope, session_tokens), spec.head_dim, device=self._device)
                for rope in ropes
            )
        return self._turns[key]


class Stage:
    """The blocks start..stop of a model, loaded."""

    def __init__(
        self,
        spec: ModelSpec,
        start: int,
        stop: int,
        runner: Runner,
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Format = "none",
    ) -> None:
        self.spec = spec
        self.start = start
        self.stop = stop
        self.dtype = dtype
        self.device = device
        self.quantization = quantization
        self.weight_bytes = runner.weight_bytes
        self._runner = runner

    @property
    def own(self) -> Blocks | None:
        """The blocks, where they are our own."""
        return self._runner if isinstance(self._runner, Blocks) else None

    @property
    def told(self) -> str:
        """Which kernels were chosen, and by which figures; empty where there was no choice."""
        return "; ".join(one.told for one in self._runner.kernels if one.told)

    @staticmethod
    def load(
        checkpoint: Checkpoint,
        start: int,
        stop: int,
        *,
        device: str = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        quantization: str | None = None,
        cache_dir: Path | None = None,
    ) -> "Stage":
        """Load blocks start..stop and nothing else. Raises UserError.

        dtype: `fp32`, `bf16`, `fp16`, or None for the device's own; threads: of the process;
        quantization: `none`, `int8`, `nf4`, or None for what the checkpoint stores; cache_dir:
        where quantized blocks are kept for the next time.
        """
        spec = checkpoint.spec
        if not 0 <= start < stop <= spec.blocks:
            raise UserError(
                f"{checkpoint.name}: blocks {start}:{stop} are outside 0:{spec.blocks};"
                " choose a range inside"
            )
        place = choose_device(device)
        numbers = choose_dtype(dtype, place, wide=spec.post_norms)
        if threads is not None:
            torch.set_num_threads(threads)
        runner: Runner
        if spec.general is not None:
            if quantization not in (None, "auto", "none"):
                raise UserError(
                    f"{checkpoint.name}: models of {spec.family} are served by transformers' own"
                    " code, and that unquantized: use --quantization none"
                )
            coding = QUANTIZATIONS["none"]
            layers = Layers.load(checkpoint, start, stop, dtype=numbers, device=place)
            spec = layers.measured(spec)
            runner = layers
        else:
            coding = choose(quantization, checkpoint.stored_format)
            runner = Blocks.load(
                checkpoint, start, stop, coding, dtype=numbers, device=place, cache_dir=cache_dir
            )
        return Stage(
            spec, start, stop, runner, dtype=numbers, device=place, quantization=coding.format
        )

    @property
    def numerics(self) -> str:
        """Stages of equal strings give equal bits for equal steps."""
        names = [one.name for one in self._runner.kernels]
        kernel = "+".join(name or "bnb" for name in names) if any(names) else ""
        return numerics_class(self.device, self.dtype, self.quantization, kernel)

    def open_cache(self, start: int, stop: int, max_tokens: int) -> Cache:
        """The memory of a new session over blocks start..stop. Raises RemoteError."""
        if not self.start <= start < stop <= self.stop:
            raise RemoteError(f"blocks {start}:{stop} asked, {self.start}:{self.stop} served")
        if not 1 <= max_tokens <= self.spec.context:
            raise RemoteError(f"{max_tokens} tokens asked, the context is {self.spec.context}")
        return self._runner.open(start, stop, max_tokens)

    def load_adapter(self, adapter: Adapter, rank_step: int = 1) -> PlacedAdapter:
        """What caches may wear (`Cache.adapter`), so that their rows go through it.

        rank_step: ranks are filled up to multiples of it.
        """
        return PlacedAdapter(
            self.spec,
            adapter,
            self.start,
            self.stop,
            dtype=self.dtype,
            device=self.device,
            rank_step=rank_step,
        )

    def forward(self, hidden: Tensor, cache: Cache, at: int) -> Tensor:
        """Run `hidden` through the cache's blocks and remember its keys and values.

        hidden: (tokens, width), any float dtype and device; `at` is the position of its first
        row: positions from there on are forgotten first. Returns the same shape in this stage's
        dtype. Raises RemoteError for a position beyond what is remembered or agreed.
        """
        tokens, width = hidden.shape
        if width != self.spec.hidden or tokens < 1:
            raise RemoteError(
                f"hidden states of shape {tokens} x {width}, not n x {self.spec.hidden}"
            )
        if not 0 <= at <= cache.length:
            raise RemoteError(f"position {at}, but the cache holds {cache.length}")
        stop = at + tokens
        with torch.inference_mode():
            cache.reserve(stop)
            cache.truncate(at)
            placed = hidden.to(device=self.device, dtype=self.dtype)
            x = self._runner.run(aligned(placed), cache, at)
            cache.length = stop
        return x

    def forward_steps(self, hidden: Tensor, cache: Cache, at: int, steps: Sequence[int]) -> Tensor:
        """Run the rows of `hidden` in steps of exactly these sizes, one after another.

        A product of one row and one of many differ in their last bits; with the step sizes of
        the first run a replay gives the very same numbers. Raises RemoteError.
        """
        if not steps or any(step < 1 for step in steps) or sum(steps) != len(hidden):
            raise RemoteError(f"steps of {sum(steps)} rows for {len(hidden)} hidden states")
        if len(steps) == 1:
            return self.forward(hidden, cache, at)
        done = []
        for rows in torch.split(hidden, list(steps)):
            done.append(self.forward(rows, cache, at))
            at += len(rows)
        return torch.cat(done)

    def measure(self) -> tuple[float, float]:
        """Tokens per second and block: decoding one by one, and in a prefill of 128."""
        return decode_and_prefill(self._rate, self.spec.context)

    def _rate(self, tokens: int, blocks: int) -> float:
        hidden = torch.zeros((tokens, self.spec.hidden), dtype=self.dtype, device=self.device)
        hidden[:] = torch.linspace(-1, 1, self.spec.hidden)
        cache = self.open_cache(self.start, min(self.start + blocks, self.stop), tokens)

        def run() -> None:
            self.forward(hidden, cache, 0)
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)

        return tokens * (cache.stop - cache.start) / median_s(run)


def settle_kernels(
    layouts: Iterable[Layout], coding: Quantization, dtype: torch.dtype, device: torch.device
) -> tuple[Chosen, ...]:
    """Choose the kernels for each format that the blocks' matrices are in."""
    shapes: dict[Format, set[tuple[int, int]]] = {}
    for layout in layouts:
        for name, shape in layout.shapes.items():
            if len(shape) == 2 and name not in layout.exact:
                shapes.setdefault(coding.fitting(shape[1]), set()).add((shape[0], shape[1]))
    return tuple(settle(one, sorted(shapes[one]), dtype, device) for one in sorted(shapes))
