"""Bar E2: honest peers audit honest peers, and nobody is convicted; how far off each cheat is.

    python -m integration.audits_honest [--audits 100000] [--model tiny|demo] [--plot errors.png]

The stages are those of a node (choice.open_stage), the passes those of its device (batch.Lane).
Sessions of prompts, tokens and odd steps, 1 to 32 at a time in the same passes, are answered by one
stage; another of its class computes each again from the bytes on the wire, in the sizes of the
steps (as node/again.py asks it to), and each chunk is compared (compare.errors_of) and judged as an
auditor does. Server and auditor differ in threads, in instruction sets and in company.

    same     both are ours, of one class: the limit is 0
    torch    both are torch's, of one kind: the server decodes, the auditor repeats
    other    a server of ours and an auditor of torch's
    cheats   a testnet's liars (node/liars.py), audited by an honest peer of ours

Where the limit is not 0 it is made of the first half of the chunks, and tried on the second.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potluck.node.compute.batch import Lane, Order
from potluck.node.compute.calibration import FORMATS, spans_of
from potluck.node.compute.compare import errors_of
from potluck.node.compute.engine import Engine
from potluck.node.compute.head import Ends
from potluck.node.compute.native.library import isas, use_isa
from potluck.node.compute.shapes import write_random
from potluck.node.compute.tensor import pack, payload_bytes
from potluck.node.config import NodeConfig
from potluck.node.liars import open_lying_stage
from potluck.node.lies import parse_lie
from potluck.node.serving import Model, open_model
from potluck.swarm.blocks import BlockRange
from potluck.swarm.rates import PassTimes
from potluck.swarm.receipt import CHUNK_TOKENS
from potluck.swarm.wire import Step

from .audit_errors import WINDOW, Kind, Pile, plot, told, windows_of

WINDOWS = 6
THREADS = (1, 2, 3)
COMPANY = (1, 2, 4, 8, 16, 32)
WIRE = ("f32", "f32", "f16", "bf16")
LIES = ("four_bit", "skip", "smaller", "random:1", "replay")
TORCH_SHARE = 0.02  # of the rounds: it decodes a hundred times slower
SCALAR_SHARE = 0.02  # of a peer's turn: that code is slow too, and for machines that are rare
CHEAT_CHUNKS = 300  # of each cheat, format and span
PROMPT_PIECE = 128  # as a client cuts its prompt (node/generation.py)
UNMEASURED = PassTimes(1, 1e4, 1e5)  # how long a pass takes decides here about nothing
NOUGHT = [0.0] * WINDOW


@dataclass(frozen=True, slots=True)
class Peer:
    """A stage, and how it is run."""

    engine: Engine
    kind: str  # "ours" or "torch fp32", ...
    format: str
    threads: int
    isa: str

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What belongs to the process while it runs: it stands for a machine of its own."""
        use_isa(self.isa)
        torch.set_num_threads(self.threads if self.kind != "ours" else 1)
        yield
        torch.set_num_threads(1)
        use_isa(isas()[0])


@dataclass(slots=True)
class Session:
    """One session's steps, what went in, and what came out of each."""

    blocks: BlockRange
    sizes: list[int]
    dtype: str
    rows: Tensor  # all that goes in
    gave: list[bytes] = field(default_factory=list)

    def took(self, first: int, stop: int) -> memoryview:
        return pack(self.rows[first:stop], self.dtype)

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """As receipts are cut: (from, to, whether they are of a prompt)."""
        at = since = 0
        for size in self.sizes:
            if size > 1:
                if at > since:
                    yield since, at, False
                yield at, at + size, True
                since = at + size
            at += size
            if at - since == CHUNK_TOKENS:
                yield since, at, False
                since = at
        if at > since:
            yield since, at, False


