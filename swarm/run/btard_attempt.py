"""One attempt at a guarded step, in one standing: what was said in it, and what is missing.

    pledge ─ parts ─▶ reduced ─ results ─▶ reveal ─ coin ─▶ sums ─ checks ─▶ settled

A phase is over for a member when nothing is missing: every statement is there, each says that its
signer heard the same in the phase before, and the numbers that belong to it have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from ...crypto.digest import digest
from .btard_events import Measured, Terms, Transcript
from .btard_record import Standing
from .btard_wire import PHASES, Heard, Phase, Pledge, Reduced, Reveal, Settled, Statement, Sums
from .coin import Toss

SLACK_OF_RESULT = 2e-7  # a result is rounded to fp32: 2^-24 of its norm, three times
SLACK_OF_RADIUS = 1e-8  # clipping ends when a round moves it by less than a tenth of that
SHARE_SLACK = 1e-6  # between two peers' sums of the same numbers, over the norm


class Attempt:
    """What one member knows of it. me: the own seat. loads: whose digests the caller keeps."""

    def __init__(self, terms: Terms, standing: Standing, me: int, loads: Set[bytes]) -> None:
        self.standing = standing
        self.members = standing.members
        self.phase = 0  # of PHASES: the last that we spoke in
        self.pledged_s: float | None = None  # when all pledges were there
        self.scales: tuple[float, ...] = ()  # the norms of the results
        self.accused = False  # somebody, by us
        self._outcome: bytes | None = None
        self._terms = terms
        self._me = me
        self._heard: dict[Phase, dict[int, Heard]] = {phase: {} for phase in PHASES}
        self._loads = loads  # that have come, in this step
        self._toss = Toss(standing.name, [terms.roster[seat] for seat in self.members])

    @property
    def coin(self) -> bytes | None:
        """Once all have revealed."""
        return self._toss.number()

    @property
    def is_pledged(self) -> bool:
        return len(self._heard["pledge"]) == len(self.members)

    @property
    def is_signed(self) -> bool:
        """By us: we have nothing to say against its outcome."""
        return self._me in self._heard["settled"]

    @property
    def mine(self) -> int:
        """Which part is ours."""
        return self.members.index(self._me)

    def heard(self, phase: Phase, seat: int) -> Heard | None:
        return self._heard[phase].get(seat)

    def body(self, phase: Phase, seat: int) -> Statement | None:
        found = self._heard[phase].get(seat)
        return None if found is None else found.body  # type: ignore[return-value]

    def hear(self, seat: int, heard: Heard) -> None:
        """A statement of this standing by a member. One that has signed two outcomes has signed
        ours, if that is one of them."""
        before = self._before("settled")
        if heard.body.TAG != "settled" or not self._is_there("settled", seat, before):
            self._heard[heard.body.TAG][seat] = heard  # type: ignore[index]
        peer = self._terms.roster[seat]
        match heard.body:
            case Pledge(toss=toss):
                self._toss.commit(peer, toss)
            case Reveal():
                self._take_up()

    def _take_up(self) -> None:
        """Secrets count when all have committed, in whatever order they came."""
        for seat, heard in self._heard["reveal"].items():
            if isinstance(heard.body, Reveal):
                self._toss.reveal(self._terms.roster[seat], heard.body.secret)

    def has(self, loads: Iterable[bytes]) -> bool:
        return all(one in self._loads for one in loads)

    def seen(self, phase: Phase) -> tuple[bytes, ...]:
        """What the next statement says of this phase, which is over."""
        return tuple(self._heard[phase][seat].digest for seat in self.members)

    def column(self, part: int) -> tuple[bytes, ...]:
        """What the reducer of this part was sent, by the pledges; () before all are there."""
        pledges = [self.body("pledge", seat) for seat in self.members]
        fit = [one for one in pledges if isinstance(one, Pledge) and self.is_fit(one)]
        return tuple(one.parts[part] for one in fit) if len(fit) == len(self.members) else ()

    def results(self) -> tuple[bytes, ...]:
        found = [self.body("reduced", seat) for seat in self.members]
        return tuple(one.result for one in found if isinstance(one, Reduced))

    def outcome(self) -> bytes:
        """Of an attempt whose coin is known: nothing of it changes any more."""
        if self._outcome is None:
            assert self.coin is not None
            name, results = self.standing.name, self.results()
            self._outcome = digest("guarded outcome", name, self.coin, *results)
        return self._outcome

    def transcript(self) -> Transcript:
        heard = tuple(
            self._heard[phase][seat]
            for phase in PHASES
            for seat in self.members
            if seat in self._heard[phase]
        )
        return Transcript(self.standing, heard, self.coin)

    def is_fit(self, pledge: Pledge) -> bool:
        """Whether it is made of the weights and the batches of this step, for this standing."""
        wanted = self._terms.anchor, self._terms.coin, len(self.members)
        return (pledge.anchor, pledge.coin, len(pledge.parts)) == wanted

    def missing(self, phase: Phase) -> list[int]:
        """Whose part in this phase is not there, or not right."""
        before = self._before(phase)
        return [seat for seat in self.members if not self._is_there(phase, seat, before)]

    def _before(self, phase: Phase) -> tuple[bytes | None, ...]:
        """What we heard in the phase before this one."""
        if phase == "pledge":
            return ()
        heard = self._heard[PHASES[PHASES.index(phase) - 1]]
        return tuple(heard[seat].digest if seat in heard else None for seat in self.members)

    def echoes_otherwise(self, heard: Heard) -> list[int]:
        """Of whom the signer heard something in the phase before that we did not."""
        return self.differs(heard.body.TAG, getattr(heard.body, "seen", ()))  # type: ignore[arg-type]

    def differs(self, phase: Phase, told: tuple[bytes, ...]) -> list[int]:
        """Of whom something was heard before this phase that we did not hear."""
        if len(told) != len(self.members):
            return []
        before = self._before(phase)
        found = zip(self.members, told, before, strict=True)
        return [seat for seat, said, known in found if known != said]

    def _is_there(self, phase: Phase, seat: int, before: tuple[bytes | None, ...]) -> bool:
        heard = self._heard[phase].get(seat)
        if heard is None or getattr(heard.body, "seen", ()) != before:
            return False
        match heard.body:
            case Pledge() as pledge:
                return self.is_fit(pledge) and self.has([pledge.parts[self.mine]])
            case Reduced(result=result):
                return self.has([result])
            case Reveal():
                return self._terms.roster[seat] not in self._toss.missing()
            case Sums(sums=sums, norms=norms):
                return len(sums) == len(norms) == len(self.members)
            case Settled(outcome=outcome):
                return self.coin is not None and outcome == self.outcome()
        return False

    def doubtful_parts(self) -> list[int]:
        """Whose shares do not add up to nothing, or from whose result more than half are too far.

        CenteredClip's result is where the clipped shares cancel, so their lengths along any
        direction do; no more is left than fp32's rounding of the result.
        """
        said = [body for seat in self.members if isinstance(body := self.body("sums", seat), Sums)]
        found = []
        for part, scale in enumerate(self.scales):
            total = sum(one.sums[part] for one in said)
            slack = SLACK_OF_RESULT * scale + SLACK_OF_RADIUS * self._terms.radius
            far = sum(one.norms[part] > self._terms.far_most for one in said)
            if not abs(total) <= len(said) * slack or 2 * far > len(said):
                found.append(part)
        return found

    def lies_in_mine(self, measured: Measured) -> bool:
        """Whether somebody's share of our part is not what we measure of what it sent us."""
        for seat, (share, norm, _) in zip(self.members, measured, strict=True):
            body = self.body("sums", seat)
            if isinstance(body, Sums) and not is_share(
                (body.sums[self.mine], body.norms[self.mine]), (share, norm)
            ):
                return True
        return False


def is_share(said: tuple[float, float], found: tuple[float, float]) -> bool:
    """Whether two peers' (sum, norm) of the same numbers are the same, but for their order."""
    slack = SHARE_SLACK * found[1]
    return abs(said[0] - found[0]) <= slack and abs(said[1] - found[1]) <= slack
