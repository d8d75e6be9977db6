"""Takes part in a run, from its file to the finished adapter: what `potluck finetune` does.

    run.toml ─▶ plan ─▶ model, texts ─▶ terms ─▶ member ─▶ company ─▶ runner ─▶ adapter folder
                                                     └ of another run? refused, by what it differs

The blocks are computed here, where the whole model is on this disk, or over the swarm. Whoever
begins alone is the first; others join by it, or by anybody else of the swarm, and go on without it.
"""

from __future__ import annotations

import math
import random
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import trio

from ...errors import UserError
from ...swarm.run.plan import Plan, Terms, agree, differences, read_plan
from ...swarm.run.shards import Split
from ...swarm.run.statement import DOMAIN, Said
from ...swarm.testimony import contradiction_of
from ..blocking import BlockingTrainer
from ..compute.adapter import CONFIG
from ..compute.checkpoint import Checkpoint, open_checkpoint
from ..compute.folders import replaced
from ..compute.nearby import Nearby
from ..compute.panel import Panel
from ..compute.remote import Network
from ..compute.tuning import Tuner
from ..compute.voice import Voice
from ..compute.windows import Windows, cut
from ..config import find_access
from ..home import hold_home, prepare_home
from ..identity import load_or_create, next_boot
from ..library import find_model
from ..log import get_logger
from ..member import Member, open_member
from ..peerstore import load_known
from ..router import Router
from ..trainer import Trainer
from ..trust.book import Trust, open_trust
from ..trust.evidence import Court, open_court
from .btard_court import Verdicts
from .checkpoint import FOLDER, Progress, Shelf
from .company import Company, seen_by
from .exchange import Amends, Serves, Trains
from .kinds import KINDS, Open, Setting, opener_of
from .runner import Runner
from .texts import documents

FILE_BYTES_MAX: Final = 1 << 20
AROUND_S: Final = 5.0  # guess: for who joins, to find whom it can begin with
LINGERS_MAX: Final = 20  # guess: times; or as long as the run took, for whoever is half as fast

Where = Literal["auto", "here", "swarm"]

log = get_logger()


