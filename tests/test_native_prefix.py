"""Our C on pages that another session filled: the same bits as on its own."""

from __future__ import annotations

import pytest
import torch

from potluck.node.compute.checkpoint import open_checkpoint
from potluck.node.compute.engine import BatchEngine
from potluck.node.compute.native import library
from potluck.node.compute.native_stage import NativeStage
from potluck.node.compute.pages import Pool, page_stride
from potluck.node.compute.prefix_cache import PrefixCache, Seen
from potluck.node.compute.tensor import pack
from potluck.node.library import DEMO_FOLDER
from potluck.swarm.prefix import Chain, Scope
from potluck.swarm.wire import Step

pytestmark = pytest.mark.skipif(not library.is_available(), reason=str(library.why_not()))

SCOPE: Scope = ("", 2, 5, "f32", 0)


@pytest.mark.parametrize("byte_pages", [False, True])
def test_what_follows_an_adopted_beginning_has_the_bits_of_a_session_alone(
    byte_pages: bool,
) -> None:
    """The beginning was computed in other steps, by a session that went on with other rows."""
    stage = NativeStage.load(open_checkpoint(DEMO_FOLDER), 2, 5, threads=1, byte_pages=byte_pages)
    size = page_stride(stage.page_bytes)
    pool = Pool(budget_bytes=200 * size, page_bytes=stage.page_bytes)
    engine, cache, width = BatchEngine(stage, pool), PrefixCache(pool), stage.spec.hidden
    dice = torch.Generator().manual_seed(5)
    rows = torch.randn(260, width, generator=dice)
    other = torch.randn(200, width, generator=dice)

    def run(lease: object, hidden: torch.Tensor, at: int, steps: list[int]) -> torch.Tensor:
        out = []
        for count in steps:
            part = hidden[:count]
            hidden = hidden[count:]
            step = Step(at, (count,), count)
            work = engine.begin(lease, memoryview(pack(part, "f32")), step, "f32")  # type: ignore[arg-type]
            engine.run([(work, count)])
            out.append(work.rows())
            at += count
        return torch.cat(out)

    blocks = engine.blocks
    first = engine.open_cache(blocks, 512)
    gave = run(first, rows[:200], 0, [128, 50, 1, 1, 20])
    chain, outs = Chain(4 * width), Chain(4 * width)
    leaves = chain.add(bytes(pack(rows[:200], "f32")))
    outs.add(bytes(pack(gave, "f32")))
    for number, taken in enumerate(leaves):
        raw = bytes(pack(gave[64 * number : 64 * number + 64], "f32"))
        cache.keep(
            SCOPE, tuple(chain.names[: number + 1]), first, Seen(taken, outs.names[number], raw)
        )
    run(first, other, 150, [100, 100])  # over pages that are kept: it gets its own
    alone = engine.open_cache(blocks, 512)
    expected = run(alone, rows, 0, [260])
    second = engine.open_cache(blocks, 512)
    found = cache.find(SCOPE, chain.names, second, 1 << 24)
    assert [one.name for one in found] == outs.names and second.length == 192
    assert b"".join(one.gave for one in found) == bytes(pack(expected[:192], "f32"))
    assert torch.equal(run(second, rows[192:], 192, [1, 60, 7]), expected[192:])
    for lease in (first, alone, second):
        engine.close_cache(lease)
    assert pool.used_pages == cache.pages
