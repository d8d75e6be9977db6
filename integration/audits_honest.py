"""Bar E2: honest peers audit honest peers, and nobody is convicted; how far off each cheat is.

    python -m integration.audits_honest [--audits 100000] [--model tiny|demo] [--plot errors.png]

The stages are those of a node (choice.open_stage), the passes those of its device (batch.Lane).
Sessions of prompts, tokens and odd steps, 1 to 32 at a time in the same passes, are answered by one
stage; another of its class computes each again from the bytes on the wire, in the sizes of the
steps (as trust/again.py asks it to), and each chunk is compared (compare.errors_of) and judged as
an auditor does. Server and auditor differ in threads, in instruction sets and in company.

    same     both are ours, of one class: the limit is 0
    torch    both are torch's, of one kind: the server decodes, the auditor repeats
    other    a server of ours and an auditor of torch's
    cheats   a testnet's liars (node/testnet/liars.py), audited by an honest peer of ours

Limits are those that are shipped (trust/limits.py); for a model without any, classes are compared
but nobody is judged across them. They were measured with rows of fp32 on the wire, as clients send
them, and so are the rounds across classes here: with rows of bf16 an honest int8 server of ours and
torch's fp32 were up to .0014 apart, and the limit is .001. Between equals every wire is tried.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potluck.node.compute.calibration import FORMATS, spans_of
from potluck.node.compute.head import Ends
from potluck.node.compute.native.library import isas, use_isa
from potluck.node.compute.shapes import write_random
from potluck.node.config import NodeConfig
from potluck.node.serving import Model, open_model
from potluck.node.testnet.liars import open_lying_stage
from potluck.node.testnet.lies import parse_lie
from potluck.node.trust.limits import load_limits
from potluck.swarm.audit import judge
from potluck.swarm.blocks import BlockRange

from .audit_errors import Kind, Pile, plot, windows_of
from .audit_rounds import Peer, Session, again, compared, serve

WINDOWS = 6
THREADS = (1, 2, 3)
COMPANY = (1, 2, 4, 8, 16, 32)
WIRES = ("f32", "f32", "f16", "bf16")
LIES = ("four_bit", "skip", "smaller", "random:1", "replay")
TORCH_SHARE = 0.02  # of the rounds: it decodes a hundred times slower
SCALAR_SHARE = 0.02  # of a peer's turn: that code is slow too, and for machines that are rare
CHEAT_CHUNKS = 300  # of each cheat, format and span
PROMPT_PIECE = 128  # as a client cuts its prompt (node/generation.py)


class Ground:
    """A model in every format, texts that went through it, and who serves it how."""

    def __init__(
        self, folder: Path, model: str, seed: int, formats: Sequence[str] = FORMATS
    ) -> None:
        self.dice = random.Random(seed)
        source = model
        if model == "tiny":
            source = str(folder / "tiny")
            write_random(Path(source), "tiny")
        config = NodeConfig(folder, source, threads=1, cache_mib=128, offline=True)
        honest = open_model(config)
        self.whole = BlockRange(0, honest.total)
        self.digest, self.limits = honest.digest, load_limits(folder)
        self.models = {one: _as(honest, quantization=one) for one in formats}
        self.formats = tuple(formats)
        self.peers: list[Peer] = []
        self._texts(windows_of(honest.checkpoint, WINDOWS, model))
        self.spans = [BlockRange(*span) for span in spans_of(honest.total)]

    def _texts(self, windows: list[list[int]]) -> None:
        """What goes into each block, of each text."""
        model = self.models[self.formats[0]]
        ends, engine = Ends.load(model.checkpoint), model.open(self.whole).engine
        plain = Peer(engine, "ours", self.formats[0], 1, isas()[0])
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

    def session(self, blocks: BlockRange, *, wires: Sequence[str] = WIRES) -> Session:
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
        return Session(blocks, sizes, dice.choice(wires), rows[:total])


def uncovered(covered: Mapping[str, int]) -> list[str]:
    """What bar 2 asks for, and no audit was of."""
    wanted = [f"format {one}" for one in FORMATS]
    wanted += [f"{count} sessions at once" for count in COMPANY]
    wanted += [f"threads {one} and {other}" for one in THREADS for other in THREADS]
    wanted += ["a prompt's", "decoded"]
    return [one for one in wanted if not covered.get(one)]


def _as(model: Model, **wish: Any) -> Model:
    return replace(model, wish=replace(model.wish, **wish))


@dataclass
class Found:
    """Piles by what was audited, what the rule said, and how many audits there were of what."""

    ground: Ground
    piles: dict[Kind, Pile] = field(default_factory=lambda: defaultdict(Pile))
    said: dict[Kind, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    covered: Counter[str] = field(default_factory=Counter)
    judged: int = 0

    def add(self, what: str, sessions: Sequence[Session], server: Peer, auditor: Peer) -> None:
        """What the server gave is audited, all of it."""
        one, other = server.engine.numerics, auditor.engine.numerics
        for session in sessions:
            tolerance = self.ground.limits.of(
                self.ground.digest, one, other, session.dtype, len(session.blocks)
            )
            kind = (server.format, what, len(session.blocks))
            repeated = again(auditor, session)
            for prompt, errors in compared(session, repeated):
                verdict = judge(errors, tolerance).verdict
                self.piles[kind].chunks.append(errors)
                self.said[kind][verdict] += 1
                self.judged += verdict != "open"
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

    def wrong(self) -> int:
        return sum(count["wrong"] for count in self.said.values())

    def told(self) -> list[dict[str, Any]]:
        """A row for each pile: how far apart, and what the rule said."""
        rows = []
        for (format, what, length), pile in sorted(self.piles.items()):
            medians = sorted(pile.medians)
            row: dict[str, Any] = {"format": format, "what": what, "blocks": length}
            row |= {"audits": len(medians), "median": medians[len(medians) // 2]}
            row |= {"least": medians[0], "most": medians[-1]}
            rows.append(row | dict(self.said[format, what, length]))
        return rows


def honest(ground: Ground, audits: int) -> Found:
    """So many audits that are judged, or some more."""
    found, dice = Found(ground), ground.dice
    while found.judged < audits:
        format = dice.choice(ground.formats)
        blocks = dice.choices(ground.spans, [1 / len(span) for span in ground.spans])[0]
        what, serving, auditing, company = _round(dice)
        wires = WIRES if what.startswith("same") else WIRES[:1]
        sessions = [ground.session(blocks, wires=wires) for _ in range(company)]
        server, auditor = ground.peer(format, serving), ground.peer(format, auditing)
        serve(server, sessions)
        found.add(what, sessions, server, auditor)
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
    found = Found(ground)
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
    audits: int,
    model: str = "demo",
    seed: int = 1,
    chart: Path | None = None,
    formats: Sequence[str] = FORMATS,
) -> dict[str, Any]:
    """How far apart honest peers and cheats are, what the rule says, and what was covered."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="potluck-audits-") as folder:
        began_s = time.process_time()
        ground = Ground(Path(folder), model, seed, formats)
        ground.settle()
        among_honest = honest(ground, audits)
        spent_s = time.process_time() - began_s
        among_liars = cheats(ground, min(CHEAT_CHUNKS, audits // 10))
    if chart is not None:
        piles = among_honest.piles | among_liars.piles
        plot(piles, chart, f"{model}: {among_honest.judged} audits of honest peers; cheats")
    return {
        "judged": among_honest.judged,
        "falsely_convicted": among_honest.wrong(),
        "cpu_s": round(spent_s),
        "covered": dict(sorted(among_honest.covered.items())),
        "honest": among_honest.told(),
        "cheats": among_liars.told(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audits", type=int, default=100_000)
    parser.add_argument("--model", choices=("demo", "tiny"), default="demo")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.audits, asked.model, asked.seed, asked.plot), indent=1))


if __name__ == "__main__":
    main()
