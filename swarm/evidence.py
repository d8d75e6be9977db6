"""Whom to shun, on evidence: proofs are believed, accusations are computed again or outvoted.

algorithms.md 3.5. A contradiction needs no trust: ban for ever, and pass it on. An accusation is
checked by computing it again, if we can; if not, it is believed only when several attesters agree
that serve the same blocks, and that we have audited ourselves, each of another /16 and known for a
week; and nobody who serves those blocks objects. What is contested convicts nobody but before whom
has computed it: so one honest peer among the liars is enough, and liars can save one another from
hearsay, from nothing else. A refuted accusation counts against the accuser. What is slow or silent
is nobody else's business: there is no message for it.

    Contradiction ─▶ checked ─▶ Ban for ever, Pass
    Accusation ───▶ Pass, Recompute ─▶ Recomputed "wrong" ─▶ Ban, Attest
                         │                        "right" ─▶ Attest, and a strike for the accuser
                         └─ cannot ─▶ SETTLE_S for others to speak ─▶ Ban, or a strike, or nothing

The caller owes: `Received` once for each item of the topic, decoded (testimony.ITEMS); at
RemoteError the message is refused and its sender's score falls; what gives no `Pass` is not passed
on. `Recompute` may be left undone; `Attest` is signed with our key and told to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from ..dht.record import SKEW_MAX_S
from ..errors import RemoteError
from .banned import STRANGER, Acquaintance, Ban, Banned
from .machine import Fired, SetTimer
from .receipt import Opening
from .testimony import (
    Attestation,
    Case,
    Contradiction,
    Item,
    SignedAccusation,
    SignedAttestation,
    Verdict,
    check_accusation,
    check_attestation,
    check_contradiction,
    suspect,
)

ATTESTERS_MIN: Final = 3  # algorithms 3.5, as are the next two
TRUST_SUM_MIN: Final = 2.0
KNOWN_MIN_S: Final = 7 * 86_400.0
TRUST_MIN: Final = 0.5  # whom the router does not use is not listened to (algorithms 4.5)
SETTLE_S: Final = 30.0  # guess: for those who can compute it again to say what they got
KEEP_S: Final = 3600.0  # how old an accusation or attestation may be
BAN_S: Final = 30 * 86_400.0  # of class B: algorithms 4.5
STRIKES_MAX: Final = 2  # refuted accusations until a ban: one may be a fault of the hardware
CASES_MAX: Final = 512
CASES_PER_ACCUSER: Final = 4
VOICES_MAX: Final = 64  # of those who serve the blocks, on a side of a case
PASSED_MAX: Final = 64  # attestations by strangers that are passed on, on a side of a case
BANNED_MAX: Final = 16_384
STRIKES_KEPT_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Standing:
    """What we know of a peer that serves the blocks in question, as its record says."""

    trust: float  # 0..1, the lower bound of what our own audits say; 0 without any
    network: str  # its /16, or as wide a part of another kind
    known_s: float  # for how long we have known it
    alike: bool = True  # its numbers are of the accused's class: of others it sees less


@dataclass(frozen=True, slots=True)
class Received:
    """An event: an item that somebody passed on, or that we found ourselves."""

    item: Item


@dataclass(frozen=True, slots=True)
class Recomputed:
    """An event: what came out of a `Recompute`; None if nothing sure."""

    id: bytes
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Pass:
    """An effect: tell this to the neighbours."""

    item: Item


@dataclass(frozen=True, slots=True)
class Recompute:
    """An effect: if you have the blocks and the time, compute this again, and say `Recomputed`."""

    case: Case


@dataclass(frozen=True, slots=True)
class Attest:
    """An effect: sign this and tell it to all."""

    told: Attestation


@dataclass(frozen=True, slots=True)
class Blame:
    """An effect: this peer's word was wrong; it counts as a failed audit."""

    peer: str


@dataclass(frozen=True, slots=True)
class Heard:
    """An effect: one that serves these blocks found the work of `peer` right, or wrong: hearsay,
    for the book (reputation.py). None: that was settled, and counts no more."""

    peer: str
    by: str
    verdict: Verdict | None


Event = Received | Recomputed | Fired
Effect = Pass | Ban | Recompute | Attest | Blame | Heard | SetTimer


@dataclass(slots=True)
class _Open:
    """An accusation, and who says what of it."""

    case: Case
    item: SignedAccusation
    trust: float  # of the accuser, when it came
    voices: dict[str, Verdict] = field(default_factory=dict)  # of those who serve the blocks
    passed: dict[str, Verdict] = field(default_factory=dict)  # strangers, passed on
    settled: bool = False  # others have had the time to speak
    closed: bool = False  # kept so that the same accusation is not opened again
    found: Verdict | None = None  # by ourselves


