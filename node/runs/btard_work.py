"""Does the jobs of a guarded step (swarm/run/btard_events.py), and keeps the numbers by digest."""

from __future__ import annotations

from ...swarm.run.btard_events import Clip, Cut, Found, Job, Judge, Measure, Measured, Outcome
from ...swarm.run.btard_wire import load_digest
from .btard_judge import Again, Law, judge
from .btard_numbers import NUMBER, bounds, clip, cut, direction, measure, numbers


class Workshop:
    """Of one member, in one step. again: contributions of others, from their batches' seeds.

    Every call may block. One job at a time, on whatever thread.
    """

    def __init__(self, law: Law, contribution: bytes, again: Again) -> None:
        assert len(contribution) == NUMBER.itemsize * law.count
        self.law = law
        self.loads: dict[bytes, bytes] = {}
        self._contribution = contribution
        self._again = again
        self._parts = 0

    def keep(self, load: bytes) -> bytes:
        """Its digest."""
        name = load_digest(load)
        self.loads[name] = load
        return name

    def do(self, job: Job) -> Outcome:
        match job:
            case Cut(parts):
                self._parts = parts
                return tuple(self.keep(part) for part in self.cut(parts))
            case Clip(sources):
                result = self.clip(sources)
                return None if result is None else self.keep(result)
            case Measure(shares, coin):
                return self.measure(shares, coin)
            case Judge():
                return self.judge(job)

    def cut(self, parts: int) -> list[bytes]:
        return cut(self._contribution, parts)

    def clip(self, sources: tuple[bytes, ...]) -> bytes | None:
        """None when one of them is no finite vector, or not as long as the others should be."""
        lengths = {len(self.loads[one]) // NUMBER.itemsize for one in sources}
        shares = [numbers(self.loads[one], max(lengths)) for one in sources]
        sound = [one for one in shares if one is not None]
        if len(sound) < len(shares):
            return None
        return clip(sound, self.law.radius)

    def measure(self, shares: tuple[tuple[int, bytes, bytes], ...], coin: bytes) -> Measured:
        found = []
        for part, share, result in shares:
            start, stop = bounds(self.law.count, self._parts)[part]
            along = direction(coin, part, stop - start)
            mine = numbers(self.loads[share], stop - start)
            assert mine is not None, "what is no vector was accused before it was measured"
            given = numbers(self.loads[result], stop - start)
            found.append(measure(mine, given, self.law.radius, along))
        return tuple(found)

    def judge(self, job: Judge) -> Found:
        return judge(self.law, job.case, job.transcript, self.loads, self._again)