class Owner:
    """Nobody takes a step back here."""

    def claim(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def given_up(self) -> bool:
        return False


def serve(peer: Peer, sessions: Sequence[Session]) -> None:
    """All of them at once: each sends its next step when the one before is answered."""
    with peer.at_work():
        lane = Lane(peer.engine, UNMEASURED)
        caches = [peer.engine.open_cache(one.blocks, len(one.rows)) for one in sessions]
        places = [0] * len(sessions)
        number_of: dict[int, int] = {}

        def send(number: int) -> None:
            session = sessions[number]
            at, size = places[number], session.sizes[len(session.gave)]
            payload, step = session.took(at, at + size), Step(at, (size,), size)
            order = Order(
                caches[number], f"peer {number}", payload, step, session.dtype,
                time.monotonic() + 3600, Owner(),
            )  # fmt: skip
            number_of[id(order)] = number
            assert not lane.add(order)

        for number in range(len(sessions)):
            send(number)
        while lane.waiting:
            for order, result in lane.turn():
                assert result is not None
                number = number_of.pop(id(order))
                session = sessions[number]
                session.gave.append(bytes(result.unwrap()[0]))
                places[number] += sum(order.step.sizes)
                if len(session.gave) < len(session.sizes):
                    send(number)
        for cache in caches:
            peer.engine.close_cache(cache)


def again(peer: Peer, session: Session) -> bytes:
    """All its rows, computed again from what went in, in the sizes of the steps."""
    total = len(session.rows)
    with peer.at_work():
        cache = peer.engine.open_cache(session.blocks, total)
        step = Step(0, tuple(session.sizes), total)
        work = peer.engine.begin(cache, session.took(0, total), step, session.dtype)
        peer.engine.run([(work, total)])
        given = bytes(work.answer())
        peer.engine.close_cache(cache)
    return given


def compared(session: Session, repeated: bytes) -> Iterator[tuple[bool, list[float]]]:
    """Of each chunk: whether it is of a prompt, and its tokens' errors."""
    width = session.rows.shape[1]
    gave, row = b"".join(session.gave), payload_bytes(1, width, session.dtype)
    for first, stop, prompt in session.chunks():
        part = slice(first * row, stop * row)
        took, rows = session.took(first, stop), stop - first
        errors = errors_of(took, gave[part], repeated[part], rows, width, session.dtype)
        yield prompt, errors if any(errors) else NOUGHT[:rows]


class Ground:
    """A model in every format, texts that went through it, and who serves it how."""

    def __init__(self, folder: Path, model: str, seed: int) -> None:
        self.dice = random.Random(seed)
        source = model
        if model == "tiny":
            source = str(folder / "tiny")
            write_random(Path(source), "tiny")
        config = NodeConfig(folder, source, threads=1, cache_mib=128, offline=True)
        honest = open_model(config)
        self.whole = BlockRange(0, honest.total)
        self.models = {one: _as(honest, quantization=one) for one in FORMATS}
        self.peers: list[Peer] = []
        self._texts(windows_of(honest.checkpoint, WINDOWS, model))
        self.spans = [BlockRange(*span) for span in spans_of(honest.total)]

    def _texts(self, windows: list[list[int]]) -> None:
        """What goes into each block, of each text."""
        model = self.models["none"]
        ends, engine = Ends.load(model.checkpoint), model.open(self.whole).engine
        plain = Peer(engine, "ours", "none", 1, isas()[0])
        self.hidden: list[list[Tensor]] = []
        for ids in windows:
            found = [ends.embed(ids).float()]
            for block in range(self.whole.stop - 1):
                one = Session(BlockRange(block, block + 1), [len(ids)], "f32", found[-1])
                raw = bytearray(again(plain, one))
                found.append(torch.frombuffer(raw, dtype=torch.float32).view(len(ids), -1))
            self.hidden.append(found)

    def settle(self) -> None:
        """Load everybody."""
        for format, model in self.models.items():
            for threads in THREADS:
                self._add(_as(model, threads=threads), "ours", format, threads)
            self._add(_as(model, cache_bits=8), "ours kv8", format, 1)
            self._add(_as(model, cache_bits=8, threads=2), "ours kv8", format, 2)
            for name in isas()[1:]:
                use_isa(name)
                self._add(model, "ours", format, 1, name)
            use_isa(isas()[0])
            for dtype in ("fp32", "bf16"):
                self._add(_as(model, engine="torch", dtype=dtype), f"torch {dtype}", format, 1)

    def _add(self, model: Model, kind: str, format: str, threads: int, isa: str = "") -> None:
        engine = model.open(self.whole).engine
        self.peers.append(Peer(engine, kind, format, threads, isa or isas()[0]))

    def peer(self, format: str, kind: str) -> Peer:
        """One of those that serve this kind."""
        fit = [one for one in self.peers if (one.format, one.kind) == (format, kind)]
        often = [SCALAR_SHARE if one.isa == "scalar" else 1.0 for one in fit]
        return self.dice.choices(fit, often)[0]

    def session(self, blocks: BlockRange) -> Session:
        """A prompt in pieces, then tokens, among them odd steps."""
        dice = self.dice
        rows = dice.choice(self.hidden)[blocks.start]
        total = dice.randint(33, len(rows))
        sizes: list[int] = []
        left = dice.choice((1, dice.randint(1, total), dice.randint(1, total)))
        while left:
            sizes.append(min(left, PROMPT_PIECE))
            left -= sizes[-1]
        while (rest := total - sum(sizes)) > 0:
            odd = dice.random() < 0.02
            sizes.append(min(rest, dice.randint(2, 9) if odd else 1))
        return Session(blocks, sizes, dice.choice(WIRE), rows[:total])


def _as(model: Model, **wish: Any) -> Model:
    return replace(model, wish=replace(model.wish, **wish))


@dataclass
class Found:
    """Piles by what was audited, and how many audits there were of what."""

    piles: dict[Kind, Pile] = field(default_factory=lambda: defaultdict(Pile))
    covered: Counter[str] = field(default_factory=Counter)
    audits: int = 0
    judged: float = 0.0  # without the halves of which limits are made

    def add(self, what: str, sessions: Sequence[Session], server: Peer, auditor: Peer) -> None:
        """What the server gave is audited, all of it."""
        for session in sessions:
            length = len(session.blocks)
            repeated = again(auditor, session)
            for prompt, errors in compared(session, repeated):
                self.piles[server.format, what, length].chunks.append(errors)
                self.audits += 1
                self.covered.update(
                    (
                        f"format {server.format}",
                        f"server {server.kind}, auditor {auditor.kind}",
                        f"{len(sessions)} sessions at once",
                        f"threads {server.threads} and {auditor.threads}",
                        f"instructions {server.isa} and {auditor.isa}",
                        "a prompt's" if prompt else "decoded",
                        f"on the wire {session.dtype}",
                    )
                )


def honest(ground: Ground, audits: int) -> Found:
    """So many audits that are judged, or some more."""
    found, dice = Found(), ground.dice
    while found.judged < audits:
        format = dice.choice(FORMATS)
        blocks = dice.choices(ground.spans, [1 / len(span) for span in ground.spans])[0]
        what, serving, auditing, company = _round(dice)
        sessions = [ground.session(blocks) for _ in range(company)]
        server, auditor = ground.peer(format, serving), ground.peer(format, auditing)
        serve(server, sessions)
        found.add(what, sessions, server, auditor)
        found.judged += sum(len(list(one.chunks())) for one in sessions) * (
            1.0 if serving.startswith("ours") and serving == auditing else 0.5
        )
    return found


def _round(dice: random.Random) -> tuple[str, str, str, int]:
    """What is audited, who serves, who audits, and how many sessions there are at once."""
    if dice.random() >= TORCH_SHARE:
        kind = dice.choice(("ours", "ours", "ours kv8"))
        return f"same: {kind}", kind, kind, dice.choice(COMPANY)
    kind = dice.choice(("torch fp32", "torch bf16"))
    if dice.random() < 0.5:
        return f"{kind} itself", kind, kind, 1
    return f"other: {kind}", "ours", kind, 4


def cheats(ground: Ground, chunks: int) -> Found:
    """Each of a testnet's liars, audited by an honest peer of its class."""
    found = Found()
    for format, model in ground.models.items():
        for blocks in [span for span in ground.spans if len(span) > 1]:
            for lie in LIES:
                dice = random.Random(ground.dice.random())
                engine = open_lying_stage(model, blocks, parse_lie(lie), dice).engine
                liar = Peer(engine, "ours", format, 1, isas()[0])
                what = f"cheat: {lie.partition(':')[0]}"
                while len(found.piles[format, what, len(blocks)].chunks) < chunks:
                    sessions = [ground.session(blocks) for _ in range(4)]
                    serve(liar, sessions)
                    found.add(what, sessions, liar, ground.peer(format, "ours"))
    return found


def measure(
    audits: int, model: str = "demo", seed: int = 1, chart: Path | None = None
) -> dict[str, Any]:
    """The table of audit_errors.told, and what was covered."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="potluck-audits-") as folder:
        began_s = time.process_time()
        ground = Ground(Path(folder), model, seed)
        ground.settle()
        among_honest = honest(ground, audits)
        spent_s = time.process_time() - began_s
        among_liars = cheats(ground, min(CHEAT_CHUNKS, audits // 10))
    piles = among_honest.piles | among_liars.piles
    rows = told(piles)
    if chart is not None:
        plot(piles, chart, f"{model}: {among_honest.audits} audits of honest peers; cheats")
    return {
        "audits": among_honest.audits,
        "judged": sum(row["tested"] for row in rows if "tested" in row),
        "falsely_convicted": sum(row.get("falsely_convicted", 0) for row in rows),
        "cpu_s": round(spent_s),
        "covered": dict(sorted(among_honest.covered.items())),
        "kinds": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audits", type=int, default=100_000)
    parser.add_argument("--model", choices=("demo", "tiny"), default="demo")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    found = measure(asked.audits, asked.model, asked.seed, asked.plot)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
