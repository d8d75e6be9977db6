"""How far a peer is trusted, by what we ourselves had checked, and how that fades.

What an audit found is evidence for a beta distribution, whose counts fade by the hour (Josang and
Ismail's beta reputation, 2002; constants of algorithms.md 4.5). Routing takes the lower bound, so
that little evidence is little trust; work that nobody checked earns nothing at all.

What others found, who computed accused work again (evidence.py), counts half, in proportion to our
trust in them, and never for more than ten audits of our own. It moves which peer is asked, and how
often it is audited; nobody is convicted by it, nor barred, and it makes nobody a witness.

    audit found right   good += weight        run of valid += 1
    found wrong         bad  += 10 weight     run = 0
    left open           bad  += weight / 2    of whom the fewer agreed with
    each hour           good, bad *= 0.98
    trust               mean = (good + 1) / (good + bad + 2);  lower = mean - deviation

    head start          audits that count as passed (vouching.py), while nothing is against it

    stranger ── ten valid ──▶ known ── convicted ──▶ banned 30 days ──▶ stranger, with its past
        └──────── contradicted itself, with two signatures ───▶ banned for good

The book is one node's own; nothing of it is a claim that others must believe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
EARNED_LEAST: Final = 0.8  # algorithms.md 4.4: below, more is audited again
PROBATION_VALID: Final = 10  # audits in a row; until then all of its work is audited
CONVICTED_S: Final = 30 * 24 * HOUR_S  # algorithms.md 4.5: class B
FOR_GOOD_S: Final = 1e300  # class A; the codec knows no infinity
WORDS_MAX: Final = 4096  # of others, about others; the oldest are forgotten
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


@dataclass(frozen=True, slots=True)
class Word:
    """What one peer found of another's work."""

    right: bool
    at_s: float


class Words:
    """The last of each peer about each other: of this process alone, never written down."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Word]] = {}  # about whom, by whom
        self._order: dict[tuple[str, str], None] = {}

    def of(self, peer: str) -> Mapping[str, Word]:
        return self._of.get(peer, {})

    def put(self, peer: str, by: str, word: Word) -> None:
        self.take_back(peer, by)
        self._of.setdefault(peer, {})[by] = word
        self._order[peer, by] = None
        if len(self._order) > WORDS_MAX:
            self.take_back(*next(iter(self._order)))

    def take_back(self, peer: str, by: str) -> None:
        """It was settled: we know ourselves."""
        if (peer, by) in self._order:
            del self._order[peer, by], self._of[peer][by]
            if not self._of[peer]:
                del self._of[peer]


class Reputation:
    """The book. `now` is unix seconds: it outlives the process."""

    def __init__(self, book: Book | None = None, *, words: Words | None = None) -> None:
        """words: what others said, of another book of this process."""
        self._scores = {score.peer: score for score in (book.scores if book else ())}
        self.words = words or Words()

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

    def heard(self, peer: str, by: str, *, right: bool, now: float) -> None:
        """What another found of a peer's work. The last word of each counts, and none of whom we
        never audited."""
        if by != peer and not self.banned(by, now) and self._is_known(by):
            self.words.put(peer, by, Word(right, now))

    def valid(self, peer: str, *, head: float = 0.0) -> int:
        """Audits in a row: what the rate of audits goes by (audit.py). A head start shortens
        probation, and is worth nothing behind it."""
        score = self._scores.get(peer)
        own = 0 if score is None else score.valid
        return max(own, min(PROBATION_VALID, own + int(self._started(peer, head))))

    def _started(self, peer: str, head: float) -> float:
        """What is left of a head start: nothing, once anything was found against this peer."""
        score = self._scores.get(peer)
        return head if score is None or (score.bad == 0 and score.until_s == 0) else 0.0

    def earned(self, now: float) -> dict[str, float]:
        """Whom our own audits alone have taken out of probation, and trust, with how far."""
        found: dict[str, float] = {}
        for score in self._scores.values():
            if score.valid >= PROBATION_VALID and score.until_s <= now:
                faded = score.faded(now)
                trust = lower_of(faded.good, faded.bad)
                if trust >= EARNED_LEAST:
                    found[score.peer] = trust
        return found

    def mean(self, peer: str, now: float) -> float:
        """With which probability it is honest, as far as we saw: one half of a stranger."""
        own = self._of(peer, now)
        return mean_of(own.good, own.bad)

    def trust(self, peer: str, now: float) -> float:
        """The lower bound of that."""
        own = self._of(peer, now)
        return lower_of(own.good, own.bad)

    def credence(self, peer: str, now: float, *, head: float = 0.0) -> float:
        """The lower bound with what others say, and a head start: how often to audit it."""
        good, bad = self._counts(peer, now)
        return lower_of(good + self._started(peer, head), bad)

    def banned(self, peer: str, now: float) -> bool:
        score = self._scores.get(peer)
        return score is not None and now < score.until_s

    def cost_factor(self, peer: str, now: float, *, head: float = 0.0) -> float:
        """What routing multiplies a peer's times with: 1 / trust, between 1 and 2; infinite for
        one that is not to be used: banned, or known to us, and trusted less than TRUST_LEAST.

        A stranger counts twice. It has to be used to become known, and all that it does until
        then is audited.
        """
        if not head and peer not in self._scores and not self.words.of(peer):
            return 1 / TRUST_LEAST  # a view has thousands of these
        if self.banned(peer, now):
            return math.inf
        own = self._of(peer, now)
        known = own.good + own.bad >= PROBATION_VALID
        if known and lower_of(own.good, own.bad) < TRUST_LEAST:
            return math.inf
        return 1 / max(self.credence(peer, now, head=head), TRUST_LEAST)

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
        good = bad = 0.0
        for by, word in self.words.of(peer).items():
            if self.banned(by, now) or not self._is_known(by):
                continue
            fading = FADING ** (max(0.0, now - word.at_s) / HOUR_S)
            weight = HEARSAY_SHARE * self.trust(by, now) * fading
            good += weight if word.right else 0.0
            bad += 0.0 if word.right else WRONG_WEIGHT * weight
        scale = min(1.0, HEARSAY_MOST / (good + bad)) if good + bad else 0.0
        return own.good + good * scale, own.bad + bad * scale

    def _is_known(self, peer: str) -> bool:
        """By audits of our own."""
        score = self._scores.get(peer)
        return score is not None and not _is_strange(score)
