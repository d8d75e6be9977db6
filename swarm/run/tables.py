"""The tables of a run's file that one kind of exchange alone reads: [exchange.guarded], ...

A guarded group is closed: who may vote decides who is banned, so its members stand in the file, and
so does the class of numerics in which they must get the same bits. Whoever is no member, or gets
other bits, is told what would have to stand there. Sources: Gorbunov et al., 2022 (a fixed group,
of which fewer than half lie); Malladi et al., 2023 (MeZO's sizes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ...crypto.codec import Range, Size
from ...crypto.keys import PEER_ID_CHARS

PeerId = Annotated[str, Size(PEER_ID_CHARS, PEER_ID_CHARS)]


@dataclass(frozen=True, slots=True)
class Guarding:
    """members: peer ids; numerics: the class in which all of them compute. radius: beyond which a
    share of a contribution is clipped. rate: of the outer step. validators: pairs that are drawn in
    each attempt. gather_s: by how much the slowest may be behind; phase_s, check_s: of a step."""

    members: Annotated[tuple[PeerId, ...], Size(32)] = ()
    numerics: Annotated[str, Size(64)] = ""
    radius: Annotated[float, Range(1e-9, 1e9)] = 1.0
    rate: Annotated[float, Range(1e-6, 10.0)] = 1.0
    validators: Annotated[int, Range(1, 16)] = 1
    gather_s: Annotated[float, Range(1.0, 86_400.0)] = 120.0
    phase_s: Annotated[float, Range(0.5, 3600.0)] = 10.0
    check_s: Annotated[float, Range(1.0, 86_400.0)] = 120.0


@dataclass(frozen=True, slots=True)
class Scalars:
    """An epoch has `training.inner_steps` rounds, in each of which a peer says one byte. probe: how
    far away the loss is measured. grain: the smallest slope that is told from none. least: answers
    without which a direction is not gone. trim_percent: of them, left out at either end. round_s:
    how long a round waits for others; most: of those who take part, until whose words."""

    probe: Annotated[float, Range(1e-9, 1.0)] = 1e-3
    grain: Annotated[float, Range(1e-9, 1.0)] = 1e-3
    least: Annotated[int, Range(1, 1024)] = 3
    trim_percent: Annotated[int, Range(0, 50)] = 35
    round_s: Annotated[float, Range(0.1, 3600.0)] = 30.0
    most: Annotated[float, Range(0.1, 1.0)] = 2 / 3
