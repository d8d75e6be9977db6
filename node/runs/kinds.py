"""Which exchanges there are, by the name that a run's file gives them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final

from ...crypto.keys import IdentityKey
from ...errors import UserError
from ...swarm.run.plan import Exchanging, Terms
from ...swarm.run.shards import Split
from ...swarm.run.statement import Said
from ..compute.average.flat import Flat
from ..compute.mixing import Mixer, Vector, bits_of, check_aggregator
from ..compute.panel import Panel
from ..compute.repeats import Repeats
from ..compute.tuning import Tuner
from ..net.host import Host
from .btard_place import Conviction
from .by_scalar import ByScalar
from .checkpoint import Shelf
from .company import Company
from .exchange import Computes, Exchange, Trains
from .gossip import Gossip
from .group import GroupExchange, Settings
from .guarded import Guarded


@dataclass(frozen=True, slots=True)
class Setting:
    """What an exchange is made of, for one run on one peer. boot: is greater at each start of it.
    start: the run's first weights. panel: judges by what is held out; None where nothing is. keep,
    loss_of, compute: the runner's (runner.py). on_fork: is told of two statements that one peer
    signed. here: the blocks are computed in this process. convicted: is told of whom a group found
    guilty."""

    host: Host
    company: Company
    key: IdentityKey
    boot: int
    terms: Terms
    flat: Flat
    start: Vector
    panel: Panel | None
    keep: Callable[[], Awaitable[bool]]
    loss_of: Callable[[Vector], Awaitable[float]]
    compute: Computes
    on_fork: Callable[[Said, Said], None]
    tuner: Tuner
    split: Split
    shelf: Shelf
    dice: Random
    here: bool
    convicted: Callable[[Conviction], None]


Open = Callable[[Setting], Exchange | Trains]


def open_gossip(setting: Setting, kind: type[Gossip] = Gossip) -> Gossip:
    """Raises UserError."""
    said = setting.terms.exchange
    mixer = Mixer(
        setting.flat, setting.start, setting.panel, rule=said.aggregator, asked=said.asked,
        liars=said.liars, bits=said.bits,
    )  # fmt: skip
    return kind(
        setting.host, setting.company, setting.key, setting.terms, mixer,
        keep=setting.keep, loss_of=setting.loss_of, compute=setting.compute,
        on_fork=setting.on_fork,
    )  # fmt: skip


def open_group(setting: Setting) -> GroupExchange:
    said = setting.terms.exchange
    return GroupExchange(
        setting.host, setting.key, setting.terms.run, setting.start, boot=setting.boot,
        peers=lambda: tuple(setting.company.members), blame=setting.host.blame,
        gone=setting.company.failed,
        settings=Settings(bits_of(said.bits), said.fragments, said.overlap, grid=said.grid),
    )  # fmt: skip


def open_guarded(setting: Setting) -> Guarded:
    """Raises UserError."""
    if not setting.here:
        raise UserError(
            "a guarded group takes others' steps again to the same bits: let the whole model be on"
            " this disk (--where here), or choose another exchange.kind"
        )
    repeats = Repeats(setting.tuner, setting.terms.training, setting.split)
    return Guarded(
        setting.host, setting.company, setting.key, setting.terms, setting.flat, setting.start,
        repeats, setting.shelf.folder, keep=setting.keep, told=setting.convicted,
    )  # fmt: skip


def open_scalar(setting: Setting) -> ByScalar:
    """Raises UserError."""
    return ByScalar(
        setting.host, setting.company, setting.key, setting.terms, setting.start, setting.tuner,
        setting.split, setting.shelf, dice=setting.dice,
    )  # fmt: skip


KINDS: Final = MappingProxyType[str, Open](
    {
        "gossip": open_gossip,
        "group": open_group,
        "guarded": open_guarded,
        "scalar": open_scalar,
    }
)


def opener_of(said: Exchanging, kinds: Mapping[str, Open] = KINDS) -> Open:
    """What makes the exchange that a run asks for. Raises UserError."""
    if said.kind not in kinds:
        raise UserError(
            f'exchange.kind is "{said.kind}", which this version of potluck does not have: it has'
            f" {', '.join(kinds)}; install a newer one, or choose another kind"
        )
    check_aggregator(said.aggregator)
    return kinds[said.kind]
