"""What is said of others, and what each who hears it makes of it: evidence, records, their scores.

Who serves a part of the model hears of accusations there, computes the work again, and attests;
contradictions and records go to everybody. Each mind is the daemon's own objects: Evidence,
Replica, Scores. A liar says what it has to say again and again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

from ...crypto.codec import decode, encode
from ...crypto.digest import digest
from ...crypto.envelope import Envelope, sign
from ...dht.record import Stale, check_record
from ...errors import RemoteError
from .. import evidence
from ..banned import Ban
from ..evidence import Attest, Blame, Effect, Heard, Received, Recompute, Recomputed
from ..gossip import STALE
from ..machine import Fired, SetTimer
from ..receipt import CHUNK, CHUNK_TOKENS, OPENING, Chunk, Opening
from ..tally import FIRST, accept, first_of, next_of, offer
from ..testimony import (
    Accusation,
    Attestation,
    Item,
    check_accusation,
    forks_of,
    sign_accusation,
    sign_attestation,
)
from .town import MODEL, NOW, OURS, Mind, Peer, Town, announced

SPREAD_S: Final = (0.1, 2.0)  # until an item has come to a peer
COMPUTE_S: Final = (2.0, 20.0)  # guess: until a peer has computed an accusation again
AGAIN_S: Final = {"forged_record": 1.0, "rolled_back_record": 1.0}  # a liar says it again
SELDOM_S: Final = 20.0  # all others
FLOOD_S: Final = 120.0  # for so long a liar floods; others never end


class Hearing:
    """Everybody hears here what concerns them. taken: false things that were believed."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self.said: Counter[str] = Counter()  # by lie
        self.taken: Counter[str] = Counter()
        self._wrong: dict[bytes, bool] = {}  # accusations: whether the work was wrong
        self._count = 0

    def begin(self) -> None:
        """The records of all are known to all; then liars speak."""
        for mind in self._town.minds.values():
            for record in self._town.records.values():
                mind.replica.merge(record, NOW)
        speak = {
            "false_accusation": self._accuse_falsely,
            "equivocate": self._equivocate,
            "false_tally": self._show_tallies,
            "forged_record": self._forge,
            "rolled_back_record": self._roll_back,
        }
        for peer in self._town.peers:
            if peer.lie in speak:
                begin_s = NOW + self._town.dice.uniform(0.0, SELDOM_S)
                self._town.clock.at(begin_s, self._again, peer, speak[peer.lie])

    def _again(self, liar: Peer, speak: object) -> None:
        assert callable(speak)
        self.said[liar.lie] += 1
        speak(liar)
        when = self._town.clock.now + AGAIN_S.get(liar.lie, SELDOM_S)
        if liar.lie not in AGAIN_S or when < NOW + FLOOD_S:
            self._town.clock.at(when, self._again, liar, speak)

    # ---- evidence

    def accuse(self, accuser: Mind | Peer, accused: Peer, *, wrong: bool) -> None:
        """Of a chunk that it signed; wrong: whether that was."""
        self._count += 1
        some = digest("sim work", self._count.to_bytes(8))
        now = self._town.clock.now
        opening = Opening(
            some[:16], some[16:], now, bytes.fromhex(MODEL), accused.numerics, accused.part,
            accused.part + 1, 1, "f32",
        )  # fmt: skip
        tokens = CHUNK_TOKENS
        told = Accusation(
            accused.id, sign(accused.key, OPENING, encode(opening)),
            sign(accused.key, CHUNK, encode(Chunk(some, 0, tokens, tokens, some, some))),
            some, 0.2, now,
        )  # fmt: skip
        peer = accuser.peer if isinstance(accuser, Mind) else accuser
        item = sign_accusation(peer.key, told)
        id = check_accusation(item).id
        self._wrong[id] = wrong
        self._spread(item, accused.part)
        for liar in self._town.liars("false_accusation"):
            if liar.part == accused.part and liar is not peer:
                lie = Attestation(id, "right" if wrong else "wrong", now)
                attested = sign_attestation(liar.key, lie)
                when = now + SPREAD_S[1]
                self._town.clock.at(when, self._spread, attested, accused.part)

    def _spread(self, item: Item, part: int | None = None) -> None:
        """To all, or to all who serve this part."""
        dice, clock = self._town.dice, self._town.clock
        for mind in self._town.minds.values():
            if part is None or mind.peer.part == part:
                clock.at(clock.now + dice.uniform(*SPREAD_S), self._hear, mind, Received(item))

    def _hear(self, mind: Mind, event: evidence.Event) -> None:
        try:
            effects = mind.court.handle(event, self._town.clock.now)
        except RemoteError:
            mind.refused += 1
            return
        for effect in effects:
            self._perform(mind, effect)

    def _perform(self, mind: Mind, effect: Effect) -> None:
        town, now = self._town, self._town.clock.now
        match effect:
            case SetTimer(key, at_s):
                town.clock.at(at_s, self._hear, mind, Fired(key))
            case Recompute(case) if mind.peer.part == case.opening.start:
                exact = mind.peer.numerics == case.opening.numerics == OURS
                verdict = "wrong" if self._wrong[case.id] else "right"
                event = Recomputed(case.id, verdict if exact else None)  # type: ignore[arg-type]
                town.clock.at(now + town.dice.uniform(*COMPUTE_S), self._hear, mind, event)
            case Attest(told):
                self._spread(sign_attestation(mind.peer.key, told), mind.peer.part)
            case Blame(peer):
                mind.book.audited(peer, right=False, weight=1, now=now)
            case Heard(peer, by, verdict):
                if verdict is None:
                    mind.book.words.take_back(peer, by)
                else:
                    mind.book.heard(peer, by, right=verdict == "right", now=now)
            case Ban(peer, _, grounds, _):
                mind.book.convict(peer, now, for_good=grounds == "contradiction")
                town.ban(mind, peer, grounds)

    # ---- what liars say

    def _accuse_falsely(self, liar: Peer) -> None:
        """An honest peer of its part, of work that was right."""
        honest = [mind.peer for mind in self._town.minds.values() if mind.peer.part == liar.part]
        self.accuse(liar, self._town.dice.choice(honest), wrong=False)

    def _show_tallies(self, liar: Peer) -> None:
        """Two of one place in its chain with an accomplice, to one who compares them."""
        key, now = liar.key, self._town.clock.now
        accomplice = self._town.dice.choice(self._town.liars("false_tally")).key
        if accomplice is key:
            return
        first = first_of(key.peer_id, accomplice.peer_id)
        one, other = (
            accept(
                accomplice,
                offer(
                    key,
                    next_of(first, key.peer_id, boot=1, gave=work, took=0.0, now=now, since=FIRST),
                ),
            )
            for work in (1e9, 2e9)
        )
        for item in forks_of(one, other):
            self._spread(item)

    def _equivocate(self, liar: Peer) -> None:
        """One record to half of the others, another of the same number to the rest."""
        now = self._town.clock.now
        versions = [announced(liar, now=now, seq=2, free=free) for free in (1, 2)]
        for place, mind in enumerate(self._town.minds.values()):
            self._tell(mind, liar, versions[place % 2].raw)
        mind = self._town.dice.choice(list(self._town.minds.values()))
        for version in versions:  # as neighbours tell each other of news
            self._tell(mind, liar, version.raw)

    def _forge(self, liar: Peer) -> None:
        """Its own with a bit turned, and another's under its own signature."""
        victim = self._town.dice.choice(list(self._town.minds.values())).peer
        now = self._town.clock.now
        raw = bytearray(announced(liar, now=now, seq=3).raw)
        raw[len(raw) // 2] ^= 1
        stolen = decode(announced(victim, now=now, seq=9, free=0).raw, Envelope)
        signed = encode(replace(stolen, signature=liar.key.sign(stolen.body)))
        for mind in self._town.minds.values():
            self._tell(mind, liar, bytes(raw))
            self._tell(mind, liar, signed)

    def _roll_back(self, liar: Peer) -> None:
        old = announced(liar, now=self._town.clock.now, boot=1, seq=9, free=0).raw
        for mind in self._town.minds.values():
            self._tell(mind, liar, old)

    def _tell(self, mind: Mind, sender: Peer, raw: bytes) -> None:
        """What gossip makes of a record: wrong, stale, known, or news."""
        now = self._town.clock.now
        if mind.scores.shunned(sender.id, now):
            return
        news = False
        try:
            record = check_record(raw, None, now)
            merged = mind.replica.merge(record, now)
        except Stale:
            mind.scores.nuisance(sender.id, STALE, now)
        except RemoteError:
            mind.scores.wrong(sender.id, now)
        else:
            news = merged.news
            if merged.proof is not None:
                self._spread(merged.proof)
        if sender.lie in AGAIN_S:
            self.taken[sender.lie] += news
        if mind.scores.shunned(sender.id, now):
            self._town.ban(mind, sender.id, "its score")