@dataclass(frozen=True, slots=True)
class Wish:
    """file: the run's. out: where the adapter is put. where: its blocks are computed; auto: here,
    if the whole model is a folder of this disk. peers: others to wait for before the first step.
    linger_s: how long to be there for others at the end, after the last of them has asked."""

    file: Path
    home: Path
    out: Path
    listen: tuple[str, ...]
    join: tuple[str, ...] = ()
    offline: bool = False
    where: Where = "auto"
    peers: int = 0
    linger_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Started:
    """What is known when the first step is about to be taken."""

    run: str
    peer: str
    addresses: tuple[str, ...]
    trained: int  # numbers
    sequences: int
    held_out: int
    here: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """held_out: the loss at the end; None where nothing is held out."""

    folder: Path
    held_out: float | None
    history: tuple[Progress, ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    voice: Voice
    windows: Windows
    checkpoint: Checkpoint | None  # of blocks that are computed here


@dataclass(frozen=True, slots=True)
class _Place:
    """All that stands when training begins."""

    wish: Wish
    plan: Plan
    loaded: _Loaded
    network: Network
    member: Member
    court: Court
    services: trio.Nursery
    shelf: Shelf
    boot: int
    opener: Open


def load_plan(file: Path) -> Plan:
    """Raises UserError, which names the key or the line."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    if len(raw) > FILE_BYTES_MAX:
        raise UserError(f"{file}: is too large for a run's file; the texts go into files of theirs")
    try:
        return read_plan(tomllib.loads(raw.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: is not TOML ({error})") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


async def take_part(
    wish: Wish,
    *,
    started: Callable[[Started], None] = lambda facts: None,
    tell: Callable[[Progress], None] = lambda progress: None,
    kinds: Mapping[str, Open] = KINDS,
) -> Finished:
    """To the end of the run. Raises UserError for whatever the owner can mend."""
    plan = load_plan(wish.file)
    opener = opener_of(plan.exchange, kinds)
    check_out(wish.out)
    folder = wish.home / FOLDER / plan.name
    prepare_home(wish.home)
    prepare_home(folder)
    with hold_home(folder):
        loaded = await trio.to_thread.run_sync(_load, plan, wish)
        key = load_or_create(folder)
        boot = next_boot(folder, time.time())
        async with (
            open_member(
                key, listen=wish.listen, join=wish.join, boot=boot, serve=True,
                known=load_known(wish.home), access=find_access(wish.home),
            ) as member,
            open_trust(folder) as trust,
            trio.open_nursery() as services,
        ):  # fmt: skip
            court = await open_court(member, folder, trust)
            services.start_soon(court.run, lambda: ())
            network = await _network(loaded, member, trust, services)
            place = _Place(
                wish, plan, loaded, network, member, court, services, Shelf(folder), boot, opener
            )
            found = await _train(place, started, tell)
            services.cancel_scope.cancel()
    return found


async def _train(
    place: _Place, started: Callable[[Started], None], tell: Callable[[Progress], None]
) -> Finished:
    wish, plan, member = place.wish, place.plan, place.member
    voice, windows = place.loaded.voice, place.loaded.windows
    tuner = await trio.to_thread.run_sync(
        partial(Tuner, voice, place.network, plan.adapter, plan.training, windows, seed=plan.seed)
    )
    terms = agree(plan, bytes.fromhex(voice.digest), windows.files, tuner.start)
    split = Split.of(len(windows), plan.data.held_out, plan.seed)
    dice, seen = random.SystemRandom(), seen_by(member.host)
    company = Company(member.host, member.directory, terms, dice, seen)
    runner = Runner(terms, tuner, split, place.shelf, me=member.key.peer_id, tell=tell)

    def forked(one: Said, other: Said) -> None:
        place.court.take(contradiction_of(DOMAIN, one.raw, other.raw))

    place.court.told.append(company.shun)
    verdicts = Verdicts(place.court, place.court.trust.convict, place.shelf.folder)
    place.services.start_soon(verdicts.run)
    here = place.loaded.checkpoint is not None
    gated = runner.loss_of if split.held else _unmeasured
    panel = Panel(tuner.loss_of, split.judging(), terms.tokens, dice) if split.held else None
    exchange = place.opener(
        Setting(
            member.host, company, member.key, place.boot, terms, tuner.flat, tuner.weights(),
            panel, runner.keep, gated, runner.compute, forked,
            tuner, split, place.shelf, dice, here, verdicts.tell,
        )
    )  # fmt: skip
    if isinstance(exchange, Serves):
        await place.services.start(exchange.run)
    await place.services.start(company.run)
    refuse_other(terms, company)
    started(
        Started(
            terms.run.hex(), member.key.peer_id, member.host.addresses(), tuner.flat.count,
            len(windows), split.held, here,
        )
    )  # fmt: skip
    with trio.move_on_after(math.inf if wish.peers else AROUND_S if wish.join else 0):
        await company.until(wish.peers or 1)
    began_s = trio.current_time()
    if isinstance(exchange, Trains):
        history = await exchange.train(tell)
    else:
        await runner.run(exchange)
        history = runner.history
    held_out = await runner.final_loss() if split.held else None
    await trio.to_thread.run_sync(save_adapter, tuner, wish.out)
    if isinstance(exchange, Serves):
        most_s = max(LINGERS_MAX * wish.linger_s, trio.current_time() - began_s)
        await linger(exchange, company, wish.linger_s, most_s=most_s)
    if isinstance(exchange, Amends) and await exchange.amended():
        held_out = await runner.final_loss() if split.held else None
        await trio.to_thread.run_sync(save_adapter, tuner, wish.out)
    return Finished(wish.out, held_out, tuple(history))


async def _unmeasured(weights: object) -> float:
    """Nothing is held out: the gate stands open."""
    await trio.lowlevel.checkpoint()
    return 0.0


def refuse_other(terms: Terms, company: Company) -> None:
    """Raises UserError when all whom we met by this name are in another run."""
    if company.members or not company.others:
        return
    theirs, count = Counter(company.others).most_common(1)[0]
    said = differences(terms, theirs)
    more = f", and {len(said) - 3} more" if len(said) > 3 else ""
    raise UserError(
        f'the run "{terms.name}" of {count} peers here is another: {"; ".join(said[:3])}{more};'
        " take their file, or choose another name"
    )


async def linger(exchange: Serves, company: Company, quiet_s: float, *, most_s: float) -> None:
    """Until for so long nobody has pulled our last weights, or nobody is there to; for `most_s`
    where somebody pulls without end."""
    with trio.move_on_after(most_s):
        while company.members:
            with trio.move_on_after(quiet_s) as quiet:
                await exchange.pulled()
            if quiet.cancelled_caught:
                return


def check_out(out: Path) -> None:
    """Raises UserError where something stands that is no adapter: it would be replaced."""
    if out.exists() and not (out / CONFIG).is_file():
        raise UserError(f"{out}: is there already, and is no adapter; give another --out")


def save_adapter(tuner: Tuner, out: Path) -> None:
    """As PEFT reads it, the whole folder at once: what was there before stays until then, also for
    whoever is killed. Raises UserError."""
    try:
        with replaced(out) as made:
            tuner.save(made)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free the disk") from error


def _load(plan: Plan, wish: Wish) -> _Loaded:
    """Raises UserError."""
    source = find_model(plan.model, wish.home).source
    here = wish.where == "here" or (wish.where == "auto" and Path(source).is_dir())
    checkpoint = open_checkpoint(source, offline=wish.offline, home=wish.home)
    voice = Voice.of(checkpoint)
    if plan.data.tokens > voice.context:
        raise UserError(
            f"{wish.file}: data.tokens is {plan.data.tokens}, but {plan.model} has"
            f" {voice.context} positions"
        )
    paths = [wish.file.parent / one for one in plan.data.files]
    windows = cut(voice.text, documents(paths, plan.data.field), plan.data.tokens)
    return _Loaded(voice, windows, checkpoint if here else None)


async def _network(
    loaded: _Loaded, member: Member, trust: Trust, services: trio.Nursery
) -> Network:
    """What computes the blocks. Raises UserError."""
    if loaded.checkpoint is not None:
        return await trio.to_thread.run_sync(Nearby, loaded.checkpoint)
    voice, dice = loaded.voice, random.SystemRandom()
    trainer = Trainer(
        member.host, Router(member.host, member.directory, dice, trust), dice,
        model=voice.digest, name=voice.name, blocks=voice.blocks, width=voice.width,
    )  # fmt: skip
    services.start_soon(trainer.run)
    return BlockingTrainer(trainer, trio.lowlevel.current_trio_token())
