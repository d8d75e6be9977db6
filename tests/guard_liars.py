"""Members of a guarded group (guards.py) that lie, each in one way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from guards import Member, Table

from potluck.crypto.codec import decode_any
from potluck.node.runs.btard_numbers import NUMBER
from potluck.node.runs.btard_work import Workshop
from potluck.swarm.run.btard_events import (
    Effect,
    Found,
    Judge,
    Measured,
    Send,
    SendLoad,
)
from potluck.swarm.run.btard_wire import (
    BODIES,
    BODY_BYTES_MAX,
    Body,
    Pledge,
    Reduced,
    Reveal,
    Said,
    Settled,
    Sums,
    say,
)


def body_in(effect: Effect) -> Body | None:
    """What this effect says, if it says something."""
    if not isinstance(effect, Send) or not isinstance(effect.message, Said):
        return None
    found: Body = decode_any(effect.message.body, BODIES, max_bytes=BODY_BYTES_MAX)
    return found


# ---- false work


class SignFlip(Member):
    """Ten times back."""

    def contribution(self) -> bytes:
        honest = np.frombuffer(super().contribution(), NUMBER)
        return (-10 * honest).astype(NUMBER).tobytes()


class _Loyal(Workshop):
    """Finds its fellows innocent. fellows: their seats, set by the test."""

    fellows: frozenset[int] = frozenset()

    def judge(self, job: Judge) -> Found:
        return Found(()) if job.case.about in self.fellows else super().judge(job)


class Fellow(Member):
    """A tenth more than it worked out, which clipping bounds and nobody sees but who works it out
    again; as a validator and as a judge it does nothing against its fellows."""

    shop_kind = _Loyal

    def contribution(self) -> bytes:
        return nudged(super().contribution(), 0.1)


def together(table: Table) -> Table:
    """All its liars are fellows."""
    for seat in table.kinds:
        table.seat(seat).shop.fellows = frozenset(table.kinds)  # type: ignore[attr-defined]
    return table


class NoNumbers(Member):
    def contribution(self) -> bytes:
        return np.full(len(super().contribution()) // 4, np.nan, NUMBER).tobytes()


class _ShortParts(Workshop):
    def cut(self, parts: int) -> list[bytes]:
        return [part[:-4] for part in super().cut(parts)]


class Short(Member):
    shop_kind = _ShortParts


# ---- false reduction


class _Shifts(Workshop):
    def clip(self, sources: tuple[bytes, ...]) -> bytes | None:
        result = super().clip(sources)
        if result is None:
            return None
        return (np.frombuffer(result, NUMBER) + np.float32(0.01)).tobytes()


class WrongReducer(Member):
    shop_kind = _Shifts


class _Nonsense(Workshop):
    def clip(self, sources: tuple[bytes, ...]) -> bytes | None:
        result = super().clip(sources)
        assert result is not None
        return np.full(len(result) // 4, np.inf, NUMBER).tobytes()


class NonsenseReducer(Member):
    shop_kind = _Nonsense


class ShyReducer(WrongReducer):
    """Wrong, and shows nothing of what it reduced."""

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        columns = set()
        for one in self.guard._bench.all():
            if one.case.about == self.seat:
                columns.update(one.attempt.column(one.attempt.members.index(self.seat)))
        return [e for e in effects if not (isinstance(e, SendLoad) and e.digest in columns)]


# ---- false shares


class _WrongSums(Workshop):
    def measure(self, shares: tuple[tuple[int, bytes, bytes], ...], coin: bytes) -> Measured:
        found = super().measure(shares, coin)
        if len({part for part, _, _ in shares}) == 1:
            return found  # what others said of the own part
        return ((found[0][0] + 0.01, *found[0][1:]), *found[1:])


class LyingSums(Member):
    shop_kind = _WrongSums


class _WrongNorms(Workshop):
    def measure(self, shares: tuple[tuple[int, bytes, bytes], ...], coin: bytes) -> Measured:
        found = super().measure(shares, coin)
        if len({part for part, _, _ in shares}) == 1:
            return found
        return tuple((share, far * 1.01, scale) for share, far, scale in found)


class LyingNorms(Member):
    shop_kind = _WrongNorms


# ---- two that cover each other


class _Partner(_Shifts):
    """Reduces wrongly, and finds nothing wrong in its partner's share."""

    def measure(self, shares: tuple[tuple[int, bytes, bytes], ...], coin: bytes) -> Measured:
        return super().measure(shares, coin)

    def judge(self, job: Judge) -> Found:
        return Found(())


class Partner(Member):
    shop_kind = _Partner
    partner: Member

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        self.guard._attempt.lies_in_mine = lambda measured: False  # type: ignore[method-assign]
        return effects


class Cover(Member):
    """Says of the partner's part whatever makes the shares cancel: it knows what the partner knows.
    partner: set by the test."""

    partner: Partner

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        return [self._covered(one) for one in effects]

    def _covered(self, effect: Effect) -> Effect:
        body = body_in(effect)
        if not isinstance(body, Sums) or not isinstance(effect, Send):
            return effect
        attempt = self.guard._attempt
        if self.partner.seat not in attempt.members:
            return effect
        part = attempt.members.index(self.partner.seat)
        result = attempt.results()[part]
        assert attempt.coin is not None
        shares = tuple((part, one, result) for one in attempt.column(part))
        found = Workshop.measure(self.partner.shop, shares, attempt.coin)
        mine = attempt.members.index(self.seat)
        rest = sum(share for at, (share, _, _) in enumerate(found) if at != mine)
        sums = (*body.sums[:part], -rest, *body.sums[part + 1 :])
        message = say(self.key, self.terms.run, self.terms.epoch, replace(body, sums=sums))
        return replace(effect, message=message)