class Evidence:
    """The machine.

    standing: of a peer, asked as to the blocks of an opening; None for one that does not serve
    them. acquaintance: how we know a peer that is being banned.
    """

    def __init__(
        self,
        me: str,
        standing: Callable[[str, Opening], Standing | None],
        acquaintance: Callable[[str], Acquaintance] = lambda peer: STRANGER,
    ) -> None:
        self._me = me
        self._standing = standing
        self._acquaintance = acquaintance
        self._bans = Banned(BANNED_MAX)
        self._cases: dict[bytes, _Open] = {}
        self._strikes: dict[str, frozenset[bytes]] = {}  # the accusations that were refuted

    def banned(self, peer: str, now: float) -> bool:
        ban = self._bans.of(peer)
        return ban is not None and now < ban.until_s

    def bans(self, now: float) -> tuple[Ban, ...]:
        """Those in force, with their proofs: to be stored, and `restore`d after a restart."""
        return tuple(ban for ban in self._bans.all() if now < ban.until_s)

    def restore(self, bans: tuple[Ban, ...], now: float) -> None:
        """What `bans` gave before. From one's own disk: it is not checked again."""
        for ban in bans:
            if now < ban.until_s:
                self._bans.put(ban, now)

    def open_cases(self) -> int:
        return len(self._cases)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Raises RemoteError at an item that no honest peer passes on."""
        match event:
            case Received(Contradiction() as item):
                return self._contradiction(item, now)
            case Received(SignedAccusation() as item):
                return self._accusation(item, now)
            case Received(SignedAttestation() as item):
                return self._attestation(item, now)
            case Recomputed(id, verdict):
                return self._recomputed(id, verdict, now)
            case Fired(("settle", bytes(id))) if id in self._cases:
                return self._settle(id, now)
        return []

    # ---- class A

    def _contradiction(self, item: Contradiction, now: float) -> list[Effect]:
        old = self._bans.of(suspect(item))
        if old is not None and old.until_s == math.inf:
            return []  # known: nothing to check, nothing to pass on
        peer = check_contradiction(item)
        if peer == self._me:
            return []  # somebody has our key: no ban of ours mends that
        return [self._ban(Ban(peer, math.inf, "contradiction", item), now), Pass(item)]

    # ---- class B

    def _accusation(self, item: SignedAccusation, now: float) -> list[Effect]:
        case = check_accusation(item)
        self._forget_old(now)
        if not _is_fresh(case.told.issued_s, now):
            return []
        accuser, accused = case.accuser, case.told.accused
        if case.id in self._cases or self.banned(accuser, now) or self.banned(accused, now):
            return []
        if sum(one.case.accuser == accuser for one in self._cases.values()) >= CASES_PER_ACCUSER:
            return []
        standing = self._standing(accuser, case.opening)
        trust = 0.0 if standing is None else standing.trust
        if not self._make_room(trust):
            return []
        opened = self._cases[case.id] = _Open(case, item, trust)
        if standing is not None:
            opened.voices[accuser] = "wrong"
        effects: list[Effect] = [Pass(item), SetTimer(("settle", case.id), now + SETTLE_S)]
        if accused == self._me:
            return effects
        return [*effects, *_hear(accused, accuser, "wrong", standing), Recompute(case)]

    def _attestation(self, item: SignedAttestation, now: float) -> list[Effect]:
        attester, told = check_attestation(item)
        opened = self._cases.get(told.accusation)
        if opened is None or not _is_fresh(told.issued_s, now) or self.banned(attester, now):
            return []  # of no case of ours
        if attester in (opened.case.accuser, opened.case.told.accused):
            return []  # what they say is known
        before = opened.voices.get(attester) or opened.passed.get(attester)
        if before is not None:
            return []  # the first word counts
        standing = self._standing(attester, opened.case.opening)
        serves, accused = standing is not None, opened.case.told.accused
        said, most = (opened.voices, VOICES_MAX) if serves else (opened.passed, PASSED_MAX)
        if sum(verdict == told.verdict for verdict in said.values()) >= most:
            return []
        said[attester] = told.verdict
        effects: list[Effect] = [Pass(item)]
        if opened.found not in (None, told.verdict):
            effects += self._blames(opened, [attester])
        if not opened.closed and accused != self._me:
            effects += _hear(accused, attester, told.verdict, standing)
        return effects + (self._weigh(opened, now) if opened.settled else [])

    def _recomputed(self, id: bytes, verdict: Verdict | None, now: float) -> list[Effect]:
        """We know ourselves: what others say of it shows who they are."""
        opened = self._cases.get(id)
        if opened is None or verdict is None or opened.found is not None:
            return []
        opened.found, opened.closed = verdict, True
        wrong = [peer for peer, said in sorted(opened.voices.items()) if said != verdict]
        accused = opened.case.told.accused
        effects: list[Effect] = [Attest(Attestation(id, verdict, now))]
        effects += self._blames(opened, wrong)
        if verdict == "right":
            return effects + _settled(opened) + self._strike(opened, now)
        return [*effects, self._ban(Ban(accused, now + BAN_S, "recomputed", opened.item), now)]

    def _blames(self, opened: _Open, peers: list[str]) -> list[Effect]:
        """Whose word is not ours, of those who serve the blocks. In one class of numbers one of us
        is wrong; in two both may be honest, and the one that sees less finds right what is not."""
        accuser = opened.case.accuser
        known = {one: self._standing(one, opened.case.opening) for one in (self._me, *peers)}
        mine = known[self._me]
        if mine is not None and not mine.alike:
            return []
        alike = [one for one in peers if (told := known[one]) is not None and told.alike]
        return [Blame(one) for one in alike if one != accuser]

    def _settle(self, id: bytes, now: float) -> list[Effect]:
        opened = self._cases[id]
        opened.settled = True
        return self._weigh(opened, now)

    def _weigh(self, opened: _Open, now: float) -> list[Effect]:
        """What all agree on whom we trust, if they are enough."""
        accuser, accused = opened.case.accuser, opened.case.told.accused
        said = {verdict for peer, verdict in opened.voices.items() if peer != accuser}
        if opened.closed or len(said) != 1:
            return []
        verdict = said.pop()
        count, trust = self._side(opened, verdict)
        if count < ATTESTERS_MIN or trust < TRUST_SUM_MIN:
            return []
        opened.closed = True
        if verdict == "right":
            return _settled(opened) + self._strike(opened, now)
        if accused == self._me:
            return []
        return [self._ban(Ban(accused, now + BAN_S, "attested", opened.item), now)]

    def _side(self, opened: _Open, verdict: Verdict) -> tuple[int, float]:
        """(how many networks, their trust): of each the most trusted of those who count."""
        best: dict[str, float] = {}
        for peer, said in opened.voices.items():
            standing = self._standing(peer, opened.case.opening)
            if said == verdict and standing is not None and _counts(standing):
                best[standing.network] = max(best.get(standing.network, 0.0), standing.trust)
        return len(best), sum(best.values())

    def _strike(self, opened: _Open, now: float) -> list[Effect]:
        """One for each refuted accusation, however often it is opened."""
        accuser = opened.case.accuser
        if accuser == self._me:
            return []
        strikes = self._strikes.pop(accuser, frozenset()) | {opened.case.id}
        if len(strikes) >= STRIKES_MAX:
            return [self._ban(Ban(accuser, now + BAN_S, "false accusations", opened.item), now)]
        self._strikes[accuser] = strikes
        while len(self._strikes) > STRIKES_KEPT_MAX:
            del self._strikes[next(iter(self._strikes))]  # the longest untouched
        return [Blame(accuser)]

    # ---- what is kept

    def _ban(self, ban: Ban, now: float) -> Ban:
        ban = replace(ban, known=self._acquaintance(ban.peer))
        self._bans.put(ban, now)
        gone = [
            id
            for id, opened in self._cases.items()
            if ban.peer in (opened.case.accuser, opened.case.told.accused)
        ]
        for id in gone:
            del self._cases[id]
        return ban

    def _make_room(self, trust: float) -> bool:
        """Whether a case of an accuser so trusted has room: the least trusted one's gives way."""
        if len(self._cases) < CASES_MAX:
            return True
        least = min(self._cases.values(), key=lambda opened: opened.trust)
        if least.trust >= trust:
            return False
        del self._cases[least.case.id]
        return True

    def _forget_old(self, now: float) -> None:
        old = [id for id, one in self._cases.items() if not _is_fresh(one.case.told.issued_s, now)]
        for id in old:
            del self._cases[id]


def _is_fresh(issued_s: float, now: float) -> bool:
    """An honest peer passes nothing on from the future, but its neighbours' clocks may differ."""
    if issued_s > now + 2 * SKEW_MAX_S:
        raise RemoteError(f"evidence from {issued_s - now:.0f} s in the future")
    return now < issued_s + KEEP_S


def _hear(peer: str, by: str, verdict: Verdict, standing: Standing | None) -> list[Effect]:
    """Of who serves the blocks, in the accused's class: others see less, or nothing."""
    return [Heard(peer, by, verdict)] if standing is not None and standing.alike else []


def _settled(opened: _Open) -> list[Effect]:
    return [Heard(opened.case.told.accused, by, None) for by in sorted(opened.voices)]


def _counts(standing: Standing) -> bool:
    return standing.trust >= TRUST_MIN and standing.known_s >= KNOWN_MIN_S
