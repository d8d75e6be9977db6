"""How far a peer is trusted, by what we ourselves had checked, and how that fades.

What an audit found is evidence for a beta distribution, whose counts fade by the hour (Josang and
Ismail's beta reputation, 2002; constants of algorithms.md 4.5). Routing takes the lower bound, so
that little evidence is little trust; work that nobody checked earns nothing at all. What others say
counts half, in proportion to our trust in them, and never for more than ten audits of our own.

    audit found right   good += weight        run of valid += 1
    found wrong         bad  += 10 weight     run = 0
    left open           bad  += weight / 2    of whom the fewer agreed with
    each hour           good, bad *= 0.98
    trust               mean = (good + 1) / (good + bad + 2);  lower = mean - deviation

    stranger ── ten valid ──▶ known ── convicted ──▶ banned 30 days ──▶ stranger, with its past
        └──────── contradicted itself, with two signatures ───▶ banned for good

The book is one node's own; nothing of it is a claim that others must believe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Final

from ..crypto.codec import Range, Size

HOUR_S: Final = 3600.0
FADING: Final = 0.98  # algorithms.md 4.5: an hour; half in 34 hours
WRONG_WEIGHT: Final = 10.0  # algorithms.md 4.5
OPEN_WEIGHT: Final = 0.5  # guess: the fewer are right, too, where liars are many
HEARSAY_MOST: Final = 10.0  # algorithms.md 4.5: pseudo-counts, of all that others say together
HEARSAY_SHARE: Final = 0.5
TRUST_LEAST: Final = 0.5  # algorithms.md 4.5: below, a known peer is not routed through
PROBATION_VALID: Final = 10  # audits in a row; until then all of its work is audited
CONVICTED_S: Final = 30 * 24 * HOUR_S  # algorithms.md 4.5: class B
FOR_GOOD_S: Final = 1e300  # class A; the codec knows no infinity
PEERS_MAX: Final = 65_536
STRANGERS_MAX: Final = 4096  # of them that were banned and never audited: who made them up has more

Count = Annotated[float, Range(0, 1e9)]


@dataclass(frozen=True, slots=True)
class Score:
    """What is known of one peer. at_s: when the counts were last faded. until_s: of a ban."""

    peer: Annotated[str, Size(64)]
    good: Count = 0.0
    bad: Count = 0.0
    valid: Annotated[int, Range(0, 1 << 53)] = 0  # audits in a row that found it right
    at_s: Annotated[float, Range(0, 1e11)] = 0.0
    until_s: Annotated[float, Range(0, FOR_GOOD_S)] = 0.0

    def faded(self, now: float) -> Score:
        """The same, as of `now`; a clock that was set back fades nothing."""
        if now <= self.at_s:
            return self
        share = FADING ** ((now - self.at_s) / HOUR_S)
        return replace(self, good=self.good * share, bad=self.bad * share, at_s=now)


@dataclass(frozen=True, slots=True)
class Book:
    """A reputation as it is kept on disk, by the one codec."""

    scores: Annotated[tuple[Score, ...], Size(PEERS_MAX)]


def _is_strange(score: Score) -> bool:
    return score.good + score.bad == 0


def mean_of(good: float, bad: float) -> float:
    return (good + 1) / (good + bad + 2)


def lower_of(good: float, bad: float) -> float:
    """The mean less one deviation of the beta distribution."""
    mean = mean_of(good, bad)
    return max(0.0, mean - math.sqrt(mean * (1 - mean) / (good + bad + 3)))


class Reputation:
    """The book. `now` is unix seconds: it outlives the process."""

    def __init__(self, book: Book | None = None) -> None:
        self._scores = {score.peer: score for score in (book.scores if book else ())}
        self._hearsay: dict[str, dict[str, tuple[float, float]]] = {}

    def audited(self, peer: str, *, right: bool, weight: float, now: float) -> None:
        """An audit was settled. weight: 1 for a chunk of 32 tokens, in proportion below."""
        assert 0 <= weight <= 1
        score = self._of(peer, now)
        if right:
            changed = replace(score, good=score.good + weight, valid=score.valid + 1)
        else:
            changed = replace(score, bad=score.bad + WRONG_WEIGHT * weight, valid=0)
        self._keep(changed)

    def doubted(self, peer: str, *, weight: float, now: float) -> None:
        """A dispute was left open in which it stood with the fewer."""
        score = self._of(peer, now)
        self._keep(replace(score, bad=score.bad + OPEN_WEIGHT * weight))

    def convict(self, peer: str, now: float, *, for_good: bool = False) -> None:
        """By evidence that anybody could check: no work for it, none of it, for so long."""
        score = self._of(peer, now)
        until_s = FOR_GOOD_S if for_good else max(score.until_s, now + CONVICTED_S)
        self._keep(replace(score, valid=0, until_s=until_s))
        if len(self._scores) > PEERS_MAX + STRANGERS_MAX:
            self._scores = {one.peer: one for one in self.keep(now).scores}

    def told(self, peer: str, by: str, *, good: float, bad: float) -> None:
        """What another says of its own audits of a peer. The last word of each counts."""
        if by != peer and math.isfinite(good + bad) and good >= 0 and bad >= 0:
            self._hearsay.setdefault(peer, {})[by] = (good, bad)

    def valid(self, peer: str) -> int:
        """Audits in a row: what the rate of audits goes by (audit.py)."""
        score = self._scores.get(peer)
        return 0 if score is None else score.valid

    def mean(self, peer: str, now: float) -> float:
        """With which probability it is honest, as far as we know: one half of a stranger."""
        return mean_of(*self._counts(peer, now))

    def trust(self, peer: str, now: float) -> float:
        """The lower bound of that."""
        return lower_of(*self._counts(peer, now))

    def banned(self, peer: str, now: float) -> bool:
        score = self._scores.get(peer)
        return score is not None and now < score.until_s

    def cost_factor(self, peer: str, now: float) -> float:
        """What routing multiplies a peer's times with: 1 / trust, between 1 and 2; infinite for
        one that is not to be used: banned, or known, and trusted less than TRUST_LEAST.

        A stranger counts twice. It has to be used to become known, and all that it does until
        then is audited.
        """
        if peer not in self._scores and peer not in self._hearsay:
            return 1 / TRUST_LEAST  # a view has thousands of these
        if self.banned(peer, now):
            return math.inf
        good, bad = self._counts(peer, now)
        known = good + bad >= PROBATION_VALID
        trust = lower_of(good, bad)
        if known and trust < TRUST_LEAST:
            return math.inf
        return 1 / max(trust, TRUST_LEAST)

    def banned_peers(self, now: float) -> tuple[str, ...]:
        return tuple(sorted(peer for peer in self._scores if self.banned(peer, now)))

    def keep(self, now: float) -> Book:
        """What is to be written. Of too many the ones that are known least are left out, but
        never a ban of whom we audited; of strangers' bans the last ones are kept."""
        known = sorted(
            (score.faded(now) for score in self._scores.values() if not _is_strange(score)),
            key=lambda score: (score.until_s <= now, -(score.good + score.bad), score.peer),
        )
        strange = sorted(
            (one for one in self._scores.values() if _is_strange(one) and now < one.until_s),
            key=lambda score: (-score.at_s, score.peer),
        )[:STRANGERS_MAX]
        return Book((*known[: PEERS_MAX - len(strange)], *strange))

    def _of(self, peer: str, now: float) -> Score:
        return self._scores.get(peer, Score(peer, at_s=now)).faded(now)

    def _keep(self, score: Score) -> None:
        self._scores[score.peer] = score

    def _counts(self, peer: str, now: float) -> tuple[float, float]:
        """Our own evidence, and hearsay for what it is worth. What others say is weighed by what
        we saw of them ourselves, so that hearsay never vouches for hearsay."""
        own = self._of(peer, now)
        good, bad = self._heard(self._hearsay.get(peer, {}).items(), now)
        return own.good + good, own.bad + bad

    def _heard(
        self, said: Iterable[tuple[str, tuple[float, float]]], now: float
    ) -> tuple[float, float]:
        good = bad = 0.0
        for by, (well, ill) in said:
            witness = self._of(by, now)
            if self.banned(by, now) or witness.good + witness.bad == 0:
                continue
            weight = HEARSAY_SHARE * lower_of(witness.good, witness.bad)
            good += weight * well
            bad += weight * ill
        scale = min(1.0, HEARSAY_MOST / (good + bad)) if good + bad else 0.0
        return good * scale, bad * scale
