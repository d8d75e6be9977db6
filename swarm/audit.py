"""Which work is computed again, and what it means when the numbers differ.

Every chunk that a server has signed for (receipt.py) may be drawn, by a coin that only its client
can toss, and only after the signature: the coin is a keyed digest of the receipt. The rate is
BOINC's adaptive replication (`sched_send.cpp`: ten valid results, then one in as many), with a
floor, so that whoever waits until it is trusted gains nothing by waiting:

    rate    1 below ten valid audits in a row, then max(floor, 5 / valid); more where trust is low:
            of a stranger each chunk is computed again, of others so many tokens, on average, as
            this share of theirs
    look    a chunk can be computed again only behind all that came before it in its session. So a
            peer that is known is looked at up to the chunk, in one pass in which all chunks are
            compared, with half the rate times what part of those tokens the chunk is: deep looks
            cost more, and are as much rarer. The other half goes to whole sessions, drawn by their
            openings and looked at when they have ended: a liar finds no place late enough
    way     most are computed again by a peer of the same blocks, from the first position on, as
            an ordinary prompt; of those whom we know, a fifth are canaries: work whose answer is
            known is sent to the server itself, which cannot have agreed on it with an auditor
    rule    for each token |gave - again| / |again - took|, the difference in what the blocks
            added (the residual stream itself would hide it: kernels.md 3), or in a quarter of what
            went in, if that is more; right when the median is below a limit and the worst below
            four times that; in one class of numbers of ours, where equal steps give equal bits, the
            limit is 0
    dispute one that differs is computed by a third, and by more, until it is as good as certain
            which of the answers is right, as far as the peers that gave them are trusted

    drawn ── again ──▶ right                             the server's run of valid grows
               └─────▶ differs ── thirds ──▶ one answer is certain: who gave others is convicted,
                                     │       the auditor too
                                     └─────▶ six were asked, in vain: open, a doubt on the fewer

At the floor audits compute two tokens in a hundred again, however long sessions are; a token of a
prompt costs no more than one that was decoded, so that they take 2 % of the work at most. A liar
falsifies 2 / (rate q) answers at most until it is caught, wherever in them it cheats, where q is
how often a comparison sees it; of answers of one chunk 1 / (rate q) (algorithms.md 4.4). In chunks
it is more where answers are longer: integration/audit_law.py. Nothing here rolls dice, computes on
tensors or waits: errors come in as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from sys import float_info
from typing import Final, Literal

from ..crypto.digest import digest
from ..dht.network import NOWHERE, Prefixes
from .receipt import Account
from .tolerance import Tolerance

KEY_BYTES: Final = 32
WORST_SHARE: Final = 4.0  # algorithms.md 4.3: 99 in 100 tokens below 4 tau; of 32, all
TOKENS_LEAST: Final = 16  # kernels.md: a median over fewer is no median
ARBITERS_MAX: Final = 6  # accused and five against one of trust .9 are 0.9999 sure; one to spare
CERTAIN: Final = 0.9999  # peers.md 4.4: block at 99.99 %
NETWORKS_FIRST: Final = 0.5  # guess: against many names, and as much against many claimed networks
TRUST_MOST: Final = 0.95  # guess: of anybody but ourselves; one in twenty has been bought

Verdict = Literal["right", "wrong", "open"]


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """floor: of the rate; algorithms.md 4.4 has .02 for batches and .05 where a person waits, which
    takes more than 2 % where a prompt's token costs over 0.4 of a decoded one. whole_share: of the
    rate, what goes to whole sessions."""

    floor: float = 0.02
    whole_share: float = 0.5  # guess: the rest finds soon who always lies, and this who lies late
    valid_to_trust: int = 10  # BOINC's CONS_VALID_UNREPLICATED
    earned: float = 5.0  # algorithms.md 4.4
    doubt_below: float = 0.8  # algorithms.md 4.4: of the trust's lower bound
    doubt_extra: float = 0.05
    canary_share: float = 0.2  # algorithms.md 4.4

    def __post_init__(self) -> None:
        assert 0 < self.floor <= 1 and 0 <= self.canary_share <= 1 and self.valid_to_trust >= 1
        assert 0 <= self.whole_share <= 1


def rate(valid: int, trust: float, config: AuditConfig) -> float:
    """Which share of a peer's tokens is computed again; 1: each chunk is audited. valid: audits in
    a row that found it right; trust: the lower bound of its reputation."""
    if valid < config.valid_to_trust:
        return 1.0
    usual = max(config.floor, config.earned / valid)
    return min(1.0, usual + (config.doubt_extra if trust < config.doubt_below else 0.0))


class Lots:
    """Coins that nobody else can foresee, and that fall the same way each time they are asked.

    A lot is drawn from a receipt, which the server has signed before: what it computed it cannot
    change any more, and another receipt for it would be a contradiction.
    """

    def __init__(self, key: bytes) -> None:
        """key: secret, random, never shown."""
        assert len(key) == KEY_BYTES
        self._key = key

    def draw(self, what: str, *names: bytes) -> float:
        """A number in [0, 1), for this purpose and these names (of receipts, each 32 bytes)."""
        lot = digest("audit lot", self._key, what.encode().ljust(16, b"\0"), *names)
        return int.from_bytes(lot[:7]) / (1 << 56)  # 56 bits: exact as a float, never 1

    def pick(self, what: str, count: int, *names: bytes) -> int:
        """One of 0 .. count - 1."""
        return int(self.draw(what, *names) * count)


@dataclass(frozen=True, slots=True)
class Signed:
    """A chunk that a server has signed for. name: of the receipt; place: in its account; stop: the
    position at which it ends, and so the tokens that are to be computed for it."""

    peer: str
    name: bytes
    place: int
    tokens: int
    stop: int


def signed_by(account: Account, first: int = 0) -> list[Signed]:
    """The chunks of an account from number `first` on, to draw from."""
    return [
        Signed(account.peer, account.names[place + 1], place, chunk.tokens, chunk.stop)
        for place, chunk in enumerate(account.chunks[first:], start=first)
    ]


def look_chance(rate: float, tokens: int, stop: int, config: AuditConfig) -> float:
    """With which probability a chunk is looked at, and all before it."""
    return 1.0 if rate >= 1 else rate * (1 - config.whole_share) * tokens / stop


def draw_whole(opening: bytes, rate: float, lots: Lots, config: AuditConfig) -> bool:
    """Whether all of this session is looked at when it has ended. opening: its name."""
    return lots.draw("session", opening) < (rate * config.whole_share if rate < 1 else 1.0)


@dataclass(frozen=True, slots=True)
class Drawn:
    """To be audited: this chunk of that account. canary: by a question whose answer is known."""

    signed: Signed
    canary: bool


def draw(
    signed: Iterable[Signed],
    lots: Lots,
    rate_of: Callable[[str], float],
    config: AuditConfig,
    *,
    canaries: bool = False,
) -> list[Drawn]:
    """Which of these chunks are audited, and how. canaries: whether there are known answers for
    these blocks; without them everything is computed again, as is all that a stranger does, whose
    every chunk has to be found right itself."""
    found = []
    for one in signed:
        rate = rate_of(one.peer)
        if lots.draw("chunk", one.name) < look_chance(rate, one.tokens, one.stop, config):
            known = canaries and rate < 1 and lots.draw("way", one.name) < config.canary_share
            found.append(Drawn(one, known))
    return found


def choose_auditor(
    peers: Iterable[str], lots: Lots, name: bytes, *, avoid: Iterable[str], turn: int = 0,
    place_of: Callable[[str], Prefixes] = lambda peer: NOWHERE,
) -> str | None:  # fmt: skip
    """One of our own sample of peers, of other networks where the caller gives such, never one that
    the target proposes. turn: counts up with each that was asked.

    place_of: the network of a peer, as it says. In half of the draws a network is drawn first, from
    the widest to the narrowest, and a peer of it then: a hundred names in one network are no more
    than one there. In the other half all names are alike: whoever claims a hundred networks, while
    the honest are of one, is no more than a hundred names there."""
    left = sorted(set(peers) - set(avoid))
    by_network = lots.draw(f"auditor by {turn}", name) < NETWORKS_FIRST
    for width in range(len(NOWHERE) if by_network else 0):
        networks = sorted({place_of(peer)[width] for peer in left})
        if len(networks) > 1:
            one = networks[lots.pick(f"auditor {turn}.{width}", len(networks), name)]
            left = [peer for peer in left if place_of(peer)[width] == one]
    return left[lots.pick(f"auditor {turn}", len(left), name)] if left else None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the rule says of one comparison."""

    verdict: Verdict
    median: float
    worst: float


