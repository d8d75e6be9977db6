"""How an answer is sent: its prompt in chunks, its rows in a codec, by what its road is."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from api_fakes import Inline
from sim.alike_engine import add_alike
from sim.memory_swarm import World, world
from trio.testing import MockClock

from potluck.cli.habits import Habits
from potluck.errors import UserError
from potluck.node import generation
from potluck.node.generation import Request, open_generation
from potluck.node.pacing import codec_for
from potluck.swarm.wan import CHUNK_TOKENS
from potluck.swarm.wire import CODED_PROTOCOL

from .test_audited_answer import PretendedVoice

PROMPT = tuple(number % 250 for number in range(600))
WIDE = 4096


async def said(made: World) -> tuple[str, int, list[int]]:
    """The words; the chunk that was chosen; the sizes of the steps of the prompt at the first
    hop."""
    host, router = made.client()
    request = Request(PretendedVoice(), PROMPT, max_new_tokens=6)  # type: ignore[arg-type]
    async with open_generation(host, router, Inline(), request) as answer:  # type: ignore[arg-type]
        text = "".join([piece.text async for piece in answer])
    sizes = [size for step in made.nodes[0].device.ran for size in step.sizes]
    return text, answer.chunk, [size for size in sizes if size > 1]


async def test_a_prompt_goes_in_chunks_that_fit_the_stages_and_its_answer_is_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three stages near by that say to take as long for each row of a chunk as for one alone: the
    smallest chunks overlap best. The first one is on its way before they are known."""
    async with world() as made:
        for start in (0, 2, 4):
            await add_alike(made, start, start + 2)
        text, chunk, sizes = await said(made)
    assert chunk == 32
    assert sizes == [128, *[32] * 14, 24]

    async def usual(*_: object) -> int:
        return CHUNK_TOKENS

    monkeypatch.setattr(generation, "chunk_for", usual)
    async with world() as made:
        for start in (0, 2, 4):
            await add_alike(made, start, start + 2)
        assert await said(made) == (text, CHUNK_TOKENS, [128, 128, 128, 128, 88])


async def test_where_bits_depend_on_the_chunk_it_is_always_the_usual_one(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 2), (2, 4), (4, 6)) as made:
        _, chunk, sizes = await said(made)
    assert (chunk, sizes) == (CHUNK_TOKENS, [128, 128, 128, 128, 88])


async def test_nobody_waits_for_hops_that_are_not_to_be_had(autojump_clock: MockClock) -> None:
    async with world((0, 2), (4, 6)) as made:
        with pytest.raises(Exception, match="no peer serves blocks 2:4"):
            await said(made)


async def chosen(
    made: World, wish: str, *, byte_s: float, knows: Sequence[str], rtt_s: float = 0.02,
    chain: bool = False,
) -> str:  # fmt: skip
    """By a client that has seen of each peer what a byte takes on its road, in seconds."""
    host, router = made.client()
    host.claims = lambda peer: SimpleNamespace(protocols=knows)  # type: ignore[attr-defined]
    for node in made.nodes:
        history = router.history(node.host.peer_id)
        history.rtt_s = rtt_s
        history.carried(1_000_000, rtt_s + 1_000_000 * byte_s)
    voice: Any = PretendedVoice(width=WIDE)
    return await codec_for(  # type: ignore[arg-type]
        wish, host, router, voice, 512, 64, chain=chain
    )


async def test_a_codec_is_chosen_by_what_the_road_carried_and_never_unasked(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3), (3, 6)) as made:
        slow, fast = 8 / 20e6, 8 / 100e9
        groups = (CODED_PROTOCOL,)
        assert await chosen(made, "auto", byte_s=slow, knows=groups) == "int8"
        assert await chosen(made, "auto", byte_s=slow, knows=()) == "bf16", "of older peers"
        assert await chosen(made, "auto", byte_s=fast, knows=groups) == "f32"
        assert await chosen(made, "f32", byte_s=slow, knows=groups) == "f32"
        assert await chosen(made, "int4", byte_s=fast, knows=()) == "int4", "whoever asks"
        with pytest.raises(UserError, match="give auto, f32, bf16, int8 or int4"):
            await chosen(made, "int2", byte_s=fast, knows=())


async def test_whoever_goes_from_hop_to_hop_has_rows_in_groups_too(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 2), (2, 4), (4, 6)) as made:
        far = {"byte_s": 8 / 20e6, "knows": (CODED_PROTOCOL,), "rtt_s": 0.2}
        assert await chosen(made, "auto", **far) == "int8"
        assert await chosen(made, "auto", **far, chain=True) == "int8"


def test_a_codec_that_is_none_is_refused_before_anything_is_asked() -> None:
    for wish in ("f16", "INT8", ""):
        with pytest.raises(UserError, match="no codec"):
            Habits(wire=wish).check()
    for wish in ("auto", "f32", "bf16", "int8", "int4"):
        Habits(wire=wish).check()


async def test_where_nobody_serves_or_nothing_was_seen_nothing_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with world((0, 3)) as made:
        assert await chosen(made, "auto", byte_s=1.0, knows=(CODED_PROTOCOL,)) == "f32"
    async with world((0, 6)) as made:
        host, router = made.client()
        host.claims = lambda peer: None  # type: ignore[attr-defined]
        voice: Any = PretendedVoice(width=WIDE)
        with trio.fail_after(5):
            assert await codec_for("auto", host, router, voice, 512, 64) == "f32"  # type: ignore[arg-type]