# ---- false accusations


class _Accuser(Workshop):
    def judge(self, job: Judge) -> Found:
        return Found((job.case.about,))


class FalseAccuser(Member):
    """Finds guilty whomever it has to check, and in every case the accused."""

    shop_kind = _Accuser


class _Grumbler(Workshop):
    def measure(self, shares: tuple[tuple[int, bytes, bytes], ...], coin: bytes) -> Measured:
        found = super().measure(shares, coin)
        if len({part for part, _, _ in shares}) > 1:
            return found
        return tuple((share + 1.0, far, scale) for share, far, scale in found)


class FalseReducer(Member):
    """Says that somebody's share of its part is false."""

    shop_kind = _Grumbler


# ---- protocol


class NonRevealer(Member):
    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        return [one for one in effects if not isinstance(body_in(one), Reveal)]


class Withholder(Member):
    """Sends its victim no parts. victim: a peer, set by the test."""

    victim: str

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        return [e for e in effects if not (isinstance(e, SendLoad) and e.peer == self.victim)]


class Whisperer(Member):
    """Says nothing to its victim of what it says to all others; and sends it no results."""

    victim: str
    phase = "pledge"

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        return [e for e in effects if not self._is_kept_back(e)]

    def _is_kept_back(self, effect: Effect) -> bool:
        body = body_in(effect)
        return body is not None and effect.peer == self.victim and self.phase == body.TAG  # type: ignore[union-attr]


class TwoFaces(Member):
    """Says one thing to half of the others, and another to the rest. phase: set by the test."""

    phase = "pledge"

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        return [self._turned(one) for one in effects]

    def _turned(self, effect: Effect) -> Effect:
        body = body_in(effect)
        if body is None or self.phase != body.TAG or not isinstance(effect, Send):
            return effect
        if self.terms.roster.index(effect.peer) % 2:
            return effect
        return replace(effect, message=say(self.key, self.terms.run, self.terms.epoch, other(body)))


def other(body: Body) -> Body:
    """As well formed, and not the same."""
    match body:
        case Pledge():
            return replace(body, toss=bytes(32))
        case Reduced():
            return replace(body, result=bytes(32))
        case Reveal(secret=secret):
            return replace(body, secret=replace(secret, value=bytes(32)))
        case Sums(norms=norms):
            return replace(body, norms=tuple(one + 0.5 for one in norms))
        case Settled():
            return replace(body, outcome=bytes(32))
    return body


class Framer(TwoFaces):
    """Tells one reducer a false share, which it accuses, and all others the right one. victim: its
    seat."""

    phase = "sums"
    victim = 0

    def _turned(self, effect: Effect) -> Effect:
        body = body_in(effect)
        if not isinstance(body, Sums) or not isinstance(effect, Send):
            return effect
        if self.terms.roster.index(effect.peer) != self.victim:
            return effect
        return replace(effect, message=say(self.key, self.terms.run, self.terms.epoch, other(body)))


class DiesAfter(Member):
    """Says nothing more once it has spoken in this phase."""

    phase = "pledge"

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        found: list[Effect] = []
        for effect in effects:
            if not self.dead or not isinstance(effect, Send | SendLoad):
                found.append(effect)
            body = body_in(effect)
            self.ends = self.ends or (body is not None and self.phase == body.TAG)
            if self.ends and body is None:
                self.dead = True
        return found

    dead = ends = False


class Misfit(Member):
    """Says what has not the size of this group. phase: in which."""

    phase = "pledge"

    def acts(self, effects: list[Effect]) -> Iterable[Effect]:
        return [self._cropped(one) for one in effects]

    def _cropped(self, effect: Effect) -> Effect:
        body = body_in(effect)
        if body is None or self.phase != body.TAG or not isinstance(effect, Send):
            return effect
        match body:
            case Pledge(parts=parts):
                body = replace(body, parts=parts[:1])
            case Sums(sums=sums, norms=norms):
                body = replace(body, sums=sums[:1], norms=norms[:1])
            case Reduced(seen=seen) | Reveal(seen=seen) | Settled(seen=seen):
                body = replace(body, seen=seen[:1])
        return replace(effect, message=say(self.key, self.terms.run, self.terms.epoch, body))


# ---- numerics


class Rounds(Member):
    """Another class of numerics: another last bit."""

    def again(self, anchor: bytes, seed: bytes) -> bytes:
        return nudged(super().again(anchor, seed), 1e-6)


class Cheats(Rounds):
    """By less than two classes may differ: only its own class can tell."""

    def contribution(self) -> bytes:
        return nudged(super().contribution(), 1e-5)


def nudged(vector: bytes, by: float) -> bytes:
    return (np.frombuffer(vector, NUMBER) * np.float32(1 + by)).astype(NUMBER).tobytes()


class Flips(SignFlip, Rounds):
    pass