def judge(errors: Sequence[float], tolerance: Tolerance | None) -> Judged:
    """errors: of each token, |gave - again| / |again - took|; not finite is as wrong as can be.

    Open where nothing is known of honest peers, or where there are too few tokens: bits that
    should be equal and are not need no sixteen.
    """
    told = [error if error == error else float("inf") for error in errors]
    if not told:
        return Judged("open", 0.0, 0.0)
    middle, worst = float(median(told)), max(told)
    if tolerance is None:
        return Judged("open", middle, worst)
    if middle <= tolerance.limit and worst <= WORST_SHARE * tolerance.limit:
        return Judged("right", middle, worst)
    few = len(told) < TOKENS_LEAST and tolerance.limit > 0
    return Judged("open" if few else "wrong", middle, worst)


def limit_from(honest: Sequence[Sequence[float]]) -> float:
    """The limit that chunks of honest pairs give: twice what 999 in 1000 of them need (4.3), by
    their medians and by their worst tokens. (By medians alone it is 0 where most tokens have equal
    bits and a few do not, as in torch's bf16; measured, integration/audit_errors.py.)"""
    assert honest
    told = [judge(chunk, None) for chunk in honest]
    needed = sorted(max(one.median, one.worst / WORST_SHARE) for one in told)
    limit = 2 * needed[min(len(needed) - 1, int(0.999 * len(needed)))]
    some = any(one.worst for one in told)
    return max(limit, float_info.min) if some else 0.0  # a quarter of the least number is 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a dispute came to. right, wrong: who is believed, and who is convicted; both are empty
    while it is open, and doubted are those whose answer is not the one of the most. ask: one more
    is to be asked."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]
    ask: bool
    doubted: tuple[str, ...] = ()


