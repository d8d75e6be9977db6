"""In which way an answer is sent, by what is known of its road: in chunks of how much, coded how.

The rules are swarm/wan.py's. What they are told of a hop is what this process saw of it (its passes
by its own word, its round trip, what its road carried), else what its record claims.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial

from ..dht.record import Announcement
from ..errors import MissingBlocks, UserError
from ..swarm.blocks import BlockRange
from ..swarm.history import CHUNK_ROWS
from ..swarm.routing import Hop, find_route
from ..swarm.rows import CODECS, Codec, is_coded, row_bytes
from ..swarm.session_links import frames_in_flight
from ..swarm.view import RTT_UNKNOWN_S
from ..swarm.wan import CHUNK_TOKENS, CHUNKS, Shape, Stage, Way, choose_chunk, choose_codec
from ..swarm.wire import CODED_PROTOCOL
from .compute.voice import Voice
from .net.host import Host
from .router import Router
from .session import LiveSession

AUTO = "auto"
OVERHEAD_S = 0.002  # algorithms.md 9: what a hop takes beyond its pass and its way

Chunking = Callable[[LiveSession, int], Awaitable[int]]  # the rest of a prompt: tokens at once


async def chunk_for(
    router: Router, voice: Voice, shape: Shape, session: LiveSession, tokens: int
) -> int:
    """In how many at once to send so many more tokens of a prompt, once the hops have opened.

    The usual number where rows have other bits in a chunk of another size: the same question shall
    have the same answer, however the road is today.
    """
    await session.opened()
    if session.rows_alike < max(CHUNKS):
        return CHUNK_TOKENS
    way = way_of(router, voice.digest, session.route, row_bytes(voice.width, voice.wire))
    if way is None:
        return CHUNK_TOKENS
    window = partial(frames_in_flight, way.row_bytes)
    return choose_chunk(replace(way, shape=shape), tokens, window)


async def codec_for(
    wish: str, host: Host, router: Router, voice: Voice, prompt: int, answer: int,
    *, chain: bool = False,
) -> Codec:  # fmt: skip
    """The codec of an answer; "auto" chooses by the route that is the cheapest now. chain: its
    steps go from hop to hop where they can. Raises UserError for another word."""
    if (asked := check_codec(wish)) is not None:
        return asked
    view = await router.view(voice.digest, voice.blocks)
    try:
        route = find_route(view, BlockRange(0, voice.blocks), cache_tokens=prompt + answer)
    except MissingBlocks:
        return "f32"  # whoever opens the session says so
    way = way_of(router, voice.digest, route.hops, row_bytes(voice.width, "f32"))
    if way is None:
        return "f32"
    groups = all(_knows_groups(host, hop.peer) for hop in route.hops)
    codecs = [one for one in CODECS if groups or not is_coded(one)]
    return choose_codec(way, voice.width, prompt, answer, codecs=codecs, chain=chain)


def check_codec(wish: str) -> Codec | None:
    """What is asked for; None: to choose. Raises UserError."""
    if wish == AUTO:
        return None
    for codec in CODECS:
        if wish == codec:
            return codec
    raise UserError(f"no codec {wish}: give {AUTO}, {', '.join(CODECS[:-1])} or {CODECS[-1]}")


def way_of(router: Router, model: str, hops: Iterable[Hop], row_size: int) -> Way | None:
    """What is known of these hops; None where there are none, or nothing is of one of them."""
    stages = []
    for hop in hops:
        history, blocks = router.history(hop.peer), len(hop.blocks)
        times = history.passes(blocks) or _claimed(router.told(model, hop.peer), blocks)
        if not times:
            return None
        rtt_s = RTT_UNKNOWN_S if history.rtt_s is None else history.rtt_s
        stages.append(Stage(rtt_s / 2, times, history.bytes_s or float("inf")))
    return Way(tuple(stages), row_size, overhead_s=OVERHEAD_S) if stages else None


def _claimed(told: Announcement | None, blocks: int) -> tuple[tuple[int, float], ...]:
    if told is None or min(told.decode_tokens_s, told.prefill_tokens_s) <= 0:
        return ()
    one_s = blocks / told.decode_tokens_s
    return (1, one_s), (CHUNK_ROWS, max(one_s, CHUNK_ROWS * blocks / told.prefill_tokens_s))


def _knows_groups(host: Host, peer: str) -> bool:
    claims = host.claims(peer)
    return claims is not None and CODED_PROTOCOL in claims.protocols
