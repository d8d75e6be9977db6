"""The Python client: generate through the swarm, from trio or from plain blocking code.

    async with potluck.open_swarm(join=[...]) as swarm:
        async with swarm.generation("demo", "Hello", max_new_tokens=64) as answer:
            async for piece in answer: ...

    with potluck.connect(join=[...]) as swarm:
        for piece in swarm.generate("demo", "Hello", max_new_tokens=64, seed=1): ...

Both give `Piece`s: token id, certain text, seconds since the last, the route. Leaving early, by any
road, frees the servers' caches at once.

With audit="on" a piece may take the place of earlier ones, when a server is found to have computed
wrongly: `potluck.hear(pieces, piece)` puts each where it belongs, and those that stand when the
answer ends are the right ones.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    asynccontextmanager,
    suppress,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack, get_args

import trio

from ..crypto.keys import IdentityKey
from ..dht.directory import ModelOffer
from ..dht.kad import KadDirectory
from ..dht.record import DOMAIN, Announcement, Record
from ..errors import MissingBlocks, RemoteError, TransportError, UserError
from ..swarm.adapter import Bundle
from ..swarm.prefix import Prefix
from ..swarm.sampling_events import Member as Seat
from ..swarm.testimony import check_contradiction, contradiction_of
from .adapters import find_adapter
from .compute.draft_model import DraftModel
from .compute.sampling import Settings
from .compute.voice import DTYPE, Voice
from .compute.worker import Worker, open_worker
from .config import find_access, find_audit, find_chain, find_join, find_pins, home_of
from .credit.purse import open_purse
from .drafting import Drafts
from .generation import Generation, Request, open_generation
from .gossip.crowd import Outlook
from .latest import Latest
from .library import find_model
from .member import Member, open_member
from .pacing import codec_for
from .peerstore import load_known
from .prompt import encode_request
from .router import Router
from .toll import on_probation
from .trainer import Trainer
from .trust.again import compute_again
from .trust.auditor import Auditor
from .trust.book import Trust, open_trust
from .trust.evidence import open_court
from .trust.limits import load_limits
from .trust.vouching import open_vouching
from .trust.witness import Witness

JOIN_S = 10.0  # for the first answer of whoever we join by
ACCUSED_S = 20.0  # guess: to leave, when a server was convicted a moment ago
VOICES_MAX = 16  # guess: each may hold a gigabyte of embeddings; the last ones asked for stay
ADAPTERS_MAX = 64  # guess: of some tens of MiB each, the same
DRAFT_MODELS_MAX = 4  # guess: whole models


class Options(TypedDict, total=False):
    """What may be said of an answer. The same seed gives the same text whatever the route; without
    one, a fresh seed is drawn. temperature 0, the default, is greedy."""

    max_new_tokens: int  # 64
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: Sequence[str]  # strings before which the text ends
    wait_s: float  # how long to wait for cover when blocks are missing
    ignore_eos: bool  # go on to max_new_tokens, whatever the model says
    receipts: bool  # have the servers sign, for Generation.proof
    audit: str  # "on": have a share of the work computed again (generation.py); or "off"
    adapter: str | Path  # LoRA: a folder that PEFT saved, or the digest of one kept here
    wire: str  # how rows lie on the wire: "f32", lossless; "bf16", "int8", "int4", or "auto"
    prefix: str  # who finds a prompt's beginning again: "off", nobody; "own", we; "shared", all
    chain: str  # "auto": from hop to hop, where hops can; "off": each over us
    draft: str | Path  # what guesses ahead: "auto", what was said before; a small model too; "off"


class Swarm:
    """A client's membership. Made by `open_swarm`.

    audits, chains: whether answers are audited, and go from hop to hop, for which nothing else is
    said.
    """

    def __init__(
        self,
        member: Member,
        worker: Worker,
        home: Path,
        offline: bool,
        trust: Trust,
        services: trio.Nursery,
    ) -> None:
        self.member = member
        self.trust = trust
        # SystemRandom: which peer a client prefers must not be guessable by the peers
        self.router = Router(member.host, member.directory, random.SystemRandom(), trust)
        self.audits = find_audit(None, home)
        self.chains = find_chain(None, home)
        self._services = services
        self._auditor: Auditor | None = None
        self._witness: Witness | None = None
        self._worker = worker
        self._home = home
        self._offline = offline
        self._voices: Latest[str, Voice] = Latest(VOICES_MAX)
        self._bundles: Latest[bytes, Bundle] = Latest(ADAPTERS_MAX)  # by their digests
        # these by the model, and what was asked for
        self._worn: Latest[tuple[str, str], Bundle] = Latest(ADAPTERS_MAX)
        self._draft_models: Latest[tuple[str, str], DraftModel] = Latest(DRAFT_MODELS_MAX)
        self._loading = trio.Lock()

    async def voice(self, model: str) -> Voice:
        """The tokenizer and the two ends of a model, loaded once. Raises UserError."""
        if (known := self._voices.get(model)) is None:
            async with self._loading:
                if (known := self._voices.get(model)) is None:  # another task may have been first
                    known = self._voices.put(model, await self._load(model))
        return known

    async def _load(self, model: str) -> Voice:
        shelf = find_model(model, self._home)
        voice = await self._worker.run(
            lambda: Voice.load(shelf.source, offline=self._offline, home=self._home)
        )
        return replace(voice, name=shelf.name)

    async def adapter(self, voice: Voice, ref: str | Path) -> Bundle:
        """The adapter that a folder of PEFT's means, or the digest of one kept in this home; for
        this model; loaded once. Raises UserError."""
        key = voice.digest, str(ref)
        if (bundle := self._worn.get(key)) is None:
            bundle = await trio.to_thread.run_sync(find_adapter, ref, voice, self._home)
            self._worn.put(key, bundle)
        return self._bundles.put(bundle.name, bundle)

    async def drafts(self, voice: Voice, ref: str | Path) -> Drafts | None:
        """How answers of this model are guessed ahead: "auto", "off", or the folder or hub id of a
        small model with the same tokens, loaded once. Raises UserError."""
        if ref in ("auto", "off"):
            return Drafts() if ref == "auto" else None
        key = voice.digest, str(ref)
        async with self._loading:
            if (model := self._draft_models.get(key)) is None:
                source = find_model(str(ref), self._home).source
                model = await self._worker.run(
                    lambda: DraftModel.load(source, voice.text, offline=self._offline)
                )
                self._draft_models.put(key, model)
        return Drafts(model)

    @asynccontextmanager
    async def generation(
        self, model: str, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> AsyncIterator[Generation]:
        """An answer to iterate over. prompt: text, or token ids as they are.

        Raises UserError, MissingBlocks or Refused.
        """
        voice = await self.voice(model)
        audit = find_audit(options["audit"], self._home) if "audit" in options else self.audits
        worn = None
        if (ref := options.get("adapter")) is not None:
            worn = await self.adapter(voice, ref)
        drafts = await self.drafts(voice, options.get("draft", "auto"))
        chain = find_chain(options["chain"], self._home) if "chain" in options else self.chains
        request = _request(voice, prompt, options, audit=audit)
        wire = await codec_for(
            options.get("wire", DTYPE), self.member.host, self.router, voice,
            len(request.ids), request.max_new_tokens, chain=chain,
        )  # fmt: skip
        voice = replace(voice, wire=wire)
        request = replace(request, voice=voice, adapter=worn, drafts=drafts, chain=chain)
        try:
            async with self.answer(request) as answer:
                yield answer
        except MissingBlocks as missing:
            if (other := await self._namesake(voice)) is None:
                raise
            raise UserError(
                f"the swarm serves another model as {voice.name} (digest {other[:12]}, yours is "
                f"{voice.digest[:12]}): use the files that it serves, or start nodes of yours "
                "under another --name"
            ) from missing

    @asynccontextmanager
    async def answer(
        self, request: Request, worker: Worker | None = None
    ) -> AsyncIterator[Generation]:
        """The same of a request that is made already. worker: for its tokens, if not ours."""
        auditor = await self._audited() if request.audit else None
        host, worker = self.member.host, worker or self._worker
        async with open_generation(host, self.router, worker, request, auditor) as answer:
            yield answer

    def trainer(self, voice: Voice) -> Trainer:
        """Who takes batches over this model's blocks and back, for as long as we are members."""
        trainer = Trainer(
            self.member.host, self.router, random.SystemRandom(),
            model=voice.digest, name=voice.name, blocks=voice.blocks, width=voice.width,
        )  # fmt: skip
        self._services.start_soon(trainer.run)
        return trainer

    async def _audited(self) -> Auditor:
        """Who makes the audits of this process, from the first answer on that wants any."""
        async with self._loading:
            if self._auditor is None:
                compute = partial(compute_again, self.member.host, bundle_of=self._bundles.get)
                limits = await trio.to_thread.run_sync(load_limits, self._home)
                lots = await trio.to_thread.run_sync(self.trust.lots)
                court = await open_court(self.member, self._home, self.trust)
                auditor = Auditor(self.router, compute, self._worker, self.trust, limits, lots)
                self._witness = Witness(
                    self.member.host, court, self.router, compute, self._worker, limits,
                    self._voice_of, random.SystemRandom(),
                )  # fmt: skip
                auditor.on_wrong, auditor.on_fork = self._witness.heard, court.take
                self._services.start_soon(self._witness.run)
                self._services.start_soon(auditor.run)
                self._auditor = auditor
            return self._auditor

    def _voice_of(self, model: str) -> Voice | None:
        """Of a model by its digest, if an answer of it was asked for."""
        return next((one for _, one in self._voices.items() if one.digest == model), None)

    async def settle(self) -> None:
        """Until those whom audits convicted are accused, or the time is up."""
        if self._witness is not None:
            with trio.move_on_after(ACCUSED_S):
                await self._witness.idle()

    async def _namesake(self, voice: Voice) -> str | None:
        """The digest of a model that is served under this one's name, while this one is not."""
        with suppress(TransportError):
            served = {one.model for one in await self.models() if one.name == voice.name}
            return next(iter(sorted(served)), None) if voice.digest not in served else None
        return None

    async def models(self) -> tuple[ModelOffer, ...]:
        """The models that the swarm serves, by name."""
        return await self.member.directory.models()

    async def spans(self, model: str) -> tuple[Announcement, ...]:
        """Who serves which blocks of the model with this digest."""
        return await self.member.directory.find(model)


