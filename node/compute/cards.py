"""What a GPU reaches of what it could: decode against copying, prefill against products, and what
passes between its kernels.

A few blocks with random weights, each format by itself. Decoding reads every weight once for each
token: `of_copy` is the time that a copy of as many bytes would take, over the time that it took.
bitsandbytes' own layers with the same matrices run beside it. `outside_us` is what a token's time
holds beyond its kernels', for each block: the launches that did not hide behind them. A stage that
serves one session at a time is measured, and the same in tiles for many (tiled_stage.py), where a
session is alone in its passes too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import UserError
from .block import Block
from .device import choose_dtype
from .layout import BlockWeights, Layout, layout_of
from .pages import pages_for
from .quant.formats import QUANTIZATIONS
from .quant.product import require_bitsandbytes
from .quant.race import random_weights
from .rating import median_s
from .spec import ModelSpec
from .spill import Budget
from .stage import Blocks, Stage, settle_kernels
from .tiled_stage import TiledStage
from .weight import FORMATS, Format, Weight

PAST = 256  # positions that a session remembers when it decodes
PROMPT = 2048
_COPIED_BYTES = 1 << 30
_SQUARE = 8192  # of the product whose rate is the device's
_STEPS = 20  # between two waits for the device
LLAMA_8B = {  # its blocks; ends are never loaded
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 2048,
    "max_position_embeddings": 4096,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reach:
    """One format, in one kind of stage. of_copy, theirs_of_copy: shares of the copy's rate, in a
    whole step of ours and in bitsandbytes' layers alone (0: it has none of these). of_matrix: of
    the products' rate, in a prefill. outside_us: a block. told: which kernels were chosen."""

    format: Format
    tiled: bool
    tokens_s: float
    of_copy: float
    theirs_of_copy: float
    of_matrix: float
    outside_us: float
    told: str


@dataclass(frozen=True, slots=True)
class Card:
    """copy_gb_s: bytes read and written. matrix_tflops: of a square product, in its dtype."""

    name: str
    copy_gb_s: float
    matrix_tflops: float
    formats: tuple[Reach, ...]

    @property
    def tiles(self) -> bool:
        """Whether rows have bits of their own on it: then many sessions are served at once."""
        return any(one.tiled for one in self.formats)


def measure(blocks: int = 4) -> Card:
    """Measure the first CUDA device. Raises UserError where there is none."""
    if not torch.cuda.is_available():
        raise UserError("not measured: no GPU")
    device = torch.device("cuda", 0)
    spec = ModelSpec.from_config(LLAMA_8B | {"num_hidden_layers": blocks})
    return measure_on(device, spec, copied=_COPIED_BYTES, square=_SQUARE)


