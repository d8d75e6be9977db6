"""What a run is: the file that describes it, read strictly, and the terms that all must share.

    run.toml ─▶ Plan ── with digests of model, texts and first weights ──▶ Terms ─▶ the run's digest

Where a peer keeps the model and the texts is its own affair; what they are is not. So a run is
named by the digest of its terms: whoever would train something else, on something else or otherwise
has another digest, and is told by what its file differs.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from ...crypto.codec import Range, Size, decode, encode
from ...crypto.digest import digest
from ...crypto.merkle import Digest
from ...errors import UserError
from ..adapter import RANK_MAX
from .tables import Guarding, Scalars

TERMS_BYTES_MAX: Final = 32 * 1024
FILES_MAX: Final = 256
EPOCHS_MAX: Final = 1_000_000
STEPS_MAX: Final = 10_000

T = TypeVar("T")
Name = Annotated[str, Size(64, 1)]
Kind = Literal["gossip", "group", "guarded", "scalar"]
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """Low-rank matrices, of which B is trained; A comes from the seed. blocks: none named: all."""

    rank: Annotated[int, Range(1, RANK_MAX)] = 8
    alpha: Annotated[float, Range(1e-6, 1e6)] = 16.0
    targets: Annotated[tuple[Name, ...], Size(32, 1)] = ("q_proj", "v_proj")
    blocks: Annotated[tuple[Annotated[int, Range(0, 1 << 16)], ...], Size(4096)] = ()


@dataclass(frozen=True, slots=True)
class Data:
    """files: JSONL, whose objects have a text under `field`, or plain text; beside the run's file.
    tokens: of a sequence. held_out: share of the sequences that nobody trains on."""

    files: Annotated[tuple[Annotated[str, Size(4096, 1)], ...], Size(FILES_MAX, 1)]
    field: Name = "text"
    tokens: Annotated[int, Range(2, 1 << 16)] = 128
    held_out: Annotated[float, Range(0.0, 0.5)] = 0.05


@dataclass(frozen=True, slots=True)
class Training:
    """AdamW between two exchanges: `inner_steps` of them, or as many as `epoch_s` seconds hold, so
    that a slow peer makes fewer. warmup: steps. clip: of the gradient's norm; 0: none."""

    batch: Annotated[int, Range(1, 1 << 12)] = 8
    inner_steps: Annotated[int, Range(1, STEPS_MAX)] = 64  # NoLoCo: 50; 64 keep 4 bits below F3
    epochs: Annotated[int, Range(1, EPOCHS_MAX)] = 20
    epoch_s: Annotated[float, Range(0.1, 86_400.0)] = 120.0  # algorithms.md 5
    learning_rate: Annotated[float, Range(1e-9, 1.0)] = 1e-3
    schedule: Schedule = "cosine"
    warmup: Annotated[int, Range(0, 1 << 30)] = 0
    weight_decay: Annotated[float, Range(0.0, 1.0)] = 0.1  # OpenDiLoCo's, as the betas are
    clip: Annotated[float, Range(0.0, 1e6)] = 1.0


@dataclass(frozen=True, slots=True)
class Exchanging:
    """How peers make one adapter of many. asked, liars: s and b of algorithms.md 3.3. bits: of a
    number on the wire. gate: by which share an exchange may raise the loss on `gate_sequences` held
    out ones; 0: there is no gate.

    Of groups alone: fragments, of which each exchange averages one, in turn, so that with four of
    them and 25 inner steps each number is averaged every 100 (Streaming DiLoCo); overlap, inner
    steps that are taken while it is on its way; grid, for runs of more peers than one group has."""

    kind: Kind = "gossip"
    aggregator: Name = "judged"
    asked: Annotated[int, Range(1, 64)] = 6
    liars: Annotated[int, Range(0, 31)] = 2
    bits: Annotated[int, Range(4, 32)] = 8
    gate: Annotated[float, Range(0.0, 10.0)] = 0.02  # Bristle's, algorithms.md 5
    gate_sequences: Annotated[int, Range(1, 4096)] = 32  # of 64 the loss takes 4 % of an epoch
    reply_s: Annotated[float, Range(0.1, 600.0)] = 30.0  # after which a reply is not waited for
    fragments: Annotated[int, Range(1, 64)] = 1
    overlap: Annotated[int, Range(0, STEPS_MAX)] = 0
    grid: bool = False
    guarded: Guarding = field(default_factory=Guarding)
    scalar: Scalars = field(default_factory=Scalars)


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's file. model: as find_model takes it."""

    name: Name
    model: Annotated[str, Size(4096, 1)]
    data: Data
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    adapter: Adapter = field(default_factory=Adapter)
    training: Training = field(default_factory=Training)
    exchange: Exchanging = field(default_factory=Exchanging)