@asynccontextmanager
async def open_swarm(
    join: Sequence[str] = (),
    *,
    home: str | Path | None = None,
    offline: bool = False,
    threads: int | None = None,
    anonymous: bool = False,
) -> AsyncIterator[Swarm]:
    """Join as a client.

    join: addresses of any peers; by default POTLUCK_JOIN, the config file, or what runs under this
    home; else the peers that its last node knew. threads: for the embedding and the head; None: the
    library's own choice.

    Our id on the network is a new one each time. But the client of a home in which a node has run
    asks on that node's account, so that what the node gave counts: those who serve it learn that
    node's name, each time the same (credit/purse.py). anonymous: it does not, and lives from what
    is left for newcomers.

    Raises UserError when there is nobody to join by, or nobody answers.
    """
    place = home_of(home)
    addresses, known, pins = find_join(join, place), load_known(place), find_pins(place)
    pins = () if anonymous else pins  # to dial them each time would tell who we are
    if not addresses and not known and not any(pin.address for pin in pins):
        raise UserError(
            "no swarm to join: start one (potluck testnet up), or give --join or POTLUCK_JOIN"
        )
    failure: Exception | None = None
    async with (
        open_worker(threads=threads) as worker,
        open_member(
            IdentityKey.generate(),
            listen=(),
            join=addresses,
            boot=int(time.time()),
            serve=False,
            known=known,
            access=find_access(place),
            pins=pins,
        ) as member,
        open_trust(place) as trust,
        trio.open_nursery() as services,
    ):
        purse = None
        try:
            purse = None if anonymous else await open_purse(member.host, place)
            shun_liars(member.directory, trust)
            trust.on_probation = lambda peer: on_probation(member.host, peer, time.time())
            names = [pin.peer for pin in pins]
            vouching = await open_vouching(member.host, trust, place, names)
            if not anonymous:
                services.start_soon(vouching.run, False)
            seats = [Seat(pin.peer, pin.address) for pin in pins]
            outlook = Outlook(member, random.SystemRandom(), shunned=trust.banned, pinned=seats)
            services.start_soon(outlook.run)
            swarm = Swarm(member, worker, place, offline, trust, services)
            if purse is not None:
                swarm.router.opens, swarm.router.took = purse.opens, purse.took
            yield swarm
            await swarm.settle()
        except Exception as error:  # the caller's own: a nursery below would wrap it in a group
            failure = error
        if purse is not None:
            await purse.settle()
        services.cancel_scope.cancel()
    if failure is not None:
        raise failure


