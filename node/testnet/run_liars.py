"""Members of a run that lie, to test the others against: only in a testnet, and loudly.

    testnet ── POTLUCK_RUN_LIE="sign flip" ──▶ lying_kinds ──▶ a Gossip or Guarded that says what
                                                               an attack of attacks.py makes up

A liar trains and pulls as others do; what it gives to whoever pulls from it, or hands in to its
group, is its Liar's (compute/average/liar.py), the object that the laboratory's attacks are of. It
says one thing to all in an epoch, as whoever says two is convicted by whom they meet; of the
attacks, two need to say different things to different peers, and do. An honest process never loads
this file. Source: algorithms.md 3.4.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import trio

from ...errors import UserError
from ...swarm.run.statement import Said, state
from ..compute.average.aggregator import aggregator
from ..compute.average.attacks import ATTACKS, LABEL_FLIP, flip_labels
from ..compute.average.codec import encode
from ..compute.average.liar import Liar
from ..compute.mixing import Vector, bits_of
from ..gossip.talks import Talk
from ..log import get_logger
from ..runs.exchange import Exchanged
from ..runs.gossip import Gossip
from ..runs.guarded import Guarded
from ..runs.kinds import Open, Setting, open_gossip, open_guarded
from .launcher import MARK
from .lies import LIARS, RUN_LIE

TO_EACH: Final = ("dissensus", "two faces")  # another thing to each victim

log = get_logger()


def lying_kinds(environment: Mapping[str, str] = os.environ) -> Mapping[str, Open]:
    """What makes exchanges that lie as the environment says. Raises UserError."""
    told = environment.get(RUN_LIE, "")
    if MARK not in environment:
        raise UserError(f"{RUN_LIE} is for the members of a testnet's runs; unset it")
    if told not in (*ATTACKS, LABEL_FLIP):
        raise UserError(f"no attack is called {told!r}: there are {', '.join(ATTACKS)}")
    log.warning("THIS MEMBER LIES, because its testnet told it to", lie=told)
    liars = int(environment.get(LIARS, "1"))
    return MappingProxyType[str, Open](
        {
            "gossip": partial(_open_gossip, attack=told, liars=liars),
            "guarded": partial(_open_guarded, attack=told, liars=liars),
        }
    )


def _liar(setting: Setting, attack: str, liars: int) -> Liar | None:
    """None for one that tells the truth of what it learnt wrongly."""
    if attack == LABEL_FLIP:
        setting.tuner.labels = partial(flip_labels, vocabulary=setting.tuner.vocabulary)
        return None
    said, seed = setting.terms.exchange, int.from_bytes(setting.key.peer_id.encode()[-6:])
    rule = aggregator(said.aggregator, setting.flat.sizes, setting.panel)
    return Liar(
        attack, rule, liars=liars, asked=said.asked, believed=said.liars, seed=seed,
        harm=setting.panel,
    )  # fmt: skip


def _open_gossip(setting: Setting, *, attack: str, liars: int) -> Gossip:
    liar = _liar(setting, attack, liars)
    if liar is None:
        return open_gossip(setting)
    found = open_gossip(setting, LyingGossip)
    assert isinstance(found, LyingGossip)
    found.tells(liar, setting, to_each=attack in TO_EACH)
    return found


def _open_guarded(setting: Setting, *, attack: str, liars: int) -> Guarded:
    liar = _liar(setting, attack, liars)
    found = open_guarded(setting)
    if liar is not None:
        exchange, me, group = found.group.exchange, setting.key.peer_id, found.group
        liar.heard(me, setting.start)  # who delays says this at first

        async def lie(epoch: int, weights: Vector, tokens: int) -> Exchanged:
            liar.begin(group.anchor)
            liar.heard(me, weights)
            told = await trio.to_thread.run_sync(liar.reply, me)
            return await exchange(epoch, weights if told is None else told, tokens)

        found.group.exchange = lie  # type: ignore[method-assign]
    return found


class LyingGossip(Gossip):
    """It gives what its Liar makes up. Begun by `tells`."""

    def tells(self, liar: Liar, setting: Setting, *, to_each: bool) -> None:
        self._liar, self._setting, self._to_each = liar, setting, to_each
        self._bits = bits_of(setting.terms.exchange.bits)
        self._told: dict[str, tuple[Said, bytes] | None] = {}  # in this epoch
        self._turn = trio.Lock()

    async def exchange(self, epoch: int, weights: Vector, tokens: int) -> Exchanged:
        self._liar.begin(self._mixer.anchor)
        self._liar.heard(self._key.peer_id, weights)
        self._told.clear()
        found = await super().exchange(epoch, weights, tokens)
        for peer, heard in self._came.items():
            self._liar.heard(peer, heard)
        return found

    async def _give(self, talk: Talk, public: tuple[Said, bytes] | None) -> None:
        if public is not None:
            async with self._turn:
                public = await self._lie(talk.peer, public[0])
        await super()._give(talk, public)

    async def _lie(self, victim: str, said: Said) -> tuple[Said, bytes] | None:
        """None: nothing is told."""
        whom = victim if self._to_each else ""
        if whom not in self._told:
            made: Any = await trio.to_thread.run_sync(self._liar.reply, victim)
            self._told[whom] = None
            if made is not None:
                raw = await trio.to_thread.run_sync(encode, made - self._setting.start, self._bits)
                told = said.statement
                signed = state(self._key, self._run, told.epoch, told.tokens, raw)
                self._told[whom] = signed, raw
        return self._told[whom]