@dataclass(frozen=True, slots=True)
class Terms:
    """What all of a run agree on. data: of the token ids of each file. start: of the adapter that
    the seed gives."""

    name: Name
    seed: Annotated[int, Range(0, 2**63 - 1)]
    model: Digest
    data: Annotated[tuple[Digest, ...], Size(FILES_MAX, 1)]
    start: Digest
    tokens: Annotated[int, Range(2, 1 << 16)]
    held_out: Annotated[float, Range(0.0, 0.5)]
    adapter: Adapter
    training: Training
    exchange: Exchanging

    @property
    def run(self) -> bytes:
        """The digest that names the run."""
        return digest("run", encode(self))

    @property
    def steps(self) -> int:
        """Of a peer that makes all of them."""
        return self.training.epochs * self.training.inner_steps


def read_plan(table: Mapping[str, Any]) -> Plan:
    """What a TOML file holds. Raises UserError, which names the key."""
    plan: Plan = _read(Plan, table, "")
    exchange = plan.exchange
    if exchange.bits not in (4, 8, 32):
        raise UserError(f"exchange.bits is {exchange.bits}: choose 4, 8 or 32")
    if 2 * exchange.liars >= exchange.asked:
        raise UserError(
            f"exchange.liars is {exchange.liars}, of {exchange.asked} that are asked: choose less"
            " than half"
        )
    if exchange.kind != "group" and (exchange.fragments, exchange.overlap) != (1, 0):
        raise UserError("exchange.fragments and exchange.overlap are of groups: leave them out")
    if exchange.overlap >= plan.training.inner_steps:
        raise UserError(
            f"exchange.overlap is {exchange.overlap}, of {plan.training.inner_steps} inner steps:"
            " choose less"
        )
    if plan.name != plan.name.strip() or not plan.name.isprintable() or "/" in plan.name:
        raise UserError("name: choose one without slashes, that can be printed")
    if plan.name in (".", ".."):
        raise UserError(f"name: {plan.name} is a folder of every folder; choose another")
    if len(set(plan.adapter.blocks)) < len(plan.adapter.blocks):
        raise UserError("adapter.blocks names a block twice")
    return plan


def agree(plan: Plan, model: bytes, data: tuple[bytes, ...], start: bytes) -> Terms:
    """The terms of a plan, now that its files are read."""
    shared = plan.data
    return Terms(
        plan.name, plan.seed, model, data, start, shared.tokens, shared.held_out,
        plan.adapter, plan.training, plan.exchange,
    )  # fmt: skip


def read_terms(raw: bytes) -> Terms:
    """Raises RemoteError."""
    return decode(raw, Terms, max_bytes=TERMS_BYTES_MAX)


def differences(mine: Terms, theirs: Terms) -> list[str]:
    """By what two runs differ, in the words of their files; none when they are one run."""
    here, there = dict(_leaves(mine, "")), dict(_leaves(theirs, ""))
    return [
        f"{key} is {_said(here[key])} here and {_said(there[key])} there"
        for key in here
        if here[key] != there[key]
    ]


def rate_at(training: Training, step: float) -> float:
    """The learning rate, by the steps of a peer that makes `inner_steps` in each epoch: whoever
    makes more or fewer is as far as it is in its epoch."""
    steps = training.epochs * training.inner_steps
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    if training.schedule == "constant":
        return training.learning_rate
    done = (step - training.warmup) / max(steps - training.warmup, 1)
    return training.learning_rate * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    for one in dataclasses.fields(value):
        inner, key = getattr(value, one.name), f"{at}{one.name}"
        if dataclasses.is_dataclass(inner):
            yield from _leaves(inner, f"{key}.")
        else:
            yield key, inner


def _said(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{value.hex()[:12]}..."
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_said, value)) + "]"
    text = f"{value}"  # of a stranger's file, for a terminal
    return text if text.isprintable() else ascii(text)


def _read(kind: type[T], table: object, at: str) -> T:
    """A dataclass from a table, by its declared types and limits. at: the key so far."""
    if not isinstance(table, Mapping):
        raise UserError(f"{at.rstrip('.')} must be a table: [{at.rstrip('.')}]")
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(table.keys() - fields.keys()):
        raise UserError(f"{at}{unknown[0]} is no key; there are {', '.join(fields)}")
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for name, one in fields.items():
        if name in table:
            values[name] = _value(hints[name], table[name], f"{at}{name}")
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise UserError(f"{at}{name} is missing")
    return kind(**values)


def _value(hint: Any, value: object, key: str) -> Any:
    limits: tuple[object, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        limits = tuple(rest)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read(hint, value, f"{key}.")
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{key} is {value!r}: choose one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{key} must be a list")
        found: Any = tuple(
            _value(get_args(hint)[0], one, f"{key}[{at}]") for at, one in enumerate(value)
        )
    else:
        found = _plain(hint, value, key)
    for limit in limits:
        _check(limit, found, key)
    return found


_WORDS: Final = types.MappingProxyType(
    {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
)


def _plain(hint: Any, value: object, key: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{key} is {value!r:.60}: it must be {_WORDS[hint]}")
    return value


def _check(limit: object, value: Any, key: str) -> None:
    if isinstance(limit, Range) and not limit.least <= value <= limit.most:
        raise UserError(f"{key} is {value}: choose {limit.least:g} to {limit.most:g}")
    if isinstance(limit, Size) and not limit.least <= len(value) <= limit.most:
        raise UserError(f"{key} has {len(value)} of {limit.least} to {limit.most}")
