"""A conviction that a third party can check, offline: signatures, and work done again.

    CaseFile   roster and standing (which the accused signed by digest), the statements of the
               attempt, the loads that it is about, and whoever accused falsely its accusation
               ──▶ convicted ──▶ the peer that is guilty, or RemoteError

Nothing in it is believed: statements are signed by whose they are, the standing's name is computed
again, the coin is drawn again from what was committed and revealed, loads are known by digests that
were signed, and who is guilty is judged anew (btard_judge.py). The rulings of the group go with it
for whoever cannot work it out again, and prove nothing. What convicts by two claims for one place
needs no file: it is a `Contradiction` (swarm/testimony.py). Source: Gorbunov et al., 2022 (ACCUSE).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final, Literal

from ...crypto.codec import Range, Size, decode, encode
from ...errors import RemoteError
from ...swarm.run.btard_events import Convict, Transcript
from ...swarm.run.btard_record import Standing, case_of, standing_of, step_place
from ...swarm.run.btard_wire import (
    GROUP_MAX,
    LOAD_BYTES_MAX,
    PHASES,
    STATEMENTS,
    Accusation,
    Digest,
    Heard,
    Phase,
    Pledge,
    Reduced,
    Reveal,
    Said,
    Seat,
    Sums,
    hear,
    load_digest,
)
from ...swarm.run.coin import Toss
from ...swarm.testimony import Peer
from .btard_judge import Again, Law, judge

FILE_BYTES_MAX: Final = 2 * LOAD_BYTES_MAX
SAID_MAX: Final = 6 * GROUP_MAX  # five statements and a ruling of each, and an accusation
LOADS_MAX: Final = 2 * GROUP_MAX
Seats = Annotated[tuple[Seat, ...], Size(GROUP_MAX)]


@dataclass(frozen=True, slots=True)
class CaseFile:
    """by: who accused; none where the shares did."""

    run: Digest
    epoch: Annotated[int, Range(0, 1 << 40)]
    roster: Annotated[tuple[Peer, ...], Size(GROUP_MAX, 2)]
    banned: Seats
    silent: Seats
    left: Seats
    disputes: Annotated[tuple[tuple[Seat, Seat], ...], Size(GROUP_MAX)]
    kind: Literal["work", "part"]
    about: Seat
    by: Seat | None
    guilty: Seat
    said: Annotated[tuple[Said, ...], Size(SAID_MAX)]
    loads: Annotated[tuple[Annotated[bytes, Size(LOAD_BYTES_MAX)], ...], Size(LOADS_MAX)]


def file_of(
    convict: Convict, run: bytes, epoch: int, roster: tuple[str, ...], loads: Mapping[bytes, bytes]
) -> bytes:
    """What to keep, and to show to whoever asks."""
    case, transcript = convict.case, convict.transcript
    assert case is not None and transcript is not None
    standing = transcript.standing
    heard = [*transcript.heard, *convict.filed][:SAID_MAX]
    wanted = _loads_of(case.kind, roster[case.about], transcript, "")
    kind: Literal["work", "part"] = "work" if case.kind == "work" else "part"
    told = CaseFile(
        run, epoch, roster, standing.banned, standing.silent, standing.left, standing.disputes,
        kind, case.about, case.by,
        roster.index(convict.peer), tuple(one.said for one in heard),
        tuple(loads[name] for name in wanted if name in loads),
    )  # fmt: skip
    return encode(told)


def _loads_of(kind: str, about: str, transcript: Transcript, numerics: str) -> list[bytes]:
    """Without which there is nothing to judge, for somebody whose numerics are these."""
    pledges = transcript.of("pledge")
    results = {
        peer: one.body.result
        for peer, one in transcript.of("reduced").items()
        if isinstance(one.body, Reduced)
    }
    if kind == "work":
        pledge = pledges[about].body
        assert isinstance(pledge, Pledge)
        parts = pledge.parts if pledge.numerics != numerics else ()
        return [*parts, *(results.values() if about in transcript.of("sums") else ())]
    part = list(pledges).index(about)
    column = [one.body.parts[part] for one in pledges.values() if isinstance(one.body, Pledge)]
    return [*column, *([results[about]] if about in results else [])]


def convicted(raw: bytes, law: Law, again: Again) -> str:
    """The guilty peer. law: as the run says, but for the roster. Blocks for as long as working it
    out again takes. Raises RemoteError unless the file proves it."""
    told = decode(raw, CaseFile, max_bytes=FILE_BYTES_MAX)
    seats = (told.about, told.guilty, told.about if told.by is None else told.by)
    if list(told.roster) != sorted(set(told.roster)) or max(seats) >= len(told.roster):
        raise RemoteError("a roster that is none")
    place = step_place(told.run, told.epoch, told.roster)
    standing = standing_of(
        place, len(told.roster), told.banned, told.silent, told.left, told.disputes
    )
    heard = [_heard(one, told) for one in told.said]
    statements = tuple(
        one
        for one in heard
        if isinstance(one.body, STATEMENTS) and one.body.standing == standing.name
    )
    transcript = _transcript(told, standing, statements)
    loads = {load_digest(load): load for load in told.loads}
    wanted = _loads_of(told.kind, told.roster[told.about], transcript, law.numerics)
    if not loads.keys() >= set(wanted):
        raise RemoteError("what would have to be judged is not there")
    law = Law(told.roster, law.count, law.radius, law.numerics, law.tolerance)
    case = case_of(standing.name, told.kind, told.about, told.by)
    found = judge(law, case, transcript, loads, again)
    guilty = told.roster[told.guilty]
    _check_echoes(transcript, guilty)
    if told.guilty in found.guilty:
        return guilty
    last: Phase = "sums" if transcript.of("sums") else "pledge"
    accusation = Accusation(standing.name, told.kind, told.about, _digests(transcript, last))
    accused = any(one.peer == guilty and one.body == accusation for one in heard)
    if accused and found.sure and not found.guilty:
        return guilty
    raise RemoteError(f"nothing here convicts {guilty}")


def _digests(transcript: Transcript, phase: Phase) -> tuple[bytes, ...]:
    return tuple(one.digest for one in transcript.of(phase).values())


def _check_echoes(transcript: Transcript, peer: str) -> None:
    """Nobody is judged by what others said, unless that is what it heard. Raises RemoteError."""
    for before, phase in pairwise(PHASES):
        said = transcript.of(phase).get(peer)
        if said is not None and getattr(said.body, "seen", ()) != _digests(transcript, before):
            raise RemoteError(f"{peer} heard something else")


def _heard(said: Said, told: CaseFile) -> Heard:
    found = hear(said)
    if (found.claim.run, found.claim.epoch) != (told.run, told.epoch):
        raise RemoteError("a statement of another step")
    if found.peer not in told.roster:
        raise RemoteError("a statement by somebody without a seat")
    return found


def _transcript(told: CaseFile, standing: Standing, heard: tuple[Heard, ...]) -> Transcript:
    """In the order of the members, and the coin if all of them revealed. Raises RemoteError unless
    what the judge looks at is there."""
    members = [told.roster[seat] for seat in standing.members]
    toss = Toss(standing.name, members)
    early = Transcript(standing, heard, None)
    pledges = early.of("pledge")
    if told.about not in standing.members or set(early.of("reduced")) - set(members):
        raise RemoteError("statements by those who were out")
    if set(pledges) != set(members):
        raise RemoteError("a pledge is missing, or one too many is there")
    for peer, one in pledges.items():
        assert isinstance(one.body, Pledge)
        if len(one.body.parts) != len(members):
            raise RemoteError("a pledge of another number of parts")
        toss.commit(peer, one.body.toss)
    for peer, one in early.of("reveal").items():
        if isinstance(one.body, Reveal) and peer in members:
            toss.reveal(peer, one.body.secret)
    shares = early.of("sums")
    if shares and not set(early.of("reduced")) == set(members) >= set(shares):
        raise RemoteError("shares of what was not reduced, or by those who were out")
    for one in shares.values():
        if isinstance(one.body, Sums) and not (
            len(one.body.sums) == len(one.body.norms) == len(members)
        ):
            raise RemoteError("shares of another number of parts")
    ordered = [
        one for phase in PHASES for _, one in sorted(early.of(phase).items())
    ]  # peer ids are in the order of seats
    return Transcript(standing, tuple(ordered), toss.number())
