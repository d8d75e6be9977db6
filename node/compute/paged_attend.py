"""Attention over pages, of rows of many sessions, so that each row's bits are its own.

Eight neighbouring positions of a session, from a multiple of eight on, are seen to together: a
group. What it remembers is cut at multiples of 256 positions: spans. A group and a span make one
item of work, whatever else is in the pass, and items go through the device's kernels sixteen at a
time, filled up with items that see nothing. So every sum has the same shape and every row the same
place in it, alone or among others, decoding or in a prompt.

    positions   0..255      256..511    512..             a group of rows 520..527
    item        group·span  group·span  group·span        largest score, sum, values: for each span
                     └──────────┴────────────┴──▶ put together in the order of the spans

A span of which a row sees nothing adds a zero to it: nothing depends on how far its neighbours see.
So what is seen may be filled up to a shape that many passes share (`even_look`), without a change
of bits: kernels that were recorded for a shape serve all of them (graphs.py).
Numbers that are none spoil the session that they come from, and no other.

Source: Dao et al., Flash-Decoding, 2023, with parts of a fixed size instead of a fixed number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pages import NO_PAGE, PAGE_TOKENS, Lease
from .spec import ModelSpec

GROUP = 8  # rows
SPAN_PAGES = 4
SPAN = SPAN_PAGES * PAGE_TOKENS  # positions
ITEMS = 16  # through the kernels at once
ITEMS_MAX = 256  # of which the parts are remembered at once; one group may have more
_NOWHERE = 1 << 40  # a position that nobody sees
_SEES_NOTHING = -1  # in place of a position, of a row that is not there

Seen = tuple[Lease, int, int]  # the rows at..at+count of a session


@dataclass(frozen=True, slots=True)
class Look:
    """Some groups, and what they see. All but `steps` on the device; items in the order of spans,
    of one span in that of groups, and groups with more spans first.

    rows: (groups, 8), of the pass, any one where there is none. places: (rows,), where each row of
    `own` stands among all groups' rows. at: (items, 8), positions of the rows. starts: (items,),
    positions of the spans' first. pages: (blocks, items, 4). of: (items,), each one's group.
    steps: of each span in turn, how many groups it is for. blank: (rows, 1), those of no session,
    where `own` names such too.
    """

    rows: Tensor
    own: Tensor
    places: Tensor
    at: Tensor
    starts: Tensor
    pages: Tensor
    of: Tensor
    steps: tuple[int, ...]
    blank: Tensor | None = None

    @classmethod
    def made(cls, indices: list[Tensor], steps: tuple[int, ...], blank: Tensor) -> Look:
        rows, own, places, at, starts, pages, of = indices
        return cls(rows, own, places, at, starts, pages, of, steps, blank)

    @property
    def indices(self) -> list[Tensor]:
        """All tensors but `blank`."""
        return [self.rows, self.own, self.places, self.at, self.starts, self.pages, self.of]


class _Room(NamedTuple):
    """What a Look is filled up to."""

    groups: int
    spans: int
    rows: int  # of the pass


@dataclass(frozen=True, slots=True)
class _Group:
    lease: Lease
    first: int  # position
    stop: int
    row: int  # of the pass, of the first position

    def spans(self, window: int | None) -> range:
        """Those that one of its rows may see."""
        start = 0 if window is None else max(0, self.first + 1 - window)
        return range(start // SPAN, (self.stop - 1) // SPAN + 1)


def look(
    seen: Sequence[Seen],
    places: Sequence[int],
    window: int | None,
    *,
    nobodys: int,
    device: torch.device,
) -> list[Look]:
    """What the rows of a pass see, in blocks of one window.

    places: where each session's first row stands among the rows of the pass. nobodys: the page that
    stands for one that is not there.
    """
    found: list[Look] = []
    batch: list[_Group] = []
    items = 0
    for group in _groups(seen, places):
        count = len(group.spans(window))
        if batch and items + count > ITEMS_MAX:
            found.append(_look(batch, window, nobodys, device))
            batch, items = [], 0
        batch.append(group)
        items += count
    found.append(_look(batch, window, nobodys, device))
    return found


def even_look(
    seen: Sequence[Seen],
    places: Sequence[int],
    window: int | None,
    rows: int,
    *,
    nobodys: int,
    device: torch.device,
) -> Look | None:
    """As `look`, filled up so that few shapes serve all passes of so many rows: `own` are all of
    them. None: more than is seen to at once."""
    groups = _groups(seen, places)
    shape = _doubled(len(groups)), _doubled(max(len(group.spans(window)) for group in groups))
    if shape[0] * shape[1] > ITEMS_MAX:
        return None
    return _look(groups, window, nobodys, device, _Room(*shape, rows))


def even_shapes(blocks: int, rows: int, steps: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of `indices`, of an even Look for so many blocks and rows of the pass."""
    slots = -(-sum(steps) // ITEMS) * ITEMS
    items = [(slots, GROUP), (slots,), (blocks, slots, SPAN_PAGES), (slots,)]
    return [(steps[0], GROUP), (rows,), (rows,), *items]


def attend_pages(
    spec: ModelSpec,
    queries: Tensor,
    pages: Tensor,
    looks: Sequence[Look],
    block: int,
    window: int | None,
) -> Tensor:
    """queries: (rows of the pass, heads * head_dim); rows of no session give zeros. pages: all of
    them, (pages, 64, keys and values). block: counted from the sessions' first."""
    out = torch.zeros(queries.shape, dtype=queries.dtype, device=queries.device)
    for one in looks:
        out[one.own] = _see(spec, queries, pages, one, block, window)
    return out


def _see(
    spec: ModelSpec, queries: Tensor, pages: Tensor, one: Look, block: int, window: int | None
) -> Tensor:
    """(own rows, heads * head_dim)."""
    groups, head, kv = len(one.rows), spec.head_dim, spec.kv_heads
    members = spec.heads // kv
    q = queries[one.rows].view(groups, GROUP, kv, members, head)
    q = q.permute(0, 2, 1, 3, 4).reshape(groups, kv, GROUP * members, head)
    parts = []
    for first in range(0, len(one.of), ITEMS):
        some = slice(first, first + ITEMS)
        lying = pages[one.pages[block, some]].view(ITEMS, SPAN, 2, kv, head)
        hidden = _hidden(one.at[some], one.starts[some], window)
        parts.append(_part(spec, q[one.of[some]], lying, hidden))
    most, total, values = (torch.cat(each) for each in zip(*parts, strict=True))
    x = _together(most, total, values, one)
    x = x.view(groups, kv, GROUP, members, head).permute(0, 2, 1, 3, 4)
    own = x.reshape(groups * GROUP, -1)[one.places].to(queries.dtype)
    return own if one.blank is None else own.masked_fill_(one.blank, 0.0)


def _part(
    spec: ModelSpec, q: Tensor, lying: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each item and row: its largest score, and by it the sums of shares and of values.

    q: (items, kv heads, rows * members, head); lying: (items, positions, 2, kv heads, head);
    hidden: (items, rows, positions).
    """
    keys, values = lying.permute(2, 0, 3, 1, 4).unbind(0)  # (items, kv heads, positions, head)
    scores = _product(q, keys.transpose(2, 3)).mul_(spec.scale)
    if spec.attn_softcap is not None:
        scores = torch.tanh(scores.div_(spec.attn_softcap)).mul_(spec.attn_softcap)
    shape = (len(q), spec.kv_heads, GROUP, -1, SPAN)
    scores.view(shape).masked_fill_(hidden[:, None, :, None, :], -torch.inf)
    most = scores.amax(-1, keepdim=True)
    shares = scores.sub_(_finite(most)).exp_()
    return most, shares.sum(-1, keepdim=True), _product(shares.to(values.dtype), values)


def _together(most: Tensor, total: Tensor, values: Tensor, one: Look) -> Tensor:
    """Of each group's rows, (groups, kv heads, rows * members, head): its items, one by one."""
    groups = len(one.rows)
    largest = torch.full_like(most[:groups], -torch.inf)
    first = 0
    for count in one.steps:
        torch.maximum(largest[:count], most[first : first + count], out=largest[:count])
        first += count
    factors = torch.exp(most - _finite(largest)[one.of])
    total *= factors
    values *= factors
    whole, shares = torch.zeros_like(values[:groups]), torch.zeros_like(total[:groups])
    first = 0
    for count in one.steps:
        whole[:count] += values[first : first + count]
        shares[:count] += total[first : first + count]
        first += count
    return whole.div_(shares).add_(0.0)  # a zero less than nothing would tell of other spans


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In fp32, as attention sums up."""
    if a.dtype != torch.float32 and a.is_cuda:
        flat = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
        return flat.view(*a.shape[:-1], b.shape[-1])
    return torch.matmul(a.float(), b.float())


def _finite(most: Tensor) -> Tensor:
    """Where a row sees nothing, zero: its shares are zero by any factor."""
    return most.masked_fill(most == -torch.inf, 0.0)


def _hidden(at: Tensor, starts: Tensor, window: int | None) -> Tensor:
    """(items, rows, positions): which positions of its span a row does not see."""
    seen = starts[:, None, None] + torch.arange(SPAN, device=at.device)
    row = at[:, :, None]
    hidden = seen > row
    if window is not None:
        hidden |= seen <= row - window
    return hidden


def _groups(seen: Sequence[Seen], places: Sequence[int]) -> list[_Group]:
    found = []
    for (lease, at, count), place in zip(seen, places, strict=True):
        first = at
        while first < at + count:
            stop = min((first // GROUP + 1) * GROUP, at + count)
            found.append(_Group(lease, first, stop, place + first - at))
            first = stop
    return found


def _look(
    groups: list[_Group],
    window: int | None,
    nobodys: int,
    device: torch.device,
    room: _Room | None = None,
) -> Look:
    groups = sorted(groups, key=lambda group: -len(group.spans(window)))
    spans = [group.spans(window) for group in groups]
    steps = tuple(sum(step < len(one) for one in spans) for step in range(max(map(len, spans))))
    total = len(groups)
    if room is not None:
        total, steps = room.groups, (room.groups,) * room.spans
    items = [(place, step) for step, count in enumerate(steps) for place in range(count)]
    rows = np.zeros((total, GROUP), np.int64)
    at = np.full((total, GROUP), _SEES_NOTHING, np.int64)
    for place, group in enumerate(groups):
        inside = slice(group.first % GROUP, group.first % GROUP + group.stop - group.first)
        rows[place, inside] = np.arange(group.row, group.row + group.stop - group.first)
        at[place, inside] = np.arange(group.first, group.stop)
    own, places, blank = _owned(rows.ravel(), (at != _SEES_NOTHING).ravel(), room)
    slots = -(-len(items) // ITEMS) * ITEMS
    of, starts = np.zeros(slots, np.int64), np.full(slots, _NOWHERE, np.int64)
    blocks = len(groups[0].lease.table)
    pages = np.full((blocks, slots, SPAN_PAGES), nobodys, np.int64)
    for index, (place, step) in enumerate(items):
        of[index] = place
        if place >= len(groups) or step >= len(spans[place]):
            continue
        span = spans[place][step]
        starts[index] = span * SPAN
        found = groups[place].lease.table[:, span * SPAN_PAGES : (span + 1) * SPAN_PAGES]
        pages[:, index, : found.shape[1]] = np.where(found == NO_PAGE, nobodys, found)

    def placed(numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(device)

    return Look(
        rows=placed(rows),
        own=placed(own),
        places=placed(places),
        at=placed(at[of]),
        starts=placed(starts),
        pages=placed(pages),
        of=placed(of),
        steps=steps,
        blank=None if blank is None else placed(blank),
    )


def _doubled(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()


def _owned(
    rows: NDArray[np.int64], there: NDArray[np.bool_], room: _Room | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_] | None]:
    """`own`, `places` and `blank` of a Look."""
    own, places = rows[there], np.flatnonzero(there).astype(np.int64)
    if room is None:
        return own, places, None
    spread, blank = np.zeros(room.rows, np.int64), np.ones((room.rows, 1), np.bool_)
    spread[own], blank[own] = places, False
    return np.arange(room.rows), spread, blank