def shun_liars(directory: KadDirectory, trust: Trust) -> None:
    """Read nothing of whom this home has banned, nor of who contradicts himself before our eyes."""

    def contradicts(one: Record, other: Record) -> None:
        with suppress(RemoteError):  # the same, signed twice
            proof = contradiction_of(DOMAIN, one.raw, other.raw)
            trust.convict(check_contradiction(proof), for_good=True)

    directory.contradicted.append(contradicts)
    directory.shun(trust.banned)


def _request(
    voice: Voice, prompt: str | Sequence[int], options: Options, *, audit: bool
) -> Request:
    if unknown := options.keys() - Options.__annotations__.keys():
        known = ", ".join(Options.__annotations__)
        raise UserError(f"no option {', '.join(sorted(unknown))}: there are {known}")
    temperature, seed = options.get("temperature", 0.0), options.get("seed")
    if temperature > 0 and seed is None:
        seed = secrets.randbits(32)
    settings = Settings(
        temperature,
        options.get("top_k", 0),
        options.get("top_p", 1.0),
        options.get("min_p", 0.0),
        options.get("repetition_penalty", 1.0),
        seed,
    )
    return Request(
        voice=voice,
        ids=encode_request(voice, prompt),
        settings=settings,
        max_new_tokens=options.get("max_new_tokens", 64),
        stops=tuple(options.get("stop", ())),
        wait_s=options.get("wait_s", 0.0),
        ignore_eos=options.get("ignore_eos", False),
        receipts=options.get("receipts", False),
        audit=audit,
        prefix=_prefix(options.get("prefix", "off")),
    )


def _prefix(said: str) -> Prefix:
    """Raises UserError."""
    for known in get_args(Prefix):
        if said == known:
            return known  # type: ignore[no-any-return]
    raise UserError(f"prefix {said!r} is not known; use one of {', '.join(get_args(Prefix))}")
