"""A span of torch's blocks over rows of many sessions in one pass, the same bits each time.

Torch's kernels sum up by shape, so rows go through everything that sums in shapes that do not
depend on the pass: products and norms in tiles (tiles.py), attention in items of work over pages
(paged_attend.py). What comes out for a row then depends on its session's rows up to it and on
nothing else; that it does is tried on the device, on the loaded blocks, before any session is
served (`TiledStage.of`). Where it fails the stage serves one session at a time (stage.py).

    rows of all ── tiles ── norm, qkv, turn ── pages ◀── items ── tiles ── out, norm, feed ──▶
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...errors import RemoteError
from .adapted import PlacedAdapter, together
from .adapter import Adapter
from .device_pages import DevicePool, page_bytes_of
from .graphs import Graphs, Inputs, Recorder, recorder_of
from .paged_attend import SPAN, attend_pages
from .pages import Lease, pages_for
from .quant.race import faults
from .rating import decode_and_prefill, median_s
from .spill import Budget
from .stage import Blocks, Stage
from .tile_check import FEW, Agreed, agreed, disagreement, plain_forms
from .tile_plan import Plan, Planner, Run
from .tiles import split

NAME = "tiles1"  # of the class of numbers: counts up when tiles or items change bits
_PASS_ROWS = 1024  # of one pass: bounds its memory, and reads weights seldom enough
_RANK_STEP = 16  # of adapters: narrower products are summed up otherwise in some rows of a tile
_TRIAL_TOKENS = SPAN + 24  # of the session that is tried: more than one span
_TRIAL_LONG = 200  # of them came in long steps
_TRIAL_OTHERS = 5


class TiledStage:
    """The blocks of a torch stage. Made by `of`."""

    exact = True

    def __init__(self, stage: Stage, own: Blocks, tiles: Agreed) -> None:
        self.spec = stage.spec
        self.start = stage.start
        self.stop = stage.stop
        self.dtype = stage.dtype
        self.device = stage.device
        self.tiles = tiles
        self.page_bytes = page_bytes_of(stage.spec, stage.dtype.itemsize)  # of one block
        self._stage = stage
        self._own = own
        self._planner = Planner(self.spec, own, tiles, stage.device)
        self._graphs: Graphs | None = None
        self._unrecorded = ""  # why no pass is recorded

    @staticmethod
    def of(stage: Stage, recorder: Recorder | None = None) -> TiledStage | str:
        """The same blocks for many sessions at once; else why they are not served so.

        recorder: of kernels; None: whatever the device has.
        """
        if stage.own is None:
            return "transformers' own code computes one session at a time"
        forms = {one.form for block in stage.own.blocks for one in block.products}
        with torch.inference_mode():
            tiles = agreed(forms, stage.dtype, stage.device)
            if isinstance(tiles, str):
                return tiles
            made = TiledStage(stage, stage.own, tiles)
            known: tuple[type[BaseException], ...] = faults()
            known += (TypeError,)  # an older torch knows fewer arguments
            try:
                if fault := made._fault():
                    return fault
            except known as error:
                return f"a block fails ({type(error).__name__})"
        made.record_by(recorder or recorder_of(stage.device))
        return made

    def record_by(self, recorder: Recorder | None) -> None:
        """From here on passes of few rows are recorded, where they can be. None: none is."""
        if recorder is None:
            return
        if any(self.spec.experts_of(index) for index in range(self.start, self.stop)):
            self._unrecorded = "no graphs: the host is asked which experts a token chose"
            return
        self._graphs = Graphs(recorder)

    @property
    def numerics(self) -> str:
        """Stages of equal strings give equal bits for equal rows, in steps as long."""
        name = NAME if self.tiles.whole else f"{NAME}s"
        return f"{self._stage.numerics[: 127 - len(name)]} {name}"

    @property
    def told(self) -> str:
        """For the log."""
        sizes = " and ".join(
            f"{one.sizes[0]} to {one.sizes[-1]}"
            for one in dict.fromkeys((self.tiles.few, self.tiles.many))
        )
        tiles = f"in tiles of {sizes} rows"
        graphs = self._unrecorded if self._graphs is None else "few rows by graphs"
        return "; ".join(filter(None, [self._stage.told, tiles, graphs]))

    def pool(self, budget: Budget) -> DevicePool:
        """Pages for its sessions."""
        return DevicePool(
            budget=budget, page_bytes=self.page_bytes, dtype=self.dtype, device=self.device
        )

    def load_adapter(self, adapter: Adapter) -> PlacedAdapter:
        """What leases may wear (`Lease.adapter`). Raises RemoteError for one whose products would
        give a row other bits among others."""
        placed = self._stage.load_adapter(adapter, _RANK_STEP)
        with torch.inference_mode():
            found = agreed(plain_forms(placed.shapes), self.dtype, self.device)
        if isinstance(found, str):
            raise RemoteError(f"an adapter that cannot be served beside others: {found}")
        placed.tiles = found.few
        return placed

    def forward_rows(self, hidden: Tensor, sessions: Sequence[tuple[Lease, int, int]]) -> Tensor:
        """Run rows of several sessions; steps of more than 16 rows are long ones.

        As `forward_runs`.
        """
        runs = [Run(lease, at, count, count > FEW) for lease, at, count in sessions]
        return self.forward_runs(hidden, runs)

    def forward_runs(self, hidden: Tensor, runs: Sequence[Run]) -> Tensor:
        """Run rows of several sessions through their blocks, which are the same for all.

        hidden: (rows, width), the runs one after another; their pages are there. Returns the same
        shape, in the host's memory. Writes their keys and values; sets no length.
        """
        with torch.inference_mode():
            rows = hidden.to(self.device, self.dtype)
            out = torch.empty_like(rows)
            pool: DevicePool = runs[0].lease.pool
            pool.clean()
            if self.tiles.whole:  # then it makes no difference, and they share tiles
                runs = [run._replace(long=False) for run in runs]
            for placed in _passes(runs):
                ordered = sorted(placed, key=lambda one: (one[0].long, id(one[0].lease.adapter)))
                parts = [rows[first : first + run.rows] for run, first in ordered]
                found = self._pass(pool, parts, [run for run, _ in ordered])
                for (run, first), part in zip(ordered, found, strict=True):
                    out[first : first + run.rows] = part
            return out.cpu()

    def measure(self) -> tuple[float, float]:
        """Tokens per second and block: decoding one by one, and in a prefill of 128."""
        return decode_and_prefill(self._rate, self.spec.context)

    def _rate(self, tokens: int, blocks: int) -> float:
        stop = min(self.start + blocks, self.stop)
        lease = self._room((stop - self.start) * pages_for(tokens)).open(self.start, stop, tokens)
        lease.reserve(0, tokens)
        hidden = torch.linspace(-1, 1, self.spec.hidden).expand(tokens, -1)
        spent_s = median_s(lambda: self.forward_rows(hidden, [(lease, 0, tokens)]))
        return tokens * (stop - self.start) / spent_s

    def _pass(self, pool: DevicePool, parts: list[Tensor], runs: list[Run]) -> list[Tensor]:
        """parts: each run's rows; the same of what comes out."""
        graphs = self._graphs
        if graphs is not None and not graphs.why_not:  # else nothing is planned for them
            even = self._planner.even(pool, runs)
            if even is not None:
                hidden = _placed_in(parts, even.firsts, even.rows)
                done = graphs.run(pool, even.inputs(hidden), partial(self._even, pool))
                if done is not None:
                    return _parts_of(done, runs, even.firsts)
        plan = self._planner.plan(pool, runs)
        hidden = _placed_in(parts, plan.firsts, sum(plan.cuts))
        return _parts_of(self._through(pool, hidden, plan), runs, plan.firsts)

    def _even(self, pool: DevicePool, inputs: Inputs) -> Tensor:
        """A pass whose shapes are its key's."""
        return self._through(pool, inputs.hidden, self._planner.unpacked(inputs))

    def _through(self, pool: DevicePool, hidden: Tensor, plan: Plan) -> Tensor:
        """Rows in tiles through the blocks; rows of nobody's among them."""
        tiles = split(hidden, plan.cuts)
        places = pool.rows.view(-1, pool.rows.shape[-1])
        for nth, index in enumerate(plan.blocks):
            block = self._own.blocks[index - self.start]
            adds = [together(worn, index) for worn in plan.worn]
            begun = [block.before(*each) for each in zip(tiles, plan.turns, adds, strict=True)]
            queries, remembered = (torch.cat(each) for each in zip(*begun, strict=True))
            if plan.empty is not None:
                remembered.masked_fill_(plan.empty, 0.0)  # nobody's page stays as it is
            places.index_copy_(0, plan.slots[nth], remembered)
            looks = plan.looks[block.window]
            x = attend_pages(self.spec, queries, pool.rows, looks, nth, block.window)
            tiles = [
                block.after(*each)
                for each in zip(tiles, split(x, plan.cuts), adds, plan.tiles, strict=True)
            ]
        return torch.cat(tiles)

    def _room(self, pages: int) -> DevicePool:
        """A pool of so many pages, for a trial."""
        return self.pool(Budget(pages * self.page_bytes))

    def _fault(self) -> str:
        """What is wrong with a block of each kind that is here; empty when nothing is."""
        kinds: dict[tuple[int | None, int], int] = {}
        for index in range(self.start, self.stop):
            kinds.setdefault((self.spec.windows[index], self.spec.experts_of(index)), index)
        tokens = min(_TRIAL_TOKENS, self.spec.context)
        hidden = torch.randn((tokens, self.spec.hidden), generator=torch.Generator().manual_seed(1))
        tries = (disagreement(partial(self._try, index), hidden) for index in kinds.values())
        return next(filter(None, tries), "")

    def _try(self, index: int, hidden: Tensor, sizes: Sequence[int], among: bool) -> Tensor:
        """One session's rows through one block, in steps of these sizes over and over."""
        tokens, count = len(hidden), 1 + _TRIAL_OTHERS * among
        pool = self._room(count * pages_for(tokens))
        leases = [pool.open(index, index + 1, tokens) for _ in range(count)]
        dice = torch.Generator().manual_seed(2)
        found: list[Tensor] = []
        at = 0
        while at < tokens:
            step = min(sizes[len(found) % len(sizes)], tokens - at)
            runs: list[Run] = []
            for lease in leases:
                lease.reserve(at, at + step)
                lease.length = at + step
                runs += _cut(lease, at, step)
            others = torch.randn((step * (count - 1), hidden.shape[1]), generator=dice)
            rows = self.forward_runs(torch.cat([others, hidden[at : at + step]]), runs)
            found.append(rows[len(others) :])  # the last of the sessions
            at += step
        return torch.cat(found)