class Dispute:
    """One chunk, and all who computed it: the accused, the auditor, then one arbiter at a time.

    Answers that agree are one answer. Whoever is honest gives the right one, and all who are not
    are taken to have agreed on a wrong one, which is the worst that they can do. Then, with each
    peer honest with the probability that we trust it,

        P(an answer is right)  ~  product of trust of who gave it, of distrust of who did not

    and whoever gave another than one that is right for certain is convicted. A stranger, of trust
    one half, moves nothing: a thousand Sybils that agree with each other convict nobody. What we
    computed ourselves decides at once.
    """

    def __init__(self, accused: str, auditor: str) -> None:
        assert accused != auditor
        self.peers = [accused, auditor]
        self._alike: dict[str, set[str]] = {accused: {accused}, auditor: {auditor}}

    def add(self, arbiter: str) -> None:
        assert arbiter not in self._alike
        self.peers.append(arbiter)
        self._alike[arbiter] = {arbiter}

    def agree(self, one: str, other: str) -> None:
        """Their answers are within tolerance of each other. (Who is not said to agree, does not;
        do not add a peer whose answer cannot be compared.)"""
        if self._alike[one] is not self._alike[other]:
            self._alike[one] |= self._alike[other]
            for peer in self._alike[other]:
                self._alike[peer] = self._alike[one]

    def outcome(self, trust: Callable[[str], float], ours: str = "") -> Outcome:
        """trust: in [0, 1], of a peer (reputation.py); ours: under which name we stand here."""
        answers = {id(alike): alike for alike in self._alike.values()}
        if len(answers) == 1:
            return Outcome(tuple(self.peers), (), False)
        chance = {peer: min(max(trust(peer), 0.01), TRUST_MOST) for peer in self.peers}
        if ours in chance:
            chance[ours] = 1.0
        likely = {key: self._likelihood(alike, chance) for key, alike in answers.items()}
        best = max(likely, key=lambda key: likely[key])
        total = sum(likely.values()) + self._likelihood(set(), chance)
        if likely[best] < CERTAIN * total:
            return Outcome(
                (), (), len(self.peers) < 2 + ARBITERS_MAX, self._fewer(answers.values())
            )
        right = answers[best]
        return Outcome(
            tuple(peer for peer in self.peers if peer in right),
            tuple(peer for peer in self.peers if peer not in right),
            False,
        )

    def _fewer(self, answers: Iterable[set[str]]) -> tuple[str, ...]:
        """Who did not give the answer of the most; all of them where two answers are even."""
        sizes = sorted((len(alike) for alike in answers), reverse=True)
        most = sizes[0] if sizes[0] > sizes[1] else len(self.peers) + 1
        return tuple(peer for peer in self.peers if len(self._alike[peer]) < most)

    def _likelihood(self, honest: set[str], chance: Mapping[str, float]) -> float:
        return prod(chance[peer] if peer in honest else 1 - chance[peer] for peer in self.peers)


@dataclass(frozen=True, slots=True)
class Known:
    """A question whose answer some peers agreed on. name: of the receipt of one of them, and so of
    all that went in and came out."""

    name: bytes
    peers: tuple[str, ...]


class Canaries:
    """Known answers for some blocks of a model in one class, the newest `most` of each, for the
    newest `lines` of those.

    They look like any prompt, because they were one: somebody else's, a while ago, from this very
    client. Nobody is asked what it answered before. The rows themselves are kept by whoever calls,
    under `name`.
    """

    def __init__(self, most: int = 4, lines: int = 16) -> None:
        self._most = most
        self._lines = lines
        self._known: dict[tuple[str, str, str], dict[bytes, Known]] = {}

    def learn(self, model: str, blocks: str, numerics: str, known: Known) -> tuple[bytes, ...]:
        """Keep it; the names of those that make room, whose rows may be dropped."""
        key = model, blocks, numerics
        line = self._known.pop(key, {})
        self._known[key] = line
        line.pop(known.name, None)
        line[known.name] = known
        gone: list[bytes] = []
        if len(line) > self._most:
            gone.append(next(iter(line)))
            del line[gone[0]]
        if len(self._known) > self._lines:
            gone += self._known.pop(next(iter(self._known)))
        return tuple(gone)

    def pick(
        self, model: str, blocks: str, numerics: str, lots: Lots, name: bytes, peer: str
    ) -> Known | None:
        """One for this peer to answer, by the lot of a receipt of its."""
        line = self._known.get((model, blocks, numerics), {})
        fit = [known for known in line.values() if peer not in known.peers]
        return fit[lots.pick("canary", len(fit), name)] if fit else None
