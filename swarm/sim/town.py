"""Who is there when strangers lie: peers with keys, what each of them computes, what each knows.

Work is a label in place of rows: "right", or what a liar makes of it, the same as often as its rows
would be. Between two labels an error is drawn of the size that was measured, or published, for the
cheat; between two classes of numbers, a rounding. Signatures are real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ...crypto.digest import digest
from ...crypto.keys import IdentityKey
from ...dht.network import Prefixes
from ...dht.record import Announcement, Record, sign_fact
from ..audit import KEY_BYTES, AuditConfig, Canaries, Lots, rate
from ..evidence import KNOWN_MIN_S, Evidence, Standing
from ..history import PeerHistory
from ..receipt import CHUNK_TOKENS, Opening
from ..replica import Replica
from ..reputation import Reputation
from ..score import Scores
from ..tolerance import Tolerances
from .clock import Clock
from .dice import Dice
from .lies import Told

NOW: Final = 1_900_000_000.0
MODEL: Final = "ab" * 32
RIGHT: Final = "right"
OURS, THEIRS = "none c1", "none torch fp32"  # classes: one of equal bits, and another
NETWORKS: Final = 60  # /16s
ROUNDING: Final = 3e-4  # between the two; measured, at most 2e-6 to 4e-4 (demo/limits.json)
LIMITS: Final = Tolerances({("*", OURS, THEIRS): {1: 1e-3}, ("*", THEIRS, THEIRS): {1: 1e-3}})
SIZES: Final = {  # median errors: the first two of algorithms.md 4.3, then guesses below them
    "four_bit": 0.127, "skip": 0.222, "smaller": 0.2, "collude": 0.06, "replay": 0.9, "random": 1.0,
}  # fmt: skip
CONFIG: Final = AuditConfig()


@dataclass(slots=True)
class Peer:
    """One that serves a part of the model. told: its lie, if it lies."""

    number: int
    key: IdentityKey
    part: int
    network: str
    numerics: str
    told: Told | None = None
    computed: int = 0

    @property
    def id(self) -> str:
        return self.key.peer_id

    @property
    def lie(self) -> str:
        return self.told.line.lie if self.told else ""

    @property
    def where(self) -> Prefixes:
        wide = self.network.partition(".")[0]
        return f"{wide}/8", f"{self.network}/16", f"{self.network}.{self.number}/24"

    def compute(self, dice: Dice) -> str:
        """What comes out of one chunk."""
        if self.told is None or self.lie not in SIZES or dice.random() >= self.told.share:
            return RIGHT
        self.computed += 1
        return f"{self.lie} {self.number}.{self.computed}" if self.lie in OWN else self.lie


OWN: Final = ("random", "replay")  # no two of these give the same; other liars of a kind agree


@dataclass(slots=True)
class Mind:
    """What an honest peer knows. refused: items of evidence that no honest peer says."""

    peer: Peer
    lots: Lots
    court: Evidence
    book: Reputation = field(default_factory=Reputation)
    replica: Replica = field(default_factory=Replica)
    canaries: Canaries = field(default_factory=Canaries)
    histories: dict[str, PeerHistory] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)
    refused: int = 0

    def rate(self, peer: str, now: float) -> float:
        return rate(self.book.valid(peer), self.book.credence(peer, now), CONFIG)

    def history(self, peer: str) -> PeerHistory:
        return self.histories.setdefault(peer, PeerHistory())

    def shuns(self, peer: str, now: float) -> bool:
        """By evidence, or by its own audits."""
        return self.book.banned(peer, now) or self.court.banned(peer, now)


@dataclass(frozen=True, slots=True)
class Ban:
    """by: the number of the mind; grounds: what it was convicted by."""

    by: int
    peer: str
    at_s: float
    grounds: str


class Town:
    """All of them, one clock, and who banned whom."""

    def __init__(
        self, count: int, parts: int, lies: tuple[Told, ...], each: int, dice: Dice
    ) -> None:
        """Of each lie `each` peers, spread over the parts; the others are honest."""
        self.dice = dice
        self.parts = parts
        self.clock = Clock(NOW)
        liars = [told for told in lies for _ in range(each)]
        assert len(liars) < count, "nobody is honest"
        self.peers = [self._peer(n, liars[n] if n < len(liars) else None) for n in range(count)]
        self.by_id = {one.id: one for one in self.peers}
        self.serving = [[one for one in self.peers if one.part == n] for n in range(parts)]
        self.bans: list[Ban] = []
        self.minds = {one.number: self._mind(one) for one in self.peers if one.told is None}
        self.records = {one.number: announced(one) for one in self.peers}

    def _peer(self, number: int, told: Told | None) -> Peer:
        key = IdentityKey.from_bytes(digest("sim stranger", number.to_bytes(4)))
        network = f"{self.dice.randrange(8)}.{self.dice.randrange(NETWORKS)}"
        numerics = THEIRS if told is None and self.dice.random() < 0.2 else OURS
        return Peer(number, key, number % self.parts, network, numerics, told)

    def _mind(self, me: Peer) -> Mind:
        lots = Lots(digest("sim lots", me.number.to_bytes(4))[:KEY_BYTES])
        mind = Mind(me, lots, Evidence(me.id, self._standing_of(me)))
        for other in self.peers:
            if other is not me:
                mind.scores.came(other.id, other.where, NOW)
        return mind

    def _standing_of(self, me: Peer) -> Callable[[str, Opening], Standing | None]:
        """What its own audits say of those who serve the blocks in question."""

        def standing(peer: str, opening: Opening) -> Standing | None:
            other = self.by_id.get(peer)
            if other is None or other.part != opening.start:
                return None
            alike = other.numerics == opening.numerics
            trust = self.minds[me.number].book.trust(peer, self.clock.now)
            return Standing(trust, other.network, KNOWN_MIN_S, alike)

        return standing

    def honest(self) -> set[str]:
        return {one.id for one in self.peers if one.told is None}

    def liars(self, lie: str) -> list[Peer]:
        return [one for one in self.peers if one.lie == lie]

    def ban(self, by: Mind, peer: str, grounds: str) -> None:
        self.bans.append(Ban(by.peer.number, peer, self.clock.now - NOW, grounds))

    def errors(self, one: str, other: str, classes: tuple[str, str]) -> list[float]:
        """Of the tokens of a chunk that two peers computed."""
        if one == other:
            rounding = 0.0 if classes == (OURS, OURS) else ROUNDING
            return [rounding * self.dice.random() for _ in range(CHUNK_TOKENS)]
        size = max(SIZES.get(label.partition(" ")[0], 0.0) for label in (one, other))
        return [size * self.dice.uniform(0.7, 1.3) for _ in range(CHUNK_TOKENS)]


def announced(
    peer: Peer, *, now: float = NOW, free: int = 4096, boot: int = 2, seq: int = 1
) -> Record:
    """What it says of itself."""
    address = f"/ip4/10.{peer.network}.{peer.number % 250}/tcp/9/p2p/{peer.id}"
    fact = Announcement(
        model=MODEL, name="strangers", start=peer.part, stop=peer.part + 1, blocks=16,
        state="online", device="cpu", dtype="float32", quantization="none", decode_tokens_s=20.0,
        prefill_tokens_s=200.0, addresses=(address,), cache_tokens_free=free,
        context_tokens_max=2048, numerics=peer.numerics, version="0",
    )  # fmt: skip
    return sign_fact(peer.key, fact, boot=boot, seq=seq, now=now)