def _placed_in(parts: list[Tensor], firsts: list[int], rows: int) -> Tensor:
    """Each run's rows at their place among all of a pass; zeros where nobody's are."""
    whole = parts[0].new_zeros((rows, parts[0].shape[1]))
    for part, first in zip(parts, firsts, strict=True):
        whole[first : first + len(part)] = part
    return whole


def _parts_of(done: Tensor, runs: list[Run], firsts: list[int]) -> list[Tensor]:
    return [done[first : first + run.rows] for run, first in zip(runs, firsts, strict=True)]


def _cut(lease: Lease, at: int, count: int) -> list[Run]:
    """The first rows of a trial came in long steps."""
    long = min(max(0, _TRIAL_LONG - at), count)
    parts = (Run(lease, at, long, True), Run(lease, at + long, count - long))
    return [run for run in parts if run.rows]


def _passes(runs: Iterable[Run]) -> list[list[tuple[Run, int]]]:
    """Runs, each with its first row, cut so that no pass has too many rows."""
    found: list[list[tuple[Run, int]]] = [[]]
    room, row = _PASS_ROWS, 0
    for run in runs:
        done = 0
        while done < run.rows:
            if not room:
                found.append([])
                room = _PASS_ROWS
            part = min(room, run.rows - done)
            found[-1].append((run._replace(at=run.at + done, rows=part), row))
            done += part
            row += part
            room -= part
    return found
