"""A span over the devices that a node was given: which blocks on which, and all of it opened.

Parts compute one after the other, so a token takes the sum of their times: blocks go to the fastest
devices first, as many as fit there, and what is left to the slower ones. Devices of about one speed
share by what fits, so that each has about as much room left for every block's sessions. How fast a
device is, is measured on one block of the model; devices of one name are not told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from ...errors import UserError
from ...swarm import admission
from ...swarm.blocks import BlockRange
from .checkpoint import Checkpoint
from .choice import Opened, StageWish, host_share, open_stage
from .device import devices_of
from .joined import JoinedEngine, JoinedPools, Part, PartEngine
from .memory import free_bytes
from .pages import Pages
from .room import OWNERS_SHARE, blocks_that_fit, give_back, require_room, weights_that_fit

LIKE = 1.5  # guess: devices whose rates differ by less share the blocks by room


def open_span(checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish) -> Opened:
    """Load the blocks, on one device or on several. Raises UserError."""
    wish.check()
    wishes = _wishes(wish)
    if len(wishes) == 1:
        return open_stage(checkpoint, blocks, wish)
    counts = spread(
        len(blocks), _room(checkpoint, blocks, wishes), _rates(checkpoint, blocks, wishes)
    )
    opened: list[tuple[Opened, str]] = []
    at = blocks.start
    for one, count in zip(wishes, counts, strict=True):
        if count:
            mine = BlockRange(at, at + count)
            its = replace(one, cache_bytes=wish.cache_bytes * count // len(blocks))
            opened.append((open_stage(checkpoint, mine, its), one.device))
            at += count
    return joined(opened)


def _wishes(wish: StageWish) -> list[StageWish]:
    devices = devices_of(wish.device)
    return [wish] if len(devices) == 1 else divided(wish, devices)


def count_that_fit(checkpoint: Checkpoint, wish: StageWish) -> int:
    """How many blocks the devices can serve, with sessions; at least one. Raises UserError."""
    fits = [blocks_that_fit(checkpoint, one) for one in _wishes(wish)]
    return min(sum(fits), checkpoint.spec.blocks)


def fits_beside(checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish, held: int) -> bool:
    """Whether these blocks can be loaded while `held` others of the model are served."""
    wishes = _wishes(wish)
    each = -(-held // len(wishes))
    return len(blocks) <= sum(weights_that_fit(checkpoint, one, each) for one in wishes)


def require_span(checkpoint: Checkpoint, blocks: BlockRange, wish: StageWish) -> None:
    """Raise UserError when these blocks do not fit, before anything is read or downloaded."""
    wishes = _wishes(wish)
    if len(wishes) == 1:
        require_room(checkpoint, blocks, wish)
    else:
        _room(checkpoint, blocks, wishes)


def divided(wish: StageWish, devices: Sequence[str]) -> list[StageWish]:
    """The wish for each device: memory that was given for all of them in equal parts.

    Where nothing was given, a device that is named several times gives each its part of what is
    free.
    """
    count = len(devices)
    spill = host_share() if wish.spill_bytes is None else wish.spill_bytes
    found = []
    for name in devices:
        part = wish.part_bytes // count
        same = devices.count(name)
        if same > 1 and not wish.most_bytes:
            part = int(free_bytes(torch.device(name)) * (1 - OWNERS_SHARE)) // same
        found.append(
            replace(
                wish,
                device=name,
                memory_bytes=wish.memory_bytes // count,
                part_bytes=part,
                cache_bytes=wish.cache_bytes // count,
                spill_bytes=spill // count,
            )
        )
    return found


def spread(total: int, fits: Sequence[int], rates: Sequence[float]) -> list[int]:
    """How many of `total` blocks each device gets.

    fits: how many each has room for; all of them have enough. rates: of one block.
    """
    counts = [0] * len(fits)
    left = total
    order = sorted(range(len(fits)), key=lambda one: -rates[one])
    while left:
        fastest = rates[order[0]]
        like = [one for one in order if rates[one] * LIKE > fastest]
        order = [one for one in order if one not in like]
        room = sum(fits[one] for one in like)
        here = min(left, room)
        bounds, seen = [0], 0
        for one in sorted(like):
            seen += fits[one]
            bounds.append(-(-here * seen // max(1, room)))
            counts[one] = bounds[-1] - bounds[-2]
        left -= here
    return counts


def joined(opened: Sequence[tuple[Opened, str]]) -> Opened:
    """Stages that lie one behind the other, as one. With each the device that it was opened on."""
    if len(opened) == 1:
        return opened[0][0]
    stages = [one for one, _ in opened]
    spans = [one.engine.blocks for one in stages]
    pools = [one.pool for one in stages if isinstance(one.pool, Pages)]
    total = sum(map(len, spans))
    where = ", ".join(f"{span} on {name}" for span, (_, name) in zip(spans, opened, strict=True))
    page = max(one.page_tokens for one in stages)
    return Opened(
        engine=JoinedEngine(
            [Part(cast(PartEngine, one.engine), torch.device(name)) for one, name in opened]
        ),
        device="+".join(dict.fromkeys(one.device for one in stages)),
        dtype="+".join(dict.fromkeys(one.dtype for one in stages))[:16],
        quantization=stages[0].quantization,
        rates=(
            total / sum(len(span) / one.rates[0] for span, one in zip(spans, stages, strict=True)),
            total / sum(len(span) / one.rates[1] for span, one in zip(spans, stages, strict=True)),
        ),
        cache_tokens=min(one.cache_tokens // page * page for one in stages),
        page_tokens=page,
        token_bytes=min(one.token_bytes for one in stages),
        pool=JoinedPools(pools) if pools else None,
        why=f"blocks {where}; {stages[0].why}",
        parts=tuple(
            admission.Part(span, one.cache_tokens // page * page, one.session_tokens_max)
            for span, one in zip(spans, stages, strict=True)
        ),
    )


def _room(checkpoint: Checkpoint, blocks: BlockRange, wishes: Sequence[StageWish]) -> list[int]:
    """How many blocks fit on each: beside sessions, or else their weights alone."""
    most = [weights_that_fit(checkpoint, one) for one in wishes]
    fits = [
        min(blocks_that_fit(checkpoint, one), fit) for one, fit in zip(wishes, most, strict=True)
    ]
    if sum(fits) < len(blocks):
        fits = most
    if sum(fits) < len(blocks):
        told = ", ".join(f"{one.device} {fit}" for one, fit in zip(wishes, fits, strict=True))
        raise UserError(
            f"{checkpoint.name}: {len(blocks)} blocks are asked for, and the devices have room for"
            f" {sum(fits)} ({told}); serve fewer blocks or free memory"
        )
    return fits


def _rates(checkpoint: Checkpoint, blocks: BlockRange, wishes: Sequence[StageWish]) -> list[float]:
    """Tokens a second through the first of the blocks, decoding, on each device."""
    names = list(dict.fromkeys(one.device for one in wishes))
    if len(names) == 1:
        return [1.0] * len(wishes)
    first = BlockRange(blocks.start, blocks.start + 1)
    found: dict[str, float] = {}
    for one in wishes:
        if one.device not in found:
            found[one.device] = open_stage(checkpoint, first, one).rates[0]
            give_back()
    return [found[one.device] for one in wishes]
