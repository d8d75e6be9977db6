"""One liar among real peers: it knows what it pulled and trained, and answers who pulls from it.

    pulled, trained ─▶ heard(peer, weights) ─▶ Scene ─▶ attack ─▶ reply(victim)

For tests and the testnet. The attacks of attacks.py know everything; here the scene is put together
from the last weights of each peer that was heard, with the liar's own last anchor in place of
theirs, so that most attacks aim less well than in the laboratory.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import torch
from torch import Tensor

from ....errors import UserError
from .aggregator import Judge
from .attacks import ATTACKS, DELAY, Scene
from .rules import Aggregator

KNOWN_MAX: Final = 64  # peers whose last weights are kept, and DELAY before them


class Liar:
    """liars: how many there are in all, who are taken to say the same. asked, believed: s and b."""

    def __init__(
        self,
        attack: str,
        aggregate: Aggregator,
        *,
        liars: int,
        asked: int,
        believed: int,
        seed: int,
        harm: Judge | None = None,
    ) -> None:
        """Raises UserError for an attack that is not there."""
        if attack not in ATTACKS:
            raise UserError(f"no attack is called {attack!r}: there are {', '.join(ATTACKS)}")
        self._attack = ATTACKS[attack]
        self._aggregate, self._harm = aggregate, harm
        self._liars, self._asked, self._believed = liars, asked, believed
        self._dice = torch.Generator().manual_seed(seed)
        self._last: OrderedDict[str, Tensor] = OrderedDict()
        self._before: dict[str, list[Tensor]] = {}
        self._anchor: Tensor | None = None

    def begin(self, anchor: Tensor) -> None:
        """Where the own inner steps of this epoch began: [d]."""
        self._anchor = anchor

    def heard(self, peer: str, weights: Tensor) -> None:
        """What an honest peer told, or what was trained here: [d]."""
        self._before[peer] = [*self._before.get(peer, []), weights][-DELAY:]
        self._last[peer] = weights
        self._last.move_to_end(peer)
        if len(self._last) > KNOWN_MAX:
            forgotten, _ = self._last.popitem(last=False)
            del self._before[forgotten]

    def reply(self, victim: str) -> Tensor | None:
        """What to tell it: [d]; None: nothing. A victim that was never heard is told what the peer
        last heard would be."""
        if not self._last or self._anchor is None:
            return None
        names = list(self._last)
        honest = torch.stack([self._last[name] for name in names])
        scene = Scene(
            honest,
            self._anchor.expand_as(honest),
            torch.stack([self._before[name][0] for name in names]),
            self._liars,
            self._aggregate,
            self._believed,
            self._asked,
            self._dice,
            self._harm,
        )
        row = names.index(victim) if victim in self._last else len(names) - 1
        told = self._attack(scene)[row, 0]
        return told if bool(torch.isfinite(told).all()) else None