def measure_on(device: torch.device, spec: ModelSpec, *, copied: int, square: int) -> Card:
    """copied: bytes; square: the side of a matrix."""
    dtype = choose_dtype(None, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    copy_s = _copy_s(device, copied) / copied
    flops = _flops(device, dtype, square)
    found: list[Reach] = []
    for one in FORMATS:
        found += _reaches(one, spec, dtype, device, copy_s=copy_s, flops=flops)
    return Card(name, 2e-9 / copy_s, flops * 1e-12, tuple(found))


def _reaches(
    format: Format,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    *,
    copy_s: float,
    flops: float,
) -> Iterator[Reach]:
    """copy_s: of a byte, which is read and written; reading alone takes half of it."""
    stage = random_stage(format, spec, dtype, device)
    layouts = [layout_of(spec, index) for index in range(spec.blocks)]
    products = [shape for one in layouts for shape in one.shapes.values() if len(shape) == 2]
    read_s = stage.weight_bytes * copy_s / 2
    theirs_s = _theirs_s(format, products, dtype, device)
    prompt = torch.randn((min(PROMPT, spec.context), spec.hidden)).to(device, dtype)
    past = min(PAST, len(prompt) - 1)
    work = 2 * len(prompt) * sum(rows * columns for rows, columns in products)
    tiled = TiledStage.of(stage)
    for one in (stage, tiled):
        if isinstance(one, str):  # why there are no tiles
            continue
        steps = partial(_steps, _forward(one, len(prompt)), device)
        prefill_s = median_s(steps(prompt, 0, 1))
        decode = steps(prompt[:1], past, _STEPS)
        token_s = median_s(decode) / _STEPS
        inside_s = _kernels_s(decode, device) / _STEPS
        yield Reach(
            format,
            isinstance(one, TiledStage),
            1 / token_s,
            read_s / token_s,
            read_s / theirs_s if theirs_s else 0.0,
            work / flops / prefill_s,
            (token_s - inside_s) / spec.blocks * 1e6,
            one.told,
        )


def _forward(stage: Stage | TiledStage, tokens: int) -> Callable[[Tensor, int], object]:
    """Rows of one session, from a position on, through all blocks."""
    if isinstance(stage, Stage):
        cache = stage.open_cache(stage.start, stage.stop, tokens)
        return lambda rows, at: stage.forward(rows, cache, at)
    blocks = stage.stop - stage.start
    pool = stage.pool(Budget(blocks * pages_for(tokens) * stage.page_bytes))
    lease = pool.open(stage.start, stage.stop, tokens)
    lease.reserve(0, tokens)
    return lambda rows, at: stage.forward_rows(rows, [(lease, at, len(rows))])


def _steps(
    forward: Callable[[Tensor, int], object],
    device: torch.device,
    rows: Tensor,
    at: int,
    times: int,
) -> Callable[[], None]:
    """So many steps of these rows, and a wait for the device."""

    def steps() -> None:
        for _ in range(times):
            forward(rows, at)
        _wait(device)

    return steps


def random_stage(
    format: Format, spec: ModelSpec, dtype: torch.dtype, device: torch.device
) -> Stage:
    """Blocks of random weights, which were never on a disk."""
    coding = QUANTIZATIONS[format]
    layouts = [layout_of(spec, index) for index in range(spec.blocks)]
    kernels = settle_kernels(layouts, coding, dtype, device)
    blocks, size = [], 0
    for index, layout in enumerate(layouts):
        weights = _random_block(layout, format, dtype, device)
        size += sum(one.nbytes for one in weights.matrices.values())
        blocks.append(Block(spec, index, weights, dtype=dtype, device=device))
    runner = Blocks(spec, 0, blocks, dtype=dtype, device=device, weight_bytes=size, kernels=kernels)
    return Stage(spec, 0, spec.blocks, runner, dtype=dtype, device=device, quantization=format)


def _random_block(
    layout: Layout, format: Format, dtype: torch.dtype, device: torch.device
) -> BlockWeights:
    matrices: dict[str, Weight] = {}
    vectors: dict[str, Tensor] = {}
    for name, shape in layout.shapes.items():
        if len(shape) == 1:
            vectors[name] = torch.ones(shape)
        else:
            matrices[name] = _random_matrix(format, shape[0], shape[1], dtype, device)
    return BlockWeights.of(layout, matrices, vectors)


def _random_matrix(
    format: Format, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Weight:
    if format == "none":
        return Weight.plain(torch.randn((rows, columns), dtype=dtype) * columns**-0.5)
    (weight,) = random_weights(format, [(rows, columns)], device, 1)
    assert weight.scales is not None
    return Weight(format, rows, columns, weight.codes, weight.scales * columns**-0.5)


def _theirs_s(
    format: Format, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
) -> float:
    """Seconds of one row through bitsandbytes' layers of these shapes (n, k); 0: it has none."""
    if format == "none" or device.type != "cuda":
        return 0.0
    require_bitsandbytes()
    layers = importlib.import_module("bitsandbytes").nn
    half = torch.float16 if format == "int8" else dtype  # its int8 layer computes in fp16
    made: list[tuple[torch.nn.Module, Tensor]] = []
    for rows, columns in shapes:
        if format == "int8":
            layer = layers.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
        else:
            layer = layers.Linear4bit(
                columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4",
                compress_statistics=False,
            )  # fmt: skip
        made.append((layer.to(device), torch.randn((1, columns)).to(device, half)))

    def run() -> None:
        with torch.inference_mode():
            for layer, x in made:
                layer(x)
        _wait(device)

    return median_s(run)


def _copy_s(device: torch.device, size: int) -> float:
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)
        _wait(device)

    return median_s(run)


def _flops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    one, other = (torch.randn((side, side)).to(device, dtype) for _ in range(2))

    def run() -> None:
        torch.mm(one, other)
        _wait(device)

    return 2 * side**3 / median_s(run)


def _kernels_s(run: Callable[[], None], device: torch.device) -> float:
    """Seconds that a run's kernels take on the device, by its own clock."""
    if device.type != "cuda":
        return 0.0
    profiler = importlib.import_module("torch.profiler")
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as seen:
        run()
    return float(sum(one.self_device_time_total for one in seen.key_averages())) * 1e-6


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
