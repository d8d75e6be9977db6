"""Who is guilty in a case of a guarded group: from what was signed, what was shown, and by working
it out again.

    case, statements, loads ──▶ judge ──▶ who is guilty, whoever asks, and whenever

The same function rules while the group is at it and for whoever is shown the case later
(btard_file.py). What convicts by comparing digests holds within
one class of numerics, where equal steps give equal bits; between two, the numbers themselves are
compared, within a tolerance. Source: Gorbunov et al., 2022 (ACCUSE).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...swarm.run.btard_attempt import is_share
from ...swarm.run.btard_events import Found, Transcript
from ...swarm.run.btard_record import Case
from ...swarm.run.btard_wire import (
    GROUP_MAX,
    LOAD_BYTES_MAX,
    Pledge,
    Reduced,
    Sums,
    load_digest,
)
from ...swarm.run.coin import batch_seed
from .btard_numbers import (
    NUMBER,
    Floats,
    bounds,
    clip,
    cut,
    direction,
    is_fixed,
    measure,
    numbers,
)

FILE_BYTES_MAX: Final = 2 * LOAD_BYTES_MAX
SAID_MAX: Final = 8 * GROUP_MAX

# The contribution, fp32 bytes, that these weights (by digest) and this seed of batches give.
Again = Callable[[bytes, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Law:
    """What a group judges by. count: numbers of a contribution. tolerance: relative error between
    the contributions of two classes of numerics, the own one being `numerics`; 0: not known."""

    roster: tuple[str, ...]
    count: int
    radius: float
    numerics: str
    tolerance: float


def judge(
    law: Law, case: Case, transcript: Transcript, loads: Mapping[bytes, bytes], again: Again
) -> Found:
    """Blocks for as long as working it out again takes."""
    if case.kind == "work":
        return _judge_work(law, case, transcript, loads, again)
    return _judge_part(law, case, transcript, loads)


def _judge_work(
    law: Law, case: Case, transcript: Transcript, loads: Mapping[bytes, bytes], again: Again
) -> Found:
    peer = law.roster[case.about]
    heard = transcript.of("pledge").get(peer)
    guilty = Found((case.about,))
    if heard is None or not isinstance(heard.body, Pledge):
        return Found(())
    pledge = heard.body
    own = again(pledge.anchor, batch_seed(pledge.coin, peer))
    mine = cut(own, len(transcript.members))
    if pledge.numerics == law.numerics:
        if tuple(map(load_digest, mine)) != pledge.parts:
            return guilty
        shown = own
    elif law.tolerance == 0:
        return Found((), sure=False)  # no limit is known: nobody is convicted by one
    else:
        told = [loads.get(one, b"") for one in pledge.parts]
        if list(map(len, told)) != list(map(len, mine)):
            return guilty
        shown = b"".join(told)
        if not _alike(shown, own, law.tolerance):
            return guilty
    parts = _false_shares(law, transcript, peer, cut(shown, len(transcript.members)), loads)
    if parts:
        return Found((case.about,), tuple(parts))
    accuser = None if case.by is None else transcript.of("pledge").get(law.roster[case.by])
    body = None if accuser is None else accuser.body
    closer = isinstance(body, Pledge) and body.numerics == pledge.numerics != law.numerics
    return Found((), sure=not closer)  # equal bits are for those of its class to tell


def _alike(shown: bytes, own: bytes, tolerance: float) -> bool:
    one, other = (numbers(raw, len(own) // NUMBER.itemsize) for raw in (shown, own))
    if one is None or other is None:
        return False
    return float(np.linalg.norm(one - other)) <= tolerance * float(np.linalg.norm(other))


def _false_shares(
    law: Law, transcript: Transcript, peer: str, parts: list[bytes], loads: Mapping[bytes, bytes]
) -> list[int]:
    """In which parts this peer's share is not what it said; none where it said nothing yet."""
    heard, reduced = transcript.of("sums").get(peer), transcript.of("reduced")
    if heard is None or not isinstance(heard.body, Sums) or transcript.coin is None:
        return []
    found = []
    places = bounds(law.count, len(parts))
    for part, (seat, (start, stop)) in enumerate(zip(transcript.members, places, strict=True)):
        said = reduced[law.roster[seat]].body
        share = numbers(parts[part], stop - start)
        assert isinstance(said, Reduced)
        result = numbers(loads.get(said.result), stop - start)
        along = direction(transcript.coin, part, stop - start)
        measured = (0.0, 0.0, 0.0) if share is None else measure(share, result, law.radius, along)
        if share is None or not is_share(
            (heard.body.sums[part], heard.body.norms[part]), measured[:2]
        ):
            found.append(part)
    return found


def _judge_part(
    law: Law, case: Case, transcript: Transcript, loads: Mapping[bytes, bytes]
) -> Found:
    part = transcript.members.index(case.about)
    start, stop = bounds(law.count, len(transcript.members))[part]
    shares, broken = [], []
    for seat in transcript.members:
        pledge = transcript.of("pledge")[law.roster[seat]].body
        assert isinstance(pledge, Pledge)
        share = numbers(loads.get(pledge.parts[part]), stop - start)
        shares.append(share)
        broken += [seat] if share is None else []
    heard = transcript.of("reduced").get(law.roster[case.about])
    if heard is None or not isinstance(heard.body, Reduced):
        return Found(tuple(broken))
    result = numbers(loads.get(heard.body.result), stop - start)
    sound = [share for share in shares if share is not None]
    guilty = set(broken)
    if broken or result is None or _is_off(law, sound, result):
        guilty.add(case.about)  # that it made something of what is broken is its own doing
    guilty.update(_who_lies(law, transcript, part, shares, result))
    return Found(tuple(sorted(guilty)))


def _is_off(law: Law, shares: list[Floats], result: Floats) -> bool:
    """Whether we get to the fixed point and the reducer did not: who cannot do it accuses nobody
    of not having done it."""
    if is_fixed(shares, result, law.radius):
        return False
    own = numbers(clip(shares, law.radius), len(result))
    return own is not None and is_fixed(shares, own, law.radius)


def _who_lies(
    law: Law, transcript: Transcript, part: int, shares: list[Floats | None], result: Floats | None
) -> list[int]:
    if transcript.coin is None or result is None:
        return []
    found = []
    for seat, share in zip(transcript.members, shares, strict=True):
        heard = transcript.of("sums").get(law.roster[seat])
        if share is None or heard is None or not isinstance(heard.body, Sums):
            continue
        measured = measure(share, result, law.radius, direction(transcript.coin, part, len(share)))
        if not is_share((heard.body.sums[part], heard.body.norms[part]), measured[:2]):
            found.append(seat)
    return found
